//! The listening sockets, which the manager holds. Workers get copies, so a port stays open even if
//! all workers end. systemd's store gets copies, too, so a port stays open when the manager ends.
//! A socket that the `.socket` unit of the port has opened is no exception: the unit may be stopped
//! at any time, and cannot open the port again as long as smoothserve runs.
//!
//! # Theory of operation
//! An address that is configured has one socket. It was passed by systemd or by the holder, or this
//! manager has bound it. When the configuration changes, a socket whose address it no longer names
//! closes, with two exceptions, which are called *passing*:
//! * Its clients now belong to a wider address (`127.0.0.1:80` became `[::]:80`). The kernel goes
//!   on giving them this socket, so it stays open as long as the wider address is configured.
//! * Some of its clients now belong to a narrower address (`[::]:80` became `127.0.0.1:80`). New
//!   ones get the new socket, but some may be in the middle of connecting to this one. It closes
//!   after [`PASSING_TIME`].
//!
//! A socket that closes stays open here until systemd has stopped its unit and all workers use a
//! table without it. A configuration that names its address again in the meantime gets this socket:
//! a second one beside it would share the clients with a queue from which nobody accepts.
//!
//! A worker finds out for each connection of a passing socket which listener it belongs to, by the
//! address that the client has connected to; a connection that belongs to none is closed. A passing
//! socket has a new number, by which workers take it for another listener: connections of the old
//! one end with their next response.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::port_socket::{
    BoundSocket, address_of, covers, give_up, ipv6_is_missing, overlap, prepare,
};
use crate::config::Listen;
use crate::generator;
use crate::ipc::ListenerId;
use crate::manager::host::sockets;
use crate::systemd::given;

/// How long a socket stays open whose clients get another socket now. A client that has begun to
/// connect sends its first bytes within one round trip, and once more after a second if they are
/// lost.
const PASSING_TIME: Duration = Duration::from_secs(3);

/// How long a worker may have copies of a socket that is closed here, for what is in its queue.
const CLOSING_TIME: Duration = Duration::from_secs(10);

/// An open listening socket.
#[derive(Debug)]
pub struct OpenListener {
    /// The number by which workers know the socket. It is never used twice.
    pub id: ListenerId,
    /// The address that the socket is bound to.
    pub address: SocketAddr,
    /// Where systemd may hold copies of the socket.
    pub copies: SocketCopies,
    socket: TcpListener,
}

/// Where systemd may hold copies of a socket. It must close them, too, or the port stays open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketCopies {
    /// The `.socket` unit of the address, if there is one.
    pub unit: String,
    /// The name of the socket in systemd's store.
    pub stored: String,
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
    passing: Vec<PassingSocket>,
    closing: Vec<ClosingSocket>,
    /// Sockets that were passed to this manager and that no service uses yet.
    given: BTreeMap<SocketAddr, GivenCopy>,
    /// The addresses of sockets that were closed a short time ago.
    closed: Vec<(SocketAddr, Instant)>,
    last_id: u32,
}

/// A socket whose address is no longer configured, but which clients of a configured address may
/// get or have got.
#[derive(Debug)]
struct PassingSocket {
    listener: OpenListener,
    /// When the socket closes. `None`: as long as the configuration has a wider address.
    until: Option<Instant>,
}

/// A socket that no address needs any more, of which copies are still open elsewhere.
#[derive(Debug)]
struct ClosingSocket {
    listener: OpenListener,
    /// True: systemd has no copy any more.
    is_let_go: bool,
    /// The number of the first table without the socket. `None`: there is no such table yet.
    table: Option<u64>,
}

#[derive(Debug)]
struct GivenCopy {
    socket: TcpListener,
    /// The name of the socket in systemd's store, if it is there.
    stored: Option<String>,
}

/// Sockets for a change that is not decided yet. Dropping this value closes the sockets that were
/// bound for the change.
#[derive(Debug)]
pub struct BoundSockets(Vec<(Listen, Source)>);

