//! Reads a file's content block by block and sends the blocks that differ.
//!
//! A block's digest covers its data and where in the block it lies, so that a
//! hole that was filled with zeros is a change, and so is the reverse. Blocks
//! without data cost nothing, however large the file claims to be.

use super::BLOCK;
use super::manifest::{Blocks, Digest};
use super::path::RelPath;
use super::wire::{Base, FrameWriter, Meta, Record};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What the target has of the file that is being read.
pub(super) struct Before<'a> {
    pub(super) size: u64,
    pub(super) blocks: &'a Blocks,
    /// Where it was written to since; anywhere, if nobody knows.
    pub(super) written: Option<Vec<Range<u64>>>,
}

/// Which side failed.
#[derive(Debug)]
pub(super) enum ContentError {
    Read(Errno),
    Write(io::Error),
}

impl From<Errno> for ContentError {
    fn from(errno: Errno) -> Self {
        Self::Read(errno)
    }
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// One file on its way: says nothing until something differs.
pub(super) struct Outgoing<'a, 'w> {
    writer: &'a mut FrameWriter<'w>,
    path: RelPath,
    size: u64,
    before: Option<Before<'a>>,
    /// Whether anything was sent.
    pub(super) begun: bool,
    /// Bytes of content read and sent.
    pub(super) read: u64,
    pub(super) sent: u64,
}

impl<'a, 'w> Outgoing<'a, 'w> {
    /// A file of `size` bytes; without `before` it is sent whole.
    pub(super) fn new(
        writer: &'a mut FrameWriter<'w>,
        path: RelPath,
        size: u64,
        before: Option<Before<'a>>,
    ) -> io::Result<Self> {
        let must = before.as_ref().is_none_or(|before| before.size != size);
        let mut file = Self { writer, path, size, before, begun: false, read: 0, sent: 0 };
        if must {
            file.begin()?;
        }
        Ok(file)
    }

    /// Sends what differs of `file` and returns the blocks the target then has.
    pub(super) fn send(
        &mut self,
        file: BorrowedFd<'_>,
        block: &mut Block,
    ) -> Result<Blocks, ContentError> {
        let known = self.before.as_ref().map(|before| before.blocks.clone()).unwrap_or_default();
        let touched = self.touched();
        let mut known = known.iter().peekable();
        let mut now = Vec::new();
        let mut extents = Extents { file, size: self.size, current: 0..0 };
        let mut at = 0;
        while let Some(extent) = extents.next(at)? {
            let number = extent.start / BLOCK;
            at = (number + 1) * BLOCK;
            while let Some((gone, _)) = known.next_if(|(k, _)| *k < number) {
                self.hole(gone * BLOCK, BLOCK)?;
            }
            let same = known.next_if(|(k, _)| *k == number).map(|(_, digest)| digest);
            if let Some(digest) =
                same.filter(|_| touched.as_ref().is_some_and(|touched| !touched.has(number)))
            {
                now.push((number, *digest));
                continue;
            }
            block.read(number, &mut extents)?;
            self.read += block.bytes();
            if block.extents.is_empty() {
                // The file shrank meanwhile.
                if same.is_some() {
                    self.hole(number * BLOCK, BLOCK)?;
                }
                continue;
            }
            let digest = block.digest();
            if same != Some(&digest) {
                self.block(block, number, same.is_some())?;
            }
            now.push((number, digest));
        }
        for (gone, _) in known {
            self.hole(gone * BLOCK, BLOCK)?;
        }
        Ok(Arc::new(now))
    }

    /// The blocks that have to be read; all, if that is not known.
    fn touched(&self) -> Option<Written> {
        let before = self.before.as_ref()?;
        let mut ranges = before.written.clone()?;
        if before.size != self.size {
            // Where it ends, or ended, a block has another extent.
            ranges.extend([before.size, self.size].map(|end| end.saturating_sub(1)..end + 1));
        }
        Some(Written::new(&ranges))
    }

    /// Ends a file that was begun with its metadata.
    pub(super) fn close(self, meta: Meta) -> io::Result<()> {
        self.writer.put(&Record::Close { meta }, &[])
    }

