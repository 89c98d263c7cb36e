//! The judgement.

use super::Frame;
use std::net::IpAddr;
use std::time::Duration;

/// A move, as the segment should have seen it.
#[derive(Clone, Debug)]
pub struct Move {
    /// MAC address that moved.
    pub mac: [u8; 6],
    /// IP addresses that moved.
    pub addresses: Vec<IpAddr>,
    /// The source's cable.
    pub from: String,
    /// The target's cable.
    pub to: String,
    /// When the target was granted the container, since 1970.
    pub grant: Duration,
}

impl Move {
    /// Whether a frame says that its sender has what moved.
    fn speaks(&self, frame: &Frame) -> bool {
        frame.mac == self.mac
            || frame.claimed_mac() == Some(self.mac)
            || frame.sender().is_some_and(|sender| self.addresses.contains(&sender))
    }

    fn concerns(&self, frame: &Frame) -> bool {
        let ours = |at: Option<IpAddr>| at.is_some_and(|at| self.addresses.contains(&at));
        ours(frame.sender()) || ours(frame.receiver())
    }
}

/// What a recording holds against a move; nothing, if all is well.
pub fn objections(frames: &[Frame], moved: &Move) -> Vec<String> {
    let from = |port: &str| {
        let spoken = frames.iter().filter(|frame| frame.port == port && moved.speaks(frame));
        spoken.map(|frame| frame.at).collect::<Vec<_>>()
    };
    let (old, new) = (from(&moved.from), from(&moved.to));
    let mut found = Vec::new();
    match (old.iter().max(), new.iter().min()) {
        (Some(last), Some(first)) => {
            if last >= first {
                let late = old.iter().filter(|at| *at >= first).count();
                found.push(format!(
                    "{late} frames of the source came after the target's first: the last {:?} later",
                    *last - *first
                ));
            }
            if *first < moved.grant {
                found.push(format!("the target spoke {:?} before the grant", moved.grant - *first));
            }
        }
        (old, new) => {
            let silent = [(old, &moved.from), (new, &moved.to)];
            let silent = silent.into_iter().filter(|(at, _)| at.is_none());
            found.extend(silent.map(|(_, port)| format!("nothing was heard from {port}")));
        }
    }
    let resets = frames.iter().filter(|frame| moved.concerns(frame) && frame.is_reset()).count();
    if resets > 0 {
        found.push(format!("{resets} resets"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{ARP, IPV4, TCP};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn moved() -> Move {
        Move {
            mac: MAC,
            addresses: vec!["10.0.0.9".parse().unwrap()],
            from: "to-a".into(),
            to: "to-b".into(),
            grant: Duration::from_millis(1500),
        }
    }

    fn tcp(ms: u64, port: &str, flags: u8) -> Frame {
        let mut payload = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1];
        payload.extend([0; 13]);
        payload.push(flags);
        let (at, port) = (Duration::from_millis(ms), port.to_owned());
        Frame { at, port, mac: MAC, protocol: IPV4, payload }
    }

    /// From the hosts' own address, and no sign of the moved one but in ARP.
    fn arp(ms: u64, port: &str) -> Frame {
        let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1];
        payload.extend([[9; 6].as_slice(), &[10, 0, 0, 9], &[0; 10]].concat());
        let (at, port) = (Duration::from_millis(ms), port.to_owned());
        Frame { at, port, mac: [9; 6], protocol: ARP, payload }
    }

    fn good() -> Vec<Frame> {
        vec![tcp(1000, "to-a", 0x10), tcp(1400, "to-a", 0x10), tcp(1600, "to-b", 0x10)]
    }

    #[test]
    fn a_good_move_is_not_objected_to() {
        assert_eq!(objections(&good(), &moved()), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_found() {
        for (fault, word) in [
            (tcp(1700, "to-a", 0x10), "after the target's first"),
            (arp(1601, "to-a"), "after the target's first"),
            (tcp(1450, "to-b", 0x10), "before the grant"),
            (arp(1450, "to-b"), "before the grant"),
            (tcp(1700, "to-b", 0x14), "1 resets"),
            (tcp(1700, "to-client", 0x04), "1 resets"),
        ] {
            let frames = [good(), vec![fault]].concat();
            let said = objections(&frames, &moved()).join("; ");
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(objections(&[], &moved()).len() == 2, "a recording of nothing proves nothing");
    }
}
