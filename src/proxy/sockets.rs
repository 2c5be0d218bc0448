//! The listening sockets that the manager has handed over.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::net::{AddressFamily, sockopt};

use super::table::Table;
use crate::ipc::ListenerId;

/// More than any machine needs; each costs a descriptor.
const MOST_SOCKETS: usize = 4096;

/// Why a socket was not taken.
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

#[derive(Default)]
pub(crate) struct Sockets {
    sockets: HashMap<ListenerId, Socket>,
}

struct Socket {
    descriptor: Arc<OwnedFd>,
    /// Whether a table has named it, so that the threads have it.
    opened: bool,
}

impl Sockets {
    /// Takes a socket in. One that is here already stays: a manager that has started anew sends the same again.
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
        // The connections inherit it.
        sockopt::set_tcp_nodelay(&descriptor, true)?;
        let socket = Socket {
            descriptor: Arc::new(descriptor),
            opened: false,
        };
        self.sockets.insert(id, socket);
        Ok(())
    }

    pub(crate) fn contains(&self, id: ListenerId) -> bool {
        self.sockets.contains_key(&id)
    }

    /// Closes those that were open and are not in the table, and returns those that it is the first to name.
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

    /// Forgets those that no table has named; the next manager sends its own.
    pub(crate) fn forget_unopened(&mut self) {
        self.sockets.retain(|_, socket| socket.opened);
    }
}