    fn begin(&mut self) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            let base = if self.before.is_some() { Base::Present } else { Base::Nothing };
            let record = Record::File { path: self.path.clone(), size: self.size, base };
            self.writer.put(&record, &[])?;
        }
        Ok(())
    }

    fn hole(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let len = len.min(self.size.saturating_sub(offset));
        if len > 0 {
            self.begin()?;
            self.writer.put(&Record::Hole { offset, len }, &[])?;
        }
        Ok(())
    }

    /// Sends a block; over older data, its holes too.
    fn block(&mut self, block: &Block, number: u64, over: bool) -> io::Result<()> {
        self.begin()?;
        let base = number * BLOCK;
        let mut end = 0;
        for range in &block.extents {
            if over {
                self.hole(base + end as u64, (range.start - end) as u64)?;
            }
            end = range.end;
            let data = &block.data[range.clone()];
            let record = Record::Data { offset: base + range.start as u64, len: data.len() as u32 };
            self.writer.put(&record, data)?;
            self.sent += data.len() as u64;
        }
        if over {
            self.hole(base + end as u64, BLOCK - end as u64)?;
        }
        Ok(())
    }
}

/// Blocks that were written to.
struct Written(Vec<Range<u64>>);

impl Written {
    fn new(ranges: &[Range<u64>]) -> Self {
        let whole = |range: &Range<u64>| range.start / BLOCK..range.end.div_ceil(BLOCK);
        let mut blocks: Vec<_> = ranges.iter().filter(|r| !r.is_empty()).map(whole).collect();
        blocks.sort_unstable_by_key(|range| range.start);
        blocks.dedup_by(|next, last| {
            let joined = next.start <= last.end;
            if joined {
                last.end = last.end.max(next.end);
            }
            joined
        });
        Self(blocks)
    }

    fn has(&self, block: u64) -> bool {
        let after = self.0.partition_point(|range| range.end <= block);
        self.0.get(after).is_some_and(|range| range.start <= block)
    }
}

/// The data of one block, and room to read the next into.
pub(super) struct Block {
    data: Vec<u8>,
    extents: Vec<Range<usize>>,
}

impl Block {
    pub(super) fn new() -> Self {
        Self { data: vec![0; BLOCK as usize], extents: Vec::new() }
    }

    fn read(&mut self, number: u64, extents: &mut Extents<'_>) -> Result<(), Errno> {
        self.extents.clear();
        let base = number * BLOCK;
        let mut at = base;
        while let Some(extent) = extents.next(at)? {
            if extent.start >= base + BLOCK {
                break;
            }
            let start = (extent.start.max(base) - base) as usize;
            let end = (extent.end.min(base + BLOCK) - base) as usize;
            let read = pread_all(extents.file, &mut self.data[start..end], base + start as u64)?;
            if read > 0 {
                self.extents.push(start..start + read);
            }
            at = base + end as u64;
            if start + read < end || at == base + BLOCK {
                break;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.extents.iter().map(|range| range.len() as u64).sum()
    }

    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for range in &self.extents {
            hasher.update(&(range.start as u32).to_le_bytes());
            hasher.update(&(range.end as u32).to_le_bytes());
            hasher.update(&self.data[range.clone()]);
        }
        *hasher.finalize().as_bytes()
    }
}

fn pread_all(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Where a file holds data, asked for in ascending order.
struct Extents<'a> {
    file: BorrowedFd<'a>,
    size: u64,
    current: Range<u64>,
}

impl Extents<'_> {
    /// The first data at or after `from`, up to its end or the file's.
    fn next(&mut self, from: u64) -> Result<Option<Range<u64>>, Errno> {
        if from >= self.size {
            return Ok(None);
        }
        if !self.current.contains(&from) {
            let start = match rustix::fs::seek(self.file, SeekFrom::Data(from)) {
                Ok(start) if start < self.size => start,
                Ok(_) | Err(Errno::NXIO) => return Ok(None),
                Err(errno) => return Err(errno),
            };
            let end = match rustix::fs::seek(self.file, SeekFrom::Hole(start)) {
                Ok(end) => end.min(self.size),
                // It shrank in between.
                Err(Errno::NXIO) => return Ok(None),
                Err(errno) => return Err(errno),
            };
            if end <= start {
                return Ok(None);
            }
            self.current = start..end;
        }
        Ok(Some(self.current.start.max(from)..self.current.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_written_makes_its_block_written() {
        let ranges = [3 * BLOCK - 1..3 * BLOCK + 1, 0..1, 5 * BLOCK..7 * BLOCK, 9..9];
        let written = Written::new(&ranges);
        let blocks: Vec<u64> = (0..9).filter(|block| written.has(*block)).collect();
        assert_eq!(blocks, [0, 2, 3, 5, 6]);
    }
}
