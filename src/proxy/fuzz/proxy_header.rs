//! What a trusted proxy sends first.

use crate::proxy::net::proxy_protocol::ProxyHeader;

/// Reads a header as it comes, byte by byte: what is known of it at some point is not changed by what follows, and a whole one
/// ends within what is there.
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
