//! Pre-copy as CRIU's pages on iterative migration have it: pre-dumps, each
//! copied while the process runs, and a last dump of what was written since.

use anyhow::Result;

use super::super::berth::{self, Copy, DIR, shell};
use super::{criu, dump, restore, told};
use crate::lab::Host;

/// Pre-dumps before the last dump.
const ROUNDS: u32 = 3;

pub(super) const DESCRIPTION: &str = "criu pre-dump --track-mem three times, each copied while the process runs; criu dump \
     --track-mem --prev-images-dir, copied; criu restore; a plain process";

/// Moves the process from `a` to `b`.
pub(super) fn migrate(a: &Host, b: &Host, tell: &mut dyn FnMut(&str)) -> Result<()> {
    for round in 1..=ROUNDS {
        let folder = folder(round);
        let copy = Copy::to(b, &format!("{DIR}/{folder}"))?;
        shell(a, &format!("mkdir {DIR}/{folder}"))?;
        let more = format!("--track-mem {}", previous(round));
        shell(a, &criu("pre-dump", &folder, &more)).map_err(|e| told(e, a, &log(round, "dump")))?;
        copy.send(a, &format!("{DIR}/{folder}"))?;
    }
    let last = ROUNDS + 1;
    let folder = folder(last);
    let copy = Copy::to(b, &format!("{DIR}/{folder}"))?;
    shell(a, &format!("mkdir {DIR}/{folder}"))?;
    tell("freeze");
    let more = format!("--track-mem {}", previous(last));
    shell(a, &dump(&folder, &more)).map_err(|e| told(e, a, &log(last, "dump")))?;
    berth::down(a)?;
    copy.send(a, &format!("{DIR}/{folder}"))?;
    berth::up(b)?;
    shell(b, &restore(&folder, "")).map_err(|e| told(e, b, &log(last, "restore")))?;
    tell("drain");
    Ok(())
}

/// The images of a round, below [`DIR`].
fn folder(round: u32) -> String {
    format!("img/{round}")
}

/// Its log, below the folder of images.
fn log(round: u32, of: &str) -> String {
    format!("{round}/{of}.log")
}

/// What a round is said to follow; the first follows none.
fn previous(round: u32) -> String {
    if round > 1 { format!("--prev-images-dir ../{}", round - 1) } else { String::new() }
}
