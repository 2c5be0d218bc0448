//! Listening sockets as the kernel reports them, by sock_diag(7) and proc_pid_fd(5).
//!
//! A successful probe shows only that some program listens. The functions here tell whether this
//! program is the instance: another program may have taken the port after it was chosen, and the
//! kernel completes connections to an inherited socket even before the instance accepts.

mod listening;
mod proc_net;
mod sock_diag;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::ancestry::{self, descendants, is_zombie};
use crate::printable::printable_line;
use listening::{Family, Listening};

/// Returns how many connections wait to be accepted on the socket that listens at `address`.
pub fn queue_length(address: SocketAddr) -> io::Result<u32> {
    let family = match address {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    let mut sockets = listening(family, address.port())?.into_iter();
    let found = sockets.find(|socket| socket.address == Some(address.ip()));
    found
        .map(|socket| socket.queue)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nobody listens there"))
}

/// Whose listening socket a connection reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortHolder {
    /// The socket belongs to the instance, or to a process that it has started.
    Instance,
    /// The socket belongs to another program.
    Other,
    /// No socket listens for such a connection.
    Nobody,
}

/// Returns who gets a connection to `address`: the instance, which is the process `pid` with the
/// descendants of `root`, or another program. Believes the instance if the manager may not see what
/// `pid` has open.
pub fn port_holder(pid: u32, root: u32, address: SocketAddr) -> PortHolder {
    let sockets = reached(address);
    if sockets.is_empty() {
        return PortHolder::Nobody;
    }
    let sockets: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let is_hidden = |error: &io::Error| {
        // What a process has had open can neither be seen once it has ended.
        error.kind() == io::ErrorKind::PermissionDenied && !is_zombie(pid)
    };
    let is_own = holds(pid, &sockets).unwrap_or_else(|error| is_hidden(&error))
        || descendants(root)
            .into_iter()
            .any(|other| holds(other, &sockets).unwrap_or(false));
    match is_own {
        true => PortHolder::Instance,
        false => PortHolder::Other,
    }
}

/// Returns true if a program listens for connections to `address`.
pub fn is_taken(address: SocketAddr) -> bool {
    !reached(address).is_empty()
}

/// Returns the sockets that a connection to `address` may reach. There are several only if one user
/// has opened all of them, with `SO_REUSEPORT`.
fn reached(address: SocketAddr) -> Vec<Listening> {
    let families = match address {
        SocketAddr::V4(_) => &[Family::V4, Family::V6][..],
        SocketAddr::V6(_) => &[Family::V6][..],
    };
    let sockets = families
        .iter()
        .flat_map(|family| listening(*family, address.port()).unwrap_or_default());
    nearest(sockets.collect(), address.ip())
}

/// Keeps the sockets that the kernel prefers for a connection to `to`: those that are bound to this
/// address, otherwise those that are bound to all addresses.
fn nearest(mut sockets: Vec<Listening>, to: IpAddr) -> Vec<Listening> {
    let distance = |socket: &Listening| match (socket.address?, to) {
        (bound, _) if bound == to => Some(0),
        // An address of IPv4 on a socket of IPv6.
        (bound, _) if bound.to_canonical() == to => Some(1),
        (IpAddr::V4(bound), IpAddr::V4(_)) if bound.is_unspecified() => Some(2),
        (IpAddr::V6(bound), IpAddr::V6(_)) if bound.is_unspecified() => Some(2),
        (IpAddr::V6(bound), IpAddr::V4(_)) if bound.is_unspecified() && !socket.only_v6 => Some(3),
        _ => None,
    };
    let least = sockets.iter().filter_map(distance).min();
    sockets.retain(|socket| least.is_some() && distance(socket) == least);
    sockets
}

/// A socket on which a process was seen to listen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeenSocket {
    /// A TCP port, on one address or on all.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl SeenSocket {
    /// Returns true if whoever connects to `wanted` reaches a socket at this place.
    pub fn covers(&self, wanted: SocketAddr) -> bool {
        let SeenSocket::Tcp(address) = self else {
            return false;
        };
        let ip = address.ip();
        let is_for_both = ip.is_unspecified() && (ip.is_ipv6() || wanted.is_ipv4());
        address.port() == wanted.port() && (ip.to_canonical() == wanted.ip() || is_for_both)
    }
}

