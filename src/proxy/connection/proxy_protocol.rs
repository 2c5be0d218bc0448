//! The header by which a proxy in front tells who its client is: the PROXY protocol of haproxy.org
//! (`proxy-protocol.txt`), versions 1 and 2. Pure.
//!
//! A connection has one header, before the first byte of the client. It is read only from a trusted
//! proxy, which must send it: a connection from there without a header is refused, and never
//! served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The bytes with which version 2 begins. Neither a request nor a TLS handshake begins with these.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of the fixed part of version 2, before the addresses: signature, version and command,
/// family and protocol, length of the rest.
const FIXED: usize = 16;

/// How many bytes a header of version 1 may have, including the end of its line.
const LONGEST_LINE: usize = 107;

/// How many bytes a header of version 2 may have, including all additions after the addresses.
const LONGEST: usize = 4 << 10;

/// A complete header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    /// Length of the header in bytes.
    pub(crate) length: usize,
    /// The client of the proxy in front; `None` if the proxy has made the connection for itself, or
    /// if the client has no IP address.
    pub(crate) source: Option<SocketAddr>,
}

/// Why bytes do not begin with a PROXY header, whatever may follow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header: {0}")]
pub(crate) struct NoProxyHeader(&'static str);

impl NoProxyHeader {
    /// The connection or the time limit has ended before the header was complete.
    pub(crate) const CUT: NoProxyHeader = NoProxyHeader("it is not whole");
}

impl ProxyHeader {
    /// Parses the header at the start of `bytes`; `None` if the header is not complete yet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
        let begins = |signature: &[u8]| {
            let common = bytes.len().min(signature.len());
            bytes[..common] == signature[..common]
        };
        if begins(SIGNATURE) {
            parse_binary(bytes)
        } else if begins(b"PROXY ") {
            parse_line(bytes)
        } else {
            Err(NoProxyHeader("the connection does not begin with one"))
        }
    }
}

fn parse_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return match window.len() {
            LONGEST_LINE => Err(NoProxyHeader("the line is too long")),
            _ => Ok(None),
        };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| NoProxyHeader("not ASCII"))?;
    let words: Vec<&str> = line.split(' ').collect();
    let source = match words[1..] {
        // After `UNKNOWN`, the rest of the line has no meaning.
        ["UNKNOWN", ..] => None,
        ["TCP4", from, to, from_port, to_port] => {
            Some(endpoint::<Ipv4Addr>([from, to], [from_port, to_port])?)
        }
        ["TCP6", from, to, from_port, to_port] => {
            Some(endpoint::<Ipv6Addr>([from, to], [from_port, to_port])?)
        }
        _ => return Err(NoProxyHeader("not the words of version 1")),
    };
    Ok(Some(ProxyHeader {
        length: end + 2,
        source,
    }))
}

/// Parses two addresses of one family and two ports. Returns the first address and port: the
/// source.
fn endpoint<A: FromStr + Into<IpAddr>>(
    addresses: [&str; 2],
    ports: [&str; 2],
) -> Result<SocketAddr, NoProxyHeader> {
    let address = |text: &str| text.parse::<A>().map_err(|_| NoProxyHeader("no address"));
    let [source, _] = [address(addresses[0])?, address(addresses[1])?];
    let [port, _] = [parse_port(ports[0])?, parse_port(ports[1])?];
    Ok(canonical(source.into(), port))
}

fn parse_port(text: &str) -> Result<u16, NoProxyHeader> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    let port = text.parse().ok().filter(|_| plain);
    port.ok_or(NoProxyHeader("no port"))
}

fn parse_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(None);
    };
    let [.., version_and_command, family, high, low] = *fixed;
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => {
            return Err(NoProxyHeader(
                "neither a version nor a command that is known",
            ));
        }
    };
    let addressed = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED + addressed;
    if length > LONGEST {
        return Err(NoProxyHeader("it is too long"));
    }
    if family >> 4 > 3 || family & 0xf > 2 {
        return Err(NoProxyHeader("a family or protocol that nobody knows"));
    }
    let Some(rest) = rest.get(..addressed) else {
        return Ok(None);
    };
    let source = match (is_local, family) {
        (false, 0x11) => Some(source::<4>(rest)?),
        (false, 0x21) => Some(source::<16>(rest)?),
        // The connection must be served, but the header does not name the client.
        _ => None,
    };
    Ok(Some(ProxyHeader { length, source }))
}

