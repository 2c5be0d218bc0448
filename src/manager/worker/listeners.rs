//! The listening sockets that the manager holds. A worker gets copies of them, so that a port stays
//! open whatever happens to a worker.
//!
//! A socket comes from a unit of systemd that opened it before smoothserve was started, from
//! systemd's store, where an earlier manager has put it, or is bound here. All three are told apart
//! only when they are closed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::libc;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Listen;
use crate::generator;
use crate::ipc::ListenerId;
use crate::systemd::given;

/// The length of a listening socket's queue. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long a worker waits at most for a connection in accept(2), see [`prepare`].
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(10);

/// Seconds for which a connection without a request is kept from the worker; the kernel knows no
/// shorter time.
static DEFERRED: libc::c_int = 1;

/// An open listening socket.
#[derive(Debug)]
pub struct OpenListener {
    /// The number by which workers know the socket, never used twice.
    pub id: ListenerId,
    /// The address that the socket is bound to.
    pub address: SocketAddr,
    /// Who else holds the socket.
    pub keeper: SocketKeeper,
    socket: TcpListener,
}

/// Who else holds a socket, and has to let go of it before the port is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketKeeper {
    /// The `.socket` unit of this name.
    Unit(String),
    /// systemd's store, under this name, if there is one.
    Store(String),
}

impl OpenListener {
    /// Returns the socket, to be passed on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// All open listening sockets.
#[derive(Debug, Default)]
pub struct Listeners {
    open: BTreeMap<Listen, OpenListener>,
    /// The sockets that systemd has given and nobody has asked for yet.
    given: BTreeMap<SocketAddr, (SocketKeeper, TcpListener)>,
    last_id: u32,
}

/// Sockets for a change that is not decided yet; dropping it closes those that were bound for it.
#[derive(Debug)]
pub struct BoundSockets(Vec<(Listen, Source)>);

#[derive(Debug)]
enum Source {
    Given(SocketAddr),
    New(TcpListener, SocketAddr),
}

/// What is kept of the listeners for the next manager.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedListeners {
    open: Vec<(Listen, ListenerId)>,
    last_id: u32,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}: {source}")]
pub struct BindError {
    /// The wanted address.
    pub listen: Listen,
    source: io::Error,
}

/// Returns the configured address of a socket that is bound to `address`.
fn listen_of(address: SocketAddr) -> Listen {
    let is_any = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    Listen {
        address: (!is_any).then_some(address.ip()),
        port: address.port(),
    }
}

/// How the names begin under which systemd's store keeps listening sockets.
const STORED: &str = "listener-";

impl Listeners {
    /// Makes a set without open sockets, for which `sockets` are there to be used.
    pub fn new(sockets: Vec<given::GivenSocket>) -> Listeners {
        let mut listeners = Listeners::default();
        for (name, socket) in sockets {
            match prepare(SockRef::from(&socket)).and_then(|()| socket.local_addr()) {
                Ok(address) => {
                    let keeper = match name.starts_with(STORED) {
                        true => SocketKeeper::Store(name),
                        false => SocketKeeper::Unit(generator::unit_name(listen_of(address))),
                    };
                    listeners.given.insert(address, (keeper, socket));
                }
                Err(error) => tracing::error!(name, error = %error, "unusable listening socket"),
            }
        }
        listeners
    }

    /// Returns what the next manager has to know of the sockets.
    pub fn save(&self) -> SavedListeners {
        SavedListeners {
            open: self
                .open
                .iter()
                .map(|(listen, listener)| (*listen, listener.id))
                .collect(),
            last_id: self.last_id,
        }
    }

    /// Opens the saved sockets, under the numbers that the workers know. Returns those that cannot
    /// be opened.
    pub fn restore(&mut self, saved: SavedListeners) -> Vec<BindError> {
        self.last_id = saved.last_id;
        let wanted = saved.open.iter().map(|(listen, _)| *listen).collect();
        let (bound, errors) = self.bind(&wanted);
        for (listen, socket) in bound.0 {
            let known = saved.open.iter().find(|(known, _)| *known == listen);
            if let Some((_, id)) = known {
                self.open(listen, *id, socket);
            }
        }
        errors
    }

    /// Closes the sockets that systemd has given and nobody has asked for. Returns who else has to.
    pub fn drop_unused(&mut self) -> Vec<SocketKeeper> {
        let unused = std::mem::take(&mut self.given);
        unused.into_values().map(|(keeper, _)| keeper).collect()
    }

    /// Binds sockets for the wanted addresses that are not open yet. Nothing else changes until
    /// [`Listeners::adopt`].
    pub fn bind(&self, wanted: &BTreeSet<Listen>) -> (BoundSockets, Vec<BindError>) {
        let mut bound = Vec::new();
        let mut errors = Vec::new();
        for &listen in wanted
            .iter()
            .filter(|listen| !self.open.contains_key(listen))
        {
            if let Some(address) = self.given_for(listen) {
                bound.push((listen, Source::Given(address)));
                continue;
            }
            match bind(listen) {
                Ok((socket, address)) => bound.push((listen, Source::New(socket, address))),
                Err(source) => errors.push(BindError { listen, source }),
            }
        }
        (BoundSockets(bound), errors)
    }

