//! Every workload is moved once by the bench as it always does, with all its
//! clients: what they were answered is there afterwards.

use std::path::Path;

use blip_bench::demo::blip_beside;
use blip_bench::lab::{Lab, LabSpec};
use blip_bench::rig::Rig;
use blip_bench::run::environment::Environment;
use blip_bench::run::sample::Ended;
use blip_bench::run::{Plan, Record, Runner};

const BINARY: &str = env!("CARGO_BIN_EXE_blip-bench");

const PLAN: &str = "
    scenarios = ['tiny-redis']
    repeats = 1
    probe-rate = 300
    margin = '600ms'
    onward = true
    scenario = [
        { name = 'memcached', memcached = '8MiB', reads = 50 },
        { name = 'nginx', nginx = '8MiB' },
        { name = 'web', web = '8MiB' },
        { name = 'pool', pool = '8MiB' },
        { name = 'postgres', postgres = '16MiB' },
    ]
";

/// Takes the lab down also by a panic.
struct Sweep(String);

impl Drop for Sweep {
    fn drop(&mut self) {
        let _ = Lab::remove(&self.0);
    }
}

#[test]
#[cfg_attr(not(blip_long), ignore = "needs root, and BLIP_LONG=1 when it is built")]
fn every_workload_moves_and_its_clients_lose_nothing() {
    let name = format!("loads-{}", std::process::id());
    let _sweep = Sweep(name.clone());
    let blip = blip_beside(Path::new(BINARY)).expect("the program blip");
    let program = Some(BINARY.into());
    let spec = LabSpec { name, program, progress: |_| {}, ..LabSpec::default() };
    let rig = Rig::start(&spec, &blip, &["a", "b"]).expect("a lab");
    let plan = Plan::parse(PLAN).expect("a plan");
    let dir = tempfile::tempdir().expect("a folder");
    let mut record = Record::open(dir.path(), &plan, &Environment::default()).expect("new");
    let mut runner = Runner::new(&rig, &plan, Path::new(BINARY));
    let mut wrong = Vec::new();
    let tell = &mut |cell: &blip_bench::run::Cell, sample: Option<&blip_bench::run::Sample>| {
        let Some(sample) = sample else { return };
        let (gap, fresh) = (sample.client.gap_ms, sample.client.fresh.clone().unwrap_or_default());
        eprintln!(
            "{cell}: {:?}, gap {gap:.0} ms, {} failed, {} of strangers; {:?} {:?}",
            sample.ended, sample.client.failed, fresh.failed, sample.why, sample.objections
        );
        let moved = matches!(sample.ended, Ended::Nothing | Ended::Moved);
        if !moved || !sample.verified || sample.client.failed > 0 {
            wrong.push(cell.to_string());
        }
    };
    runner.run(&mut record, tell).expect("written down");
    runner.clean().expect("cleaned");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