impl BoundSockets {
    /// Returns no sockets.
    pub fn none() -> BoundSockets {
        BoundSockets(Vec::new())
    }
}

#[derive(Debug)]
enum Source {
    Given(SocketAddr),
    Passing(SocketAddr),
    Closing(SocketAddr),
    New(BoundSocket),
}

/// The state of the listeners that is saved for the next manager.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedListeners {
    open: Vec<(Listen, ListenerId)>,
    last_id: u32,
}

impl SavedListeners {
    /// Returns the state in which these addresses are open, under numbers above `last_id`.
    pub fn above(last_id: u32, listens: impl Iterator<Item = Listen>) -> SavedListeners {
        let open: Vec<_> = listens.zip((last_id + 1..).map(ListenerId)).collect();
        SavedListeners {
            last_id: open.last().map_or(last_id, |(_, id)| id.0),
            open,
        }
    }
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}: {source}")]
pub struct BindError {
    /// The address on which smoothserve cannot listen.
    pub listen: Listen,
    source: std::io::Error,
}

/// Puts who has a port into the error that it is in use.
fn with_holder(listen: Listen, error: std::io::Error) -> std::io::Error {
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return error;
    }
    let port = listen.port;
    let taken = match sockets::holder(address_of(listen), &BTreeSet::new()) {
        Some(holder) => format!("port {port} is taken by {holder}"),
        None => format!("port {port} is taken by another program"),
    };
    std::io::Error::new(error.kind(), format!("address in use: {taken}"))
}

/// Returns the configured address for which a socket that is bound to `address` was opened.
fn listen_of(address: SocketAddr, ipv6_is_missing: bool) -> Listen {
    let is_any = match address.ip() {
        IpAddr::V6(ip) => ip == Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(ip) => ipv6_is_missing && ip == Ipv4Addr::UNSPECIFIED,
    };
    Listen {
        address: (!is_any).then_some(address.ip()),
        port: address.port(),
    }
}

/// The prefix of the names under which systemd stores listening sockets.
const STORED: &str = "listener-";

impl Listeners {
    /// Makes a set without open listeners. Later, `sockets` are used instead of binding new ones. A
    /// socket may be among them twice: from its unit and from systemd's store.
    pub fn new(sockets: Vec<given::GivenSocket>) -> Listeners {
        let mut listeners = Listeners::default();
        for (name, socket) in sockets {
            match prepare(SockRef::from(&socket)).and_then(|()| socket.local_addr()) {
                Ok(address) => {
                    let stored = name.starts_with(STORED).then_some(name);
                    let copy = GivenCopy {
                        socket,
                        stored: None,
                    };
                    let known = listeners.given.entry(address).or_insert(copy);
                    known.stored = stored.or(known.stored.take());
                }
                Err(error) => tracing::error!(name, error = %error, "unusable listening socket"),
            }
        }
        listeners
    }

    /// Returns the state that the next manager needs to take over the sockets.
    pub fn save(&self) -> SavedListeners {
        let open = self.open.iter();
        SavedListeners {
            open: open
                .map(|(listen, listener)| (*listen, listener.id))
                .collect(),
            last_id: self.last_id,
        }
    }

    /// Opens the saved sockets again, under the numbers that the workers know. Returns the errors
    /// of those that cannot be opened. Passing sockets go on to pass with
    /// [`Listeners::drop_unused`].
    pub fn restore(&mut self, saved: SavedListeners) -> Vec<BindError> {
        self.last_id = saved.last_id;
        let wanted = saved.open.iter().map(|(listen, _)| *listen).collect();
        let (bound, mut errors) = self.bind(&wanted);
        for (listen, source) in bound.0 {
            let known = saved.open.iter().find(|(known, _)| *known == listen);
            if let Some((_, id)) = known {
                errors.extend(self.open(listen, *id, source).err());
            }
        }
        errors
    }

