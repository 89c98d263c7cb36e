//! The handover protocol, driven by both of its ends in memory.
//!
//! `ends` carries out what the machines say on bodies and disks that are only
//! values, and can be told to make a mistake. `simulation` joins the ends with
//! simulated links under virtual time; `explorer` walks through every
//! interleaving there is. Both look at the same invariants after every step.

#[path = "handover/ends.rs"]
mod ends;
#[path = "handover/explorer.rs"]
mod explorer;
#[path = "handover/simulation.rs"]
mod simulation;
