//! Takes files out of a tar archive while it streams by. Pure.
//!
//! Only what is needed of POSIX's ustar format is read: names and sizes. An
//! archive that is anything else passes unchanged from there on.

const BLOCK: usize = 512;

/// Lets an archive through, without the files of certain names.
#[derive(Debug)]
pub struct Without {
    names: Vec<String>,
    /// A header that is not complete yet.
    header: Vec<u8>,
    /// Bytes of content and padding still to come of the entry at hand.
    left: u64,
    /// Whether that entry is taken out.
    skip: bool,
    /// Nothing is understood any more: all passes.
    blind: bool,
}

impl Without {
    /// Takes out the files named `names`.
    pub fn new(names: Vec<String>) -> Self {
        Self { names, header: Vec::new(), left: 0, skip: false, blind: false }
    }

    /// What passes of the next part of the archive.
    pub fn pass(&mut self, mut part: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(part.len());
        while !part.is_empty() {
            if self.blind {
                passed.extend_from_slice(part);
                break;
            }
            if self.left > 0 {
                let now = part.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                if !self.skip {
                    passed.extend_from_slice(&part[..now]);
                }
                self.left -= now as u64;
                part = &part[now..];
                continue;
            }
            let now = part.len().min(BLOCK - self.header.len());
            self.header.extend_from_slice(&part[..now]);
            part = &part[now..];
            if self.header.len() == BLOCK {
                self.entry(&mut passed);
            }
        }
        passed
    }

    fn entry(&mut self, passed: &mut Vec<u8>) {
        let header = std::mem::take(&mut self.header);
        let Some(size) = size(&header[124..136]) else {
            self.blind = true;
            passed.extend_from_slice(&header);
            return;
        };
        self.left = size.next_multiple_of(BLOCK as u64);
        // Longer names are told by an entry of their own before; those wanted
        // out are short.
        let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        self.skip = self.names.iter().any(|wanted| wanted.as_bytes() == name);
        if !self.skip {
            passed.extend_from_slice(&header);
        }
    }
}

/// Octal, or binary with the first bit set for what octal cannot say.
fn size(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let bytes: [u8; 8] = field[4..].try_into().ok()?;
        return Some(u64::from_be_bytes(bytes));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    #[test]
    fn a_large_size_is_binary() {
        let mut field = [0; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&(9u64 << 33).to_be_bytes());
        assert_eq!(size(&field), Some(9 << 33));
        assert_eq!(size(b"00000000010\0"), Some(8));
        assert_eq!(size(b"nonsense!!!!"), None);
    }

    proptest! {
        #[test]
        fn what_is_named_goes_and_all_else_passes_however_it_is_cut(
            files in prop::collection::vec((0u8..6, 0usize..2000), 0..8),
            cuts in prop::collection::vec(1usize..900, 1..60),
        ) {
            let (mut whole, mut wanted) = (Vec::new(), Vec::new());
            for (number, size) in files {
                let bytes = entry(&format!("blobs/{number}"), &vec![number; size]);
                whole.extend_from_slice(&bytes);
                if number != 2 && number != 4 {
                    wanted.extend_from_slice(&bytes);
                }
            }
            whole.extend_from_slice(&[0; 1024]);
            wanted.extend_from_slice(&[0; 1024]);
            let mut without = Without::new(vec!["blobs/2".into(), "blobs/4".into()]);
            let (mut passed, mut rest, mut cut) = (Vec::new(), &whole[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                passed.extend(without.pass(now));
                rest = later;
            }
            prop_assert_eq!(passed, wanted);
        }

        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            Without::new(vec!["a".into()]).pass(&bytes);
        }
    }
}
