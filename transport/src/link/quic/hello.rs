//! The first bytes both ends exchange. Their layout never changes.
//!
//! ```text
//! 8 bytes  "blipLINK"
//! u16      protocol version, little endian
//! u8       length of the following text, at most 64
//! text     software version, UTF-8, for people
//! ```

use super::frame::lost;
use crate::link::{LinkError, error::clean};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use std::net::SocketAddr;

/// Version of everything after the hello. Ends must agree on it exactly.
pub const PROTOCOL_VERSION: u16 = 2;

const MAGIC: &[u8; 8] = b"blipLINK";
/// Longest software text, in bytes.
const MAX_SOFTWARE: usize = 64;
/// Bytes before the text.
const FIXED: usize = MAGIC.len() + size_of::<u16>() + 1;

/// Who we say we are, or they.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) protocol: u16,
    pub(super) software: String,
}

impl Hello {
    pub(super) async fn send(&self, stream: &mut SendStream) -> Result<(), LinkError> {
        stream.write_all(&self.encode()).await.map_err(|error| match error {
            WriteError::ConnectionLost(error) => lost(error),
            _ => LinkError::Ended { stream: "control" },
        })
    }

    pub(super) async fn receive(
        stream: &mut RecvStream,
        addr: SocketAddr,
    ) -> Result<Self, LinkError> {
        let mut fixed = [0; FIXED];
        read(stream, &mut fixed, addr).await?;
        let (protocol, length) =
            decode_fixed(&fixed).map_err(|why| LinkError::NotBlip { addr, why })?;
        let mut text = [0; MAX_SOFTWARE];
        read(stream, &mut text[..length], addr).await?;
        Ok(Self { protocol, software: clean(&text[..length]) })
    }

    /// Refuses a peer of another version.
    pub(super) fn check(&self, theirs: &Self) -> Result<(), LinkError> {
        if self.protocol == theirs.protocol {
            return Ok(());
        }
        Err(LinkError::Version {
            ours: self.protocol,
            theirs: theirs.protocol,
            their_software: theirs.software.clone(),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let text = &self.software[..self.software.floor_char_boundary_at(MAX_SOFTWARE)];
        let mut bytes = Vec::with_capacity(FIXED + text.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.protocol.to_le_bytes());
        bytes.push(text.len() as u8);
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }
}

/// Where to cut a text without splitting a character.
trait CharBoundary {
    fn floor_char_boundary_at(&self, max: usize) -> usize;
}

impl CharBoundary for str {
    fn floor_char_boundary_at(&self, max: usize) -> usize {
        (0..=max.min(self.len())).rev().find(|&at| self.is_char_boundary(at)).unwrap_or(0)
    }
}

/// Protocol version and length of the text.
fn decode_fixed(fixed: &[u8; FIXED]) -> Result<(u16, usize), String> {
    let (magic, rest) = fixed.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("its first bytes are not blip's".into());
    }
    let length = usize::from(rest[2]);
    if length > MAX_SOFTWARE {
        return Err(format!("its hello claims {length} bytes of text, {MAX_SOFTWARE} are allowed"));
    }
    Ok((u16::from_le_bytes([rest[0], rest[1]]), length))
}

async fn read(stream: &mut RecvStream, into: &mut [u8], addr: SocketAddr) -> Result<(), LinkError> {
    stream.read_exact(into).await.map_err(|error| match error {
        ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => lost(error),
        _ => LinkError::NotBlip { addr, why: "it ended before saying hello".into() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(protocol: u16, software: &str) -> Hello {
        Hello { protocol, software: software.into() }
    }

    #[test]
    fn the_layout_is_what_the_header_says() {
        assert_eq!(hello(0x0102, "v").encode(), b"blipLINK\x02\x01\x01v");
        let fixed: [u8; FIXED] = hello(7, "text").encode()[..FIXED].try_into().unwrap();
        assert_eq!(decode_fixed(&fixed), Ok((7, 4)));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let bytes = hello(1, &"ä".repeat(100)).encode();
        assert_eq!(usize::from(bytes[FIXED - 1]), MAX_SOFTWARE);
        let odd = hello(1, &format!("x{}", "ä".repeat(100))).encode();
        assert_eq!(usize::from(odd[FIXED - 1]), MAX_SOFTWARE - 1);
        assert!(std::str::from_utf8(&odd[FIXED..]).is_ok());
    }

    #[test]
    fn strangers_and_braggarts_are_recognised() {
        assert!(decode_fixed(b"GET / HTTP/").is_err());
        assert!(decode_fixed(b"blipLINK\x01\x00\xff").is_err());
        assert!(hello(1, "").check(&hello(1, "other")).is_ok());
        let error = hello(1, "").check(&hello(2, "blip 9")).unwrap_err();
        assert!(matches!(error, LinkError::Version { ours: 1, theirs: 2, .. }), "{error:?}");
    }
}
