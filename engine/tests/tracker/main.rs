//! The tracker against programs that do their worst.
//!
//! The programs are this test binary itself: started with `BLIP_CHILD` set, it
//! becomes one of them before `main` (see [`child`]), so that it has no thread
//! and no memory of the test harness'.

mod blocked;
mod child;
mod hostile;
mod measured;
mod oracle;
mod pre_dumps;
mod shadow;
mod untouched;
mod verified;
