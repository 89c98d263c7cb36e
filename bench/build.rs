//! Tells tests whether they are built for root: those that need it are then
//! run, and reported as ignored otherwise; and so are those that make further
//! Debian roots, unless `BLIP_LONG=1` asks for them.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(blip_root)");
    println!("cargo:rustc-check-cfg=cfg(blip_long)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BLIP_LONG");
    let root = std::fs::read_to_string("/proc/self/status").is_ok_and(|s| {
        s.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    });
    if root {
        println!("cargo:rustc-cfg=blip_root");
        if std::env::var_os("BLIP_LONG").is_some_and(|value| value != "0") {
            println!("cargo:rustc-cfg=blip_long");
        }
    }
}
