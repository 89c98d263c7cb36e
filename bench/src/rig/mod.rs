//! A lab with blip on its hosts: what the demo, the bench and its peers stand
//! on.
//!
//! This room alone knows blip's command line.

mod program;

use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;
use crate::lab::{Client, Host, Lab, LabSpec};
use crate::probe::{Here, Job, Place};
use crate::relay::{Relay, Weather};

pub use program::{blip, blip_beside};

/// Where blip is put on each host.
const BLIP: &str = "/usr/local/bin/blip";

/// The network whose addresses move with their containers.
pub const NETWORK: &str = "blipnet";

/// Where the agent listens unless it is told otherwise.
const AGENT_PORT: u16 = 4433;

/// A lab whose hosts have blip, know each other's keys, and run agents.
pub struct Rig {
    lab: Lab,
    place: ClientPlace,
    agents: Vec<Child>,
}

impl Rig {
    /// Brings the lab up, or takes it as it is, puts `blip` on its hosts and
    /// starts an agent on each of `targets`.
    ///
    /// # Errors
    /// When the lab does not come up or an agent does not listen.
    pub fn start(spec: &LabSpec, blip: &Path, targets: &[&str]) -> Result<Rig> {
        let lab = Lab::up(spec)?;
        let mut rig = Rig { place: ClientPlace(lab.client()), lab, agents: Vec::new() };
        for host in rig.lab.hosts() {
            host.install(blip, BLIP)?;
        }
        for host in rig.lab.hosts() {
            for other in rig.lab.hosts().iter().filter(|other| other.name() != host.name()) {
                let key = other.run(&[BLIP, "pair", "show"])?;
                host.run(&[BLIP, "pair", "add", key.trim(), other.name()])?;
            }
        }
        for name in targets {
            let agent = start_agent(rig.host(name)?)?;
            rig.agents.push(agent);
        }
        Ok(rig)
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where clients are.
    pub fn place(&self) -> &dyn Place {
        &self.place
    }

    /// A road to the agent of host `to` that has this weather.
    ///
    /// # Errors
    /// When there is no such host, or the relay does not start.
    pub fn road(&self, to: &str, weather: Weather) -> Result<Relay> {
        let agent = SocketAddr::from((self.host(to)?.address(), AGENT_PORT));
        let switch = self.lab.switch();
        let at = SocketAddr::from((switch.address(), 0));
        Relay::start(&ClientPlace(switch), at, agent, weather).context("starting the relay")
    }

    /// A host.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        Ok(self.lab.host(name)?)
    }

