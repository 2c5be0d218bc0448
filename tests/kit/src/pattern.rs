//! Bodies that both ends can compute: an endless stream of bytes that a seed determines, in which
//! each position can be computed alone.
//!
//! So a download needs no buffer on either side, and the receiver knows which byte of a body is
//! wrong.

use std::fmt;

/// The endless stream of bytes of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// Returns the stream of this seed.
    pub fn new(seed: u64) -> Pattern {
        Pattern { seed }
    }

    /// Fills the buffer with the bytes from position `offset` on.
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        let skip = (offset % 8) as usize;
        let mut index = offset / 8;
        let mut buffer = buffer;
        if skip > 0 {
            let word = self.word(index);
            let length = buffer.len().min(8 - skip);
            buffer[..length].copy_from_slice(&word[skip..skip + length]);
            buffer = &mut buffer[length..];
            index += 1;
        }
        let mut words = buffer.chunks_exact_mut(8);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.word(index));
            index += 1;
        }
        let rest = words.into_remainder();
        rest.copy_from_slice(&self.word(index)[..rest.len()]);
    }

    /// Returns the first `length` bytes.
    pub fn bytes(self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(0, &mut bytes);
        bytes
    }

    /// Returns the checksum of the first `length` bytes.
    pub fn checksum(self, length: u64) -> Checksum {
        let mut checksum = Checksum::default();
        let mut buffer = [0; 16 << 10];
        let mut offset = 0;
        while offset < length {
            let size = usize::try_from(length - offset)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            self.fill(offset, &mut buffer[..size]);
            checksum.update(&buffer[..size]);
            offset += size as u64;
        }
        checksum
    }

    /// Returns eight bytes: Splitmix64 of the position, which is fast, and no two neighbors are
    /// alike.
    fn word(self, index: u64) -> [u8; 8] {
        let mut z = self
            .seed
            .wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

/// Compares bytes that arrive with the stream of a seed.
#[derive(Debug)]
pub struct Comparison {
    pattern: Pattern,
    offset: u64,
    scratch: Vec<u8>,
}

impl Comparison {
    /// Begins a comparison at the first byte of the stream.
    pub fn new(pattern: Pattern) -> Comparison {
        Comparison {
            pattern,
            offset: 0,
            scratch: Vec::new(),
        }
    }

    /// Compares the next bytes. The error is the position of the first wrong byte.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), u64> {
        self.scratch.resize(self.scratch.len().max(bytes.len()), 0);
        let expected = &mut self.scratch[..bytes.len()];
        self.pattern.fill(self.offset, expected);
        if bytes != expected {
            let differs = bytes.iter().zip(expected).position(|(a, b)| a != b);
            return Err(self.offset + differs.unwrap_or_default() as u64);
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Returns how many bytes have been right so far.
    pub fn length(&self) -> u64 {
        self.offset
    }
}

/// The length and the CRC-32 of a body.
#[derive(Debug, Clone, Default)]
pub struct Checksum {
    length: u64,
    crc: crc32fast::Hasher,
}

impl Checksum {
    /// Adds the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.crc.update(bytes);
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crc = self.crc.clone().finalize();
        write!(f, "{} bytes, crc32 {crc:08x}", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_the_same_as_in_the_whole() {
        let whole = Pattern::new(7).bytes(1000);
        for offset in 0..40 {
            for length in 0..40 {
                let mut part = vec![0; length];
                Pattern::new(7).fill(offset as u64, &mut part);
                assert_eq!(part, whole[offset..offset + length], "{offset} {length}");
            }
        }
        assert_ne!(whole, Pattern::new(8).bytes(1000));
    }

    #[test]
    fn a_comparison_names_the_first_wrong_byte() {
        let mut bytes = Pattern::new(1).bytes(100);
        let mut comparison = Comparison::new(Pattern::new(1));
        assert_eq!(comparison.update(&bytes[..13]), Ok(()));
        bytes[50] ^= 1;
        assert_eq!(comparison.update(&bytes[13..]), Err(50));
        assert_eq!(comparison.length(), 13);
    }

    #[test]
    fn the_checksum_does_not_depend_on_the_pieces() {
        let mut pieces = Checksum::default();
        for piece in Pattern::new(3).bytes(40_000).chunks(777) {
            pieces.update(piece);
        }
        assert_eq!(
            pieces.to_string(),
            Pattern::new(3).checksum(40_000).to_string()
        );
        let mut standard = Checksum::default();
        standard.update(b"123456789");
        assert_eq!(standard.to_string(), "9 bytes, crc32 cbf43926");
    }
}
