//! The process that is tracked: fills its memory, writes to it when told, and
//! says what that cost.

use anyhow::{Context as _, Result, ensure};
use blip_transport::units::PAGE_SIZE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a burst of writes, one to each page, cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Writes {
    pub(crate) pages: u64,
    pub(crate) mean_ns: f64,
    pub(crate) p99_ns: u64,
    pub(crate) max_us: f64,
}

/// The process that is tracked; killed when dropped.
pub(crate) struct Writer {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Writer {
    pub(crate) fn start(mib: u64, apart: bool) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--writer", &mib.to_string()])
            .args(apart.then_some("--apart"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let say = child.stdin.take().context("stdin")?;
        let hear = BufReader::new(child.stdout.take().context("stdout")?);
        let mut writer = Self { child, say, hear };
        ensure!(writer.line()? == "ready\n", "the writer did not start");
        Ok(writer)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.hear.read_line(&mut line)?;
        Ok(line)
    }

    /// Has it write to a share of its pages.
    pub(crate) fn write(&mut self, percent: f64) -> Result<Writes> {
        writeln!(self.say, "{percent}")?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// The longest that its other thread took since this was last asked, in
    /// milliseconds.
    pub(crate) fn stall(&mut self) -> Result<f64> {
        writeln!(self.say, "stall")?;
        Ok(self.line()?.trim().parse()?)
    }

    pub(crate) fn stop(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGSTOP)?;
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the writer does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The writer: fills its memory, then writes when told and says what it cost.
pub(crate) fn run(mib: u64) -> Result<()> {
    let pages = (mib << 20) as usize / PAGE_SIZE;
    let mut memory = vec![0_u8; pages * PAGE_SIZE];
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    // About half of each page is random: it compresses as data do.
    for word in memory.chunks_exact_mut(16) {
        word[..8].copy_from_slice(&random().to_ne_bytes());
    }
    let worst = Arc::new(AtomicU64::new(0));
    let shared = worst.clone();
    std::thread::spawn(move || map_and_unmap(&shared));
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        if line == "stall" {
            println!("{}", worst.swap(0, Ordering::Relaxed) as f64 / 1e6);
            continue;
        }
        let percent: f64 = line.trim().parse()?;
        let count = ((pages as f64 * percent / 100.0) as usize).max(1);
        let step = (pages / count).max(1);
        let mut nanos = Vec::with_capacity(count);
        for page in (0..pages).step_by(step) {
            let value = random().to_ne_bytes();
            let at = page * PAGE_SIZE + 64 * (value[0] as usize % 60);
            let begun = Instant::now();
            std::hint::black_box(&mut memory)[at..at + 8].copy_from_slice(&value);
            nanos.push(begun.elapsed().as_nanos() as u64);
        }
        nanos.sort_unstable();
        let writes = Writes {
            pages: nanos.len() as u64,
            mean_ns: nanos.iter().sum::<u64>() as f64 / nanos.len() as f64,
            p99_ns: nanos[(nanos.len() - 1) * 99 / 100],
            max_us: *nanos.last().unwrap_or(&0) as f64 / 1e3,
        };
        println!("{}", serde_json::to_string(&writes)?);
    }
    Ok(())
}

/// Maps a page, writes to it and unmaps it, all the time; keeps the longest that
/// took, in nanoseconds. A thread that is stopped, or waits for the lock of the
/// process' mappings, or has no processor, shows here.
fn map_and_unmap(worst: &AtomicU64) {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    loop {
        let begun = Instant::now();
        // SAFETY: a new mapping disturbs nothing; only it is written to and
        // unmapped.
        unsafe {
            let page = libc::mmap(std::ptr::null_mut(), PAGE_SIZE, prot, flags, -1, 0);
            if page != libc::MAP_FAILED {
                page.cast::<u8>().write_volatile(1);
                libc::munmap(page, PAGE_SIZE);
            }
        }
        worst.fetch_max(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(100));
    }
}
