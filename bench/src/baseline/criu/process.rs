//! The workload as a plain process of host `a`, in the prepared network.

use anyhow::{Context as _, Result};

use super::super::berth::NET;
use crate::rig::Rig;
use crate::run::{Load, container};

/// Whether the hosts themselves have the program.
pub(super) fn can(load: &Load) -> Result<(), String> {
    match load {
        Load::Redis(_) | Load::Writer(_) => Ok(()),
        _ => Err("only Redis and the writer are installed on the hosts themselves".to_owned()),
    }
}

/// Starts it; gives its port.
pub(super) fn start(rig: &Rig, load: &Load) -> Result<u16> {
    if matches!(load, Load::Writer(_)) {
        let program = std::env::current_exe().context("finding this program's own path")?;
        for host in rig.lab().hosts() {
            host.install(&program, "/usr/local/bin/blip-bench")?;
        }
    }
    let (_, command, port) = container(load);
    let words: Vec<String> = command.iter().map(|w| format!("'{w}'")).collect();
    // No terminal, and no file that was opened on the other side of the
    // host's walls: CRIU could not say what it is.
    let line = format!(
        "cd /; for f in /proc/self/fd/*; do n=${{f##*/}}; \
         if [ $n -gt 2 ]; then eval \"exec $n>&-\"; fi; done; \
         setsid nsenter --net=/run/netns/{NET} {} </dev/null >/dev/null 2>&1 &",
        words.join(" ")
    );
    rig.host("a")?.run(&["bash", "-ec", &line])?;
    Ok(port)
}
