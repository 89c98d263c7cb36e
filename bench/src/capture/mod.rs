//! What a recording of the segment proves of a move: that an address had one
//! owner at every instant, and that nobody was reset.
//!
//! The frames come from `tcpdump -i any` in the format LINUX_SLL2, which tells
//! the interface of each.

mod verdict;

pub use verdict::{Move, objections};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// `LINKTYPE_LINUX_SLL2`.
const LINUX_SLL2: u32 = 276;
/// Magic number of a file with nanoseconds, in this machine's byte order.
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const SLL2_HEADER: usize = 20;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// The head of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it was heard, since 1970.
    pub at: Duration,
    /// Out of which cable it came: `to-a`.
    pub port: String,
    /// Its sender.
    pub mac: [u8; 6],
    /// Its EtherType.
    pub protocol: u16,
    /// What it carries, from the header above the cable on.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The sender that it names above the cable: of an IP packet or of an ARP
    /// message.
    pub fn sender(&self) -> Option<IpAddr> {
        match self.protocol {
            ARP => v4(self.payload.get(14..18)?),
            IPV4 => v4(self.payload.get(12..16)?),
            IPV6 => v6(self.payload.get(8..24)?),
            _ => None,
        }
    }

    fn receiver(&self) -> Option<IpAddr> {
        match self.protocol {
            IPV4 => v4(self.payload.get(16..20)?),
            IPV6 => v6(self.payload.get(24..40)?),
            _ => None,
        }
    }

    /// The MAC address that an ARP message says its sender has.
    fn claimed_mac(&self) -> Option<[u8; 6]> {
        if self.protocol == ARP { self.payload.get(8..14)?.try_into().ok() } else { None }
    }

    /// Whether it resets a TCP connection.
    pub fn is_reset(&self) -> bool {
        const RST: u8 = 0x04;
        let tcp = match self.protocol {
            IPV4 if self.payload.get(9) == Some(&TCP) => {
                let header = self.payload.first().map_or(0, |byte| usize::from(byte & 0x0f) * 4);
                self.payload.get(header..)
            }
            IPV6 if self.payload.get(6) == Some(&TCP) => self.payload.get(40..),
            _ => None,
        };
        tcp.and_then(|tcp| tcp.get(13)).is_some_and(|flags| flags & RST != 0)
    }
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into())
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

/// The frames of a recording that came out of the named ports, by time.
/// `None` if the file is of another kind, or cut short.
pub(crate) fn frames_of(file: &[u8], ports: &BTreeMap<u32, String>) -> Option<Vec<Frame>> {
    let word = |at: usize| Some(u32::from_ne_bytes(file.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != NANOSECONDS || word(20)? & 0xffff != LINUX_SLL2 {
        return None;
    }
    let mut frames = Vec::new();
    let mut at = FILE_HEADER;
    while at < file.len() {
        let time = Duration::new(word(at)?.into(), word(at + 4)?);
        let length = word(at + 8)? as usize;
        let record = file.get(at + RECORD_HEADER..)?.get(..length)?;
        frames.extend(frame(time, record, ports));
        at += RECORD_HEADER + length;
    }
    frames.sort_by_key(|frame| frame.at);
    Some(frames)
}

fn frame(at: Duration, record: &[u8], ports: &BTreeMap<u32, String>) -> Option<Frame> {
    let (head, payload) = record.split_at_checked(SLL2_HEADER)?;
    let port = ports.get(&u32::from_be_bytes(head[4..8].try_into().ok()?))?.clone();
    let protocol = u16::from_be_bytes([head[0], head[1]]);
    let mac = head[12..18].try_into().ok()?;
    Some(Frame { at, port, mac, protocol, payload: payload.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of tcpdump's file.
    fn record(port: u32, protocol: u16, payload: &[u8]) -> Vec<u8> {
        let mut sll2 = protocol.to_be_bytes().to_vec();
        sll2.extend([0, 0]);
        sll2.extend(port.to_be_bytes());
        sll2.extend([0, 1, 0, 6, 2, 0, 0, 0, 0, 7, 0, 0]);
        sll2.extend(payload);
        let mut bytes = Vec::new();
        for word in [10, 500, sll2.len() as u32, sll2.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(sll2);
        bytes
    }

    fn file(records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = NANOSECONDS.to_ne_bytes().to_vec();
        bytes.extend([0; 16]);
        bytes.extend(LINUX_SLL2.to_ne_bytes());
        bytes.extend(records.concat());
        bytes
    }

    #[test]
    fn senders_and_resets_are_read_from_a_file() {
        let ports = BTreeMap::from([(3, "to-a".to_owned())]);
        let mut syn = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1];
        syn.extend([0; 20]);
        let mut reset = syn.clone();
        reset[33] = 0x14;
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 10, 0, 0, 8];
        arp.extend([0; 10]);
        let whole = file(&[
            record(3, IPV4, &syn),
            record(3, IPV4, &reset),
            record(3, ARP, &arp),
            record(4, IPV4, &syn),
        ]);
        let frames = frames_of(&whole, &ports).unwrap();
        assert_eq!(frames.len(), 3, "those of other ports do not count");
        assert_eq!(frames[0].at, Duration::new(10, 500));
        assert_eq!(frames[0].mac, [2, 0, 0, 0, 0, 7]);
        assert_eq!(frames[0].sender(), Some("10.0.0.9".parse().unwrap()));
        assert_eq!(frames[0].receiver(), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(frames[2].sender(), Some("10.0.0.8".parse().unwrap()));
        assert_eq!(frames[2].claimed_mac(), Some([2, 0, 0, 0, 0, 7]));
        let resets: Vec<_> = frames.iter().map(Frame::is_reset).collect();
        assert_eq!(resets, [false, true, false]);
        assert_eq!(frames_of(&whole[..whole.len() - 1], &ports), None, "cut short");
    }
}
