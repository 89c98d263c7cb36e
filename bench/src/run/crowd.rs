//! Clients beside the probe: a real program that loads the service while it
//! moves, and must not notice.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};

use crate::lab::Lab;
use crate::workload::service::Crowd;

/// Words that no such program says while all is well.
const COMPLAINTS: [&str; 5] = ["error", "abort", "fatal", "could not", "terminat"];

/// The program at work. Dropping it ends it.
pub(super) struct Crowded {
    program: Child,
    said: Option<JoinHandle<String>>,
}

/// Does what the program needs before it can begin.
pub(super) fn prepare(lab: &Lab, crowd: &Crowd) -> Result<()> {
    let words: Vec<_> = crowd.prepare.iter().map(String::as_str).collect();
    let said = lab.client_program(crowd.application, &words).output();
    let said = said.with_context(|| format!("starting {}", words[0]))?;
    let words = words.join(" ");
    ensure!(said.status.success(), "{words}: {}", String::from_utf8_lossy(&said.stderr).trim());
    Ok(())
}

impl Crowded {
    /// Starts it.
    pub(super) fn start(lab: &Lab, crowd: &Crowd) -> Result<Crowded> {
        let words: Vec<_> = crowd.run.iter().map(String::as_str).collect();
        let mut command = lab.client_program(crowd.application, &words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut program = command.spawn().with_context(|| format!("starting {}", words[0]))?;
        let said = program.stderr.take().map(|mut stream| {
            std::thread::spawn(move || {
                let mut said = String::new();
                // What was read until an error is what there is to show.
                let _ = stream.read_to_string(&mut said);
                said
            })
        });
        Ok(Crowded { program, said })
    }

    /// Ends it, and tells what it complained of.
    pub(super) fn end(mut self) -> Vec<String> {
        let mut all = Vec::new();
        if let Ok(Some(status)) = self.program.try_wait() {
            all.push(format!("the clients beside the probe had ended ({status})"));
        }
        self.stop();
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        let complains = |line: &&str| {
            let line = line.to_lowercase();
            COMPLAINTS.iter().any(|word| line.contains(word))
        };
        all.extend(said.lines().filter(complains).take(3).map(str::to_owned));
        all
    }

    fn stop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Drop for Crowded {
    fn drop(&mut self) {
        self.stop();
    }
}
