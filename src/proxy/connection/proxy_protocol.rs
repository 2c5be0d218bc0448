//! The header by which a proxy in front tells who its client is: the PROXY protocol of haproxy.org
//! (`proxy-protocol.txt`), versions 1 and 2. Pure.
//!
//! A connection has one header, before the first byte of the client. It is read only from a trusted
//! proxy, which must send it: a connection from there without a header is refused, and never
//! served.
//!
//! Only a header of version 2 with the command LOCAL says that the proxy speaks for itself. A proxy
//! that passes on the connection of a client without naming an IP address (`UNKNOWN`, a unix
//! socket) has a client that nobody knows, and that must not be taken for the proxy.
//!
//! # Theory of operation
//! A header of version 2 may have additions (TLVs) of up to 64 KiB after the addresses. They are
//! read as they come and none is kept: the only one with a meaning here is the checksum, over all
//! bytes of the header. So a [`HeaderReader`] takes bytes from the connection piece by piece.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::crc32c::Crc32c;

/// The bytes with which version 2 begins. Neither a request nor a TLS handshake begins with these.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of the fixed part of version 2, before the addresses: signature, version and command,
/// family and protocol, length of the rest.
const FIXED: usize = 16;

/// How many bytes a header of version 1 may have, including the end of its line.
const LONGEST_LINE: usize = 107;

/// The type of the addition that has the CRC32c of the header (`PP2_TYPE_CRC32C`).
const CHECKSUM: u8 = 0x03;

/// For whom a proxy in front has made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// For its client at this address.
    Client(SocketAddr),
    /// For a client that has no IP address, or whose address the proxy does not tell.
    Unknown,
    /// For itself, for example to look whether the port is open.
    Proxy,
}

/// Why bytes do not begin with a PROXY header, whatever may follow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header: {0}")]
pub(crate) struct NoProxyHeader(&'static str);

impl NoProxyHeader {
    /// The connection or the time limit has ended before the header was complete.
    pub(crate) const CUT: NoProxyHeader = NoProxyHeader("it is not whole");
}

/// Reads the header of one connection, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct HeaderReader {
    additions: Option<Additions>,
}

/// What a reader has made of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// How many bytes of the piece belong to the header and are not needed any more.
    pub(crate) length: usize,
    /// The origin of the connection, once the header is complete.
    pub(crate) origin: Option<Origin>,
}

impl HeaderReader {
    /// Takes as much as possible of `bytes`, which begin where the last call has stopped.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Taken, NoProxyHeader> {
        if let Some(additions) = &mut self.additions {
            return additions.take(bytes);
        }
        let begins = |signature: &[u8]| {
            let common = bytes.len().min(signature.len());
            bytes[..common] == signature[..common]
        };
        if begins(SIGNATURE) {
            let Some((mut additions, length)) = parse_binary(bytes)? else {
                return Ok(Taken::NOTHING);
            };
            let mut taken = additions.take(&bytes[length..])?;
            taken.length += length;
            self.additions = Some(additions);
            Ok(taken)
        } else if begins(b"PROXY ") {
            Ok(parse_line(bytes)?.unwrap_or(Taken::NOTHING))
        } else {
            Err(NoProxyHeader("the connection does not begin with one"))
        }
    }
}

/// Reads a header that comes in pieces of this size. Returns its length and its origin; `None` if
/// it is not complete. Panics if more bytes are left for the next piece than a reader may leave.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn read(bytes: &[u8], piece: usize) -> Result<Option<(usize, Origin)>, NoProxyHeader> {
    let mut reader = HeaderReader::default();
    let (mut start, mut end) = (0, 0);
    loop {
        let taken = reader.take(&bytes[start..end])?;
        start += taken.length;
        assert!(start <= end);
        if let Some(origin) = taken.origin {
            return Ok(Some((start, origin)));
        }
        // What is not taken is never more than the longest line, or the longest addresses.
        assert!(end - start < FIXED + 216);
        if end == bytes.len() {
            return Ok(None);
        }
        end = bytes.len().min(end + piece);
    }
}

