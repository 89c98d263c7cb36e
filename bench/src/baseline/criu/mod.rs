//! CRIU alone, moving a plain process: with images, with its page server (memory is written
//! straight into the target's memory file system while the process is frozen),
//! with lazy pages (the process is restored without its memory, which follows
//! from the source: post-copy), or with a chain of pre-dumps (pre-copy).

mod ahead;
mod process;

use std::net::SocketAddr;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};

use super::Baseline;
use super::berth::{self, Copy, DIR, NET, PAGES as PORT, shell};
use crate::lab::Host;
use crate::rig::Rig;
use crate::run::Load;

/// How memory gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// In images, copied when all is dumped.
    Images,
    /// Through the page server, while it is dumped.
    PageServer,
    /// After the restore.
    Lazy,
    /// In images made and copied ahead, then those of the rest.
    Ahead,
}

/// CRIU, one way or the other.
pub(super) struct Criu {
    how: How,
    /// Programs that serve pages; they end by themselves when all is served.
    serving: Vec<Child>,
}

impl Criu {
    pub(super) fn images() -> Criu {
        Criu { how: How::Images, serving: Vec::new() }
    }

    pub(super) fn page_server() -> Criu {
        Criu { how: How::PageServer, serving: Vec::new() }
    }

    pub(super) fn lazy_pages() -> Criu {
        Criu { how: How::Lazy, serving: Vec::new() }
    }

    pub(super) fn pre_dump() -> Criu {
        Criu { how: How::Ahead, serving: Vec::new() }
    }

    /// Starts a program that goes on while others run.
    fn serve(&mut self, host: &Host, line: &str) -> Result<()> {
        let mut command = host.command(&["sh", "-ec", &format!("exec {line}")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.serving.push(child.context("starting CRIU")?);
        Ok(())
    }

    /// All is frozen until all is there: with images alone, or with memory sent
    /// ahead of them to the page server.
    fn at_once(&mut self, a: &Host, b: &Host, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let address = b.address();
        let images = format!("{DIR}/img");
        let copy = Copy::to(b, &images)?;
        let mut pages = String::new();
        if self.how == How::PageServer {
            self.serve(b, &format!("criu page-server -D {images} -o server.log --port {PORT}"))?;
            berth::listens(b, PORT).context("CRIU's page server does not listen")?;
            pages = format!("--page-server --address {address} --port {PORT}");
        }
        tell("freeze");
        shell(a, &dump("img", &pages)).map_err(|e| told(e, a, "dump.log"))?;
        berth::down(a)?;
        copy.send(a, &images)?;
        berth::up(b)?;
        shell(b, &restore("img", "")).map_err(|e| told(e, b, "restore.log"))?;
        tell("drain");
        Ok(())
    }

    fn with_lazy_pages(&mut self, a: &Host, b: &Host, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let address = a.address();
        let images = format!("{DIR}/img");
        let copy = Copy::to(b, &images)?;
        tell("freeze");
        let pages = format!("--lazy-pages --address 0.0.0.0 --port {PORT}");
        // It listens when everything else is written, and stays to serve.
        self.serve(a, &dump("img", &pages))?;
        berth::listens(a, PORT).map_err(|e| told(e, a, "dump.log"))?;
        berth::down(a)?;
        copy.send(a, &images)?;
        berth::up(b)?;
        let daemon = format!(
            "criu lazy-pages -D {images} -W {images} -o lazy.log --page-server --address {address} \
             --port {PORT}"
        );
        self.serve(b, &daemon)?;
        berth::until(b, &format!("test -S {images}/lazy-pages.socket"))
            .map_err(|e| told(e, b, "lazy.log"))?;
        // Each ends when another does: which did first, the logs say.
        shell(b, &restore("img", "--lazy-pages"))
            .map_err(|e| told(told(told(e, a, "dump.log"), b, "lazy.log"), b, "restore.log"))?;
        tell("drain");
        for mut serving in self.serving.drain(..) {
            serving.wait().context("waiting for the last page")?;
        }
        Ok(())
    }
}

impl Baseline for Criu {
    fn name(&self) -> &'static str {
        match self.how {
            How::Images => "criu-images",
            How::PageServer => "criu-page-server",
            How::Lazy => "criu-lazy-pages",
            How::Ahead => "criu-pre-dump",
        }
    }

    fn describe(&self) -> &'static str {
        match self.how {
            How::Images => "criu dump into tmpfs, all of it copied, criu restore; a plain process",
            How::PageServer => {
                "criu dump --page-server into tmpfs on the target, metadata copied, criu restore; a \
                 plain process"
            }
            How::Lazy => {
                "criu dump --lazy-pages, metadata copied, criu restore --lazy-pages; a plain process"
            }
            How::Ahead => ahead::DESCRIPTION,
        }
    }

