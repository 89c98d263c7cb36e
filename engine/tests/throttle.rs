//! The throttle on real cgroups with a program that is always busy: what it
//! takes, and that everything comes back after `lift`, a drop and a killed
//! owner.
//!
//! Every test has cgroups of its own, in each hierarchy that this machine
//! offers, and removes them.

use blip_engine::cgroup::{Freezer, Version};
use blip_engine::throttle::Throttle;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BLIP: &str = env!("CARGO_BIN_EXE_blip");
/// Names the freezer that the other half of a test works on.
const OWNED: &str = "BLIP_TEST_OWNED";

/// Where the kernel's hierarchies are mounted.
fn mounts() -> Vec<(PathBuf, Vec<String>)> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields[2];
        let mut options: Vec<String> = fields[3].split(',').map(str::to_owned).collect();
        options.push(kind.to_owned());
        kind.starts_with("cgroup").then(|| (PathBuf::from(fields[1]), options))
    };
    text.lines().filter_map(parse).collect()
}

/// A busy program in cgroups that are its own.
struct Busy {
    child: Child,
    groups: Vec<PathBuf>,
}

impl Busy {
    /// In a group of each hierarchy that has one of `controllers`; `cgroup2` is
    /// the unified one. `None`: there is none of some of them here.
    fn start(name: &str, controllers: &[&str], script: &str) -> Option<Self> {
        let mounts = mounts();
        let mut groups = Vec::new();
        for controller in controllers {
            let mount = mounts.iter().find(|(_, options)| options.iter().any(|o| o == controller));
            let group = mount?.0.join(format!("blip-test-{name}-{}", std::process::id()));
            groups.push(group);
        }
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let busy = Self { child, groups };
        for group in &busy.groups {
            fs::create_dir(group).unwrap();
            fs::write(group.join("cgroup.procs"), busy.pid().to_string()).unwrap();
        }
        Some(busy)
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn file(&self, name: &str) -> PathBuf {
        let holds = |group: &&PathBuf| group.join(name).exists();
        self.groups.iter().find(holds).unwrap_or_else(|| panic!("no {name}")).join(name)
    }

    fn says(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap().trim().to_owned()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for group in &self.groups {
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            let _ = fs::write(group.join("cgroup.freeze"), "0");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for group in &self.groups {
            let until = Instant::now() + Duration::from_secs(2);
            while fs::remove_dir(group).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

const LOOP: &str = "while :; do :; done";
/// About a third of a CPU, in bursts, and behind if it is stopped.
const BURSTS: &str =
    "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05; done";

fn throttle(busy: &Busy) -> Throttle {
    let freezer = Freezer::of(busy.pid()).unwrap();
    Throttle::of(busy.pid(), &freezer).unwrap().guarded_by(Path::new(BLIP))
}

/// CPUs used during `time`.
fn rate(throttle: &Throttle, time: Duration) -> f64 {
    let (from, begun) = (throttle.used().unwrap(), Instant::now());
    std::thread::sleep(time);
    (throttle.used().unwrap() - from).as_secs_f64() / begun.elapsed().as_secs_f64()
}

/// The bounds are wide: whatever else runs on this machine takes its part of
/// what was used before, and of what is left.
fn falls_as_asked(throttle: &mut Throttle, settle: Duration) {
    let before = rate(throttle, Duration::from_millis(600));
    for percent in [50, 80] {
        throttle.set(percent).unwrap();
        std::thread::sleep(settle);
        let share = rate(throttle, Duration::from_millis(1200)) / before;
        let asked = 1.0 - f64::from(percent) / 100.0;
        println!("{}: -{percent} %: {share:.3} of {before:.3} CPUs", throttle.means());
        // Wide bounds: on a busy machine both measurements are off.
        assert!(share < asked + 0.3, "{share} of {before} left after -{percent} %");
        assert!(share > asked / 8.0, "only {share} of {before} left after -{percent} %");
    }
    throttle.lift().unwrap();
    assert_eq!(throttle.percent(), 0);
    let after = rate(throttle, Duration::from_millis(600));
    assert!(after > before * 0.25, "{after} of {before} CPUs came back");
}

/// The one thing that these tests must not do is run side by side: they
/// measure CPU time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_v1_quota_takes_what_is_asked_and_gives_it_back() {
    let _alone = alone();
    let Some(busy) = Busy::start("quota", &["cpu", "cpuacct", "freezer"], LOOP) else { return };
    let mut throttle = throttle(&busy);
    assert_eq!(throttle.means(), "cfs quota");
    falls_as_asked(&mut throttle, Duration::ZERO);
    assert_eq!(busy.says("cpu.cfs_quota_us"), "-1");
    assert_eq!(busy.says("cpu.cfs_period_us"), "100000");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_v2_limit_takes_what_is_asked_and_gives_it_back() {
    let _alone = alone();
    let Some(busy) = Busy::start("max", &["cgroup2"], LOOP) else { return };
    if !busy.groups[0].join("cpu.max").exists() {
        // Without the controller the duty cycle is what is tested, below.
        return;
    }
    let mut throttle = throttle(&busy);
    assert_eq!(throttle.means(), "cpu.max");
    falls_as_asked(&mut throttle, Duration::ZERO);
    assert_eq!(busy.says("cpu.max"), "max 100000");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_duty_cycle_takes_what_is_asked_on_v1() {
    let _alone = alone();
    let Some(busy) = Busy::start("duty1", &["freezer"], LOOP) else { return };
    let mut throttle = throttle(&busy);
    assert_eq!(throttle.means(), "freezer duty cycle");
    falls_as_asked(&mut throttle, Duration::from_millis(600));
    assert_eq!(busy.says("freezer.state"), "THAWED");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_duty_cycle_takes_what_is_asked_on_v2() {
    let _alone = alone();
    let Some(busy) = Busy::start("duty2", &["cgroup2"], LOOP) else { return };
    if busy.groups[0].join("cpu.max").exists() {
        return;
    }
    let mut throttle = throttle(&busy);
    assert_eq!(throttle.means(), "freezer duty cycle");
    falls_as_asked(&mut throttle, Duration::from_millis(600));
    assert_eq!(busy.says("cgroup.freeze"), "0");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_duty_cycle_slows_one_that_catches_up_too() {
    let _alone = alone();
    let Some(busy) = Busy::start("bursts", &["cgroup2"], BURSTS) else { return };
    let mut throttle = throttle(&busy);
    let before = rate(&throttle, Duration::from_secs(1));
    throttle.set(60).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let share = rate(&throttle, Duration::from_millis(1500)) / before;
    println!("bursts, -60 %: {share:.3} of {before:.3} CPUs");
    assert!(share < 0.75, "{share} of {before} CPUs left");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_limit_of_the_users_is_kept_below_and_restored() {
    let _alone = alone();
    let Some(busy) = Busy::start("limit", &["cpu", "cpuacct", "freezer"], LOOP) else { return };
    fs::write(busy.file("cpu.cfs_period_us"), "50000").unwrap();
    fs::write(busy.file("cpu.cfs_quota_us"), "20000").unwrap();
    let mut throttle = throttle(&busy);
    throttle.set(50).unwrap();
    let share = rate(&throttle, Duration::from_secs(1));
    assert!((0.01..0.36).contains(&share), "{share} CPUs, of 0.4 allowed");
    // The drop lifts as well.
    drop(throttle);
    assert_eq!(busy.says("cpu.cfs_quota_us"), "20000");
    assert_eq!(busy.says("cpu.cfs_period_us"), "50000");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn one_that_cannot_have_a_quota_is_stopped_in_turns() {
    let _alone = alone();
    let Some(busy) = Busy::start("nested", &["cpu", "freezer"], LOOP) else { return };
    // A group inside with a limit of its own: v1 allows no smaller one above.
    let inner = busy.groups[0].join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("cpu.cfs_quota_us"), "90000").unwrap();
    let mut throttle = throttle(&busy);
    throttle.set(50).unwrap();
    let means = throttle.means();
    throttle.lift().unwrap();
    let quota = busy.says("cpu.cfs_quota_us");
    fs::remove_dir(&inner).unwrap();
    assert_eq!((means, quota.as_str()), ("freezer duty cycle", "-1"));
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn before_the_freeze_a_cycle_ends_and_a_freeze_holds() {
    let _alone = alone();
    let Some(busy) = Busy::start("hold", &["freezer"], LOOP) else { return };
    let mut throttle = throttle(&busy);
    throttle.set(70).unwrap();
    throttle.before_freeze().unwrap();
    let freezer = Freezer::of(busy.pid()).unwrap();
    freezer.freeze(Duration::from_secs(1)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    throttle.lift().unwrap();
    drop(throttle);
    assert!(freezer.is_frozen().unwrap());
}

/// A task that has used up its quota freezes only when it gets more; and then at
/// once, before it uses that.
#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn before_the_freeze_a_quota_is_lifted() {
    let _alone = alone();
    let Some(busy) = Busy::start("late", &["cpu", "freezer"], LOOP) else { return };
    let mut throttle = throttle(&busy);
    throttle.set(90).unwrap();
    assert_ne!(busy.says("cpu.cfs_quota_us"), "-1");
    throttle.before_freeze().unwrap();
    assert_eq!((throttle.percent(), busy.says("cpu.cfs_quota_us").as_str()), (0, "-1"));
    let freezer = Freezer::of(busy.pid()).unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    while !freezer.is_frozen().unwrap() {
        assert!(Instant::now() < until, "the freeze was not ordered");
        std::thread::sleep(Duration::from_millis(1));
    }
    freezer.thaw().unwrap();
}

/// The other half of the tests below: throttles and waits to be killed.
#[test]
fn owner() {
    let Ok(pid) = std::env::var(OWNED) else { return };
    let pid = pid.parse().unwrap();
    let freezer = Freezer::of(pid).unwrap();
    let mut throttle = Throttle::of(pid, &freezer).unwrap().guarded_by(Path::new(BLIP));
    throttle.set(95).unwrap();
    std::thread::sleep(Duration::from_secs(30));
}

/// Kills an owner by surprise once `taken`, and waits for `restored`.
fn kill_owner(busy: &Busy, taken: impl Fn() -> bool, restored: impl Fn() -> bool) {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner"])
        .env(OWNED, busy.pid().to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    wait("it was never throttled", &taken);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait("it was never given back", &restored);
    // And stays so.
    std::thread::sleep(Duration::from_millis(100));
    assert!(restored());
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_killed_owner_leaves_no_quota() {
    let _alone = alone();
    let Some(busy) = Busy::start("killed", &["cpu", "freezer"], LOOP) else { return };
    fs::write(busy.file("cpu.cfs_quota_us"), "150000").unwrap();
    let quota = || busy.says("cpu.cfs_quota_us");
    let period = || busy.says("cpu.cfs_period_us");
    kill_owner(&busy, || period() != "100000", || quota() == "150000" && period() == "100000");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn a_killed_owner_leaves_nothing_frozen() {
    let _alone = alone();
    for (hierarchy, version) in [("freezer", Version::V1), ("cgroup2", Version::V2)] {
        let Some(busy) = Busy::start("cold", &[hierarchy], LOOP) else { continue };
        if version == Version::V2 && busy.groups[0].join("cpu.max").exists() {
            continue;
        }
        let freezer = Freezer { path: busy.groups[0].clone(), version };
        kill_owner(&busy, || freezer.is_frozen().unwrap(), || !freezer.is_frozen().unwrap());
        let control = if version == Version::V1 { "freezer.state" } else { "cgroup.freeze" };
        assert!(["THAWED", "0"].contains(&busy.says(control).as_str()));
    }
}
