//! What the kernel tells about listening sockets, in proc_net(5) and proc_pid_fd(5).
//!
//! A probe that was answered shows that somebody listens. These tell whether it is the instance: between the choice of a
//! port and its use another program may have taken it, and a socket that is passed on answers by the kernel alone.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::notify::with_ancestors;

/// How many connections wait to be accepted at an address.
pub fn queue_length(address: SocketAddr) -> io::Result<u32> {
    let table = match address {
        SocketAddr::V4(_) => "/proc/self/net/tcp",
        SocketAddr::V6(_) => "/proc/self/net/tcp6",
    };
    let mut rows = listening(table)?.into_iter();
    let found = rows.find(|row| row.address == Some(address.ip()) && row.port == address.port());
    found
        .map(|row| row.queue)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nobody listens there"))
}

/// Whether one of the processes of an instance listens on a port. Where that cannot be seen it is taken for granted.
pub fn listens(pid: u32, port: u16) -> bool {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    // A kernel may have no IPv6.
    let rows = tables
        .iter()
        .filter_map(|table| listening(table).ok())
        .flatten();
    let sockets: BTreeSet<String> = rows
        .filter(|row| row.port == port)
        .map(|row| format!("socket:[{}]", row.inode))
        .collect();
    holds(pid, &sockets).unwrap_or(true)
        || others(pid).any(|other| holds(other, &sockets).unwrap_or(false))
}

struct Row {
    address: Option<IpAddr>,
    port: u16,
    queue: u32,
    inode: u64,
}

/// The listening sockets of a table.
fn listening(table: &str) -> io::Result<Vec<Row>> {
    const LISTEN: &str = "0A";
    let text = std::fs::read_to_string(table)?;
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if *words.get(3)? != LISTEN {
            return None;
        }
        let (address, port) = words[1].rsplit_once(':')?;
        Some(Row {
            address: ip(address),
            port: u16::from_str_radix(port, 16).ok()?,
            queue: u32::from_str_radix(words[4].split_once(':')?.1, 16).ok()?,
            inode: words.get(9)?.parse().ok()?,
        })
    };
    Ok(text.lines().filter_map(row).collect())
}

/// An address as the kernel prints it: words of 32 bits in its own byte order.
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

fn holds(pid: u32, sockets: &BTreeSet<String>) -> io::Result<bool> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        let target = entry.and_then(|entry| std::fs::read_link(entry.path()));
        if target.is_ok_and(|target| {
            target
                .to_str()
                .is_some_and(|target| sockets.contains(target))
        }) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The processes that descend from this one.
fn others(pid: u32) -> impl Iterator<Item = u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(move |&other| other != pid && with_ancestors(other).any(|ancestor| ancestor == pid))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_queue_is_as_long_as_there_are_connections_waiting() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let socket = TcpListener::bind(any).unwrap();
            let address = socket.local_addr().unwrap();
            assert_eq!(queue_length(address).unwrap(), 0);
            let _waiting = [(); 2].map(|()| std::net::TcpStream::connect(address).unwrap());
            assert_eq!(queue_length(address).unwrap(), 2);
            socket.accept().unwrap();
            assert_eq!(queue_length(address).unwrap(), 1);
        }
    }

    #[test]
    fn race_14_a_port_that_another_process_listens_on_is_not_the_instances() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listens(std::process::id(), port));
        assert!(
            listens(std::os::unix::process::parent_id(), port),
            "a child listens for its parent"
        );
        let mut stranger = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(!listens(stranger.id(), port));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        drop(socket);
        assert!(!listens(std::process::id(), port));
    }
}
