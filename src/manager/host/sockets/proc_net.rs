//! Listening sockets from proc_net(5), a text file that lists all connections of the machine.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::listening::{Family, Listening};

/// Returns the TCP sockets of an IP version that listen on `port`, or on any port if it is 0.
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
    let its_port = u16::from_str_radix(its_port, 16).ok()?;
    if port != 0 && its_port != port {
        return None;
    }
    Some(Listening {
        address: ip(address),
        port: its_port,
        queue: u32::from_str_radix(words[4].split_once(':')?.1, 16).ok()?,
        inode: words.get(9)?.parse().ok()?,
        // The file does not tell. A connection of IPv4 that was answered has reached some socket.
        only_v6: false,
    })
}

/// Returns the paths of the unix sockets that listen, by inode.
pub(super) fn unix() -> io::Result<Vec<(u64, PathBuf)>> {
    // Flags and the end of a row as unix(7) describes them: state, inode, path.
    const LISTENS: u32 = 1 << 16;
    let text = std::fs::read("/proc/self/net/unix")?;
    let text = String::from_utf8_lossy(&text);
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(words.get(3)?, 16).ok()?;
        let inode = words.get(6)?.parse().ok()?;
        let path = words.get(7..)?.join(" ");
        (flags & LISTENS != 0 && !path.is_empty()).then(|| (inode, PathBuf::from(path)))
    };
    Ok(text.lines().filter_map(row).collect())
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
