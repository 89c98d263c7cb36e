//! Scratch: times a held dump.
use blip_engine::{bundle::Bundle, cgroup::Freezer, criu::dump::*};
use std::time::*;
#[tokio::main]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (id, pid) = (&a[1], a[2].parse::<i32>().unwrap());
    let b = Bundle::of(id, pid).unwrap();
    println!("{b:#?}");
    let freezer = Freezer::of(pid).unwrap();
    println!("{freezer:?}");
    for i in 0..5 {
        let images = std::path::PathBuf::from(format!("/run/blip-x/{i}"));
        let _ = std::fs::remove_dir_all(&images);
        let spec = DumpSpec {
            pid,
            rootfs: b.rootfs.clone(),
            freezer: freezer.clone(),
            images,
            external: b.external.clone(),
            descriptors: b.descriptors.clone(),
            close_connections: false,
            skip_in_flight: false,
            terminal: b.terminal,
        };
        let t = Instant::now();
        let l = Loaded::start(&spec).await.unwrap();
        let t1 = t.elapsed();
        let t = Instant::now();
        freezer.freeze(Duration::from_secs(2)).unwrap();
        let t2 = t.elapsed();
        let t = Instant::now();
        let h = l.dump(&[], &[]).await;
        let t3 = t.elapsed();
        let t = Instant::now();
        match h {
            Ok(h) => h.abandon().await,
            Err(e) => println!("{e}"),
        }
        let t4 = t.elapsed();
        println!("frozen {:?}", freezer.is_frozen());
        freezer.thaw().unwrap();
        println!("load {t1:?} freeze {t2:?} dump {t3:?} abandon {t4:?}");
    }
}
