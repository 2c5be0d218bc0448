//! The D-Bus side of the manager: the same objects on the private socket and on a bus.
//!
//! # Theory of operation
//! The D-Bus side uses nothing of the manager but [`ManagerHandle`]: a method sends a command, and
//! a property reads the newest snapshot. For each connection, one task follows the snapshots: it
//! adds and removes the objects of services and jobs, and emits signals for the differences between
//! one snapshot and the next. A client that does not read blocks only the task of its own
//! connection, and not for long. `docs/dbus.md` lists all members.
//!
//! Any user may connect, so everything that a client can make the manager hold has a limit: see
//! [`limits`]. A client on the private socket says who it is ([`handshake`]) before it costs more
//! than a few bytes, gets one of the places of its user ([`users`]), and then speaks through a
//! [`transport`] that bounds its messages and its [`calls`].

mod access;
mod announce;
mod calls;
#[cfg(any(test, feature = "internals"))]
pub mod check;
mod complete;
mod handshake;
mod job_object;
mod limits;
mod manager_object;
mod object_manager;
mod paths;
mod read_only;
mod requests;
mod service_object;
mod transport;
mod users;
mod values;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use zbus::address::transport::{Transport, UnixSocket};
use zbus::connection::Builder;
use zbus::{Address, Connection, Guid, Message};

use crate::bus::{BUS_NAME, Bus, MANAGER_PATH};
use crate::log_pace::LogPace;
use crate::manager::handle::ManagerHandle;
use crate::status::Snapshot;
use access::Access;
use announce::announce;
use calls::Calls;
use complete::is_set;
use handshake::{Handshake, welcome};
use job_object::JobObject;
use limits::HANDSHAKE_TIME;
use manager_object::ManagerObject;
use object_manager::{ObjectManager, announce_gone, announce_new};
use requests::add_job;
use service_object::ServiceObject;
use users::{ClientPlace, Users};

/// The pause before another attempt to accept a connection when the manager lacks descriptors.
const RETRY_ACCEPT: Duration = Duration::from_millis(100);

/// The pause between two attempts to reach a bus that is not there: the first one, and the longest.
const RECONNECT: Duration = Duration::from_millis(100);
const LONGEST_RECONNECT: Duration = Duration::from_secs(60);

/// Starts to serve D-Bus. Returns when the private socket is open and, if the user has asked for a
/// certain bus, the manager is on that bus. Must run inside a `LocalSet`.
pub async fn serve(
    handle: ManagerHandle,
    private_socket: ControlSocket,
    bus: Bus,
) -> anyhow::Result<()> {
    let listener = private_socket.listen()?;
    tokio::task::spawn_local(accept(listener, handle.clone()));
    match bus {
        Bus::None => {}
        Bus::System | Bus::Session => {
            let connection = connect(bus, &handle)
                .await
                .context("cannot take the name org.smoothserve1 on the bus")?;
            tokio::task::spawn_local(stay(bus, Some(connection), handle));
        }
        Bus::Auto => {
            let connection = connect(bus, &handle).await;
            if let Err(error) = &connection {
                tracing::info!(error = %error, "not on a bus, control is by the private socket");
            }
            tokio::task::spawn_local(stay(bus, connection.ok(), handle));
        }
    }
    Ok(())
}

/// The private socket, which serves D-Bus without a bus.
#[derive(Debug)]
pub enum ControlSocket {
    /// The manager has to create the socket at this path.
    Path(PathBuf),
    /// systemd has created the socket.
    Given(std::os::unix::net::UnixListener),
}

