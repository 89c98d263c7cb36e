//! The demo's stage in the lab: host `a` is the source, host `b` the target,
//! clients are in the lab's client namespace.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use blip_engine::external::Restore;

use super::report::MigrateReport;
use super::script::Stage;
use crate::baseline::{configure_criu, forget_criu};
use crate::lab::LabSpec;
use crate::probe::Place;
use crate::rig::{NETWORK, Order, Rig};
use crate::workload::redis;

/// The container's name.
const CONTAINER: &str = "redis";

/// Two hosts of a lab with blip on them and an agent on the second.
pub struct LabStage {
    rig: Rig,
    restore: Restore,
    description: String,
}

impl LabStage {
    /// Brings the lab up, or takes it as it is, puts `blip` on the hosts and
    /// starts the agent. Where Docker is to restore, the CRIU of its runc is told
    /// to keep connections.
    ///
    /// # Errors
    /// When the lab does not come up or the agent does not listen.
    pub fn start(spec: &LabSpec, blip: &Path, restore: Restore) -> Result<LabStage> {
        let description =
            format!("two hosts of Debian {}, cgroup {}, on one machine", spec.suite, spec.cgroup);
        let stage = LabStage { rig: Rig::start(spec, blip, &["b"])?, restore, description };
        if restore == Restore::Docker {
            stage.rig.lab().hosts().iter().try_for_each(configure_criu)?;
        }
        Ok(stage)
    }

    /// Ends the agent and, unless it was up before or is to be kept, the lab.
    ///
    /// # Errors
    /// When the lab cannot be removed.
    pub fn end(self, keep: bool) -> Result<()> {
        if keep || !self.rig.lab().is_fresh() {
            self.rig.remove(CONTAINER);
            self.rig.lab().hosts().iter().for_each(forget_criu);
        }
        self.rig.end(keep)
    }
}

impl Stage for LabStage {
    fn place(&self) -> &dyn Place {
        self.rig.place()
    }

    fn start_redis(&mut self) -> Result<SocketAddr> {
        self.rig.remove(CONTAINER);
        let address = self.rig.lab().container_address(0);
        let ip = address.to_string();
        let mut words = vec!["docker", "run", "--detach", "--name", CONTAINER];
        words.extend(["--network", NETWORK, "--ip", &ip, redis::IMAGE]);
        words.extend(redis::COMMAND);
        self.rig.host("a")?.run(&words)?;
        Ok(SocketAddr::from((address, redis::PORT)))
    }

    fn migrate(&mut self, line: &mut dyn FnMut(&str)) -> Result<()> {
        let flags: &[_] = match self.restore {
            Restore::Staged => &[],
            Restore::Docker => &["--restore".to_owned(), "docker".to_owned()],
        };
        let order =
            Order { container: CONTAINER, via: None, from: "a", to: "b", flags, limit: None };
        let mut reported = false;
        let ended = self.rig.migrate(&order, &mut |text| {
            // A report that cannot be read is the script's to complain about.
            reported |= !matches!(MigrateReport::from_line(text), Ok(None));
            line(text);
            Ok(())
        })?;
        if !reported {
            let (status, said) = (ended.status, ended.said.trim());
            bail!("`blip migrate` ended ({status}) without a report: {said}");
        }
        Ok(())
    }

    fn redis_now(&mut self) -> Result<SocketAddr> {
        let (_, ip) = self
            .rig
            .whereabouts(CONTAINER)
            .with_context(|| format!("neither host runs the container `{CONTAINER}`"))?;
        Ok(SocketAddr::from((ip, redis::PORT)))
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}
