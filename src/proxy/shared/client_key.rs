//! Where a connection comes from, as far as the bounds for one client are concerned.

use std::net::{IpAddr, SocketAddr};

/// The client that an address stands for: the address itself for IPv4, and its /64 for IPv6, since
/// a single machine has a whole /64 at its disposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ClientKey {
    V4(u32),
    V6(u64),
}

impl From<SocketAddr> for ClientKey {
    fn from(address: SocketAddr) -> ClientKey {
        match address.ip().to_canonical() {
            IpAddr::V4(address) => ClientKey::V4(address.to_bits()),
            IpAddr::V6(address) => ClientKey::V6((address.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> ClientKey {
        ClientKey::from(SocketAddr::new(address.parse().unwrap(), 1))
    }

    #[test]
    fn a_network_of_64_bits_is_one_client() {
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:0:0:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("::1"), origin("0.0.0.1"));
    }
}
