//! The D-Bus side of the manager: the same objects on the private socket and on a bus.
//!
//! # Theory of operation
//! The D-Bus side uses nothing of the manager but [`ManagerHandle`]: a method sends a command, and
//! a property reads the newest snapshot. For each connection, one task follows the snapshots: it
//! adds and removes the objects of services and jobs, and emits signals for the differences between
//! one snapshot and the next. A client that does not read blocks only the task of its own
//! connection. `docs/dbus.md` lists all members.

mod access;
mod announce;
mod job_object;
mod manager_object;
mod paths;
mod requests;
mod service_object;
mod values;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use zbus::connection::Builder;
use zbus::{Connection, Guid, MessageStream};

use crate::bus::{BUS_NAME, Bus, MANAGER_PATH};
use crate::manager::handle::ManagerHandle;
use crate::status::Snapshot;
use access::Access;
use announce::announce;
use job_object::JobObject;
use manager_object::ManagerObject;
use requests::add_job;
use service_object::ServiceObject;

/// The limit of clients on the private socket at a time: this many that may change something, and
/// as many others. The two are counted apart, so that other users cannot keep root out.
const MOST_CLIENTS: usize = 128;

/// How long a client may take for the D-Bus handshake, and how long the manager waits for a bus.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

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
    let masters = Arc::new(Semaphore::new(MOST_CLIENTS));
    let others = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else {
            continue;
        };
        let places = match access::may_change(peer.uid()) {
            true => &masters,
            false => &others,
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(
                uid = peer.uid(),
                "too many control connections, closing one"
            );
            continue;
        };
        let handle = handle.clone();
        tokio::task::spawn_local(async move {
            let _place = place;
            let access = Access::Peer(peer.uid());
            let Ok(stream) = stream.into_std() else {
                return;
            };
            let builder = Builder::unix_stream(stream).server(Guid::generate()).p2p();
            let (builder, shown) = with_objects(builder, access, &handle);
            if let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE_LIMIT, builder.build()).await
            {
                follow(&connection, access, &handle, shown).await;
            }
        });
    }
}

/// Adds all objects to a connection before it takes its first message: a client never sees only
/// some of the objects, and objects that exist already are not announced as new. Also returns the
/// snapshot that the objects come from.
fn with_objects<'a>(
    builder: Builder<'a>,
    access: Access,
    handle: &ManagerHandle,
) -> (Builder<'a>, Arc<Snapshot>) {
    let snapshot = handle.snapshots().borrow().clone();
    let mut builder = builder.serve_at(MANAGER_PATH, ManagerObject::new(access, handle.clone()));
    for name in snapshot.services.keys() {
        let object = ServiceObject::new(access, handle.clone(), name.clone());
        builder = builder.serve_at(paths::service_path(name), object);
    }
    for &id in snapshot.jobs.keys() {
        let object = JobObject::new(access, handle.clone(), id);
        builder = builder.serve_at(paths::job_path(id), object);
    }
    (builder, snapshot)
}

async fn connect(bus: Bus, handle: &ManagerHandle) -> zbus::Result<(Connection, Arc<Snapshot>)> {
    let is_users = bus == Bus::Auto && !rustix::process::geteuid().is_root();
    let builder = match bus {
        Bus::Session => Builder::session(),
        _ if is_users => Builder::session(),
        _ => Builder::system(),
    };
    let (builder, shown) = with_objects(builder, Access::Bus, handle);
    let connection = tokio::time::timeout(HANDSHAKE_LIMIT, builder.name(BUS_NAME).build()).await;
    let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
    Ok((connection.map_err(|_| zbus::Error::from(late))??, shown))
}

/// Keeps smoothserve on the bus, and connects again after the bus has gone away.
async fn stay(
    bus: Bus,
    mut connection: Option<(Connection, Arc<Snapshot>)>,
    handle: ManagerHandle,
) {
    let mut pause = RECONNECT;
    loop {
        if let Some((connection, shown)) = connection.take() {
            follow(&connection, Access::Bus, &handle, shown).await;
            tracing::warn!("the bus has gone away, trying to come back");
            pause = RECONNECT;
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_RECONNECT.min(pause * 2);
        match connect(bus, &handle).await {
            Ok(back) => {
                tracing::info!("on the bus");
                connection = Some(back);
            }
            Err(error) => tracing::debug!(error = %error, "the bus is not back yet"),
        }
    }
}

/// Keeps the objects of a connection in step with the snapshots until the connection or the manager
/// ends.
async fn follow(
    connection: &Connection,
    access: Access,
    handle: &ManagerHandle,
    mut before: Arc<Snapshot>,
) {
    let mut snapshots = handle.snapshots();
    let mut messages = MessageStream::from(connection);
    loop {
        let now = snapshots.borrow_and_update().clone();
        if let Err(error) = publish(connection, access, handle, &before, &now).await {
            tracing::debug!(error = %error, "a control connection ended");
            return;
        }
        before = now;
        // zbus answers the calls. This loop reads messages only to notice the end of the
        // connection.
        loop {
            tokio::select! {
                changed = snapshots.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                message = messages.next() => if message.is_none() {
                    return;
                },
            }
        }
    }
}

async fn publish(
    connection: &Connection,
    access: Access,
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
        let object = ServiceObject::new(access, handle.clone(), name.clone());
        server.at(paths::service_path(name), object).await?;
    }
    for &id in now.jobs.keys().filter(|id| !before.jobs.contains_key(id)) {
        add_job(server, access, handle, id).await?;
    }
    announce(connection, before, now).await?;
    for name in before
        .services
        .keys()
        .filter(|name| !now.services.contains_key(*name))
    {
        server
            .remove::<ServiceObject, _>(paths::service_path(name))
            .await?;
    }
    for &id in before.jobs.keys().filter(|id| !now.jobs.contains_key(id)) {
        server.remove::<JobObject, _>(paths::job_path(id)).await?;
    }
    Ok(())
}
