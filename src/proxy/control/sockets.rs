//! The listening sockets that the manager has sent to the worker.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::net::{AddressFamily, sockopt};

use crate::ipc::ListenerId;
use crate::proxy::shared::table::Table;

/// How many listening sockets a worker takes. Each costs a descriptor, and no machine needs this
/// many.
const MOST_SOCKETS: usize = 4096;

/// Why a listening socket was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketFault {
    #[error("the message came without a socket")]
    Missing,
    #[error("it is no listening TCP socket")]
    NotListening,
    #[error("there are {MOST_SOCKETS} sockets already")]
    TooMany,
    #[error(transparent)]
    System(#[from] rustix::io::Errno),
}

/// The listening sockets, by the ids of their listeners.
#[derive(Default)]
pub(crate) struct Sockets {
    sockets: HashMap<ListenerId, Socket>,
}

struct Socket {
    descriptor: Arc<OwnedFd>,
    /// True if a table has named the listener, so that the threads have the socket.
    opened: bool,
}

impl Sockets {
    /// Adds a socket. If the listener has a socket already, that one stays: a restarted manager
    /// sends the same sockets again.
    pub(crate) fn add(
        &mut self,
        id: ListenerId,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), SocketFault> {
        let descriptor = descriptor.ok_or(SocketFault::Missing)?;
        if self.sockets.contains_key(&id) {
            return Ok(());
        }
        if self.sockets.len() >= MOST_SOCKETS {
            return Err(SocketFault::TooMany);
        }
        let family = sockopt::socket_domain(&descriptor)?;
        let is_tcp = matches!(family, AddressFamily::INET | AddressFamily::INET6);
        if !is_tcp || !sockopt::socket_acceptconn(&descriptor)? {
            return Err(SocketFault::NotListening);
        }
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        // Accepted connections inherit this option from their listening socket.
        sockopt::set_tcp_nodelay(&descriptor, true)?;
        let socket = Socket {
            descriptor: Arc::new(descriptor),
            opened: false,
        };
        self.sockets.insert(id, socket);
        Ok(())
    }

    /// Returns true if the manager has sent the socket of this listener.
    pub(crate) fn contains(&self, id: ListenerId) -> bool {
        self.sockets.contains_key(&id)
    }

    /// Closes the sockets whose listeners the table no longer names. Returns the sockets whose
    /// listeners no table has named before.
    pub(crate) fn follow(&mut self, table: &Table) -> Vec<(ListenerId, Arc<OwnedFd>)> {
        let mut opened = Vec::new();
        let mut sockets = std::mem::take(&mut self.sockets);
        for listener in &table.listeners {
            if let Some(mut socket) = sockets.remove(&listener.id) {
                if !socket.opened {
                    socket.opened = true;
                    opened.push((listener.id, socket.descriptor.clone()));
                }
                self.sockets.insert(listener.id, socket);
            }
        }
        sockets.retain(|_, socket| !socket.opened);
        self.sockets.extend(sockets);
        opened
    }

    /// Closes the sockets whose listeners no table has named. The next manager sends its own.
    pub(crate) fn forget_unopened(&mut self) {
        self.sockets.retain(|_, socket| socket.opened);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::proxy::shared::router::Router;
    use crate::proxy::shared::table::ListenerSpec;

    const ONE: ListenerId = ListenerId(1);

    fn listen() -> (Option<OwnedFd>, std::net::SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (Some(socket.into()), address)
    }

    fn table(listeners: &[ListenerId]) -> Table {
        let listener = |&id: &ListenerId| ListenerSpec {
            proxy_protocol: false,
            passing: false,
            id,
            address: ([127, 0, 0, 1], 80).into(),
            tls: None,
            router: Arc::new(Router::default()),
        };
        Table {
            listeners: listeners.iter().map(listener).collect(),
            ..Table::default()
        }
    }

    #[test]
    fn only_listening_tcp_sockets_are_taken() {
        let mut sockets = Sockets::default();
        let (_listener, address) = listen();
        let connected = TcpStream::connect(address).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = std::os::unix::net::UnixListener::bind(path).unwrap();
        for wrong in [OwnedFd::from(connected), OwnedFd::from(unix)] {
            let result = sockets.add(ONE, Some(wrong));
            assert!(matches!(result, Err(SocketFault::NotListening)));
        }
        assert!(matches!(sockets.add(ONE, None), Err(SocketFault::Missing)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(sockets.add(ONE, Some(file.into())).is_err());
        assert!(!sockets.contains(ONE));
    }

    #[test]
    fn a_socket_is_opened_once_and_closed_when_a_table_leaves_it_out() {
        let mut sockets = Sockets::default();
        let (socket, address) = listen();
        sockets.add(ONE, socket).unwrap();
        assert!(sockets.follow(&table(&[])).is_empty());
        assert!(
            sockets.contains(ONE),
            "it waits for the table that names it"
        );
        assert_eq!(sockets.follow(&table(&[ONE])).len(), 1);
        assert!(sockets.follow(&table(&[ONE])).is_empty());
        sockets.forget_unopened();
        assert!(TcpStream::connect(address).is_ok());
        sockets.follow(&table(&[]));
        assert!(!sockets.contains(ONE));
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn the_same_listener_sent_again_changes_nothing() {
        let mut sockets = Sockets::default();
        let (first, kept) = listen();
        let (second, dropped) = listen();
        sockets.add(ONE, first).unwrap();
        sockets.add(ONE, second).unwrap();
        assert!(TcpStream::connect(kept).is_ok());
        assert!(TcpStream::connect(dropped).is_err());
        sockets.forget_unopened();
        assert!(TcpStream::connect(kept).is_err());
    }
}
