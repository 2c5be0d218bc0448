//! The checksum of a header of the PROXY protocol: CRC32c, the CRC of iSCSI (RFC 3720, appendix
//! B.4). Pure.

/// The CRC32c of some bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc32c(u32);

impl Default for Crc32c {
    /// The CRC of no bytes.
    fn default() -> Crc32c {
        Crc32c(!0)
    }
}

impl Crc32c {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                let carry = value & 1;
                value = (value >> 1) ^ (0x82f6_3b78 * carry);
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };

    /// Returns the CRC with one more byte.
    pub(super) fn with(self, byte: &u8) -> Crc32c {
        let at = (self.0 as u8 ^ byte) as usize;
        Crc32c(self.0 >> 8 ^ Crc32c::TABLE[at])
    }

    /// Returns the CRC of the bytes so far.
    pub(super) fn value(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_the_rfc_and_the_usual_check_value() {
        let crc = |bytes: &[u8]| bytes.iter().fold(Crc32c::default(), Crc32c::with).value();
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }
}
