//! The same on a bridge network, whose bridge each host has attached to the
//! segment that both are on.

use crate::hosts::{Hosts, Regular};
use std::net::SocketAddr;

/// Takes the hosts' own networking apart: nothing else runs on them after this.
pub(crate) fn keeps_addresses_if_asked_to(hosts: &mut Hosts) {
    for host in hosts.lab.hosts() {
        hosts.docker(host, "network rm blipnet");
    }
    bring_bridges(hosts);
    let ip = hosts.lab.container_address(3);
    let server = "import socketserver\n\
                  class Pong(socketserver.StreamRequestHandler):\n\
                  \x20   def handle(self):\n\
                  \x20       while self.rfile.readline():\n\
                  \x20           self.wfile.write(b'+PONG\\r\\n')\n\
                  socketserver.ThreadingTCPServer(('', 6379), Pong).serve_forever()";
    let options = format!("--network seg --ip {ip}");
    hosts.run("bridged", &options, "blip/python:latest", &["python3", "-c", server]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let clients = &mut Regular::of(hosts, SocketAddr::from((ip, 6379)));
    let before = hosts.identity("bridged");

    refused(hosts, "b", "leads nowhere on the target");
    refused(hosts, "a", "leads nowhere on the source");

    let step = "agent killed, on a bridge";
    let mut migration = hosts.start_migration_with("bridged", "--keep-address");
    migration.wait_for("begin restore");
    let rules = hosts.b().run(&["nft", "list", "tables", "bridge"]).expect("nft");
    assert!(rules.contains("blip_silence_"), "the copy is silent on the bridge: {rules}");
    hosts.kill_agent();
    clients.is_served(step);
    let (code, _, said) = migration.end();
    assert_eq!(code, Some(1), "{step}: {said}");
    hosts.start_agent();
    hosts.target_is_empty(step);
    hosts.source_is_clean(step, Some("bridged"));
    assert_eq!(hosts.identity("bridged"), before, "{step}");

    let fields = "range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end";
    let address = hosts.inspect(hosts.a(), "bridged", fields);
    let report = hosts.migrate_with("bridged", "--keep-address");
    eprintln!("on a bridge: downtime {} ms", report["downtime_ms"]);
    clients.is_served("moved on a bridge");
    assert_eq!(hosts.inspect(hosts.b(), "bridged", fields), address);
    hosts.source_is_clean("moved on a bridge", None);
    hosts.target_is_clean("moved on a bridge");
}

/// With a host's bridge on its own there is no move, and it is said why.
fn refused(hosts: &Hosts, host: &str, why: &str) {
    let host = hosts.lab.host(host).expect("host");
    // The bridge must not be mistaken for one that leads somewhere.
    host.run(&["ip", "link", "set", "dev", "eth0", "nomaster"]).expect("ip");
    host.run(&["ip", "addr", "add", &format!("{}/24", host.address()), "dev", "eth0"]).expect("ip");
    host.run(&["ip", "link", "set", "dev", "seg0", "down"]).expect("ip");
    let said = hosts.blip(&[], &["migrate", "bridged", "--to", "b", "--keep-address"]);
    attach(host);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains(why) && said.err.contains("master seg0"), "{said:?}");
}

/// The network `seg`, on the lab's segment: a host's own address is its bridge's.
fn bring_bridges(hosts: &Hosts) {
    let subnet = hosts.lab.subnet();
    let range = subnet.replace(".0/24", ".128/25");
    for host in hosts.lab.hosts() {
        host.run(&["ip", "-4", "addr", "flush", "dev", "eth0"]).expect("ip");
        let create = format!(
            "network create --driver bridge --subnet {subnet} --ip-range {range} --gateway {} \
             --opt com.docker.network.bridge.name=seg0 seg",
            host.address()
        );
        hosts.docker(host, &create);
        attach(host);
    }
}

/// Puts the host's cable into its bridge.
fn attach(host: &blip_bench::lab::Host) {
    let script = "ip -4 addr flush dev eth0 && \
                  ip link set dev seg0 address $(cat /sys/class/net/eth0/address) up && \
                  ip link set dev eth0 master seg0";
    host.run(&["sh", "-c", script]).expect("a bridge");
}
