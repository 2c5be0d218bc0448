//! The property of what a trusted proxy sends first, a header of the PROXY protocol.

use crate::proxy::connection::proxy_protocol::ProxyHeader;

/// Reads a header as it comes, byte by byte. Panics if what was known at some point is changed by
/// what follows, or if a whole header ends beyond what is there.
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