impl Taken {
    const NOTHING: Taken = Taken {
        length: 0,
        origin: None,
    };
}

fn parse_line(bytes: &[u8]) -> Result<Option<Taken>, NoProxyHeader> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return match window.len() {
            LONGEST_LINE => Err(NoProxyHeader("the line is too long")),
            _ => Ok(None),
        };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| NoProxyHeader("not ASCII"))?;
    let words: Vec<&str> = line.split(' ').collect();
    let origin = match words[1..] {
        // After `UNKNOWN`, the rest of the line has no meaning.
        ["UNKNOWN", ..] => Origin::Unknown,
        ["TCP4", from, to, from_port, to_port] => {
            endpoint::<Ipv4Addr>([from, to], [from_port, to_port])?
        }
        ["TCP6", from, to, from_port, to_port] => {
            endpoint::<Ipv6Addr>([from, to], [from_port, to_port])?
        }
        _ => return Err(NoProxyHeader("not the words of version 1")),
    };
    Ok(Some(Taken {
        length: end + 2,
        origin: Some(origin),
    }))
}

/// Parses two addresses of one family and two ports. Returns the first address and port: the
/// source.
fn endpoint<A: FromStr + Into<IpAddr>>(
    addresses: [&str; 2],
    ports: [&str; 2],
) -> Result<Origin, NoProxyHeader> {
    let address = |text: &str| text.parse::<A>().map_err(|_| NoProxyHeader("no address"));
    let [source, _] = [address(addresses[0])?, address(addresses[1])?];
    let [port, _] = [parse_port(ports[0])?, parse_port(ports[1])?];
    Ok(Origin::Client(canonical(source.into(), port)))
}

fn parse_port(text: &str) -> Result<u16, NoProxyHeader> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    let port = text.parse().ok().filter(|_| plain);
    port.ok_or(NoProxyHeader("no port"))
}

/// Parses a header of version 2 up to its additions. Returns its length up to there; `None` if it
/// is not complete up to there.
fn parse_binary(bytes: &[u8]) -> Result<Option<(Additions, usize)>, NoProxyHeader> {
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
    if family >> 4 > 3 || family & 0xf > 2 {
        return Err(NoProxyHeader("a family or protocol that nobody knows"));
    }
    let whole = usize::from(u16::from_be_bytes([high, low]));
    // What follows the command LOCAL, or an unspecified family, has no meaning, so nobody can tell
    // where its additions begin.
    let addresses = match (is_local, family >> 4) {
        (false, 1) => Some(2 * 4 + 4),
        (false, 2) => Some(2 * 16 + 4),
        (false, 3) => Some(2 * 108),
        _ => None,
    };
    let length = addresses.unwrap_or(0);
    if length > whole {
        return Err(NoProxyHeader("it has no room for its addresses"));
    }
    let Some(block) = rest.get(..length) else {
        return Ok(None);
    };
    let origin = match (is_local, family >> 4) {
        (true, _) => Origin::Proxy,
        (false, 1) => source::<4>(block)?,
        (false, 2) => source::<16>(block)?,
        (false, _) => Origin::Unknown,
    };
    let begin = &bytes[..FIXED + length];
    let additions = Additions {
        origin,
        left: whole - length,
        step: match addresses {
            Some(_) => Step::Head([0; 3], 0),
            None => Step::Opaque,
        },
        sum: begin.iter().fold(Crc32c::default(), Crc32c::with),
        wanted: None,
    };
    Ok(Some((additions, begin.len())))
}

