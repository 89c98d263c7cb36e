//! Recording what the lab's bridge hears from each cable.

use super::error::Context as _;
use super::paths::Paths;
use super::{Lab, LabError, Result, machine, network, run};
use crate::capture::{Frame, frames_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// A recording under way; it ends, unread, when this is dropped.
pub struct Recording {
    tcpdump: Child,
    said: BufReader<std::process::ChildStderr>,
    file: PathBuf,
    ports: BTreeMap<u32, String>,
}

impl Lab {
    /// Records the head of every frame that comes out of the hosts' and the
    /// client's cables, from now on. Installs tcpdump if need be.
    ///
    /// # Errors
    /// If tcpdump cannot be had or does not start.
    pub fn record(&self) -> Result<Recording> {
        machine::install(&[("tcpdump", "tcpdump")], |_| {})?;
        let paths = Paths::new(&self.state.name);
        let (file, switch) = (paths.var.join("capture"), paths.net(network::SWITCH));
        let ports = ports(&switch)?;
        let mut command = run::program("nsenter");
        command.arg(format!("--net={}", switch.display())).arg("--").arg("tcpdump");
        command.args(["-i", "any", "-Q", "in", "-y", "LINUX_SLL2", "--time-stamp-precision=nano"]);
        command.args(["-s", "128", "-B", "65536", "-n", "-Z", "root", "-w"]).arg(&file);
        let mut tcpdump =
            command.stderr(Stdio::piped()).spawn().on("starting tcpdump for", &file)?;
        let Some(said) = tcpdump.stderr.take() else { return Err(LabError::Panicked) };
        let mut recording = Recording { tcpdump, said: BufReader::new(said), file, ports };
        recording.wait_for_the_beginning()?;
        Ok(recording)
    }
}

impl Recording {
    fn wait_for_the_beginning(&mut self) -> Result<()> {
        let mut said = String::new();
        while !said.contains("listening on") {
            if self.said.read_line(&mut said).on("reading what tcpdump says of", &self.file)? == 0 {
                return Err(LabError::Missing(format!("tcpdump does not record: {said}")));
            }
        }
        Ok(())
    }

    /// Ends the recording and gives its frames, in their order.
    ///
    /// # Errors
    /// If tcpdump lost any, or its file is not what it should be.
    pub fn end(mut self) -> Result<Vec<Frame>> {
        // What is under way is written at the end.
        let _ = kill(Pid::from_raw(self.tcpdump.id() as i32), Signal::SIGINT);
        let mut said = String::new();
        while self.said.read_line(&mut said).on("reading what tcpdump says of", &self.file)? > 0 {}
        self.tcpdump.wait().on("waiting for tcpdump on", &self.file)?;
        if !said.contains("\n0 packets dropped by kernel") {
            return Err(LabError::Missing(format!("tcpdump lost frames: {said}")));
        }
        let bytes = std::fs::read(&self.file).on("reading", &self.file)?;
        frames_of(&bytes, &self.ports)
            .ok_or_else(|| LabError::Missing("tcpdump's file is not of the kind asked for".into()))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The bridge's interfaces by number.
fn ports(switch: &std::path::Path) -> Result<BTreeMap<u32, String>> {
    let mut command = run::program("nsenter");
    command.arg(format!("--net={}", switch.display())).args(["--", "ip", "-json", "link"]);
    let said = run::run("listing the bridge's ports", &mut command)?;
    let links: Vec<serde_json::Value> =
        serde_json::from_slice(&said.stdout).map_err(|_| LabError::Panicked)?;
    let port = |link: &serde_json::Value| {
        let number = u32::try_from(link["ifindex"].as_u64()?).ok()?;
        Some((number, link["ifname"].as_str()?.to_owned()))
    };
    Ok(links.iter().filter_map(port).collect())
}
