//! Holds new connections to ports back: their first packets are dropped, so
//! that clients ask again instead of being refused. Before address translation
//! and connection tracking, so that no trace of the old way remains.

use super::{Port, Protocol};
use crate::handover::Ticket;
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// A gate that is closed; it opens when this is dropped.
pub(super) struct Gate(Ticket);

impl Gate {
    /// Closes a gate before `ports`.
    pub(super) fn close(ticket: Ticket, ports: &[Port]) -> io::Result<Self> {
        nft(&rules(ticket, ports))?;
        Ok(Self(ticket))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        remove(self.0);
    }
}

/// Opens a gate, whoever closed it; fine if there is none.
pub(super) fn remove(ticket: Ticket) {
    let table = table(ticket);
    if let Err(error) = nft(&format!("add table inet {table}\ndelete table inet {table}\n")) {
        tracing::warn!("the table inet {table} stays: {error}");
    }
}

fn table(ticket: Ticket) -> String {
    format!("blip_gate_{}", &ticket.to_string()[..12])
}

fn rules(ticket: Ticket, ports: &[Port]) -> String {
    let list = |protocol| {
        let mut numbers: Vec<u16> =
            ports.iter().filter(|p| p.protocol == protocol).map(|p| p.listen.port()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
    };
    let mut rules = String::new();
    let (tcp, udp) = (list(Protocol::Tcp), list(Protocol::Udp));
    if !tcp.is_empty() {
        rules += &format!(
            "fib daddr type local tcp dport {{ {tcp} }} tcp flags & (syn | ack) == syn drop; "
        );
    }
    if !udp.is_empty() {
        rules += &format!("fib daddr type local udp dport {{ {udp} }} drop; ");
    }
    format!(
        "table inet {} {{\nchain arrivals {{ type filter hook prerouting priority -310; {rules}}}\n}}\n",
        table(ticket)
    )
}

fn nft(rules: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that it ended early: its status says why.
        let _ = stdin.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(said.lines().next().unwrap_or("nft failed").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_has_its_rule_and_each_port_stands_once() {
        let port = |protocol, at: &str| Port { protocol, listen: at.parse().unwrap() };
        let both = [port(Protocol::Tcp, "0.0.0.0:80"), port(Protocol::Tcp, "[::]:80")];
        let text = rules(Ticket(1), &both);
        assert!(text.contains("tcp dport { 80 }") && !text.contains("udp"), "{text}");
        let text = rules(Ticket(1), &[port(Protocol::Udp, "0.0.0.0:53")]);
        assert!(text.contains("udp dport { 53 } drop") && !text.contains("tcp"), "{text}");
    }
}
