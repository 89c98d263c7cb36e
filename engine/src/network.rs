//! The container's network during the move.
//!
//! * [`Cut`] on the source: from the freeze on nothing reaches the container's
//!   interfaces or leaves them, not even an ARP answer. Data that arrived after
//!   CRIU had read the sockets would be acknowledged by the kernel and lost.
//!   Shortly before, it holds back requests for new connections only.
//! * [`Silence`] on the target: an address that moves must not speak there
//!   before the grant, although Docker has attached it already.
//! * [`announce`] tells the segment where the address is now.
//!
//! Rules live in nftables tables of our own, so undoing is deleting one table.
//! The `nft` process is started ahead and fed when the moment has come: its
//! start-up is not part of the downtime. Where even that is too slow a table is
//! emptied first ([`Lift`]) and deleted later.

mod flush;

pub mod backlog;
pub mod datagrams;
pub mod replay;

use crate::sys;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::process::{ExitStatus, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// Table of the source's cut, in the container's own network namespace.
pub(crate) const CUT: &str = "blip_cut";

/// What went wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// nft could not be run.
    #[error("cannot run nft to {what}: {source}; install the package nftables")]
    Start {
        /// What it was for.
        what: String,
        /// Why it did not start.
        source: io::Error,
    },
    /// nft refused the rules.
    #[error(
        "nft could not {what} ({status}): {message}; the kernel needs nf_tables with the netdev family (CONFIG_NF_TABLES_NETDEV, CONFIG_NETFILTER_EGRESS, Linux 5.16)"
    )]
    Rules {
        /// What it was for.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        message: String,
    },
    /// Something of the namespace could not be read or used.
    #[error("cannot {what} in the network namespace of process {pid}: {source}")]
    Namespace {
        /// What was tried.
        what: &'static str,
        /// Whose namespace.
        pid: i32,
        /// Why it failed.
        source: io::Error,
    },
}

/// An `nft` that is running and waits for its rules.
#[derive(Debug)]
struct Primed {
    child: Child,
    what: String,
}

impl Primed {
    /// `namespace`: the process whose network namespace is meant, or this one's.
    fn start(namespace: Option<i32>, what: String) -> Result<Self, NetworkError> {
        let mut command = match namespace {
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{pid}/ns/net")).arg("nft");
                command
            }
            None => Command::new("nft"),
        };
        let child = command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| NetworkError::Start { what: what.clone(), source })?;
        Ok(Self { child, what })
    }

    async fn fire(mut self, rules: &str) -> Result<(), NetworkError> {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A broken pipe means that it ended early: its status says why.
            let _ = stdin.write_all(rules.as_bytes()).await;
        }
        let output = self
            .child
            .wait_with_output()
            .await
            .map_err(|source| NetworkError::Start { what: self.what.clone(), source })?;
        if output.status.success() {
            return Ok(());
        }
        Err(NetworkError::Rules {
            what: self.what,
            status: output.status,
            message: first_line(&output.stderr),
        })
    }
}

/// What passes a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Nothing: the address lives on elsewhere.
    Nothing,
    /// Resets on their way out, and what finds the way for them. A container
    /// that stands still sends none; they leave when its connections are ended.
    Resets,
}

/// Cuts a container's interfaces off, and joins them again.
#[derive(Debug)]
pub struct Cut {
    pid: i32,
    interfaces: Vec<String>,
    but: Passage,
    hold: Option<Primed>,
    apply: Option<Primed>,
    /// New connections are held back.
    holding: bool,
}

const HOLD: &str = "hold new connections back";
const APPLY: &str = "cut the container off";

impl Cut {
    /// Prepares to cut all interfaces but `lo` of the network namespace of
    /// process `pid`. `but`: what may pass all the same. Touches nothing yet.
    pub fn prime(pid: i32, but: Passage) -> Result<Self, NetworkError> {
        let interfaces = interfaces(pid)?;
        let mut cut = Self { pid, interfaces, but, hold: None, apply: None, holding: false };
        if !cut.interfaces.is_empty() {
            cut.hold = Some(cut.start(HOLD)?);
            cut.apply = Some(cut.start(APPLY)?);
        }
        Ok(cut)
    }

    /// A cut of which nobody knows whether it is in force: to be released.
    pub fn of_unknown_state(pid: i32) -> Self {
        let (interfaces, but) = (Vec::new(), Passage::Nothing);
        Self { pid, interfaces, but, hold: None, apply: None, holding: true }
    }

    /// The rules are for the interfaces that there are now.
    pub fn look_again(&mut self) -> Result<(), NetworkError> {
        self.interfaces = interfaces(self.pid)?;
        Ok(())
    }

    /// Whether new connections are held back.
    pub fn is_holding(&self) -> bool {
        self.holding
    }

    fn start(&self, what: &str) -> Result<Primed, NetworkError> {
        Primed::start(Some(self.pid), what.to_owned())
    }

