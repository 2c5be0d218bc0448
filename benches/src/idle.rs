//! The memory of a proxy that holds idle connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::configs::HOST;
use crate::peers::Peer;
use crate::process::memory;

/// The number of connections to open if the descriptors allow it.
const WANTED: u64 = 10_000;

/// The descriptors that smoothserve reckons with for a connection: the client's, and two to
/// instances. smoothserve keeps some more to itself. The other proxies take at least as many
/// connections.
const DESCRIPTORS_EACH: u64 = 3;
const SPARE_DESCRIPTORS: u64 = 512;

/// How many clients the connections come from. smoothserve gives a single one half of its
/// connections at most.
const CLIENTS: usize = 250;

/// The time after which a proxy has freed what it can: smoothserve does so 2 s after the last use
/// of a connection.
const REST: Duration = Duration::from_secs(5);

/// The memory of one proxy without and with the connections, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub without: u64,
    pub with: u64,
}

/// The number of connections that all proxies accept on this machine, and what limits it.
#[derive(Debug, PartialEq, Eq)]
pub struct Count {
    pub connections: usize,
    pub why: String,
}

/// Finds out how many connections are possible.
pub fn count() -> anyhow::Result<Count> {
    let limit = getrlimit(Resource::Nofile);
    // The client side of these connections needs descriptors of this program.
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    count_with(limit.maximum.unwrap_or(u64::MAX))
}

fn count_with(descriptors: u64) -> anyhow::Result<Count> {
    let most = descriptors.saturating_sub(SPARE_DESCRIPTORS) / DESCRIPTORS_EACH;
    // Rounding down leaves some descriptors for other purposes.
    let most = most / 100 * 100;
    Ok(Count {
        connections: usize::try_from(most.min(WANTED))?,
        why: match most < WANTED {
            true => format!(
                "not {WANTED}, because smoothserve uses a third of its {descriptors} descriptors (`ulimit -Hn`) for connections"
            ),
            false => "the intended number".to_owned(),
        },
    })
}

/// Measures one proxy.
pub fn measure(peer: &Peer, connections: usize) -> anyhow::Result<Memory> {
    let without = memory(&peer.pids)?;
    let mut idle = Vec::new();
    for number in 0..connections {
        let client = [127, 0, 0, 1 + (number % CLIENTS) as u8];
        let stream = used(client.into(), peer.ports.tcp);
        idle.push(stream.with_context(|| format!("{}, connection {number}", peer.name))?);
    }
    thread::sleep(REST);
    let with = memory(&peer.pids)?;
    for mut stream in idle {
        stream.set_nonblocking(true)?;
        let is_open = stream
            .read(&mut [0])
            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        ensure!(is_open, "{} has closed an idle connection", peer.name);
    }
    Ok(Memory { without, with })
}

/// Opens a connection from this address on which a request was answered.
fn used(client: Ipv4Addr, port: u16) -> anyhow::Result<TcpStream> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrV4::new(client, 0))?;
    connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(REST))?;
    // The request must be a single write: HAProxy acknowledges the first of several late, and the
    // kernel delays the next ones until then.
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    // The answer is so small that it comes in one piece.
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer)?;
    let is_right = answer[..count].starts_with(b"HTTP/1.1 200 ");
    ensure!(is_right, "an unexpected answer of {count} bytes");
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_limit_the_number_of_connections() {
        let few = count_with(20_000).unwrap();
        assert_eq!(few.connections, 6400);
        assert!(few.why.contains("20000 descriptors"), "{}", few.why);
        assert_eq!(count_with(1 << 20).unwrap().connections, 10_000);
        assert_eq!(count_with(10).unwrap().connections, 0);
    }
}
