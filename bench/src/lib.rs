//! Proving: the lab, the workloads, the client probe, the peers, the numbers and
//! the pictures.

pub mod baseline;
pub mod capture;
pub mod demo;
pub mod interrupt;
pub mod lab;
pub mod plot;
pub mod probe;
pub mod quantity;
pub mod relay;
pub mod report;
pub mod rig;
pub mod run;
pub mod simulate;
pub mod stats;
pub mod vm;
pub mod workload;
