//! Tells tests whether they are built for root: those that need it are then
//! run, and reported as ignored otherwise. So are those that need a virtual
//! machine, unless `BLIP_VM=1` asks for them: emulated, they take minutes; and
//! those that make further Debian roots, unless `BLIP_LONG=1` does.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(blip_root)");
    println!("cargo:rustc-check-cfg=cfg(blip_vm)");
    println!("cargo:rustc-check-cfg=cfg(blip_long)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BLIP_VM");
    println!("cargo:rerun-if-env-changed=BLIP_LONG");
    let root = std::fs::read_to_string("/proc/self/status").is_ok_and(|s| {
        s.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    });
    if root {
        println!("cargo:rustc-cfg=blip_root");
        for (variable, cfg) in [("BLIP_VM", "blip_vm"), ("BLIP_LONG", "blip_long")] {
            if std::env::var_os(variable).is_some_and(|value| value != "0") {
                println!("cargo:rustc-cfg={cfg}");
            }
        }
    }
}