/// Takes two addresses of `N` bytes and two ports. Returns the first address and port: the source.
/// Bytes after them are ignored.
fn source<const N: usize>(rest: &[u8]) -> Result<SocketAddr, NoProxyHeader>
where
    IpAddr: From<[u8; N]>,
{
    let short = NoProxyHeader("it has no room for its addresses");
    let rest = rest.get(..2 * N + 4).ok_or(short)?;
    let address: [u8; N] = rest[..N].try_into().map_err(|_| short)?;
    let port = u16::from_be_bytes([rest[2 * N], rest[2 * N + 1]]);
    Ok(canonical(address.into(), port))
}

fn canonical(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version_and_command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn v4() -> Vec<u8> {
        [&[192, 0, 2, 1, 198, 51, 100, 7][..], &[0x1f, 0x90, 0, 80]].concat()
    }

    fn v6(source: Ipv6Addr) -> Vec<u8> {
        [&source.octets()[..], &[0; 16], &[0x1f, 0x90, 0, 80]].concat()
    }

    /// Parses the whole header, and checks that no shorter part of it is taken for a header or for
    /// a fault.
    fn source_of(header: &[u8]) -> Option<SocketAddr> {
        for end in 0..header.len() {
            assert_eq!(ProxyHeader::parse(&header[..end]), Ok(None), "{end} bytes");
        }
        let with_more = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        let parsed = ProxyHeader::parse(&with_more).unwrap().unwrap();
        assert_eq!(parsed.length, header.len());
        parsed.source
    }

    #[test]
    fn lines_of_version_1() {
        for (line, source) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.7 8080 80",
                Some("192.0.2.1:8080"),
            ),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
                Some("255.255.255.255:65535"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 8080 0",
                Some("[2001:db8::1]:8080"),
            ),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 ::1 8080 80",
                Some("192.0.2.1:8080"),
            ),
            ("PROXY UNKNOWN", None),
            (
                "PROXY UNKNOWN ffff:f:f:f:f:f:f:ffff ffff:f:f:f:f:f:f:f 65535 65535",
                None,
            ),
        ] {
            let expected = source.map(|source| source.parse().unwrap());
            assert_eq!(source_of(format!("{line}\r\n").as_bytes()), expected);
        }
    }

    #[test]
    fn what_is_no_line_of_version_1() {
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_LINE));
        for line in [
            "GET / HTTP/1.1",
            "proxy TCP4 192.0.2.1 198.51.100.7 8080 80",
            "PROXY TCP4 192.0.2.1 198.51.100.7 8080",
            "PROXY TCP4 192.0.2.1 198.51.100.7 8080 80 ",
            "PROXY TCP4  192.0.2.1 198.51.100.7 8080 80",
            "PROXY TCP4 192.0.2.1 198.51.100.7 8080 65536",
            "PROXY TCP4 192.0.2.1 198.51.100.7 08080 80",
            "PROXY TCP4 192.0.2.1 198.51.100.7 +8080 80",
            "PROXY TCP4 192.0.2.1 198.51.100.7 -1 80",
            "PROXY TCP4 192.0.2.1.1 198.51.100.7 8080 80",
            "PROXY TCP4 192.0.2.1 localhost 8080 80",
            "PROXY TCP4 2001:db8::1 ::1 8080 80",
            "PROXY TCP6 192.0.2.1 198.51.100.7 8080 80",
            "PROXY TCP5 192.0.2.1 198.51.100.7 8080 80",
            "PROXY UDP4 192.0.2.1 198.51.100.7 8080 80",
            "PROXY ",
            &long,
        ] {
            let line = format!("{line}\r\n");
            assert!(ProxyHeader::parse(line.as_bytes()).is_err(), "{line:?}");
        }
        assert!(ProxyHeader::parse(b"PROXY TCP4 \xff\r\n").is_err());
    }

    #[test]
    fn headers_of_version_2() {
        let four: Option<SocketAddr> = Some("192.0.2.1:8080".parse().unwrap());
        assert_eq!(source_of(&binary(0x21, 0x11, &v4())), four);
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let six = Some(SocketAddr::new(address.into(), 8080));
        assert_eq!(source_of(&binary(0x21, 0x21, &v6(address))), six);
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        assert_eq!(source_of(&binary(0x21, 0x21, &v6(mapped))), four);
        // With a TLV behind the addresses, PP2_TYPE_NOOP and two that do not fit.
        let with_more = [&v4()[..], &[4, 0, 1, 0, 0x20, 0xff, 0xff]].concat();
        assert_eq!(source_of(&binary(0x21, 0x11, &with_more)), four);
        // LOCAL, unspecified, datagrams and unix sockets.
        assert_eq!(source_of(&binary(0x20, 0x00, b"")), None);
        assert_eq!(source_of(&binary(0x20, 0x11, &v4())), None);
        assert_eq!(source_of(&binary(0x21, 0x00, b"anything")), None);
        assert_eq!(source_of(&binary(0x21, 0x12, &v4())), None);
        assert_eq!(source_of(&binary(0x21, 0x31, &[0; 216])), None);
    }

    #[test]
    fn what_is_no_header_of_version_2() {
        for header in [
            binary(0x11, 0x11, &v4()),
            binary(0x31, 0x11, &v4()),
            binary(0x22, 0x11, &v4()),
            binary(0x21, 0x41, &v4()),
            binary(0x21, 0x13, &v4()),
            binary(0x21, 0x11, &v4()[..11]),
            binary(0x21, 0x21, &v4()),
            binary(0x21, 0x11, &[0; LONGEST]),
        ] {
            assert!(
                ProxyHeader::parse(&header).is_err(),
                "{}",
                header.escape_ascii()
            );
        }
    }

    proptest! {
        #[test]
        fn a_header_is_no_longer_than_what_is_there(
            version in 0..3,
            command: u8,
            family: u8,
            length: u16,
            rest: Vec<u8>,
            text in "(PROXY )?[A-Z0-9.: ]{0,120}\r\n",
        ) {
            let bytes = match version {
                0 => rest,
                1 => text.into_bytes(),
                _ => {
                    let mut bytes = SIGNATURE.to_vec();
                    bytes.extend([command, family]);
                    bytes.extend(length.to_be_bytes());
                    bytes.extend(rest);
                    bytes
                }
            };
            if let Ok(Some(header)) = ProxyHeader::parse(&bytes) {
                prop_assert!((1..=bytes.len().min(LONGEST)).contains(&header.length));
                // What follows changes nothing.
                prop_assert_eq!(ProxyHeader::parse(&bytes[..header.length]), Ok(Some(header)));
            }
        }

        #[test]
        fn every_address_comes_back(address: IpAddr, port: u16) {
            let source = canonical(address, port);
            let (word, family, rest) = match address {
                IpAddr::V4(address) => ("TCP4", 0x11, [&address.octets()[..], &[0; 4]].concat()),
                IpAddr::V6(address) => ("TCP6", 0x21, [&address.octets()[..], &[0; 16]].concat()),
            };
            let line = format!("PROXY {word} {address} {address} {port} 1\r\n");
            let parsed = ProxyHeader::parse(line.as_bytes()).unwrap().unwrap();
            prop_assert_eq!(parsed.source, Some(source));
            let rest = [&rest[..], &port.to_be_bytes(), &[0; 2]].concat();
            let parsed = ProxyHeader::parse(&binary(0x21, family, &rest)).unwrap().unwrap();
            prop_assert_eq!(parsed.source, Some(source));
        }
    }
}
