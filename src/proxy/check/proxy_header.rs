//! The properties of the reader of PROXY headers.

use crate::proxy::connection::proxy_protocol::{HeaderReader, NoProxyHeader, Origin};

/// Reads a header at once and byte by byte. Panics if the results differ, or if a header is longer
/// than the bytes that have come.
pub fn check(input: &[u8]) {
    assert_eq!(read(input, input.len().max(1)), read(input, 1));
}

/// Reads a header in pieces of this size. Returns its length and origin; `None` if it is not
/// complete.
fn read(input: &[u8], piece: usize) -> Result<Option<(usize, Origin)>, NoProxyHeader> {
    let mut reader = HeaderReader::default();
    let (mut start, mut end) = (0, input.len().min(piece));
    loop {
        let taken = reader.take(&input[start..end])?;
        start += taken.length;
        assert!(start <= end);
        match taken.origin {
            Some(origin) => return Ok(Some((start, origin))),
            None if end == input.len() => return Ok(None),
            None => end = input.len().min(end + piece),
        }
    }
}
