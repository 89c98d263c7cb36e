//! What the frozen container has in its memory, for the day it comes back.

use super::{Ahead, Pump, QUEUE, Sink, compress};
use crate::kept::Keepsake;
use crate::track::{Stop, Task};
use blip_transport::encode::{EncodeOptions, Encoder};
use blip_transport::units::{ByteSize, PageCount, Round};
use std::io;
use tokio::sync::mpsc;

impl Pump {
    /// Writes all memory into `keepsake`, as a round for a target that holds
    /// nothing; answers how much it takes there. Blocks.
    ///
    /// # Errors
    /// If it is too much, or cannot be read or written.
    pub fn keep(mut self, tasks: &[Task], mut keepsake: Keepsake) -> io::Result<ByteSize> {
        std::thread::scope(|scope| {
            let (raw, raw_in) = mpsc::channel(QUEUE);
            let (out, mut ready) = mpsc::channel(QUEUE);
            scope.spawn(move || compress(raw_in, &out));
            let writing = scope.spawn(move || {
                while let Some(batch) = ready.blocking_recv() {
                    keepsake.put(batch)?;
                }
                keepsake.finish()
            });
            let read = self.read_all(tasks, Sink(raw));
            let kept = writing.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            read.and(kept)
        })
    }

    fn read_all(&mut self, tasks: &[Task], out: Sink) -> io::Result<()> {
        let mut encoder = Encoder::new(EncodeOptions::default());
        encoder.begin_round(Round(0));
        for (space, runs) in &self.books.resident {
            let Some(&pid) = self.books.owners.get(space) else { continue };
            for run in runs {
                let take = |run, bytes: &[u8]| {
                    encoder.pages(*space, run, bytes);
                    out.take_from(&mut encoder);
                };
                // A page that cannot be read is one to send, no more.
                self.reader.each(pid, &[*run], Stop::Live, take).map_err(io::Error::other)?;
                if out.0.is_closed() {
                    return Ok(());
                }
            }
        }
        let mut ahead = Ahead { encoder: &mut encoder, out: &out, offered: PageCount(0) };
        self.shared.each(tasks, &mut ahead, || !out.0.is_closed());
        encoder.finish_round();
        out.take_from(&mut encoder);
        Ok(())
    }
}