impl ControlSocket {
    fn listen(self) -> anyhow::Result<UnixListener> {
        match self {
            ControlSocket::Path(path) => {
                let problem = || format!("cannot make the control socket {}", path.display());
                bind(&path).with_context(problem)
            }
            ControlSocket::Given(listener) => {
                listener.set_nonblocking(true)?;
                Ok(UnixListener::from_std(listener)?)
            }
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Any user may connect and read. Whether a caller may change something is checked for each
    // call.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, handle: ManagerHandle) {
    let mut users = Users::new(rustix::process::geteuid().as_raw());
    let too_many = LogPace::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept a control connection");
                // Without a free descriptor, the next attempt fails at once, too.
                tokio::time::sleep(RETRY_ACCEPT).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else {
            continue;
        };
        let uid = peer.uid();
        match users.place(uid) {
            Some(place) => {
                tokio::task::spawn_local(serve_client(stream, uid, place, handle.clone()));
            }
            None => {
                if let Some(count) = too_many.due() {
                    tracing::warn!(uid, count, "too many control connections, closing one");
                }
            }
        }
    }
}

/// Serves one client on the private socket until it goes.
async fn serve_client(mut stream: UnixStream, uid: u32, place: ClientPlace, handle: ManagerHandle) {
    let guid = Guid::generate();
    let welcome = welcome(&mut stream, Handshake::new(uid, guid.to_string()));
    let Ok(Ok(Some(ahead))) = tokio::time::timeout(HANDSHAKE_TIME, welcome).await else {
        return;
    };
    let access = Access::Peer(uid);
    let (calls, refused) = Calls::of_client(place.calls());
    let socket = transport::of_client(stream, ahead, uid, calls);
    let builder = Builder::authenticated_socket(socket, guid).p2p();
    let (builder, shown) = with_objects(builder, &access, &handle);
    match builder.build().await {
        Ok(connection) => follow(&connection, &access, &handle, shown, refused).await,
        Err(error) => tracing::debug!(error = %error, "a control connection ended early"),
    }
}

/// Adds all objects to a connection before it takes its first message: a client never sees only
/// some of the objects, and objects that exist already are not announced as new. Also returns the
/// snapshot that the objects come from.
fn with_objects<'a>(
    builder: Builder<'a>,
    access: &Access,
    handle: &ManagerHandle,
) -> (Builder<'a>, Arc<Snapshot>) {
    let snapshot = handle.snapshots().borrow().clone();
    let mut builder = builder.serve_at(
        MANAGER_PATH,
        ManagerObject::new(access.clone(), handle.clone()),
    );
    builder = builder.serve_at(
        MANAGER_PATH,
        ObjectManager::new(access.clone(), handle.clone()),
    );
    for name in snapshot.services.keys() {
        let object = ServiceObject::new(access.clone(), handle.clone(), name.clone());
        builder = builder.serve_at(paths::service_path(name), object);
    }
    for &id in snapshot.jobs.keys() {
        let object = JobObject::new(access.clone(), handle.clone(), id);
        builder = builder.serve_at(paths::job_path(id), object);
    }
    (builder, snapshot)
}

/// The manager on a bus.
struct OnBus {
    connection: Connection,
    access: Access,
    /// The snapshot that the objects come from.
    shown: Arc<Snapshot>,
    /// Calls that are not carried out.
    refused: mpsc::Receiver<Message>,
}

async fn connect(bus: Bus, handle: &ManagerHandle) -> zbus::Result<OnBus> {
    let is_users = bus == Bus::Auto && !rustix::process::geteuid().is_root();
    let address = match bus {
        Bus::Session => Address::session()?,
        _ if is_users => Address::session()?,
        _ => Address::system()?,
    };
    let connecting = async {
        let (calls, refused) = Calls::on_bus();
        let socket = transport::on_bus(reach(&address).await?, calls);
        let access = Access::on_bus();
        let (builder, shown) = with_objects(Builder::socket(socket), &access, handle);
        Ok(OnBus {
            connection: builder.name(BUS_NAME).build().await?,
            access,
            shown,
            refused,
        })
    };
    let late = io::Error::from(io::ErrorKind::TimedOut);
    let connected = tokio::time::timeout(HANDSHAKE_TIME, connecting).await;
    connected.unwrap_or_else(|_| Err(late.into()))
}

