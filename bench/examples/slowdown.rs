//! How much slower a busy Redis is while its memory is copied ahead.
//!
//! Two hosts of the lab and clients that ask as fast as they are answered
//! (closed loop): windows in which rounds run and windows in which nothing does
//! take turns, so that what drifts drifts for both. In each window with rounds a
//! migration is begun, measured in the middle of its first rounds, and killed.
//!
//! ```sh
//! cargo run --release -p blip-bench --example slowdown -- --out results/trackers
//! ```
//!
//! Source, target and clients share one machine. Redis and its clients have its
//! first core, and all else has the second: so what is seen is what tracking
//! costs, and not that somebody else takes the processor. With `--together` all
//! take what they get, the *target* too, which would not be there elsewhere.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use blip_bench::probe::within;
use blip_bench::rig::{NETWORK, Order, Rig, in_own_lab};
use blip_bench::stats::median_interval;
use blip_bench::workload::dataset::Dataset;
use blip_bench::workload::redis::{COMMAND, IMAGE, PORT, Redis};
use clap::Parser;
use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;

/// Measures a busy Redis with and without rounds of pre-copy.
#[derive(Parser)]
struct Args {
    /// Folder for `slowdown.jsonl`.
    #[arg(long)]
    out: PathBuf,
    /// MiB of data: more than goes out in a window.
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Pairs of windows.
    #[arg(long, default_value_t = 6)]
    pairs: u32,
    /// Seconds in a window.
    #[arg(long, default_value_t = 5)]
    window: u64,
    /// Connections, each with one question at a time.
    #[arg(long, default_value_t = 2)]
    clients: u64,
    /// No cores of their own: also what blip takes of the processors counts.
    #[arg(long)]
    together: bool,
    /// Further flags of `blip migrate`.
    #[arg(long, default_value = "--tracker write-protect --bandwidth 1Gbit")]
    flags: String,
}

/// How long it may take until rounds are made.
const STAGING: Duration = Duration::from_secs(6);

/// What clients saw since it was last taken, in microseconds.
type Seen = Arc<Mutex<Histogram<u64>>>;

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.together {
        // Whatever is started from here on inherits it.
        on_core(OTHERS)?;
    }
    in_own_lab("slow", &["b"], |rig| measure(rig, &args))
}

/// The core of Redis and its clients, and that of all others.
const OWN: usize = 0;
const OTHERS: usize = 1;

/// Keeps the calling thread, and what it will start, on a core.
fn on_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("choosing a core")
}