    /// Holds back requests for new connections. All else passes.
    pub async fn hold_newcomers(&mut self) -> Result<(), NetworkError> {
        if self.interfaces.is_empty() {
            return Ok(());
        }
        // Before the rules, which may be in force although the answer is lost.
        self.holding = true;
        let rules = remove_rules(&cut()) + &hold_rules(&self.interfaces);
        let primed = self.hold.take().map_or_else(|| self.start(HOLD), Ok)?;
        primed.fire(&rules).await
    }

    /// Lets new connections through again.
    pub async fn release(&mut self) -> Result<(), NetworkError> {
        if std::mem::take(&mut self.holding) { join(self.pid).await } else { Ok(()) }
    }

    /// Cuts. Returns what joins it again.
    pub async fn apply(mut self) -> Result<Applied, NetworkError> {
        let tables = !self.interfaces.is_empty() || self.holding;
        if !self.interfaces.is_empty() {
            let rules = cut_rules(&self.interfaces, self.but);
            let primed = self.apply.take().map_or_else(|| self.start(APPLY), Ok)?;
            primed.fire(&rules).await?;
        }
        Ok(Applied { pid: self.pid, tables, but: self.but, interfaces: self.interfaces })
    }
}

/// A cut in force. It stays when this value is dropped: only [`Applied::join`]
/// ends it, or the end of the namespace.
#[derive(Debug)]
pub struct Applied {
    pid: i32,
    tables: bool,
    but: Passage,
    interfaces: Vec<String>,
}

impl Applied {
    /// Lets packets through again.
    pub async fn join(self) -> Result<(), NetworkError> {
        if self.tables { join(self.pid).await } else { Ok(()) }
    }

    /// Back to holding new connections only, in one step.
    pub async fn loosen(self) -> Result<Cut, NetworkError> {
        let Self { pid, interfaces, but, .. } = self;
        let mut cut = Cut { pid, interfaces, but, hold: None, apply: None, holding: false };
        cut.hold_newcomers().await?;
        cut.apply = Some(cut.start(APPLY)?);
        Ok(cut)
    }
}

/// The cut's table, with its family.
fn cut() -> String {
    format!("{NETDEV} {CUT}")
}

/// Ends a cut in the namespace of process `pid`; fine if there is none.
pub async fn join(pid: i32) -> Result<(), NetworkError> {
    let primed = Primed::start(Some(pid), "join the container again".to_owned())?;
    primed.fire(&remove_rules(&cut())).await
}

/// What came for the container while it was cut off: its kernel never saw these
/// frames, so nobody has acknowledged them. Sent on to where the container runs
/// then, they are merely late; without that, clients wait for their
/// retransmission timers, 200 ms and more.
pub struct InFlight {
    taps: Vec<sys::net::Tap>,
    /// The address of the first interface.
    mac: Option<[u8; 6]>,
    /// Requests for connections that were held back before the cut.
    requests: Vec<sys::net::Frame>,
    /// Datagrams that the container has received and not read.
    unread: Vec<sys::net::Frame>,
}

/// The most requests for connections that are kept; who comes later repeats his
/// after a second.
const MOST_REQUESTS: usize = 16 << 10;

impl InFlight {
    /// Taps every interface but `lo` of the namespace of process `pid`. Open it
    /// before the cut.
    pub fn tap(pid: i32) -> Result<Self, NetworkError> {
        let open = |name: &String| sys::net::Tap::open(pid, name);
        let taps = interfaces(pid)?.iter().map(open).collect::<Result<_, _>>();
        let taps = taps.map_err(|source| NetworkError::Namespace {
            what: "tap the interfaces",
            pid,
            source,
        })?;
        let macs = sys::net::hardware_addresses(pid).unwrap_or_default();
        let mac = macs.into_iter().find(|(name, _)| name != "lo").map(|(_, mac)| mac);
        Ok(Self { taps, mac, requests: Vec::new(), unread: Vec::new() })
    }

    /// Forgets what has come so far: it reached the container.
    pub fn reset(&mut self) {
        self.requests.clear();
        self.new_frames().for_each(drop);
    }

    /// Forgets what has reached the container while new connections were held
    /// back: all but the requests for those.
    pub fn sift(&mut self) {
        let requests: Vec<_> = self.new_frames().filter(sys::net::Frame::asks_to_connect).collect();
        let room = MOST_REQUESTS - self.requests.len();
        self.requests.extend(requests.into_iter().take(room));
    }

    /// Takes along the datagrams that wait in the sockets of `processes`, which
    /// stand still: all of the container's.
    pub fn take_unread(&mut self, backlog: &backlog::Backlog, processes: &[i32]) {
        let Some(mac) = self.mac else { return };
        match datagrams::frames(backlog, processes, mac) {
            Ok(frames) => self.unread = frames,
            Err(error) => tracing::warn!("datagrams that nobody has read are lost: {error}"),
        }
    }

