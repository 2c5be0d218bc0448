//! The listening sockets that the manager holds. A worker gets copies of them, so that a port stays open whatever
//! happens to a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Listen;
use crate::ipc::ListenerId;

/// The kernel cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// An open listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Its name towards the workers, never used twice.
    pub id: ListenerId,
    /// What it is bound to.
    pub address: SocketAddr,
    socket: TcpListener,
}

impl Listener {
    /// The socket, to be passed on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// All open listening sockets.
#[derive(Debug, Default)]
pub struct Listeners {
    open: BTreeMap<Listen, Listener>,
    last_id: u32,
}

/// Sockets that were bound for a change that is not decided yet; dropping it takes them back.
#[derive(Debug)]
pub struct Bound(Vec<(Listen, TcpListener, SocketAddr)>);

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}: {source}")]
pub struct BindError {
    /// The wanted address.
    pub listen: Listen,
    source: io::Error,
}

impl Listeners {
    /// Opens those of the wanted addresses that are not open yet. Changes nothing until [`Listeners::adopt`].
    pub fn bind(&self, wanted: &BTreeSet<Listen>) -> (Bound, Vec<BindError>) {
        let mut bound = Vec::new();
        let mut errors = Vec::new();
        for &listen in wanted
            .iter()
            .filter(|listen| !self.open.contains_key(listen))
        {
            match bind(listen) {
                Ok((socket, address)) => bound.push((listen, socket, address)),
                Err(source) => errors.push(BindError { listen, source }),
            }
        }
        (Bound(bound), errors)
    }

    /// Keeps the sockets of [`Listeners::bind`], and closes those that are not wanted any more.
    pub fn adopt(&mut self, bound: Bound, wanted: &BTreeSet<Listen>) {
        self.open.retain(|listen, _| wanted.contains(listen));
        for (listen, socket, address) in bound.0 {
            self.last_id += 1;
            let id = ListenerId(self.last_id);
            tracing::info!(address = %address, "listening");
            self.open.insert(
                listen,
                Listener {
                    id,
                    address,
                    socket,
                },
            );
        }
    }

    /// The newest name that was given; 0 before the first.
    pub fn last_id(&self) -> ListenerId {
        ListenerId(self.last_id)
    }

    /// The socket of an address.
    pub fn get(&self, listen: &Listen) -> Option<&Listener> {
        self.open.get(listen)
    }

    /// All sockets, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (&Listen, &Listener)> {
        self.open.iter()
    }
}

fn bind(listen: Listen) -> io::Result<(TcpListener, SocketAddr)> {
    let address = listen.address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    match bind_address(SocketAddr::new(address, listen.port)) {
        // A machine may have no IPv6 at all.
        Err(error) if listen.address.is_none() && no_ipv6(&error) => bind_address(SocketAddr::new(
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            listen.port,
        )),
        result => result,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    let error = rustix::io::Errno::from_io_error(error);
    matches!(
        error,
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}

fn bind_address(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of an earlier run that wait in TIME_WAIT must not keep the port from us. SO_REUSEPORT stays off:
    // it would split the accept queue, and closing one of the queues resets what is in it.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_port(address: Option<IpAddr>) -> Listen {
        Listen { address, port: 0 }
    }

    #[test]
    fn a_port_without_an_address_takes_ipv4_and_ipv6() {
        let mut listeners = Listeners::default();
        let wanted = BTreeSet::from([any_port(None)]);
        let (bound, errors) = listeners.bind(&wanted);
        assert!(errors.is_empty());
        listeners.adopt(bound, &wanted);
        let address = listeners.get(&any_port(None)).unwrap().address;
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        if address.is_ipv6() {
            std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).unwrap();
        }
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_it_and_leaves_the_others() {
        let mut listeners = Listeners::default();
        let first = BTreeSet::from([any_port(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)))]);
        let (bound, _) = listeners.bind(&first);
        listeners.adopt(bound, &first);
        let port = listeners.iter().next().unwrap().1.address.port();
        let taken = Listen {
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port,
        };
        let (bound, errors) = listeners.bind(&BTreeSet::from([taken]));
        assert!(bound.0.is_empty());
        let message = errors[0].to_string();
        assert!(
            message.starts_with(&format!(
                "cannot listen on 127.0.0.1:{port}: Address already in use"
            )),
            "{message}"
        );
        assert_eq!(listeners.iter().count(), 1);
    }

    #[test]
    fn an_address_that_is_wanted_no_more_is_closed() {
        let mut listeners = Listeners::default();
        let wanted = BTreeSet::from([any_port(None)]);
        let (bound, _) = listeners.bind(&wanted);
        listeners.adopt(bound, &wanted);
        let (bound, _) = listeners.bind(&BTreeSet::new());
        listeners.adopt(bound, &BTreeSet::new());
        assert_eq!(listeners.iter().count(), 0);
    }
}
