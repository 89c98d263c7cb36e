//! Bad roads between real hosts: a migration arrives over delay and loss, and
//! one whose road is cut in the middle of pre-copy is as if it had never been.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod hosts;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blip_bench::lab::{CgroupMode, Suite};
use blip_bench::probe::{Probe, Spec};
use blip_bench::relay::{Relay, Weather};
use hosts::{AtClient, Hosts, Regular};

const MIB: u64 = 1 << 20;

fn road(hosts: &Hosts, weather: Weather) -> Relay {
    let switch = hosts.lab.switch();
    let at = SocketAddr::from((switch.address(), 0));
    let agent = SocketAddr::from((hosts.b().address(), 4433));
    Relay::start(&AtClient(switch), at, agent, weather).expect("a relay")
}

/// 20 ms each way and one datagram of a hundred lost.
fn delay_and_loss_are_no_obstacle(hosts: &Hosts) {
    let (addr, expected) = hosts.redis("redis", 1, 8 * MIB);
    let place = AtClient(hosts.lab.client());
    let spec = Spec { rate: 500, counters: 100, ..Spec::new(addr) };
    let probe = Probe::start(spec, &place).expect("a probe");
    let weather = Weather { delay: Duration::from_millis(20), loss_ppm: 10_000, seed: 5 };
    let relay = road(hosts, weather);
    let to = relay.address().to_string();
    let began = Instant::now();
    let (code, lines, err) = hosts.start_migration_to("redis", &to, "--remove-source").end();
    eprintln!("over a bad road: {:.1?}, {:?}", began.elapsed(), relay.counts());
    assert_eq!(code, Some(0), "{err}\n{}", lines.join("\n"));
    std::thread::sleep(Duration::from_millis(300));
    let seen = probe.stop().expect("the probe's report");
    let verdict = seen.verify(&place, addr, &expected).expect("a verdict");
    assert!(verdict.verified(), "{:?}", verdict.objections());
    assert_eq!(seen.reconnects, 0, "the connection moved along: {:?}", seen.connections);
    let counts = relay.counts();
    assert!(counts.lost > counts.carried / 200, "one of a hundred was lost: {counts:?}");
    hosts.source_is_clean("over a bad road", None);
    hosts.docker(hosts.b(), "rm --force redis");
    hosts.target_is_empty("over a bad road");
}

/// The road ends while rounds are under way, and does not come back.
fn a_cut_in_pre_copy_leaves_no_trace(hosts: &Hosts) {
    let (addr, expected) = hosts.redis("redis", 1, 64 * MIB);
    let place = AtClient(hosts.lab.client());
    let mut regular = Regular::of(hosts, addr);
    let spec = Spec { rate: 500, counters: 100, ..Spec::new(addr) };
    let probe = Probe::start(spec, &place).expect("a probe");
    let identity = hosts.identity("redis");
    let relay = road(hosts, Weather::default());
    let to = relay.address().to_string();
    let mut migration =
        hosts.start_migration_to("redis", &to, "--method pre-copy --bandwidth 100Mbit");
    migration.wait_for("begin pre_copy");
    std::thread::sleep(Duration::from_millis(400));
    relay.cut(Duration::ZERO, Duration::from_secs(600));
    let began = Instant::now();
    let (code, lines, err) = migration.end();
    eprintln!("cut: gave up after {:.1?}, {:?}: {err}", began.elapsed(), relay.counts());
    assert_eq!(code, Some(1), "{err}\n{}", lines.join("\n"));
    assert!(relay.counts().cut > 0 && began.elapsed() < Duration::from_secs(15));
    regular.is_served("cut in pre-copy");
    assert_eq!(hosts.identity("redis"), identity, "untouched");
    let seen = probe.stop().expect("the probe's report");
    assert_eq!(seen.reconnects, 0, "no client noticed: {:?}", seen.connections);
    let verdict = seen.verify(&place, addr, &expected).expect("a verdict");
    assert!(verdict.verified(), "{:?}", verdict.objections());
    drop(relay);
    hosts.source_is_clean("cut in pre-copy", Some("redis"));
    hosts.target_is_empty("cut in pre-copy");
}

#[test]
#[cfg_attr(not(blip_root), ignore = "needs root")]
fn bad_roads() {
    let hosts = Hosts::up("links", CgroupMode::V2, Suite::Forky);
    delay_and_loss_are_no_obstacle(&hosts);
    a_cut_in_pre_copy_leaves_no_trace(&hosts);
}