    fn new_frames(&self) -> impl Iterator<Item = sys::net::Frame> {
        self.taps.iter().flat_map(sys::net::Tap::frames)
    }

    /// Gives the container, which runs on here, everything that has come for it.
    /// `place`: where its one interface is.
    pub async fn give_back(&mut self, place: Option<Place>) {
        let mut frames = std::mem::take(&mut self.requests);
        frames.extend(self.new_frames());
        let Some(place) = place else { return };
        let given = tokio::task::spawn_blocking(move || match place {
            Place::Macvlan { parent } => replay::replay(&parent, frames),
            Place::Bridge { bridge, .. } => sys::net::send_frames(&bridge, &frames),
        });
        let given = given.await;
        if let Err(error) = given.map_err(io::Error::other).and_then(|given| given) {
            tracing::warn!("frames in flight are lost, clients repeat them: {error}");
        }
    }

    /// Sends everything that has come from interface `parent` of this host.
    /// Returns how many frames that were.
    pub fn forward(&self, parent: &str) -> io::Result<usize> {
        let kept = self.unread.iter().chain(&self.requests).cloned();
        let frames: Vec<_> = kept.chain(self.new_frames()).collect();
        sys::net::forward(parent, &frames)?;
        Ok(frames.len())
    }
}

/// A host on the container's segment, as its kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Interface of the container.
    #[serde(rename = "dev")]
    pub interface: String,
    /// IP address.
    #[serde(rename = "dst")]
    pub address: IpAddr,
    /// MAC address; absent while it is being asked for.
    #[serde(rename = "lladdr")]
    pub mac: Option<String>,
}

/// Whom the kernel knows in the namespace of process `pid`.
pub async fn neighbours(pid: i32) -> Vec<Neighbour> {
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .args(["ip", "-json", "neigh", "show"])
        .output()
        .await;
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let mut all: Vec<Neighbour> = serde_json::from_slice(&text).unwrap_or_default();
    all.retain(|neighbour| neighbour.mac.is_some());
    all
}

/// Tells the kernel in the namespace of process `pid` about its neighbours. It
/// would have to ask for them otherwise, and what asks before the silence is
/// lifted waits a second for the next try.
pub async fn introduce(pid: i32, neighbours: &[Neighbour]) -> io::Result<()> {
    let commands: String = neighbours
        .iter()
        .filter(|n| n.interface.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
        .filter_map(|n| Some((n, parse_mac(n.mac.as_deref()?)?)))
        .map(|(n, mac)| {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            format!("neigh replace {} lladdr {mac} dev {} nud stale\n", n.address, n.interface)
        })
        .collect();
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .args(["ip", "-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.as_bytes()).await?;
    }
    child.wait().await.map(drop)
}

/// The six bytes of a MAC address in its usual notation.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// Where on this host a container's interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On another interface, which must not be a bridge's.
    Macvlan {
        /// That interface.
        parent: String,
    },
    /// On a bridge.
    Bridge {
        /// The bridge.
        bridge: String,
        /// Its port that leads out of the host.
        uplink: String,
    },
}

impl Place {
    /// The interface whose cable leads to the other host.
    pub fn uplink(&self) -> &str {
        match self {
            Self::Macvlan { parent } => parent,
            Self::Bridge { uplink, .. } => uplink,
        }
    }
}

/// Families of tables, as nft calls them.
const NETDEV: &str = "netdev";
const BRIDGE: &str = "bridge";

/// Keeps addresses that are about to arrive here silent on their segment.
#[derive(Debug)]
pub struct Silence {
    /// Family and name.
    table: String,
}

impl Silence {
    /// Drops every frame from or to `addresses` at `place`. `name` makes the
    /// table's name.
    pub async fn impose(
        name: &str,
        place: &Place,
        addresses: &[String],
    ) -> Result<Self, NetworkError> {
        let (family, rules, at) = match place {
            Place::Macvlan { parent } => (NETDEV, silence_rules(parent, addresses), parent),
            Place::Bridge { uplink, bridge } => (BRIDGE, bridge_rules(uplink, addresses), bridge),
        };
        let table = format!("{family} blip_silence_{name}");
        let rules = format!("table {table} {{\n{rules}}}\n");
        Primed::start(None, format!("silence {at}"))?.fire(&rules).await?;
        Ok(Self { table })
    }

    /// Prepares to lift the silence, so that lifting costs nothing but the
    /// change itself.
    pub fn prime_lift(&self) -> io::Result<Lift> {
        flush::Flush::prime(&self.table).map(Lift)
    }

    /// Removes it, lifted or not.
    pub async fn remove(&self) -> Result<(), NetworkError> {
        let primed = Primed::start(None, "lift the silence".to_owned())?;
        primed.fire(&remove_rules(&self.table)).await
    }
}

/// A silence about to be lifted. Its table stays, empty, until it is
/// [removed](Silence::remove).
#[derive(Debug)]
pub struct Lift(flush::Flush);

impl Lift {
    /// Lifts it, in a fraction of a millisecond.
    pub fn now(&self) -> io::Result<()> {
        self.0.now()
    }
}

/// Deletes every table that an earlier blip left on this host.
pub async fn remove_leftovers() -> Result<(), NetworkError> {
    let listing = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .await
        .map_err(|source| NetworkError::Start { what: "list tables".to_owned(), source })?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    for table in listing.lines().filter_map(|line| line.strip_prefix("table ")) {
        if table.split(' ').any(|word| word.starts_with("blip_silence_")) {
            let primed = Primed::start(None, format!("delete table {table}"))?;
            primed.fire(&remove_rules(table)).await?;
        }
    }
    Ok(())
}

/// Tells everyone on the segment of `interface`, in the network namespace of
/// process `pid`, that `address` is at `mac` now.
pub fn announce(pid: i32, interface: &str, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
    sys::net::announce(pid, interface, mac, address)
}

/// Names of the interfaces of a process' network namespace, without `lo`.
fn interfaces(pid: i32) -> Result<Vec<String>, NetworkError> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))
        .map_err(|source| NetworkError::Namespace { what: "list the interfaces", pid, source })?;
    Ok(parse_interfaces(&text))
}