impl fmt::Display for SeenSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SeenSocket::Tcp(address) => address.fmt(f),
            SeenSocket::Unix(path) => write!(f, "the unix socket {}", path.display()),
        }
    }
}

/// Returns where these processes listen, or `None` if this process may not see that of one of them.
pub fn places(pids: &BTreeSet<u32>) -> Option<BTreeSet<SeenSocket>> {
    let mut held = BTreeSet::new();
    for pid in pids {
        match held_by(*pid) {
            Ok(inodes) => held.extend(inodes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    let families = [Family::V4, Family::V6].into_iter();
    let tcp = families.flat_map(|family| listening(family, ANY_PORT).unwrap_or_default());
    let tcp = tcp.filter_map(|socket| {
        let address = SocketAddr::new(socket.address?, socket.port);
        Some((socket.inode, SeenSocket::Tcp(address)))
    });
    let unix = proc_net::unix().unwrap_or_default().into_iter();
    let all = tcp.chain(unix.map(|(inode, path)| (inode, SeenSocket::Unix(path))));
    let own = all.filter(|(inode, _)| held.contains(inode));
    Some(own.map(|(_, place)| place).collect())
}

/// Returns who listens on a port such that `address` cannot be bound, apart from these processes:
/// `nginx (process 123)`. `None`: nobody, or a process that this one may not look at.
pub fn holder(address: SocketAddr, apart_from: &BTreeSet<u32>) -> Option<String> {
    let families = [Family::V4, Family::V6].into_iter();
    let sockets = families.flat_map(|family| listening(family, address.port()).unwrap_or_default());
    let overlaps = |other: IpAddr| {
        let other = other.to_canonical();
        other == address.ip() || other.is_unspecified() || address.ip().is_unspecified()
    };
    let taking = sockets.filter(|socket| socket.address.is_none_or(overlaps));
    let inodes: BTreeSet<u64> = taking.map(|socket| socket.inode).collect();
    if inodes.is_empty() {
        return None;
    }
    let mut left = MOST_SOCKETS;
    let holds = |pid: &u32| {
        if left == 0 || apart_from.contains(pid) {
            return false;
        }
        let held = held_by(*pid).unwrap_or_default();
        left = left.saturating_sub(held.len());
        held.iter().any(|inode| inodes.contains(inode))
    };
    let pid = ancestry::all().find(holds)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = printable_line(name.trim_end());
    Some(format!("{name} (process {pid})"))
}

/// The most sockets of processes that are looked at in the search for a holder, which only serves a
/// message.
const MOST_SOCKETS: usize = 200_000;

/// Stands for all ports.
const ANY_PORT: u16 = 0;

/// Returns the inodes of the sockets that a process has.
fn held_by(pid: u32) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // The process may close the descriptor in between.
        let Ok(target) = entry.and_then(|entry| std::fs::read_link(entry.path())) else {
            continue;
        };
        let inode = target.to_str().and_then(|target| {
            target
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse::<u64>()
                .ok()
        });
        inodes.extend(inode);
    }
    Ok(inodes)
}

/// Returns the sockets that listen on a port. Falls back to proc_net(5), because a kernel may lack
/// sock_diag(7), in general or for IPv6.
fn listening(family: Family, port: u16) -> io::Result<Vec<Listening>> {
    sock_diag::listening(family, port).or_else(|_| proc_net::listening(family, port))
}

fn holds(pid: u32, sockets: &BTreeSet<u64>) -> io::Result<bool> {
    Ok(held_by(pid)?.iter().any(|inode| sockets.contains(inode)))
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
    fn both_sources_tell_the_same() {
        for (any, family) in [
            ("127.0.0.1:0", Family::V4),
            ("[::1]:0", Family::V6),
            ("[::]:0", Family::V6),
        ] {
            let socket = TcpListener::bind(any).unwrap();
            let address = socket.local_addr().unwrap();
            let to = SocketAddr::new("::1".parse().unwrap(), address.port());
            let to = if family == Family::V6 { to } else { address };
            let _waiting = std::net::TcpStream::connect(to).unwrap();
            let told = sock_diag::listening(family, address.port()).unwrap();
            assert!(!told[0].only_v6);
            assert_eq!(told, proc_net::listening(family, address.port()).unwrap());
            assert_eq!((told[0].address, told[0].queue), (Some(address.ip()), 1));
            assert_eq!(sock_diag::listening(family, 1).unwrap(), []);
        }
    }

    #[test]
    fn a_process_is_seen_to_listen_and_to_have_a_port() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a socket");
        let own = BTreeSet::from([std::process::id()]);
        let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = places(&own).unwrap();
        for place in [SeenSocket::Tcp(address), SeenSocket::Unix(path)] {
            assert!(found.contains(&place), "{place} is not in {found:?}");
        }
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let expected = format!("{} (process {})", name.trim_end(), std::process::id());
        assert_eq!(holder(address, &BTreeSet::new()), Some(expected));
        assert_eq!(holder(address, &own), None);
        let elsewhere = SocketAddr::new("127.0.0.2".parse().unwrap(), address.port());
        assert_eq!(holder(elsewhere, &BTreeSet::new()), None);
    }

    #[test]
    fn race_14_a_port_that_another_process_listens_on_is_not_the_instances() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listens = |pid| port_holder(pid, pid, address);
        assert_eq!(listens(own), PortHolder::Instance);
        assert_eq!(
            listens(parent),
            PortHolder::Instance,
            "a child listens for its parent"
        );
        let mut stranger = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert_eq!(listens(stranger.id()), PortHolder::Other);
        stranger.kill().unwrap();
        // What has ended listens nowhere, whether or not its status was taken.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&stranger)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(listens(stranger.id()), PortHolder::Other);
        stranger.wait().unwrap();
        assert_eq!(listens(stranger.id()), PortHolder::Other);
        assert!(is_taken(address));
        drop(socket);
        assert_eq!(listens(own), PortHolder::Nobody);
        assert!(!is_taken(address));
    }

    /// Listens on any address with this port, as a program that serves IPv6 only or both.
    fn listen_on_all(port: u16, only_v6: bool) -> socket2::Socket {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_only_v6(only_v6).unwrap();
        let address = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        socket
    }

    #[test]
    fn a_socket_on_another_address_gets_no_connection() {
        let own = std::process::id();
        let holder = |port| port_holder(own, own, SocketAddr::from(([127, 0, 0, 1], port)));
        for (any, expected) in [
            ("127.0.0.1:0", PortHolder::Instance),
            ("127.0.0.2:0", PortHolder::Nobody),
            ("0.0.0.0:0", PortHolder::Instance),
            ("[::1]:0", PortHolder::Nobody),
            ("[::ffff:127.0.0.1]:0", PortHolder::Instance),
        ] {
            let socket = TcpListener::bind(any).unwrap();
            let port = socket.local_addr().unwrap().port();
            assert_eq!(holder(port), expected, "{any}");
        }
        for (only_v6, expected) in [(false, PortHolder::Instance), (true, PortHolder::Nobody)] {
            let socket = listen_on_all(0, only_v6);
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            assert_eq!(holder(port), expected, "only IPv6: {only_v6}");
        }
    }

    #[test]
    fn the_socket_that_is_bound_most_closely_gets_the_connection() {
        let socket = |address: &str, inode| Listening {
            address: Some(address.parse().unwrap()),
            port: 80,
            queue: 0,
            inode,
            only_v6: false,
        };
        let reached = |sockets: &[&str], to: &str| {
            let sockets = sockets.iter().zip(1..);
            let sockets = sockets.map(|(address, inode)| socket(address, inode));
            let nearest = nearest(sockets.collect(), to.parse().unwrap());
            nearest
                .iter()
                .map(|socket| socket.inode)
                .collect::<Vec<_>>()
        };
        let all = ["::", "0.0.0.0", "::ffff:127.0.0.1", "127.0.0.1", "::1"];
        for (count, expected) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4)] {
            assert_eq!(reached(&all[..count], "127.0.0.1"), [expected]);
        }
        assert_eq!(reached(&all[..4], "::1"), [1]);
        assert_eq!(reached(&all, "::1"), [5]);
        assert_eq!(reached(&["127.0.0.1"; 2], "127.0.0.1"), [1, 2]);
    }
}