/// Takes two addresses of `N` bytes and two ports. Returns the first address and port: the source.
fn source<const N: usize>(block: &[u8]) -> Result<Origin, NoProxyHeader>
where
    IpAddr: From<[u8; N]>,
{
    let short = NoProxyHeader("it has no room for its addresses");
    let (address, _) = block.split_first_chunk::<N>().ok_or(short)?;
    let (port, _) = block[2 * N..].split_first_chunk::<2>().ok_or(short)?;
    let port = u16::from_be_bytes(*port);
    Ok(Origin::Client(canonical((*address).into(), port)))
}

fn canonical(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

/// The additions of a header of version 2, of which some may have been read.
#[derive(Debug)]
struct Additions {
    /// What the header says, if its additions are in order.
    origin: Origin,
    /// How many bytes of the header are still to come.
    left: usize,
    step: Step,
    /// The checksum over what was read, with zeros in place of the checksum itself.
    sum: Crc32c,
    /// The checksum that the header claims to have.
    wanted: Option<u32>,
}

/// Where in the additions the next byte is.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// In the type and the length of an addition, of which some bytes are known.
    Head([u8; 3], usize),
    /// In the value of an addition, of which this many bytes are left.
    Value(usize),
    /// In the checksum, of which this many bytes are left.
    Checksum(usize),
    /// In what has no meaning.
    Opaque,
}

impl Additions {
    fn take(&mut self, bytes: &[u8]) -> Result<Taken, NoProxyHeader> {
        let length = self.left.min(bytes.len());
        self.left -= length;
        for &byte in &bytes[..length] {
            self.read(byte)?;
        }
        let origin = match self.left {
            0 => Some(self.end()?),
            _ => None,
        };
        Ok(Taken { length, origin })
    }

    fn read(&mut self, byte: u8) -> Result<(), NoProxyHeader> {
        let mut summed = byte;
        self.step = match self.step {
            Step::Opaque => return Ok(()),
            Step::Head(mut head, known) => {
                head[known] = byte;
                let [kind, high, low] = head;
                let length = usize::from(u16::from_be_bytes([high, low]));
                match (known, kind, length) {
                    (0 | 1, _, _) => Step::Head(head, known + 1),
                    (_, CHECKSUM, 4) if self.wanted.is_none() => {
                        self.wanted = Some(0);
                        Step::Checksum(4)
                    }
                    (_, CHECKSUM, _) => return Err(NoProxyHeader("not one checksum of 4 bytes")),
                    (_, _, 0) => Step::Head([0; 3], 0),
                    (_, _, length) => Step::Value(length),
                }
            }
            Step::Value(1) => Step::Head([0; 3], 0),
            Step::Value(left) => Step::Value(left - 1),
            Step::Checksum(left) => {
                summed = 0;
                self.wanted = self.wanted.map(|wanted| wanted << 8 | u32::from(byte));
                match left {
                    1 => Step::Head([0; 3], 0),
                    left => Step::Checksum(left - 1),
                }
            }
        };
        self.sum = self.sum.with(&summed);
        Ok(())
    }

