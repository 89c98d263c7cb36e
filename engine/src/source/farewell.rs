//! A word to whoever is attached to the terminal of a container that has left:
//! Docker ends their session with its processes here, without saying why.

use crate::ledger::SourceRecord;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Writes it to the container's terminal, if it has one. The container stands
/// still and must not be killed yet; its log there has been taken along.
pub(crate) fn say(record: &SourceRecord) {
    // Only a container with a terminal has this: its slave.
    let console = format!("/proc/{}/root/dev/console", record.init);
    let opened = std::fs::OpenOptions::new()
        .write(true)
        // Whoever has stopped the output (Ctrl-S) must not stop us.
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(console);
    if let Ok(mut terminal) = opened {
        let _ = terminal.write_all(words(&record.name, &record.target).as_bytes());
    }
}

fn words(name: &str, target: &str) -> String {
    format!(
        "\r\n[blip: this container has moved to {target} and goes on there: docker attach {name}]\r\n"
    )
}
