//! Peers that cannot be had: a row that says why, found out anew in each run.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::Baseline;
use super::berth::shell;
use crate::rig::Rig;
use crate::run::Load;

/// DMTCP, which moves processes by a library that it loads into them.
pub(super) struct Dmtcp;

impl Baseline for Dmtcp {
    fn name(&self) -> &'static str {
        "dmtcp"
    }

    fn describe(&self) -> &'static str {
        "dmtcp_launch, dmtcp_command --checkpoint, images copied, dmtcp_restart; a plain process"
    }

    fn version(&self, _: &Rig) -> String {
        "DMTCP".to_owned()
    }

    fn is_extra(&self) -> bool {
        true
    }

    fn can(&self, rig: &Rig, _: &Load) -> Result<(), String> {
        let a = rig.host("a").map_err(|e| e.to_string())?;
        let suite = rig.lab().suite();
        match shell(a, "command -v dmtcp_launch") {
            Err(_) => Err(format!("Debian {suite} has no package dmtcp")),
            Ok(_) => Err("this bench does not know yet how to drive it".to_owned()),
        }
    }

    fn start(&mut self, _: &Rig, _: &Load) -> Result<SocketAddr> {
        bail!("there is no DMTCP to start anything with")
    }

    fn migrate(&mut self, _: &Rig, _: &mut dyn FnMut(&str)) -> Result<()> {
        bail!("there is no DMTCP to move anything with")
    }

    fn clean(&mut self, _: &Rig) {}
}
