//! Giving a container of this host what was kept from it.
//!
//! Frames cannot be put into an interface from behind; they must come over the
//! segment. The parent interface hears nothing of what is sent from it, but a
//! sibling of the container's macvlan interface is heard. It lives in a network
//! namespace of one thread, so that it ends with that thread, come what may.

use crate::sys::net::{Frame, send_frames};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc;

/// The sibling's name in its namespace.
const SIBLING: &str = "blip0";

/// Hands frames to whom they are addressed, a macvlan interface (mode bridge) on
/// interface `parent` of this namespace. Blocks for some 40 ms.
pub fn replay(parent: &str, frames: Vec<Frame>) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    let sender = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let _ = tell.send(gettid());
        gone.recv().map_err(|_| io::Error::other("there is no interface to send from"))?;
        ip(&["link", "set", SIBLING, "addrgenmode", "none"])?;
        ip(&["link", "set", SIBLING, "up"])?;
        send_frames(SIBLING, &frames)
    });
    let made = told.recv().map_err(io::Error::other).and_then(|thread| {
        let at = thread.to_string();
        ip(&[
            "link", "add", "link", parent, "name", SIBLING, "netns", &at, "type", "macvlan",
            "mode", "bridge",
        ])
    });
    if made.is_ok() {
        let _ = go.send(());
    }
    drop(go);
    let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
    made.and(sent)
}

fn ip(words: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("ip {}: {said}", words.join(" "))))
}
