//! The connections that the container's network namespace tracks.
//!
//! CRIU lists them, twice, for which the kernel walks the table that all
//! namespaces share: some 6 ms each time on a machine of 24 GiB. Here it is given
//! an empty list at once. The namespace is Docker's, and CRIU leaves it to
//! Docker: its rules do not travel, and what they made of connections must not
//! travel without them. (Docker's own, for names, lead to a port that is another
//! one on the target.) A TCP connection that is met in the middle is tracked from
//! there on.
//!
//! **Invariant**: only a question for that list is changed.

use super::{answer, nr, system_call};
use core::ffi::{c_int, c_void};
use core::mem::size_of;

const SOL_SOCKET: usize = 1;
const SO_PROTOCOL: usize = 38;
const NETLINK_NETFILTER: c_int = 12;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const LIST: u16 = 0x0101;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_UNCONFIRMED`: those whose first
/// packet is on its way, of which a namespace that stands still has none.
const LIST_UNCONFIRMED: u16 = 0x0107;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const QUESTION: usize = 20;

/// `struct msghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Message {
    name: *const c_void,
    name_length: u32,
    parts: *const Part,
    part_count: usize,
    control: *const c_void,
    control_length: usize,
    flags: c_int,
}

/// `struct iovec`.
#[repr(C)]
pub struct Part {
    base: *const u8,
    length: usize,
}

/// The C library's `sendmsg`, as CRIU calls it.
///
/// # Safety
/// As for `sendmsg` (sendmsg(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const Message, flags: c_int) -> isize {
    let send = |message: *const Message| {
        let arguments = [fd as usize, message as usize, flags as usize, 0, 0, 0];
        // SAFETY: the caller's message, or a copy of it with other bytes.
        answer(unsafe { system_call(nr::SENDMSG, arguments) })
    };
    // SAFETY: as this function demands.
    let Some((asked, mut bytes)) = (unsafe { question(message) }) else { return send(message) };
    if !is_netfilter(fd) {
        return send(message);
    }
    let [low, high] = LIST_UNCONFIRMED.to_ne_bytes();
    bytes[4] = low;
    bytes[5] = high;
    let part = Part { base: bytes.as_ptr(), length: bytes.len() };
    send(&Message { parts: &part, ..asked })
}

/// The message and its bytes, if they ask for that list.
///
/// # Safety
/// As for `sendmsg`.
unsafe fn question(message: *const Message) -> Option<(Message, [u8; QUESTION])> {
    if message.is_null() {
        return None;
    }
    // SAFETY: the caller's message.
    let asked = unsafe { *message };
    if asked.part_count != 1 {
        return None;
    }
    // SAFETY: the message has one part.
    let part = unsafe { &*asked.parts };
    if part.length != QUESTION || part.base.is_null() {
        return None;
    }
    // SAFETY: the part has that many bytes.
    let bytes = unsafe { *part.base.cast::<[u8; QUESTION]>() };
    let [_, _, _, _, kind_low, kind_high, flags_low, flags_high, ..] = bytes;
    let kind = u16::from_ne_bytes([kind_low, kind_high]);
    let flags = u16::from_ne_bytes([flags_low, flags_high]);
    (kind == LIST && flags & DUMP == DUMP).then_some((asked, bytes))
}

fn is_netfilter(fd: c_int) -> bool {
    let (mut protocol, mut length): (c_int, u32) = (0, size_of::<c_int>() as u32);
    let (to, of) = (&raw mut protocol as usize, &raw mut length as usize);
    let arguments = [fd as usize, SOL_SOCKET, SO_PROTOCOL, to, of, 0];
    // SAFETY: both places are ours, and the length is that of the first.
    let result = unsafe { system_call(nr::GETSOCKOPT, arguments) };
    result == 0 && protocol == NETLINK_NETFILTER
}