fn measure(rig: &Rig, args: &Args) -> Result<()> {
    let ip = rig.lab().container_address(1);
    let text = ip.to_string();
    let words = ["docker", "run", "--detach", "--name", "redis", "--network", NETWORK, "--ip"];
    rig.host("a")?.run(&[&words[..], &[text.as_str(), IMAGE], &COMMAND].concat())?;
    let addr = SocketAddr::from((ip, PORT));
    let bytes = args.mib << 20;
    within(rig.place(), "fill", move || -> Result<()> {
        let redis = Redis::at(addr);
        redis.wait_ready(Duration::from_secs(20))?;
        redis.fill(Dataset { bytes, seed: 1 })?;
        Ok(())
    })??;
    if !args.together {
        let pin = format!(
            "taskset --all-tasks --cpu-list --pid {OWN} \
             $(docker inspect --format '{{{{.State.Pid}}}}' redis)"
        );
        rig.host("a")?.run(&["sh", "-ec", &pin])?;
    }
    let (seen, enough) = (Seen::new(Mutex::new(histogram()?)), Arc::new(AtomicBool::new(false)));
    let clients: Result<Vec<_>> =
        (0..args.clients).map(|seed| client(rig, args, addr, seed, &seen, &enough)).collect();
    let clients = clients?;
    std::thread::sleep(Duration::from_secs(1));
    let measured = pairs(rig, args, &seen);
    enough.store(true, Ordering::Relaxed);
    for client in clients {
        ensure!(client.join().is_ok(), "a client has failed");
    }
    measured
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

/// One that reads and writes keys of the dataset in turn.
fn client(
    rig: &Rig,
    args: &Args,
    addr: SocketAddr,
    seed: u64,
    seen: &Seen,
    enough: &Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>> {
    let (seen, enough) = (seen.clone(), enough.clone());
    let keys: Vec<_> = Dataset { bytes: 64 << 20, seed: 1 }.entries().map(|e| e.key).collect();
    let together = args.together;
    let job = move || {
        if !together {
            on_core(OWN).expect("a core");
        }
        let mut connection = Redis::at(addr).connect().expect("connected");
        let mut at = seed as usize * 7919;
        let value = vec![seed as u8; 1024];
        while !enough.load(Ordering::Relaxed) {
            at = (at + 104_729) % keys.len();
            let begun = Instant::now();
            let asked = match at % 2 {
                0 => redis::cmd("SET").arg(&keys[at]).arg(&value).exec(&mut connection),
                _ => redis::cmd("GET").arg(&keys[at]).exec(&mut connection),
            };
            asked.expect("answered");
            let took = begun.elapsed().as_micros() as u64;
            seen.lock().expect("unpoisoned").saturating_record(took.max(1));
        }
    };
    Ok(rig.place().start("client", Box::new(job))?)
}

fn pairs(rig: &Rig, args: &Args, seen: &Seen) -> Result<()> {
    std::fs::create_dir_all(&args.out)?;
    let path = args.out.join("slowdown.jsonl");
    let mut file = std::fs::File::create(&path)?;
    let window = Duration::from_secs(args.window);
    let (mut slowdowns, mut tails) = (Vec::new(), Vec::new());
    for pair in 0..args.pairs {
        // Which of both is first takes turns.
        let first = pair % 2 == 1;
        let mut both = [None, None];
        for rounds in [first, !first] {
            let found =
                if rounds { with_rounds(rig, args, window, seen)? } else { look(seen, window)? };
            let line = json!({
                "pair": pair, "rounds": rounds, "flags": args.flags, "mib": args.mib,
                "together": args.together,
                "per_second": found.len() as f64 / window.as_secs_f64(),
                "p50_us": found.value_at_quantile(0.5), "p99_us": found.value_at_quantile(0.99),
                "p999_us": found.value_at_quantile(0.999), "max_us": found.max(),
            });
            println!("{line}");
            writeln!(file, "{line}")?;
            both[usize::from(rounds)] = Some(found);
            std::thread::sleep(Duration::from_secs(2));
        }
        let [Some(without), Some(with)] = both else { continue };
        slowdowns.push(100.0 * (1.0 - with.len() as f64 / without.len() as f64));
        let tail = |h: &Histogram<u64>| h.value_at_quantile(0.99) as f64;
        tails.push(tail(&with) / tail(&without));
    }
    let text = |name, of: &[f64]| match median_interval(of) {
        Some(i) => format!("{name}: {:.1} ({:.1} to {:.1})", i.value, i.low, i.high),
        None => format!("{name}: none"),
    };
    println!("{}", text("fewer answers with rounds, %", &slowdowns));
    println!("{}", text("99th percentile, times", &tails));
    Ok(())
}

/// What clients see from now on, for so long.
fn look(seen: &Seen, window: Duration) -> Result<Histogram<u64>> {
    let take = || -> Result<Histogram<u64>> {
        Ok(std::mem::replace(&mut *seen.lock().expect("unpoisoned"), histogram()?))
    };
    take()?;
    std::thread::sleep(window);
    take()
}

/// The same while a migration copies memory; it is killed then.
fn with_rounds(rig: &Rig, args: &Args, window: Duration, seen: &Seen) -> Result<Histogram<u64>> {
    let flags: Vec<String> = args.flags.split_whitespace().map(str::to_owned).collect();
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let moving = scope.spawn(move || {
            let limit = Some(window + STAGING + Duration::from_secs(1));
            let (from, to) = ("a", "b");
            let order = Order { container: "redis", from, to, via: None, flags: &flags, limit };
            rig.migrate(&order, &mut |line| {
                let event: serde_json::Value = serde_json::from_str(line)?;
                if event["event"] == "begin" {
                    let _ = tell.send(event["phase"].as_str().unwrap_or_default().to_owned());
                }
                Ok(())
            })
        });
        let until = Instant::now() + STAGING;
        let next = || told.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        if !std::iter::from_fn(next).any(|begun| begun == "pre_copy") {
            let ended = moving.join().expect("no panic")?;
            bail!("no rounds were made: {}", ended.said);
        }
        std::thread::sleep(Duration::from_millis(300));
        let found = look(seen, window)?;
        let frozen = told.try_iter().any(|phase| phase == "freeze");
        ensure!(!frozen, "all was copied before the window was over: more data, less bandwidth");
        let ended = moving.join().expect("no panic")?;
        ensure!(ended.killed, "it ended by itself: {}", ended.said);
        forgotten(rig)?;
        Ok(found)
    })
}

/// Waits until the target has removed what was staged there.
fn forgotten(rig: &Rig) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    let b = rig.host("b")?;
    while !b.run(&["docker", "ps", "--all", "--quiet"])?.trim().is_empty() {
        ensure!(Instant::now() < until, "the target keeps a container of a source that is gone");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
