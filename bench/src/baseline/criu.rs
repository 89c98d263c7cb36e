//! CRIU alone, moving a plain process: with images, with its page server (memory is written
//! straight into the target's memory file system while the process is frozen),
//! or with lazy pages (the process is restored without its memory, which
//! follows from the source: post-copy).

use std::net::SocketAddr;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};

use super::Baseline;
use super::berth::{self, Copy, DIR, NET, PAGES as PORT, shell};
use crate::lab::Host;
use crate::rig::Rig;
use crate::run::Load;
use crate::workload::redis;

/// How memory gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// In images, copied when all is dumped.
    Images,
    /// Through the page server, while it is dumped.
    PageServer,
    /// After the restore.
    Lazy,
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
        shell(a, &dump(&pages)).map_err(|e| told(e, a, "dump.log"))?;
        berth::down(a)?;
        copy.send(a, &images)?;
        berth::up(b)?;
        shell(b, &restore("")).map_err(|e| told(e, b, "restore.log"))?;
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
        self.serve(a, &dump(&pages))?;
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
        shell(b, &restore("--lazy-pages")).map_err(|e| told(e, b, "restore.log"))?;
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
        }
    }

    fn version(&self, rig: &Rig) -> String {
        let said = rig.host("a").and_then(|a| shell(a, "criu --version | head -n 1"));
        format!("CRIU {}", said.unwrap_or_default().trim().trim_start_matches("Version: "))
    }

    fn can(&self, load: &Load) -> Result<(), String> {
        match load {
            Load::Redis(_) => Ok(()),
            _ => Err("only Redis is installed on the hosts themselves".to_owned()),
        }
    }

    fn start(&mut self, rig: &Rig, _: &Load) -> Result<SocketAddr> {
        self.clean(rig);
        let ip = berth::make(rig)?;
        let words: Vec<String> = redis::COMMAND.iter().map(|w| format!("'{w}'")).collect();
        // No terminal, and no file that was opened on the other side of the
        // host's walls: CRIU could not say what it is.
        let line = format!(
            "cd /; for f in /proc/self/fd/*; do n=${{f##*/}}; \
             if [ $n -gt 2 ]; then eval \"exec $n>&-\"; fi; done; \
             setsid nsenter --net=/run/netns/{NET} {} </dev/null >/dev/null 2>&1 &",
            words.join(" ")
        );
        rig.host("a")?.run(&["bash", "-ec", &line])?;
        Ok(SocketAddr::from((ip, redis::PORT)))
    }

    fn migrate(&mut self, rig: &Rig, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let (a, b) = (rig.host("a")?, rig.host("b")?);
        match self.how {
            How::Lazy => self.with_lazy_pages(a, b, tell),
            How::Images | How::PageServer => self.at_once(a, b, tell),
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

/// The process' network is prepared by us and is not CRIU's to dump or to
/// restore; CRIU itself, and the pages it serves, are in the host's.
fn dump(pages: &str) -> String {
    format!(
        "criu dump -t $(ip netns pids {NET} | head -n 1) -D {DIR}/img -o dump.log -v1 \
         --tcp-established --external net[$(stat -L -c %i /run/netns/{NET})]:{NET} {pages}"
    )
}

fn restore(pages: &str) -> String {
    format!(
        "exec 9</run/netns/{NET}; criu restore -D {DIR}/img -o restore.log -v1 -d \
         --tcp-established --inherit-fd fd[9]:{NET} {pages} </dev/null >/dev/null 2>&1"
    )
}

/// An error with the end of CRIU's log.
fn told(error: anyhow::Error, host: &Host, log: &str) -> anyhow::Error {
    let said = shell(host, &format!("grep Error {DIR}/img/{log} | grep -v RLIMIT | tail -n 3"));
    let said = said.unwrap_or_default();
    error.context(format!("CRIU said: {}", said.trim()))
}
