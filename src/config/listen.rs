//! The addresses that the proxy listens on for a service: `port` and `listen_address`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::fault::TOP;
use super::fields::At;
use super::reader::Reader;
use super::value;

/// The most addresses and ports that the proxy listens on for one service.
const MAX_LISTEN: usize = 256;

/// An address and a port that the proxy listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listen {
    /// The address. `None`: all addresses, IPv4 and IPv6.
    pub address: Option<IpAddr>,
    /// The TCP port.
    pub port: u16,
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        SocketAddr::new(address, self.port).fmt(f)
    }
}

impl Listen {
    /// Returns true if a client can reach a socket on either of two addresses.
    pub fn overlaps(&self, other: &Listen) -> bool {
        self.port == other.port && overlap(self.address, other.address)
    }

    /// Reads `listen_address`, and combines every address with every one of `ports`.
    pub(super) fn read(reader: &mut Reader<'_>, ports: &[u16]) -> Vec<Listen> {
        let addresses = addresses(reader);
        let mut listen: Vec<Listen> = addresses
            .iter()
            .flat_map(|&address| ports.iter().map(move |&port| Listen { address, port }))
            .collect();
        listen.sort_unstable();
        if listen.len() > MAX_LISTEN {
            let at = reader.key("port").unwrap_or(TOP);
            let count = listen.len();
            reader.report.at(
                at,
                format!("the proxy would listen on {count} addresses and ports; {MAX_LISTEN} is the limit"),
            );
            listen.truncate(MAX_LISTEN);
        }
        listen
    }
}

/// Reads `listen_address`. `None` in the result stands for all addresses; there is at least one
/// element.
fn addresses(reader: &mut Reader<'_>) -> Vec<Option<IpAddr>> {
    let mut addresses = Vec::new();
    let given = reader.get("listen_address", value::addresses);
    for At { at, value: address } in given.unwrap_or_default() {
        // The proxy's socket on `::` takes IPv4 as well, which is what leaving the key out means.
        let address = Some(address.to_canonical()).filter(|a| *a != IpAddr::from([0u16; 8]));
        if address.is_some_and(|address| address.is_multicast()) {
            reader
                .report
                .at(at, "a multicast address takes no connections");
        }
        let wider = addresses
            .iter()
            .find(|other| **other != address && overlap(**other, address));
        if let Some(wider) = wider {
            let (wider, this) = (extent(*wider), extent(address));
            reader.report.at(
                at,
                format!(
                    "`listen_address` has {wider} and {this}; one includes the other, keep one"
                ),
            );
        } else if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(None);
    }
    addresses
}

/// Reads `port`, the ports without TLS, sorted. A service with `tls` needs none.
pub(super) fn plain_ports(reader: &mut Reader<'_>) -> Option<Vec<u16>> {
    let ports = match reader.key("tls") {
        Some(_) => reader.get("port", value::ports)?,
        None => reader.need("port", value::ports)?.value,
    };
    let mut seen: Vec<u16> = ports.iter().map(|port| port.value).collect();
    seen.sort_unstable();
    seen.dedup();
    Some(seen)
}

/// Returns true if sockets on both addresses of one port exclude each other. `None` stands for all
/// addresses.
pub(super) fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return true;
    };
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    a == b || a == any && b.is_ipv4() || b == any && a.is_ipv4()
}

/// Describes an address that the proxy listens on, for messages. `None` stands for all addresses.
pub(super) fn extent(address: Option<IpAddr>) -> String {
    match address {
        None => "all addresses".to_owned(),
        Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => "all IPv4 addresses".to_owned(),
        Some(address) => address.to_string(),
    }
}
