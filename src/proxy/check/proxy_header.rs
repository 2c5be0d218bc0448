//! The properties of the parser for PROXY headers.

use crate::proxy::connection::proxy_protocol::ProxyHeader;

/// Parses a header byte by byte, as it comes. Panics if later bytes change an earlier result, or if
/// a header is longer than the bytes that have come.
pub fn check(input: &[u8]) {
    let whole = ProxyHeader::parse(input);
    if let Ok(Some(header)) = whole {
        assert!((1..=input.len()).contains(&header.length));
    }
    for end in 0..input.len() {
        match ProxyHeader::parse(&input[..end]) {
            Ok(None) => {}
            known => {
                assert_eq!(known, whole, "after {end} bytes");
                return;
            }
        }
    }
}
