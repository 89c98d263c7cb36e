//! Tells tests whether they are built for root: those that need it are then
//! run, and reported as ignored otherwise. The one that boots a virtual machine
//! is left out by `BLIP_VM=0`, and those that make further Debian roots, unless
//! `BLIP_LONG=1` asks for them.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(blip_root)");
    println!("cargo:rustc-check-cfg=cfg(blip_long)");
    println!("cargo:rustc-check-cfg=cfg(blip_vm)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BLIP_LONG");
    println!("cargo:rerun-if-env-changed=BLIP_VM");
    let root = std::fs::read_to_string("/proc/self/status").is_ok_and(|s| {
        s.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    });
    if root {
        println!("cargo:rustc-cfg=blip_root");
        if std::env::var_os("BLIP_LONG").is_some_and(|value| value != "0") {
            println!("cargo:rustc-cfg=blip_long");
        }
        if std::env::var_os("BLIP_VM").is_none_or(|value| value != "0") {
            println!("cargo:rustc-cfg=blip_vm");
        }
    }
}