    /// Closes the sockets that were passed to this manager and that no service uses, at once or
    /// once nobody can get them any more. Returns the copies that systemd must close, too.
    pub fn drop_unused(&mut self) -> Vec<(ListenerId, SocketCopies)> {
        let wanted: BTreeSet<Listen> = self.open.keys().copied().collect();
        let mut closed = Vec::new();
        for (address, copy) in std::mem::take(&mut self.given) {
            let listen = listen_of(address, address.is_ipv4() && ipv6_is_missing());
            let unused = listener(self.next_id(), listen, address, copy.socket, copy.stored);
            closed.extend(self.retire(unused, &wanted));
        }
        closed
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
            let at = |address: SocketAddr| match self.given.contains_key(&address) {
                true => Some(Source::Given(address)),
                false if self.passing_at(address).is_some() => Some(Source::Passing(address)),
                false => self.closing_at(address).map(|_| Source::Closing(address)),
            };
            // The machine may have no IPv6 at all.
            let without_ipv6 = || {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port));
                at(any).filter(|_| listen.address.is_none() && ipv6_is_missing())
            };
            let source = match at(address_of(listen)).or_else(without_ipv6) {
                Some(source) => Ok(source),
                None => self.bind_new(listen).map(Source::New),
            };
            match source {
                Ok(source) => bound.push((listen, source)),
                Err(source) => errors.push(BindError {
                    listen,
                    source: with_holder(listen, source),
                }),
            }
        }
        (BoundSockets(bound), errors)
    }

    fn bind_new(&self, listen: Listen) -> std::io::Result<BoundSocket> {
        let is_closing = |(address, at): &(SocketAddr, Instant)| {
            address.port() == listen.port && at.elapsed() < CLOSING_TIME
        };
        BoundSocket::bind(listen, self.own(), self.closed.iter().any(is_closing))
    }

    /// Returns all sockets that this process has.
    fn own(&self) -> impl Iterator<Item = (SocketAddr, BorrowedFd<'_>)> {
        let given = self.given.iter();
        let given = given.map(|(address, copy)| (*address, copy.socket.as_fd()));
        let closing = self.closing.iter().map(|closing| &closing.listener);
        let used = self.sockets().chain(closing);
        given.chain(used.map(|listener| (listener.address, listener.descriptor())))
    }

    fn passing_at(&self, address: SocketAddr) -> Option<usize> {
        let mut passing = self.passing.iter();
        passing.position(|passing| passing.listener.address == address)
    }

    fn closing_at(&self, address: SocketAddr) -> Option<usize> {
        let mut closing = self.closing.iter();
        closing.position(|closing| closing.listener.address == address)
    }

    /// Puts the sockets of [`Listeners::bind`] to use, and closes those that are no longer wanted,
    /// at once or once nobody can get them any more. Returns the copies that systemd must close,
    /// too.
    pub fn adopt(
        &mut self,
        bound: BoundSockets,
        wanted: &BTreeSet<Listen>,
    ) -> Vec<(ListenerId, SocketCopies)> {
        for (listen, source) in bound.0 {
            let id = self.next_id();
            if let Err(error) = self.open(listen, id, source) {
                tracing::error!(error = %error, "port not opened, its services are not reachable there");
            }
        }
        let open: Vec<Listen> = self.open.keys().copied().collect();
        let unwanted = open.iter().filter(|listen| !wanted.contains(listen));
        let mut retired = Vec::new();
        for listen in unwanted {
            if let Some(mut listener) = self.open.remove(listen) {
                listener.id = self.next_id();
                retired.push(listener);
            }
        }
        let passing = std::mem::take(&mut self.passing);
        let mut closed = Vec::new();
        for PassingSocket { listener, until } in passing {
            let again = self.retire(listener, wanted);
            // A second change does not make the time longer.
            if let (None, Some(last)) = (&again, self.passing.last_mut()) {
                last.until = last.until.map(|new| new.min(until.unwrap_or(new)));
            }
            closed.extend(again);
        }
        for listener in retired {
            closed.extend(self.retire(listener, wanted));
        }
        closed
    }

    /// Lets a socket pass, or closes it, because its address is not among the wanted ones. Returns
    /// the copies that systemd must close, too.
    fn retire(
        &mut self,
        listener: OpenListener,
        wanted: &BTreeSet<Listen>,
    ) -> Option<(ListenerId, SocketCopies)> {
        let address = listener.address;
        let wanted = || wanted.iter().map(|listen| address_of(*listen));
        if !wanted().any(|wanted| overlap(wanted, address)) {
            return Some(self.close(listener));
        }
        let is_covered = wanted().any(|wanted| covers(wanted, address));
        let until = (!is_covered).then(|| Instant::now() + PASSING_TIME);
        self.passing.push(PassingSocket { listener, until });
        None
    }

    /// Lets a socket close. Returns its number and the copies that systemd must close first.
    fn close(&mut self, listener: OpenListener) -> (ListenerId, SocketCopies) {
        let closed = (listener.id, listener.copies.clone());
        self.closing.push(ClosingSocket {
            listener,
            is_let_go: false,
            table: None,
        });
        closed
    }

    /// Notes that systemd has no copy of a closing socket any more.
    pub fn let_go(&mut self, id: ListenerId) {
        let mut closing = self.closing.iter_mut();
        if let Some(closing) = closing.find(|closing| closing.listener.id == id) {
            closing.is_let_go = true;
        }
    }

    /// Closes the closing sockets of which no copy is needed elsewhere. The last table has the
    /// number `table`, and all workers use table `applied` or a newer one.
    pub fn close_confirmed(&mut self, table: u64, applied: u64) {
        let is_over = |closing: &mut ClosingSocket| {
            let without = *closing.table.get_or_insert(table);
            closing.is_let_go && applied >= without
        };
        let over: Vec<ClosingSocket> = self.closing.extract_if(.., is_over).collect();
        self.closed.retain(|(_, at)| at.elapsed() < CLOSING_TIME);
        for ClosingSocket { listener, .. } in over {
            self.closed.push((listener.address, Instant::now()));
            give_up(&listener.socket);
        }
    }

    /// Returns when [`Listeners::close_passed`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.passing
            .iter()
            .filter_map(|passing| passing.until)
            .min()
    }

    /// Closes the passing sockets whose time is over. Returns the copies that systemd must close,
    /// too.
    pub fn close_passed(&mut self, now: Instant) -> Vec<(ListenerId, SocketCopies)> {
        let is_over = |passing: &mut PassingSocket| passing.until.is_some_and(|until| until <= now);
        let over: Vec<PassingSocket> = self.passing.extract_if(.., is_over).collect();
        let closed = over.into_iter().map(|passing| passing.listener);
        let closed = closed.map(|listener| {
            tracing::info!(address = %listener.address, "no longer listening");
            self.close(listener)
        });
        closed.collect()
    }

    fn next_id(&mut self) -> ListenerId {
        self.last_id += 1;
        ListenerId(self.last_id)
    }

    fn open(&mut self, listen: Listen, id: ListenerId, source: Source) -> Result<(), BindError> {
        let listener = match source {
            Source::New(bound) => {
                let address = bound.address;
                let socket = bound.listen(self.own());
                let socket = socket.map_err(|source| BindError { listen, source })?;
                Some(listener(id, listen, address, socket, None))
            }
            Source::Given(address) => {
                let copy = self.given.remove(&address);
                copy.map(|copy| listener(id, listen, address, copy.socket, copy.stored))
            }
            Source::Passing(address) => self
                .passing_at(address)
                .map(|index| self.passing.swap_remove(index).listener),
            Source::Closing(address) => self
                .closing_at(address)
                .map(|index| self.closing.swap_remove(index).listener),
        };
        if let Some(listener) = listener {
            let listener = OpenListener {
                id,
                copies: SocketCopies {
                    unit: generator::unit_name(listen),
                    ..listener.copies
                },
                ..listener
            };
            tracing::info!(address = %listener.address, "listening");
            self.open.insert(listen, listener);
        }
        Ok(())
    }

    /// Returns the number of the newest socket; 0 before the first.
    pub fn last_id(&self) -> ListenerId {
        ListenerId(self.last_id)
    }

    /// Returns the socket of a configured address.
    pub fn get(&self, listen: &Listen) -> Option<&OpenListener> {
        self.open.get(listen)
    }

    /// Returns the sockets of all configured addresses, in the order of the addresses.
    pub fn iter(&self) -> impl Iterator<Item = &OpenListener> {
        self.open.values()
    }

    /// Returns the sockets whose connections belong to the listeners of other sockets.
    pub fn passing(&self) -> impl Iterator<Item = &OpenListener> {
        self.passing.iter().map(|passing| &passing.listener)
    }

    /// Returns all sockets, to be passed to workers and to systemd.
    pub fn sockets(&self) -> impl Iterator<Item = &OpenListener> {
        self.iter().chain(self.passing())
    }
}

