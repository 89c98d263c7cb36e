//! What many small files in a container's writable layer cost: the rounds while
//! it runs, and the downtime.
//!
//! Two containers of the lab run the same ticking program; one of them has files
//! in its writable layer. They move in turns, so that what drifts drifts for
//! both, each time to a host that has nothing of them.
//!
//! ```sh
//! cargo run --release -p blip-bench --example layer -- --out results/layer
//! ```

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use blip_bench::lab::Host;
use blip_bench::rig::{NETWORK, Order, Rig, in_own_lab};
use blip_bench::stats::median_interval;
use clap::Parser;
use serde_json::{Value, json};

/// Moves a container with and without files in its writable layer.
#[derive(Parser)]
struct Args {
    /// Folder for `layer.jsonl`.
    #[arg(long)]
    out: PathBuf,
    /// Files.
    #[arg(long, default_value_t = 100_000)]
    files: u64,
    /// MiB in all of them.
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Pairs of moves.
    #[arg(long, default_value_t = 3)]
    pairs: u32,
}

const NAME: &str = "layer";
/// Writes a line a tick, and a few of the files anew.
const PROGRAM: &str = "
import os, sys, time
folder, count, size = '/many', int(sys.argv[1]), int(sys.argv[2])
noise = os.urandom(1 << 20)
for n in range(count):
    if n % 1000 == 0: os.makedirs('%s/%d' % (folder, n // 1000))
    at = n * 7919 % (len(noise) - size)
    with open('%s/%d/%d' % (folder, n // 1000, n), 'wb') as f: f.write(noise[at:at + size])
print('ready', flush=True)
n = 0
while True:
    n += 1
    if count: open('%s/%d/%d' % (folder, n % count // 1000, n % count), 'ab').write(b'more')
    time.sleep(0.02)
";

fn main() -> Result<()> {
    let args = Args::parse();
    in_own_lab("layer", &["b"], |rig| measure(rig, &args))
}

fn measure(rig: &Rig, args: &Args) -> Result<()> {
    let mut lines = String::new();
    let mut downtimes = [Vec::new(), Vec::new()];
    for _ in 0..args.pairs {
        for (files, downtimes) in [0, args.files].into_iter().zip(&mut downtimes) {
            let report = moved(rig, files, (args.mib << 20) / args.files)?;
            downtimes.push(report["downtime_ms"].as_f64().context("a downtime")?);
            let kept = ["downtime_ms", "downtime", "total_ms", "bytes_sent", "files", "versions"];
            let mut line = json!({ "files_in_layer": files });
            kept.iter().for_each(|name| line[name] = report[name].clone());
            println!("{files} files: {} ms, {}", report["downtime_ms"], report["files"]);
            lines += &format!("{line}\n");
        }
    }
    fs::create_dir_all(&args.out)?;
    fs::write(args.out.join("layer.jsonl"), lines)?;
    for (files, downtimes) in [0, args.files].into_iter().zip(&downtimes) {
        let found = median_interval(downtimes).context("moves")?;
        println!(
            "{files} files: downtime {:.1} ms [{:.1} – {:.1}]",
            found.value, found.low, found.high
        );
    }
    Ok(())
}

/// Starts it on one host, moves it to the other, and removes it.
fn moved(rig: &Rig, files: u64, size: u64) -> Result<Value> {
    rig.remove(NAME);
    let source = rig.host("a")?;
    let ip = rig.lab().container_address(1).to_string();
    let words = ["docker", "run", "--detach", "--name", NAME, "--network", NETWORK, "--ip", &ip];
    let (files, size) = (files.to_string(), size.to_string());
    let command = ["blip/python:latest", "python3", "-c", PROGRAM, &files, &size];
    source.run(&[&words[..], &command].concat())?;
    wait_ready(source)?;
    let flags = ["--remove-source".to_owned()];
    let order =
        Order { container: NAME, from: "a", to: "b", via: None, flags: &flags, limit: None };
    let mut last = String::new();
    let ended = rig.migrate(&order, &mut |line| {
        last = line.to_owned();
        Ok(())
    })?;
    ensure!(ended.status.success(), "it did not move: {}", ended.said);
    rig.remove(NAME);
    Ok(serde_json::from_str(&last)?)
}

fn wait_ready(source: &Host) -> Result<()> {
    for _ in 0..3000 {
        if source.run(&["docker", "logs", NAME])?.contains("ready") {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    anyhow::bail!("it does not get ready")
}