    fn end(&self) -> Result<Origin, NoProxyHeader> {
        match self.step {
            Step::Opaque | Step::Head(_, 0) => {}
            _ => return Err(NoProxyHeader("an addition is not whole")),
        }
        match self.wanted.is_none_or(|wanted| wanted == self.sum.value()) {
            true => Ok(self.origin),
            false => Err(NoProxyHeader("its checksum is another")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version_and_command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn v4() -> Vec<u8> {
        [&[192, 0, 2, 1, 198, 51, 100, 7][..], &[0x1f, 0x90, 0, 80]].concat()
    }

    fn v6(source: Ipv6Addr) -> Vec<u8> {
        [&source.octets()[..], &[0; 16], &[0x1f, 0x90, 0, 80]].concat()
    }

    fn client(address: &str) -> Origin {
        Origin::Client(address.parse().unwrap())
    }

    /// Reads the whole header in pieces of several sizes, and checks that no shorter part of it is
    /// taken for a header or for a fault.
    fn origin_of(header: &[u8]) -> Origin {
        for end in (0..header.len()).step_by(header.len() / 300 + 1) {
            assert_eq!(read(&header[..end], 1000), Ok(None), "{end} bytes");
        }
        let with_more = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        let origins = [1, 7, 1000, 70_000].map(|piece| {
            let (length, origin) = read(&with_more, piece).unwrap().unwrap();
            assert_eq!(length, header.len());
            origin
        });
        assert_eq!(origins, [origins[0]; 4]);
        origins[0]
    }

    #[test]
    fn lines_of_version_1() {
        for (line, origin) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.7 8080 80",
                client("192.0.2.1:8080"),
            ),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
                client("255.255.255.255:65535"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 8080 0",
                client("[2001:db8::1]:8080"),
            ),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 ::1 8080 80",
                client("192.0.2.1:8080"),
            ),
            ("PROXY UNKNOWN", Origin::Unknown),
            (
                "PROXY UNKNOWN ffff:f:f:f:f:f:f:ffff ffff:f:f:f:f:f:f:f 65535 65535",
                Origin::Unknown,
            ),
        ] {
            assert_eq!(origin_of(format!("{line}\r\n").as_bytes()), origin);
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
            assert!(read(line.as_bytes(), 1000).is_err(), "{line:?}");
        }
        assert!(read(b"PROXY TCP4 \xff\r\n", 1000).is_err());
    }

    #[test]
    fn headers_of_version_2() {
        let four = client("192.0.2.1:8080");
        assert_eq!(origin_of(&binary(0x21, 0x11, &v4())), four);
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let six = client("[2001:db8::1]:8080");
        assert_eq!(origin_of(&binary(0x21, 0x21, &v6(address))), six);
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        assert_eq!(origin_of(&binary(0x21, 0x21, &v6(mapped))), four);
        // A client of HTTP/3 comes in datagrams, and has an address like any other.
        assert_eq!(origin_of(&binary(0x21, 0x12, &v4())), four);
        assert_eq!(origin_of(&binary(0x21, 0x22, &v6(address))), six);
        // PP2_TYPE_NOOP and an empty addition behind the addresses.
        let with_more = [&v4()[..], &[4, 0, 1, 0, 0x20, 0, 0]].concat();
        assert_eq!(origin_of(&binary(0x21, 0x11, &with_more)), four);
        // The proxy speaks for itself, whatever else it says.
        assert_eq!(origin_of(&binary(0x20, 0x00, b"")), Origin::Proxy);
        assert_eq!(origin_of(&binary(0x20, 0x11, &v4())), Origin::Proxy);
        assert_eq!(origin_of(&binary(0x20, 0x11, b"x")), Origin::Proxy);
        // The proxy has a client, but does not tell its address.
        assert_eq!(origin_of(&binary(0x21, 0x00, b"")), Origin::Unknown);
        assert_eq!(origin_of(&binary(0x21, 0x00, b"anything")), Origin::Unknown);
        assert_eq!(origin_of(&binary(0x21, 0x31, &[0; 216])), Origin::Unknown);
        assert_eq!(origin_of(&binary(0x21, 0x32, &[0; 216])), Origin::Unknown);
    }

    /// Returns a header with the longest possible rest: many additions, the checksum among them.
    fn longest() -> Vec<u8> {
        let mut rest = v4();
        rest.extend([CHECKSUM, 0, 4, 0, 0, 0, 0]);
        let noop = [4, 0x27, 0x10];
        while rest.len() + noop.len() + 10_000 <= 65_535 {
            rest.extend(noop);
            rest.resize(rest.len() + 10_000, b'x');
        }
        let left = 65_535 - rest.len() - 3;
        rest.extend([0xe0, (left >> 8) as u8, left as u8]);
        rest.resize(65_535, 3);
        sealed(binary(0x21, 0x11, &rest))
    }