/// Connects to the socket of a bus.
async fn reach(address: &Address) -> io::Result<UnixStream> {
    let Transport::Unix(unix) = address.transport() else {
        return Err(io::Error::other("the bus has no unix socket"));
    };
    match unix.path() {
        UnixSocket::File(path) => UnixStream::connect(path).await,
        UnixSocket::Abstract(name) => {
            let name = [&b"\0"[..], name.as_bytes()].concat();
            UnixStream::connect(OsStr::from_bytes(&name)).await
        }
        _ => Err(io::Error::other("the address of the bus is no socket")),
    }
}

/// Keeps smoothserve on the bus, and connects again after the bus has gone away.
async fn stay(bus: Bus, mut on_bus: Option<OnBus>, handle: ManagerHandle) {
    let mut pause = RECONNECT;
    loop {
        if let Some(on_bus) = on_bus.take() {
            let OnBus {
                connection,
                access,
                shown,
                refused,
            } = on_bus;
            follow(&connection, &access, &handle, shown, refused).await;
            tracing::warn!("the bus has gone away, trying to come back");
            pause = RECONNECT;
        }
        // Nobody tells when the bus is back.
        tokio::time::sleep(pause).await;
        pause = LONGEST_RECONNECT.min(pause * 2);
        match connect(bus, &handle).await {
            Ok(back) => {
                tracing::info!("on the bus");
                on_bus = Some(back);
            }
            Err(error) => tracing::debug!(error = %error, "the bus is not back yet"),
        }
    }
}

/// Keeps the objects of a connection in step with the snapshots until the connection or the manager
/// ends.
async fn follow(
    connection: &Connection,
    access: &Access,
    handle: &ManagerHandle,
    mut before: Arc<Snapshot>,
    mut refused: mpsc::Receiver<Message>,
) {
    let mut snapshots = handle.snapshots();
    loop {
        let now = snapshots.borrow_and_update().clone();
        if let Err(error) = publish(connection, access, handle, &before, &now).await {
            tracing::debug!(error = %error, "a control connection ended");
            return;
        }
        before = now;
        // zbus answers the calls.
        loop {
            tokio::select! {
                changed = snapshots.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = connection.closed() => return,
                Some(call) = refused.recv() => refuse(connection, &call).await,
            }
        }
    }
}

/// Refuses a call: it would set a property, or there are too many others.
async fn refuse(connection: &Connection, call: &Message) {
    static REFUSED: LogPace = LogPace::new();
    let header = call.header();
    if is_set(call) {
        let (name, text) = read_only::refusal(connection, call).await;
        // If it fails, the connection ends.
        let _ = connection.reply_error(&header, name, &text).await;
        return;
    }
    if let Some(count) = REFUSED.due() {
        let sender = header.sender().map(|sender| sender.as_str());
        tracing::warn!(sender, count, "too many D-Bus calls, refusing one");
    }
    let name = "org.freedesktop.DBus.Error.LimitsExceeded";
    let text = "too many calls are without an answer";
    let _ = connection.reply_error(&header, name, &text).await;
}

async fn publish(
    connection: &Connection,
    access: &Access,
    handle: &ManagerHandle,
    before: &Snapshot,
    now: &Snapshot,
) -> zbus::Result<()> {
    let server = connection.object_server();
    for name in now
        .services
        .keys()
        .filter(|name| !before.services.contains_key(*name))
    {
        let object = ServiceObject::new(access.clone(), handle.clone(), name.clone());
        server.at(paths::service_path(name), object).await?;
    }
    for &id in now.jobs.keys().filter(|id| !before.jobs.contains_key(id)) {
        add_job(server, access, handle, id).await?;
    }
    announce_new(connection, before, now).await?;
    announce(connection, before, now).await?;
    for name in before
        .services
        .keys()
        .filter(|name| !now.services.contains_key(*name))
    {
        let path = paths::service_path(name);
        server.remove::<ServiceObject, _>(path.as_str()).await?;
        announce_gone::<ServiceObject>(connection, paths::path(path)).await?;
    }
    for &id in before.jobs.keys().filter(|id| !now.jobs.contains_key(id)) {
        let path = paths::job_path(id);
        server.remove::<JobObject, _>(path.as_str()).await?;
        announce_gone::<JobObject>(connection, paths::path(path)).await?;
    }
    Ok(())
}