    /// Runs `blip migrate` to its end, or kills it when `limit` is over.
    ///
    /// # Errors
    /// When the command could not be run at all. A migration that did not
    /// happen is no error: its report says so.
    pub fn migrate(
        &self,
        order: &Order<'_>,
        line: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Ended> {
        let agent = SocketAddr::from((self.host(order.to)?.address(), AGENT_PORT));
        let to = order.via.unwrap_or(agent).to_string();
        let mut words = vec![BLIP, "migrate", order.container, "--to", &to, "--json"];
        words.extend(order.flags.iter().map(String::as_str));
        let mut blip = self
            .host(order.from)?
            .command(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting `blip migrate` on the source")?;
        let said = blip.stderr.take().map(collect);
        let out = blip.stdout.take().context("its output")?;
        let leash = order.limit.map(|limit| Leash::on(&blip, limit));
        let read = BufReader::new(out).lines().try_for_each(|text| {
            let text = text.context("reading what `blip migrate` prints")?;
            line(&text)
        });
        let killed = leash.is_some_and(Leash::off);
        let status = blip.wait().context("waiting for `blip migrate`")?;
        let said = said.and_then(|s| s.join().ok()).unwrap_or_default();
        read?;
        Ok(Ended { status, said, killed })
    }

    /// The host that runs the container, and its address on [`NETWORK`].
    pub fn whereabouts(&self, container: &str) -> Option<(&Host, Ipv4Addr)> {
        let runs = |host: &Host| {
            let address = format!(
                "{{{{if .State.Running}}}}{{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}{{{{end}}}}"
            );
            let said = host.run(&["docker", "inspect", "--format", &address, container]);
            said.ok()?.trim().parse().ok()
        };
        self.lab.hosts().iter().find_map(|host| Some((host, runs(host)?)))
    }

    /// Removes the container from every host that has it.
    pub fn remove(&self, container: &str) {
        for host in self.lab.hosts() {
            // That there is none is the usual case.
            let _ = host.run(&["docker", "rm", "--force", "--volumes", container]);
        }
        self.forget_neighbours();
    }

    /// Has the client forget whose address is whose. The next container may have
    /// an address of the last one, with another MAC, on another host; asking the
    /// old one goes on for up to a minute.
    fn forget_neighbours(&self) {
        let flush = ["ip", "neigh", "flush", "all"];
        let done = self.lab.client().command(&flush).stdout(Stdio::null()).status();
        if !done.as_ref().is_ok_and(ExitStatus::success) {
            tracing::warn!("the client keeps its neighbours: {done:?}");
        }
    }

    /// Ends the agents and, unless it was up before or is to be kept, the lab.
    ///
    /// # Errors
    /// When the lab cannot be removed.
    pub fn end(mut self, keep: bool) -> Result<()> {
        self.end_agents();
        if keep || !self.lab.is_fresh() {
            return Ok(());
        }
        let name = self.lab.name().to_owned();
        drop(self);
        Ok(Lab::remove(&name)?)
    }

    fn end_agents(&mut self) {
        for mut agent in self.agents.drain(..) {
            // It may have ended already; then there is nothing to end.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Does `work` in a lab of its own, which is gone afterwards, also at an interrupt.
/// For cargo's examples: their programs are in the folder above theirs.
///
/// # Errors
/// When the lab does not come up or go, and those of the work.
pub fn in_own_lab(
    name: &str,
    targets: &[&str],
    work: impl FnOnce(&Rig) -> Result<()>,
) -> Result<()> {
    let example = std::env::current_exe().context("finding this program's own path")?;
    let profile = example.ancestors().nth(2).context("an example is in target/PROFILE/examples")?;
    let program = profile.join("blip-bench");
    let name = format!("{name}-{}", std::process::id());
    let _doomed = interrupt::doom(&name, false);
    let blip = blip_beside(&program)?;
    let spec = LabSpec { name, program: Some(program), ..LabSpec::default() };
    let rig = Rig::start(&spec, &blip, targets)?;
    let done = work(&rig);
    rig.end(false)?;
    done
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.end_agents();
    }
}

/// What `blip migrate` is told.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The container.
    pub container: &'a str,
    /// The host it is on.
    pub from: &'a str,
    /// The host it is to go to, which has an agent.
    pub to: &'a str,
    /// The relay on the way, if there is one.
    pub via: Option<SocketAddr>,
    /// Further words.
    pub flags: &'a [String],
    /// How long it may take before it is killed; `None`: as long as it wants.
    pub limit: Option<Duration>,
}

/// How `blip migrate` ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it said on standard error.
    pub said: String,
    /// Whether it was killed because its time was up.
    pub killed: bool,
}

/// Kills a program when its time is up.
struct Leash {
    off: mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Leash {
    /// To be taken [`Leash::off`] before the program is waited for: its number
    /// is its own until then.
    fn on(program: &Child, limit: Duration) -> Leash {
        let pid = Pid::from_raw(program.id() as i32);
        let (off, is_off) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let over = is_off.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if over {
                // It may have ended this very moment.
                let _ = kill(pid, Signal::SIGKILL);
            }
            over
        });
        Leash { off, thread }
    }

    /// Whether the program was killed.
    fn off(self) -> bool {
        drop(self.off);
        self.thread.join().unwrap_or_default()
    }
}

/// A namespace of the lab as a place for threads.
struct ClientPlace(Client);

impl Place for ClientPlace {
    fn start(&self, name: &str, job: Job) -> io::Result<JoinHandle<()>> {
        let client = self.0.clone();
        let (entered, has_entered) = mpsc::channel();
        let thread = Here.start(
            name,
            Box::new(move || {
                let result = client.enter_net().map_err(io::Error::other);
                let there = result.is_ok();
                // The starter waits for this one message.
                let _ = entered.send(result);
                if there {
                    job();
                }
            }),
        )?;
        has_entered.recv().map_err(io::Error::other)??;
        Ok(thread)
    }
}

/// Starts the agent and waits until it listens.
fn start_agent(host: &Host) -> Result<Child> {
    let mut agent = host
        .command(&[BLIP, "agent"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `blip agent`")?;
    let said = agent.stderr.take().map(collect);
    std::thread::sleep(Duration::from_millis(300));
    if let Some(status) = agent.try_wait()? {
        let said = said.and_then(|s| s.join().ok()).unwrap_or_default();
        bail!("`blip agent` ended at once ({status}): {}", said.trim());
    }
    Ok(agent)
}

/// Reads a stream to its end on a thread of its own.
fn collect(mut stream: impl io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut said = String::new();
        // What was read until an error is what there is to show.
        let _ = stream.read_to_string(&mut said);
        said
    })
}
