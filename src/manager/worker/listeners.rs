//! The listening sockets, which the manager holds. Workers get copies, so a port stays open even if
//! all workers end.
//!
//! A socket has one of three sources: a systemd `.socket` unit opened it before smoothserve
//! started; systemd's store has kept it since an earlier manager; or this manager has bound it. The
//! source matters only when the socket is closed.

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

/// The length of the accept queue. The kernel limits it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The longest time that accept(2) may block a worker, see [`prepare`].
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(10);

/// How many bytes of a response the kernel holds for a client that does not take them. Each buffer
/// could grow to several MiB, and what all connections of the machine may have together is limited.
static UNSENT: libc::c_int = 256 << 10;

/// How many seconds the kernel keeps a connection without a request from the worker. One second is
/// the shortest time that the kernel supports.
static DEFERRED: libc::c_int = 1;

/// An open listening socket.
#[derive(Debug)]
pub struct OpenListener {
    /// The number by which workers know the socket. It is never used twice.
    pub id: ListenerId,
    /// The address that the socket is bound to.
    pub address: SocketAddr,
    /// Which part of systemd also holds the socket.
    pub keeper: SocketKeeper,
    socket: TcpListener,
}

/// The part of systemd that also holds a socket. It must close its copy, too, or the port stays
/// open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketKeeper {
    /// The `.socket` unit of this name.
    Unit(String),
    /// systemd's store holds the socket under this name, if there is a systemd.
    Store(String),
}

impl OpenListener {
    /// Returns the descriptor of the socket, to be passed to workers and to systemd.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// All open listening sockets.
#[derive(Debug, Default)]
pub struct Listeners {
    open: BTreeMap<Listen, OpenListener>,
    /// Sockets from systemd that no service uses yet.
    given: BTreeMap<SocketAddr, (SocketKeeper, TcpListener)>,
    last_id: u32,
}

/// Sockets for a change that is not decided yet. Dropping this value closes the sockets that were
/// bound for the change.
#[derive(Debug)]
pub struct BoundSockets(Vec<(Listen, Source)>);

#[derive(Debug)]
enum Source {
    Given(SocketAddr),
    New(TcpListener, SocketAddr),
}

/// The state of the listeners that is saved for the next manager.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedListeners {
    open: Vec<(Listen, ListenerId)>,
    last_id: u32,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}: {source}")]
pub struct BindError {
    /// The address on which smoothserve cannot listen.
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

/// The prefix of the names under which systemd stores listening sockets.
const STORED: &str = "listener-";

impl Listeners {
    /// Makes a set without open listeners. Later, `sockets` are used instead of binding new ones.
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

    /// Returns the state that the next manager needs to take over the sockets.
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

    /// Opens the saved sockets again, under the numbers that the workers know. Returns the errors
    /// of those that cannot be opened.
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

    /// Closes the sockets from systemd that no service uses. Returns which parts of systemd must
    /// close them, too.
    pub fn drop_unused(&mut self) -> Vec<SocketKeeper> {
        let unused = std::mem::take(&mut self.given);
        unused.into_values().map(|(keeper, _)| keeper).collect()
    }

    /// Binds sockets for the wanted addresses that are not open yet. Changes nothing else:
    /// [`Listeners::adopt`] puts them to use.
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

    /// Puts the sockets of [`Listeners::bind`] to use, and closes those that are no longer wanted.
    /// Returns which parts of systemd must close them, too.
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
        // The machine may have no IPv6 at all.
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

/// Prepares a socket so that accept(2) never blocks a worker for long. All descriptors of a socket
/// share the blocking mode, and systemd sets the mode each time it passes the socket on: to
/// non-blocking with `NonBlocking=yes`, otherwise to blocking, even while a worker uses the socket.
/// With the timeout, this does no harm.
///
/// The kernel also holds back a new connection for a moment, until its first request arrives. The
/// worker then reads the request when it accepts the connection and need not wait for it. Accepted
/// connections inherit the limit of what may be unsent.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
    set_option(socket.as_fd(), libc::TCP_DEFER_ACCEPT, &DEFERRED)?;
    set_option(socket.as_fd(), libc::TCP_NOTSENT_LOWAT, &UNSENT)
}

/// Sets an option of tcp(7) that is a number.
#[allow(unsafe_code)]
fn set_option(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &'static libc::c_int,
) -> io::Result<()> {
    let size = size_of_val(value).try_into().map_err(io::Error::other)?;
    // SAFETY: the option takes an int, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(value).cast(),
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
    // SO_REUSEADDR: connections of an earlier run in TIME_WAIT must not block the port.
    // SO_REUSEPORT stays off: it would split the accept queue, and closing one queue resets the
    // connections in it.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit the option, which saves a system call for each connection.
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
