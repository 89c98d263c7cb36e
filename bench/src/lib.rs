//! Proving: the lab, the workloads, the client probe and the demo.

pub mod demo;
pub mod lab;
pub mod plot;
pub mod probe;
pub mod quantity;
pub mod report;
pub mod rig;
pub mod run;
pub mod simulate;
pub mod stats;
pub mod vm;
pub mod workload;