fn parse_interfaces(text: &str) -> Vec<String> {
    text.lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| name != "lo")
        .collect()
}

fn quoted(interfaces: &[String]) -> String {
    let list: Vec<String> = interfaces.iter().map(|name| format!("\"{name}\"")).collect();
    list.join(", ")
}

/// A first segment of TCP: it asks for a connection, and acknowledges nothing.
fn hold_rules(interfaces: &[String]) -> String {
    let list = quoted(interfaces);
    format!(
        "table netdev {CUT} {{\nchain hold {{ type filter hook ingress devices = {{ {list} }} priority -500; tcp flags & (fin|syn|rst|ack) == syn drop; }}\n}}\n"
    )
}

fn cut_rules(interfaces: &[String], but: Passage) -> String {
    let list = quoted(interfaces);
    let (neighbours, resets) = match but {
        Passage::Nothing => ("", ""),
        Passage::Resets => (
            "meta protocol arp accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept;",
            "tcp flags & rst == rst accept;",
        ),
    };
    let chain = |hook: &str, rules: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} devices = {{ {list} }} priority -500; policy drop; {neighbours} {rules} }}"
        )
    };
    format!("table netdev {CUT} {{\n{}\n{}\n}}\n", chain("ingress", ""), chain("egress", resets))
}

/// What arrives is dropped. What leaves is turned into the loopback, which
/// throws it away, and not dropped: a dropped frame is an error to its sender,
/// and Docker 28 gives up a container whose first announcement fails.
fn silence_rules(parent: &str, addresses: &[String]) -> String {
    let list = addresses.join(", ");
    let chain = |hook: &str, end: &str, fate: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} device \"{parent}\" priority -500; ether {end} {{ {list} }} {fate}; }}"
        )
    };
    format!(
        "{}\n{}\n",
        chain("ingress", "daddr", "drop"),
        chain("egress", "saddr", "fwd to \"lo\"")
    )
}

/// On a bridge the rest of this host must not hear the copy either, while it
/// goes on talking to the original, beyond the uplink. What a container's cable
/// carries may be dropped at the bridge: its sender does not see it.
fn bridge_rules(uplink: &str, addresses: &[String]) -> String {
    let list = addresses.join(", ");
    let chain = |hook: &str, way: &str, end: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority -500; {way} != \"{uplink}\" ether {end} {{ {list} }} drop; }}\n"
        )
    };
    [
        chain("prerouting", "iifname", "saddr"),
        chain("forward", "oifname", "daddr"),
        chain("output", "oifname", "daddr"),
    ]
    .concat()
}

/// nft repeats the rules after its complaint.
fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned()
}

/// `table`: family and name. Deleting what is not there is an error; what was
/// just added is there.
fn remove_rules(table: &str) -> String {
    format!("add table {table}\ndelete table {table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_not_cut() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\n eth1:5\n";
        assert_eq!(parse_interfaces(text), ["eth0", "eth1"]);
    }

    #[test]
    fn a_cut_is_one_table_with_both_directions() {
        let rules = cut_rules(&["eth0".into()], Passage::Nothing);
        assert!(!rules.contains("accept"), "{rules}");
        assert!(rules.contains("hook ingress devices = { \"eth0\" }"), "{rules}");
        assert!(rules.contains("hook egress devices = { \"eth0\" }"), "{rules}");
    }
}