    fn version(&self, rig: &Rig) -> String {
        super::versions(rig, "criu --version | head -n 1")
    }

    fn can(&self, rig: &Rig, load: &Load) -> Result<(), String> {
        process::can(load)?;
        if self.how == How::Ahead { tracks_memory(rig) } else { Ok(()) }
    }

    fn start(&mut self, rig: &Rig, load: &Load) -> Result<SocketAddr> {
        let ip = berth::make(rig)?;
        Ok(SocketAddr::from((ip, process::start(rig, load)?)))
    }

    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let (a, b) = (rig.host("a")?, rig.host("b")?);
        match self.how {
            How::Lazy => {
                let _pipes = rig.lab().allow_large_pipes()?;
                self.with_lazy_pages(a, b, tell)
            }
            How::Images | How::PageServer => self.at_once(a, b, tell),
            How::Ahead => ahead::migrate(a, b, tell),
        }
    }

    fn clean(&mut self, rig: &Rig) {
        for mut serving in self.serving.drain(..) {
            // It may have ended already.
            let _ = serving.kill();
            let _ = serving.wait();
        }
        berth::remove(rig);
    }
}

/// Whether CRIU can tell on this kernel which pages were written.
///
/// # Errors
/// What it says instead.
pub(super) fn tracks_memory(rig: &Rig) -> Result<(), String> {
    let a = rig.host("a").map_err(|e| e.to_string())?;
    let asked = shell(a, "criu check --feature mem_dirty_track 2>&1 || true");
    let said = asked.map_err(|e| e.to_string())?;
    understood(&said)
}

/// What the answer to that question means.
fn understood(said: &str) -> Result<(), String> {
    if said.contains("is supported") {
        return Ok(());
    }
    let last = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("nothing").trim();
    Err(format!("the kernel keeps no soft-dirty bits; `criu check` says: {last}"))
}

/// The process' network is prepared by us and is not CRIU's to dump or to
/// restore; CRIU itself, and the pages it serves, are in the host's. `folder`
/// is one below [`DIR`]. Connections that nobody has accepted are left out, or
/// CRIU would give up whenever somebody connects at that moment.
fn dump(folder: &str, more: &str) -> String {
    criu("dump", folder, &format!("--tcp-established --skip-in-flight {more}"))
}

/// `criu dump` or `criu pre-dump` of the process.
fn criu(verb: &str, folder: &str, more: &str) -> String {
    format!(
        "criu {verb} -t $(ip netns pids {NET} | head -n 1) -D {DIR}/{folder} -o dump.log -v1 \
         --external net[$(stat -L -c %i /run/netns/{NET})]:{NET} {more}"
    )
}

fn restore(folder: &str, more: &str) -> String {
    format!(
        "exec 9</run/netns/{NET}; criu restore -D {DIR}/{folder} -o restore.log -v1 -d \
         --tcp-established --inherit-fd fd[9]:{NET} {more} </dev/null >/dev/null 2>&1"
    )
}

/// An error with the end of CRIU's log, `log` in the folder of images.
fn told(error: anyhow::Error, host: &Host, log: &str) -> anyhow::Error {
    let said = shell(host, &format!("grep Error {DIR}/img/{log} | grep -v RLIMIT | tail -n 3"));
    let said = said.unwrap_or_default();
    error.context(format!("CRIU said: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_is_taken_at_its_word() {
        assert_eq!(understood("mem_dirty_track is supported\n"), Ok(()));
        let why = understood("Warn  (criu/kerndat.c:1): x\nmem_dirty_track is not supported\n\n");
        let why = why.expect_err("it is not");
        assert!(why.ends_with("says: mem_dirty_track is not supported"), "{why}");
        assert!(understood("").expect_err("no word").ends_with("says: nothing"));
    }
}
