//! Two hosts with an agent on each: containers can go there and come back.

#[path = "../hosts/mod.rs"]
pub(crate) mod hosts;

use blip_bench::lab::{CgroupMode, Host, Suite};
use hosts::Hosts;
use serde_json::Value;
use std::process::{Child, Stdio};

const BLIP: &str = "/usr/local/bin/blip";

/// Both hosts, with an agent on each.
pub(crate) struct Pair {
    pub(crate) hosts: Hosts,
    agent: Child,
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Pair {
    pub(crate) fn up(test: &str) -> Self {
        let hosts = Hosts::up(test, CgroupMode::V2, Suite::Forky);
        let mut command = hosts.a().command(&[BLIP, "agent"]);
        let agent = command.stdout(Stdio::null()).spawn().expect("agent");
        Self { hosts, agent }
    }

    /// Runs `blip migrate` on a host to its end: exit code, report if any, and
    /// what it said.
    pub(crate) fn try_migrate(
        &self,
        from: &Host,
        to: &Host,
        words: &[&str],
    ) -> (Option<i32>, Value, String) {
        let to = to.address().to_string();
        let words = [&[BLIP, "migrate", "--json", "--to", &to], words].concat();
        let output = from.command(&words).output().expect("blip migrate");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let report = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), report.unwrap_or_default(), said + &out)
    }

    pub(crate) fn migrate(&self, from: &Host, to: &Host, words: &[&str]) -> Value {
        let (code, report, said) = self.try_migrate(from, to, words);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(report["outcome"], "moved", "{said}");
        report
    }

    pub(crate) fn refused(&self, words: &[&str], parts: &[&str]) {
        let (a, b) = (self.hosts.a(), self.hosts.b());
        let (code, _, said) = self.try_migrate(a, b, words);
        assert_eq!(code, Some(3), "{words:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "'{part}' is missing: {said}");
        }
    }

    pub(crate) fn docker(&self, host: &Host, words: &str) -> String {
        self.hosts.docker(host, words)
    }

    pub(crate) fn sh(&self, host: &Host, script: &str) -> String {
        host.run(&["sh", "-c", script]).expect("sh").trim().to_owned()
    }
}
