//! Listening sockets from proc_net(5), a text file that lists all connections of the machine.

use std::io;
use std::net::IpAddr;

use super::listening::{Family, Listening};

/// Returns the TCP sockets of an IP version that listen on `port`.
pub(super) fn listening(family: Family, port: u16) -> io::Result<Vec<Listening>> {
    let table = match family {
        Family::V4 => "/proc/self/net/tcp",
        Family::V6 => "/proc/self/net/tcp6",
    };
    let text = std::fs::read_to_string(table)?;
    let rows = text.lines().filter_map(|line| row(line, port));
    Ok(rows.collect())
}

fn row(line: &str, port: u16) -> Option<Listening> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    if *words.get(3)? != LISTEN {
        return None;
    }
    let (address, its_port) = words[1].rsplit_once(':')?;
    if u16::from_str_radix(its_port, 16).ok()? != port {
        return None;
    }
    Some(Listening {
        address: ip(address),
        queue: u32::from_str_radix(words[4].split_once(':')?.1, 16).ok()?,
        inode: words.get(9)?.parse().ok()?,
    })
}

/// Parses an address as the kernel prints it: 32-bit words in the machine's byte order.
fn ip(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match digits.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}