    /// Writes the checksum of a header into the place of the checksum, right after the addresses.
    fn sealed(mut header: Vec<u8>) -> Vec<u8> {
        let sum = header.iter().fold(Crc32c::default(), Crc32c::with);
        let at = FIXED + v4().len() + 3;
        header[at..at + 4].copy_from_slice(&sum.value().to_be_bytes());
        header
    }

    #[test]
    fn additions_may_be_as_long_as_the_length_field_can_say() {
        assert_eq!(longest().len(), FIXED + 65_535);
        assert_eq!(origin_of(&longest()), client("192.0.2.1:8080"));
        assert_eq!(origin_of(&binary(0x20, 0, &[0xff; 65_535])), Origin::Proxy);
    }

    #[test]
    fn a_checksum_is_verified() {
        let with_sum = [&v4()[..], &[CHECKSUM, 0, 4, 0, 0, 0, 0, 4, 0, 1, 7]].concat();
        let right = sealed(binary(0x21, 0x11, &with_sum));
        assert_eq!(origin_of(&right), client("192.0.2.1:8080"));
        // A changed type would make another addition of the checksum.
        let kind = FIXED + v4().len();
        for at in (FIXED..right.len()).filter(|&at| at != kind) {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            assert!(read(&wrong, 1).is_err(), "byte {at}");
        }
        let twice = [&with_sum[..], &with_sum[v4().len()..]].concat();
        assert!(read(&sealed(binary(0x21, 0x11, &twice)), 1).is_err());
    }

    #[test]
    fn what_is_no_header_of_version_2() {
        let with = |addition: &[u8]| binary(0x21, 0x11, &[&v4(), addition].concat());
        for header in [
            binary(0x11, 0x11, &v4()),
            binary(0x31, 0x11, &v4()),
            binary(0x22, 0x11, &v4()),
            binary(0x21, 0x41, &v4()),
            binary(0x21, 0x13, &v4()),
            binary(0x21, 0x11, &v4()[..11]),
            binary(0x21, 0x21, &v4()),
            binary(0x21, 0x31, &v4()),
            // Additions that do not fit.
            with(&[4]),
            with(&[4, 0]),
            with(&[4, 0, 1]),
            with(&[4, 0, 2, 0]),
            with(&[4, 0, 1, 0, 0x20, 0xff, 0xff]),
            with(&[CHECKSUM, 0, 3, 0, 0, 0]),
        ] {
            assert!(read(&header, 1000).is_err(), "{}", header.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_header_is_the_same_in_any_pieces(
            version in 0..3,
            command in 0x1f..0x23u8,
            family: u8,
            length in 0..80u16,
            rest: Vec<u8>,
            text in "(PROXY )?[A-Z0-9.: ]{0,120}\r\n",
            piece in 1..40usize,
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
            let whole = read(&bytes, usize::MAX);
            prop_assert_eq!(read(&bytes, piece), whole);
            if let Ok(Some((length, origin))) = whole {
                prop_assert!((1..=bytes.len()).contains(&length));
                // What follows changes nothing.
                prop_assert_eq!(read(&bytes[..length], 1), Ok(Some((length, origin))));
            }
        }

        #[test]
        fn every_address_comes_back(address: IpAddr, port: u16) {
            let origin = Origin::Client(canonical(address, port));
            let (word, family, rest) = match address {
                IpAddr::V4(address) => ("TCP4", 0x11, [&address.octets()[..], &[0; 4]].concat()),
                IpAddr::V6(address) => ("TCP6", 0x21, [&address.octets()[..], &[0; 16]].concat()),
            };
            let line = format!("PROXY {word} {address} {address} {port} 1\r\n");
            prop_assert_eq!(origin_of(line.as_bytes()), origin);
            let rest = [&rest[..], &port.to_be_bytes(), &[0; 2]].concat();
            prop_assert_eq!(origin_of(&binary(0x21, family, &rest)), origin);
        }
    }
}
