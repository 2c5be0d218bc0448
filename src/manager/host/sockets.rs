//! Listening sockets as the kernel reports them, by sock_diag(7) and proc_pid_fd(5).
//!
//! A successful probe shows only that some program listens. The functions here tell whether this
//! program is the instance: another program may have taken the port after it was chosen, and the
//! kernel completes connections to an inherited socket even before the instance accepts.

mod listening;
mod proc_net;
mod sock_diag;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use crate::ancestry::descendants;
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

/// Returns true if process `pid`, or a descendant of `root`, listens on a port, or if the manager
/// may not see that.
pub fn listens(pid: u32, root: u32, port: u16) -> bool {
    let families = [Family::V4, Family::V6].into_iter();
    let sockets = families.flat_map(|family| listening(family, port).unwrap_or_default());
    let sockets: BTreeSet<String> = sockets
        .map(|socket| format!("socket:[{}]", socket.inode))
        .collect();
    holds(pid, &sockets).unwrap_or(true)
        || descendants(root)
            .into_iter()
            .any(|other| holds(other, &sockets).unwrap_or(false))
}

/// Returns the sockets that listen on a port. Falls back to proc_net(5), because a kernel may lack
/// sock_diag(7), in general or for IPv6.
fn listening(family: Family, port: u16) -> io::Result<Vec<Listening>> {
    sock_diag::listening(family, port).or_else(|_| proc_net::listening(family, port))
}

fn holds(pid: u32, sockets: &BTreeSet<String>) -> io::Result<bool> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // The process may close the descriptor in between.
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
            assert_eq!(told, proc_net::listening(family, address.port()).unwrap());
            assert_eq!((told[0].address, told[0].queue), (Some(address.ip()), 1));
            assert_eq!(sock_diag::listening(family, 1).unwrap(), []);
        }
    }

    #[test]
    fn race_14_a_port_that_another_process_listens_on_is_not_the_instances() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
        assert!(listens(own, own, port));
        assert!(
            listens(parent, parent, port),
            "a child listens for its parent"
        );
        let mut stranger = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(!listens(stranger.id(), stranger.id(), port));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        drop(socket);
        assert!(!listens(own, own, port));
    }
}