    fn given_for(&self, listen: Listen) -> Option<SocketAddr> {
        let any = [
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ];
        let addresses = listen.address.map_or(any.to_vec(), |address| vec![address]);
        let mut addresses = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, listen.port));
        addresses.find(|address| self.given.contains_key(address))
    }

    /// Keeps the sockets of [`Listeners::bind`], and closes those that are not wanted any more.
    /// Returns who else has to let go of those.
    pub fn adopt(&mut self, bound: BoundSockets, wanted: &BTreeSet<Listen>) -> Vec<SocketKeeper> {
        let open: BTreeSet<Listen> = self.open.keys().copied().collect();
        let closed = open.difference(wanted);
        let closed: Vec<OpenListener> = closed
            .filter_map(|listen| self.open.remove(listen))
            .collect();
        for (listen, socket) in bound.0 {
            self.last_id += 1;
            self.open(listen, ListenerId(self.last_id), socket);
        }
        closed.into_iter().map(|listener| listener.keeper).collect()
    }

    fn open(&mut self, listen: Listen, id: ListenerId, socket: Source) {
        let (keeper, socket, address) = match socket {
            Source::New(socket, address) => (
                SocketKeeper::Store(format!("{STORED}{}", id.0)),
                socket,
                address,
            ),
            Source::Given(address) => match self.given.remove(&address) {
                Some((keeper, socket)) => (keeper, socket, address),
                None => return,
            },
        };
        tracing::info!(address = %address, "listening");
        self.open.insert(
            listen,
            OpenListener {
                id,
                address,
                keeper,
                socket,
            },
        );
    }

    /// Returns the number of the newest socket; 0 before the first.
    pub fn last_id(&self) -> ListenerId {
        ListenerId(self.last_id)
    }

    /// Returns the socket of a configured address.
    pub fn get(&self, listen: &Listen) -> Option<&OpenListener> {
        self.open.get(listen)
    }

    /// Returns all sockets, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (&Listen, &OpenListener)> {
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

/// Prepares a socket so that a worker never blocks in accept(2) on it. Blocking is a property that
/// all descriptors of the socket share, and systemd sets it each time it passes the socket on: with
/// `NonBlocking=yes` as it should be, otherwise blocking, while a worker is using it. The timeout
/// keeps that harmless.
///
/// And the kernel keeps a new connection to itself until a request comes over it, for a moment: the
/// worker then reads the request as it accepts the connection, instead of waiting for it.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
    defer_accept(socket.as_fd())
}

/// Has the kernel keep new connections until a request comes, see `TCP_DEFER_ACCEPT` in tcp(7).
#[allow(unsafe_code)]
fn defer_accept(socket: BorrowedFd<'_>) -> io::Result<()> {
    let size = size_of_val(&DEFERRED)
        .try_into()
        .map_err(io::Error::other)?;
    // SAFETY: the option takes an int, which lives longer than the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const DEFERRED).cast(),
            size,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
    // Connections of an earlier run that wait in TIME_WAIT must not keep the port from us.
    // SO_REUSEPORT stays off: it would split the accept queue, and closing one of the queues resets
    // what is in it.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    prepare(SockRef::from(&socket))?;
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
    fn a_given_socket_is_used_and_keeps_its_name_for_the_next_manager() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let given = socket.local_addr().unwrap();
        let wanted = BTreeSet::from([Listen {
            address: Some(given.ip()),
            port: given.port(),
        }]);
        let again = socket.try_clone().unwrap();
        let mut listeners = Listeners::new(vec![("a.socket".to_owned(), socket)]);
        let (bound, errors) = listeners.bind(&wanted);
        assert!(errors.is_empty());
        listeners.adopt(bound, &wanted);
        let saved = listeners.save();
        let mut next = Listeners::new(vec![("listener-1".to_owned(), again)]);
        assert!(next.restore(listeners.save()).is_empty());
        assert_eq!(next.save(), saved);
        assert_eq!(next.drop_unused(), []);
        let (bound, _) = next.bind(&BTreeSet::new());
        let keeper = SocketKeeper::Store("listener-1".to_owned());
        assert_eq!(next.adopt(bound, &BTreeSet::new()), [keeper]);
    }

    #[test]
    fn a_socket_that_somebody_makes_blocking_holds_nobody_up() {
        let mut listeners = Listeners::default();
        let wanted = BTreeSet::from([any_port(None)]);
        let (bound, _) = listeners.bind(&wanted);
        listeners.adopt(bound, &wanted);
        let (_, listener) = listeners.iter().next().unwrap();
        let worker = TcpListener::from(listener.descriptor().try_clone_to_owned().unwrap());
        worker.set_nonblocking(false).unwrap();
        let error = worker.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
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
