//! The properties of the reader of PROXY headers.

use crate::proxy::connection::proxy_protocol::read;

/// Reads a header at once and byte by byte. Panics if the results differ, if a header is longer
/// than the bytes that have come, or if bytes are left that the reader should have taken.
pub fn check(input: &[u8]) {
    assert_eq!(read(input, input.len().max(1)), read(input, 1));
}
