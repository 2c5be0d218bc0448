//! Listening sockets from sock_diag(7). The kernel sends only the sockets that are asked for, so
//! the cost does not depend on the number of connections.
//!
//! The messages have the layouts of linux/netlink.h and linux/inet_diag.h. Numbers are in the
//! machine's byte order, but addresses and ports are in network byte order.

use std::io;
use std::net::IpAddr;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::listening::{Family, Listening};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_AND_DUMP: u16 = 0x301;
const IPPROTO_TCP: u8 = 6;
const STATES: u32 = 1 << 10; // TCP_LISTEN

/// The lengths in bytes of a netlink header, of the request after it, and of an answer after it.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// The length in bytes of the header of an attribute, which follows the answer, and the type of the
/// attribute that is 1 if a socket is for IPv6 only.
const ATTRIBUTE: usize = 4;
const SKV6ONLY: u16 = 11;

/// The message types that end the answers: the regular end, and an error.
const DONE: u16 = 3;
const ERROR: u16 = 2;

/// Returns the TCP sockets of an IP version that listen on `port`, or on any port if it is 0.
pub(super) fn listening(family: Family, port: u16) -> io::Result<Vec<Listening>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    send(&socket, &request(family, port), SendFlags::empty())?;
    let mut found = Vec::new();
    // The kernel never sends more than 32 KiB in one message.
    let mut buffer = vec![0; 32 << 10];
    loop {
        let (count, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let (kind, message) = take_message(&mut rest).ok_or(io::ErrorKind::InvalidData)?;
            match kind {
                DONE => return Ok(found),
                ERROR => return Err(error(message).into()),
                _ => found.push(understand(family, message).ok_or(io::ErrorKind::InvalidData)?),
            }
        }
    }
}

fn request(family: Family, port: u16) -> Vec<u8> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST_AND_DUMP.to_ne_bytes());
    // The sequence number and the sender's port, which are not used.
    request.extend([0; 8]);
    request.extend([family.as_raw() as u8, IPPROTO_TCP, 0, 0]);
    request.extend(STATES.to_ne_bytes());
    request.extend(port.to_be_bytes());
    // Zeros match any address and any remote port.
    request.resize(HEADER + REQUEST, 0);
    request
}

/// Returns the type and the content of the next message, and moves `rest` behind it.
fn take_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = word(rest, 0)? as usize;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let message = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message))
}

fn error(message: &[u8]) -> Errno {
    let number = word(message, 0).map_or(0, |number| number.cast_signed().wrapping_neg());
    Errno::from_raw_os_error(number)
}

fn understand(family: Family, answer: &[u8]) -> Option<Listening> {
    let (answer, attributes) = answer.split_at_checked(ANSWER)?;
    let address = match family {
        Family::V4 => IpAddr::from(<[u8; 4]>::try_from(&answer[8..12]).ok()?),
        Family::V6 => IpAddr::from(<[u8; 16]>::try_from(&answer[8..24]).ok()?),
    };
    Some(Listening {
        address: Some(address),
        port: u16::from_be_bytes([answer[4], answer[5]]),
        queue: word(answer, 56)?,
        inode: word(answer, 68)?.into(),
        // The kernel also says so of a socket that is bound to one address.
        only_v6: address.is_unspecified() && is_only_v6(attributes),
    })
}

fn is_only_v6(mut attributes: &[u8]) -> bool {
    let number = |bytes: &[u8], at: usize| {
        let two = bytes.get(at..at + 2)?;
        Some(u16::from_ne_bytes(two.try_into().ok()?))
    };
    while let (Some(length), Some(kind)) = (number(attributes, 0), number(attributes, 2)) {
        let length = usize::from(length);
        if kind == SKV6ONLY {
            return attributes.get(ATTRIBUTE).is_some_and(|&only| only == 1);
        }
        // Attributes begin at multiples of four bytes.
        let next = length.max(ATTRIBUTE).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    false
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}