/// Makes a listener of a socket. Without a name under which it was stored, it gets one that no
/// other socket has, whichever manager has stored that.
fn listener(
    id: ListenerId,
    listen: Listen,
    address: SocketAddr,
    socket: TcpListener,
    stored: Option<String>,
) -> OpenListener {
    let number = rustix::fs::fstat(&socket).map_or(0, |file| file.st_ino);
    let copies = SocketCopies {
        unit: generator::unit_name(listen),
        stored: stored.unwrap_or_else(|| format!("{STORED}{number}")),
    };
    OpenListener {
        id,
        address,
        copies,
        socket,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

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
        let port = listeners.iter().next().unwrap().address.port();
        let taken = Listen {
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port,
        };
        let (bound, errors) = listeners.bind(&BTreeSet::from([taken]));
        assert!(bound.0.is_empty());
        let message = errors[0].to_string();
        assert!(
            message.starts_with(&format!(
                "cannot listen on 127.0.0.1:{port}: address in use: port {port} is taken by "
            )),
            "{message}"
        );
        assert_eq!(listeners.iter().count(), 1);
    }

    #[test]
    fn a_given_socket_is_used_and_keeps_its_name_for_the_next_manager() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let wanted = BTreeSet::from([Listen {
            address: Some(address.ip()),
            port: address.port(),
        }]);
        let again = socket.try_clone().unwrap();
        let mut listeners = Listeners::new(vec![("port".to_owned(), socket)]);
        let (bound, errors) = listeners.bind(&wanted);
        assert!(errors.is_empty());
        listeners.adopt(bound, &wanted);
        let saved = listeners.save();
        let from_unit = again.try_clone().unwrap();
        let given = [("listener-1", again), ("port", from_unit)];
        let given = given.map(|(name, socket)| (name.to_owned(), socket));
        let mut next = Listeners::new(given.into());
        assert!(next.restore(listeners.save()).is_empty());
        assert_eq!(next.save(), saved);
        assert_eq!(next.drop_unused(), []);
        let (bound, _) = next.bind(&BTreeSet::new());
        let copies = SocketCopies {
            unit: format!("smoothserve-port-127.0.0.1-{}.socket", address.port()),
            stored: "listener-1".to_owned(),
        };
        let closed = next.adopt(bound, &BTreeSet::new());
        let closed: Vec<_> = closed.into_iter().map(|(_, copies)| copies).collect();
        assert_eq!(closed, [copies]);
    }

    #[test]
    fn a_port_without_an_address_has_the_same_unit_on_a_machine_without_ipv6() {
        let socket = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = socket.local_addr().unwrap();
        let port = address.port();
        let listen = Listen {
            address: None,
            port,
        };
        let unit = format!("smoothserve-port-{port}.socket");
        let mut listeners = Listeners::new(vec![(unit.clone(), socket)]);
        let given = Source::Given(address);
        listeners.open(listen, ListenerId(1), given).unwrap();
        assert_eq!(listeners.get(&listen).unwrap().copies.unit, unit);
        assert_eq!(generator::unit_name(listen_of(address, true)), unit);
        assert_eq!(
            listen_of(address, false).address,
            Some(Ipv4Addr::UNSPECIFIED.into())
        );
    }

    #[test]
    fn a_socket_that_somebody_makes_blocking_holds_nobody_up() {
        let mut listeners = Listeners::default();
        let wanted = BTreeSet::from([any_port(None)]);
        let (bound, _) = listeners.bind(&wanted);
        listeners.adopt(bound, &wanted);
        let listener = listeners.iter().next().unwrap();
        let worker = TcpListener::from(listener.descriptor().try_clone_to_owned().unwrap());
        worker.set_nonblocking(false).unwrap();
        let error = worker.accept().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
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

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Confirms that nobody else has these sockets any more.
    fn confirm(listeners: &mut Listeners, closed: Vec<(ListenerId, SocketCopies)>) {
        for (id, _) in closed {
            listeners.let_go(id);
        }
        listeners.close_confirmed(1, 1);
    }

    /// Makes `wanted` the configured addresses, and returns how many sockets were closed.
    fn reload(listeners: &mut Listeners, wanted: &[Listen]) -> usize {
        let wanted = wanted.iter().copied().collect();
        let (bound, errors) = listeners.bind(&wanted);
        assert!(errors.is_empty(), "{errors:?}");
        listeners.adopt(bound, &wanted).len()
    }

    /// Opens a port on all addresses. Returns both ways to configure it: so, and for IPv4's
    /// loopback alone.
    fn wide_and_narrow(listeners: &mut Listeners) -> (Listen, Listen) {
        // Another test may take the port that was free a moment ago.
        loop {
            let free = TcpListener::bind("[::]:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let wide = Listen {
                address: None,
                port,
            };
            let wanted = BTreeSet::from([wide]);
            let (bound, errors) = listeners.bind(&wanted);
            if errors.is_empty() {
                listeners.adopt(bound, &wanted);
                let address = Some(LOCAL);
                return (wide, Listen { address, port });
            }
        }
    }

    #[test]
    fn a_port_for_fewer_addresses_listens_there_before_the_old_socket_closes() {
        let mut listeners = Listeners::default();
        let (wide, narrow) = wide_and_narrow(&mut listeners);
        let before = listeners.get(&wide).unwrap().id;
        assert_eq!(reload(&mut listeners, &[narrow]), 0);
        let connect = || std::net::TcpStream::connect((LOCAL, narrow.port));
        let new = &listeners.get(&narrow).unwrap().socket;
        let client = connect().unwrap();
        // The kernel gives a worker a client that is silent only after a second, so that it is not
        // asked here which of the two sockets has the client.
        assert_eq!(client.peer_addr().unwrap(), new.local_addr().unwrap());
        let old = listeners.passing().next().unwrap();
        assert_ne!(old.id, before, "to workers it is another listener");
        let until = listeners.deadline().unwrap();
        assert!(listeners.close_passed(Instant::now()).is_empty());
        let closed = listeners.close_passed(until);
        assert_eq!(closed.len(), 1);
        confirm(&mut listeners, closed);
        connect().unwrap();
        let elsewhere = std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, narrow.port));
        assert!(elsewhere.is_err());
        assert_eq!(listeners.deadline(), None);
    }

    #[test]
    fn a_port_for_more_addresses_keeps_the_old_socket_for_its_clients() {
        let mut listeners = Listeners::default();
        let (wide, narrow) = wide_and_narrow(&mut listeners);
        reload(&mut listeners, &[narrow]);
        listeners.close_passed(listeners.deadline().unwrap());
        let before = listeners.get(&narrow).unwrap().id;
        assert_eq!(reload(&mut listeners, &[wide]), 0);
        assert_eq!(listeners.deadline(), None);
        assert_eq!(listeners.passing().count(), 1);
        // Back again, it is the same socket.
        assert_eq!(reload(&mut listeners, &[narrow]), 0);
        assert_ne!(listeners.get(&narrow).unwrap().id, before);
        let until = listeners.deadline().unwrap();
        reload(&mut listeners, &[narrow]);
        assert_eq!(
            listeners.deadline(),
            Some(until),
            "the time is not made longer"
        );
        assert_eq!(reload(&mut listeners, &[]), 2);
        assert_eq!(listeners.sockets().count(), 0);
    }

    #[test]
    fn a_change_that_is_refused_takes_no_client_from_an_open_port() {
        let mut listeners = Listeners::default();
        let (wide, narrow) = wide_and_narrow(&mut listeners);
        let (bound, errors) = listeners.bind(&BTreeSet::from([narrow]));
        assert!(errors.is_empty());
        let client = std::net::TcpStream::connect((LOCAL, narrow.port)).unwrap();
        (&client).write_all(b"first").unwrap();
        drop(bound);
        let socket = listeners.get(&wide).unwrap().socket.try_clone().unwrap();
        socket.set_nonblocking(false).unwrap();
        SockRef::from(&socket).set_read_timeout(None).unwrap();
        let (mut accepted, _) = socket.accept().unwrap();
        let mut first = [0; 5];
        accepted.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
    }

    #[test]
    fn a_port_can_be_opened_again_while_copies_of_its_socket_are_still_open() {
        let mut listeners = Listeners::default();
        let (wide, _) = wide_and_narrow(&mut listeners);
        let _of_worker = listeners.get(&wide).unwrap().socket.try_clone().unwrap();
        let (bound, _) = listeners.bind(&BTreeSet::new());
        let closed = listeners.adopt(bound, &BTreeSet::new());
        assert_eq!(closed.len(), 1);
        confirm(&mut listeners, closed);
        reload(&mut listeners, &[wide]);
    }

    #[test]
    fn a_port_that_is_opened_again_before_it_has_closed_everywhere_gets_the_same_socket() {
        let mut listeners = Listeners::default();
        let (wide, _) = wide_and_narrow(&mut listeners);
        let number = |listeners: &Listeners| {
            let listener = listeners.get(&wide).unwrap();
            rustix::fs::fstat(listener.descriptor()).unwrap().st_ino
        };
        let (first, id) = (number(&listeners), listeners.get(&wide).unwrap().id);
        let _of_unit = listeners.get(&wide).unwrap().socket.try_clone().unwrap();
        let (bound, _) = listeners.bind(&BTreeSet::new());
        let closed = listeners.adopt(bound, &BTreeSet::new());
        assert_eq!(listeners.sockets().count(), 0);
        // The workers use the table without it, but the unit has not stopped.
        listeners.close_confirmed(1, 1);
        reload(&mut listeners, &[wide]);
        assert_eq!(number(&listeners), first);
        assert_ne!(
            listeners.get(&wide).unwrap().id,
            id,
            "to workers it is another listener"
        );
        // What is confirmed of its first end has no meaning any more.
        confirm(&mut listeners, closed);
        assert_eq!(number(&listeners), first);
        let (bound, _) = listeners.bind(&BTreeSet::new());
        let closed = listeners.adopt(bound, &BTreeSet::new());
        listeners.let_go(closed[0].0);
        // A worker still uses an older table.
        listeners.close_confirmed(2, 1);
        reload(&mut listeners, &[wide]);
        assert_eq!(number(&listeners), first);
    }
}
