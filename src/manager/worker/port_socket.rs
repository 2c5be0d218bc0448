//! A listening TCP socket: how it is bound and what is set on it.
//!
//! # Sockets beside each other
//! The kernel does not let two sockets listen on addresses that overlap, such as `[::]:80` and
//! `127.0.0.1:80`, unless both have `SO_REUSEPORT` and belong to the same user. When a changed
//! configuration replaces one such address by the other, both sockets have to listen for a moment,
//! or clients would be refused. So both get the option for as long as it takes to bind and to
//! listen; afterwards nobody else can bind beside them. A client gets the socket with the most
//! specific address. The queues stay apart, because only sockets with equal addresses share one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Listen;

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

/// A socket that was bound for a change that is not decided yet.
#[derive(Debug)]
pub(super) struct BoundSocket {
    /// The address that the socket is bound to.
    pub(super) address: SocketAddr,
    socket: TcpListener,
    /// False if the socket is bound beside another one. It must not listen before the change is
    /// decided, since clients would get it.
    listening: bool,
}

impl BoundSocket {
    /// Binds a socket for a configured address. `own` are the sockets of this manager, beside which
    /// it may be bound. With `closing`, such a socket may be about to close in another process.
    pub(super) fn bind<'a>(
        listen: Listen,
        own: impl Iterator<Item = (SocketAddr, BorrowedFd<'a>)>,
        closing: bool,
    ) -> io::Result<BoundSocket> {
        let own: Vec<_> = own.collect();
        let bind = |address| match bind_alone(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let near = beside(address, &own);
                match closing || !near.is_empty() {
                    true => bind_beside(address, &near),
                    false => Err(error),
                }
            }
            result => result,
        };
        match bind(address_of(listen)) {
            // The machine may have no IPv6 at all.
            Err(error) if listen.address.is_none() && no_ipv6(&error) => bind(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                listen.port,
            )),
            result => result,
        }
    }

    /// Lets the socket listen, if it does not yet. `own` is as in [`BoundSocket::bind`].
    pub(super) fn listen<'a>(
        self,
        own: impl Iterator<Item = (SocketAddr, BorrowedFd<'a>)>,
    ) -> io::Result<TcpListener> {
        if self.listening {
            return Ok(self.socket);
        }
        let own: Vec<_> = own.collect();
        let near = beside(self.address, &own);
        share(&near, true)?;
        let socket = SockRef::from(&self.socket);
        let result = socket.listen(BACKLOG);
        share(&near, false)?;
        socket.set_reuse_port(false)?;
        result.map(|()| self.socket)
    }
}

/// Returns the address to which the socket of a configured address is bound, if the machine has
/// IPv6.
pub(super) fn address_of(listen: Listen) -> SocketAddr {
    let address = listen.address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    SocketAddr::new(address, listen.port)
}

/// Returns true if the machine has no IPv6 at all.
pub(super) fn ipv6_is_missing() -> bool {
    bind_alone((Ipv6Addr::UNSPECIFIED, 0).into()).is_err_and(|error| no_ipv6(&error))
}

/// Returns true if a socket on `wide` gets the clients of `narrow` unless there is a socket for
/// these alone.
pub(super) fn covers(wide: SocketAddr, narrow: SocketAddr) -> bool {
    let all = match wide.ip() {
        IpAddr::V6(address) => address.is_unspecified(),
        IpAddr::V4(address) => address.is_unspecified() && narrow.is_ipv4(),
    };
    wide.port() == narrow.port() && (all || wide.ip() == narrow.ip())
}

/// Returns true if a client can get either of two sockets.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    covers(one, other) || covers(other, one)
}

/// Lets another socket be bound to the address of a socket that is about to close, as long as
/// copies of the socket are still open elsewhere.
pub(super) fn give_up(socket: &TcpListener) {
    // Without the option, a reload that opens the port again a moment later fails, and says so.
    let _ = SockRef::from(socket).set_reuse_port(true);
}

/// Prepares a socket so that accept(2) never blocks a worker for long. All descriptors of a socket
/// share the blocking mode, and systemd sets the mode each time it passes the socket on: to
/// non-blocking with `NonBlocking=yes`, otherwise to blocking, even while a worker uses the socket.
/// With the timeout, this does no harm.
///
/// The kernel also holds back a new connection for a moment, until its first request arrives. The
/// worker then reads the request when it accepts the connection and need not wait for it. Accepted
/// connections inherit the limit of what may be unsent.
pub(super) fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_read_timeout(Some(ACCEPT_TIMEOUT))?;
    set_option(socket.as_fd(), libc::TCP_DEFER_ACCEPT, &DEFERRED)?;
    set_option(socket.as_fd(), libc::TCP_NOTSENT_LOWAT, &UNSENT)
}

fn beside<'a>(address: SocketAddr, own: &[(SocketAddr, BorrowedFd<'a>)]) -> Vec<BorrowedFd<'a>> {
    // Sockets with equal addresses would share the clients.
    let is_near = |other| other != address && overlap(other, address);
    let near = own.iter().filter(|(other, _)| is_near(*other));
    near.map(|(_, socket)| *socket).collect()
}

fn share(sockets: &[BorrowedFd<'_>], shared: bool) -> io::Result<()> {
    let mut sockets = sockets.iter();
    sockets.try_for_each(|socket| SockRef::from(socket).set_reuse_port(shared))
}

fn no_ipv6(error: &io::Error) -> bool {
    let error = rustix::io::Errno::from_io_error(error);
    matches!(
        error,
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}

fn bind_alone(address: SocketAddr) -> io::Result<BoundSocket> {
    let socket = make(address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from(socket);
    Ok(BoundSocket {
        address: socket.local_addr()?,
        socket,
        listening: true,
    })
}

fn bind_beside(address: SocketAddr, near: &[BorrowedFd<'_>]) -> io::Result<BoundSocket> {
    let socket = make(address)?;
    socket.set_reuse_port(true)?;
    share(near, true)?;
    let result = socket.bind(&address.into());
    share(near, false)?;
    result?;
    Ok(BoundSocket {
        address,
        socket: socket.into(),
        listening: false,
    })
}

fn make(address: SocketAddr) -> io::Result<Socket> {
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
    Ok(socket)
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
