//! Empties a table of nftables with one message to the kernel.
//!
//! `nft` takes some ten milliseconds to remove a table: it reads what is there
//! first, and the kernel unhooks the chains. Taking the rules out of the chains
//! is all that counts at first, and takes a fraction of one. The message is
//! `NFT_MSG_DELRULE` with no chain named (linux/netfilter/nf_tables.h), in a
//! batch of nfnetlink.

use super::{BRIDGE, NETDEV};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Subsystem nftables, message `NFT_MSG_DELRULE`.
const DELETE_RULE: u16 = NFTABLES << 8 | 8;
const NFTABLES: u16 = 10;
const RULE_TABLE: u16 = 1;
/// `NFPROTO_NETDEV`, `NFPROTO_BRIDGE`.
const FAMILY_NETDEV: u8 = 5;
const FAMILY_BRIDGE: u8 = 7;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const ERROR: u16 = 2;
/// What is asked to be acknowledged.
const ASKED: u32 = 2;

/// Ready to empty one table of this network namespace.
#[derive(Debug)]
pub(super) struct Flush {
    socket: OwnedFd,
    message: Vec<u8>,
}

impl Flush {
    /// Prepares it; touches nothing yet. `table`: its family, netdev or bridge,
    /// and its name.
    pub(super) fn prime(table: &str) -> io::Result<Self> {
        let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter);
        let socket = socket(AddressFamily::Netlink, kind.0, kind.1, kind.2)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Self { socket, message: message(table) })
    }

    /// Empties it. Returns when no rule of it is in force any more.
    pub(super) fn now(&self) -> io::Result<()> {
        send(self.socket.as_raw_fd(), &self.message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if let Some(result) = result(&answer[..length]) {
                return result;
            }
        }
    }
}

fn message(table: &str) -> Vec<u8> {
    let (family, name) = table.split_once(' ').unwrap_or((NETDEV, table));
    let family = if family == BRIDGE { FAMILY_BRIDGE } else { FAMILY_NETDEV };
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let rule = attribute(RULE_TABLE, &name);
    let mut all = packet(BATCH_BEGIN, REQUEST, 1, 0, NFTABLES, &[]);
    all.append(&mut packet(DELETE_RULE, REQUEST | ACK, ASKED, family, 0, &rule));
    all.append(&mut packet(BATCH_END, REQUEST, 3, 0, NFTABLES, &[]));
    all
}

/// One message: netlink's header, nfnetlink's, and what follows.
fn packet(kind: u16, flags: u16, number: u32, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let length = 16 + 4 + body.len();
    let mut packet = Vec::with_capacity(length);
    packet.extend_from_slice(&(length as u32).to_ne_bytes());
    packet.extend_from_slice(&kind.to_ne_bytes());
    packet.extend_from_slice(&flags.to_ne_bytes());
    packet.extend_from_slice(&number.to_ne_bytes());
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(&[family, 0]);
    packet.extend_from_slice(&resource.to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

/// One attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut attribute = Vec::with_capacity(length.next_multiple_of(4));
    attribute.extend_from_slice(&(length as u16).to_ne_bytes());
    attribute.extend_from_slice(&kind.to_ne_bytes());
    attribute.extend_from_slice(value);
    attribute.resize(length.next_multiple_of(4), 0);
    attribute
}

/// What the kernel's answers say, if any of them is the one that was asked for
/// or an error.
fn result(mut answers: &[u8]) -> Option<io::Result<()>> {
    while let Some((head, rest)) = answers.split_first_chunk::<16>() {
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, number) = (word(0) as usize, word(8));
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        if kind == ERROR {
            let code = rest.first_chunk::<4>().map_or(-1, |code| i32::from_ne_bytes(*code));
            match code {
                0 if number == ASKED => return Some(Ok(())),
                0 => {}
                _ => return Some(Err(Errno::from_raw(-code).into())),
            }
        }
        answers = answers.get(length.max(16).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_they_say() {
        let mut rest = &message("netdev blip_silence_x")[..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert_eq!(length % 4, 0);
            kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [BATCH_BEGIN, DELETE_RULE, BATCH_END]);
    }

    #[test]
    fn an_answer_is_ours_or_an_error() {
        let answer = |number: u32, code: i32| {
            let mut body = code.to_ne_bytes().to_vec();
            body.resize(20, 0);
            let mut all = packet(ERROR, 0, number, 0, 0, &body);
            all.drain(16..20);
            let length = all.len() as u32;
            all[..4].copy_from_slice(&length.to_ne_bytes());
            all
        };
        assert!(result(&answer(ASKED, 0)).unwrap().is_ok());
        assert!(result(&answer(1, 0)).is_none());
        let two = [answer(1, 0), answer(ASKED, -2)].concat();
        let error = result(&two).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(2));
        assert!(result(&[1, 2, 3]).is_none());
    }
}
