//! The start of an instance: prepares what its launcher needs, then creates the process and waits
//! for its end.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

use super::readiness::Readiness;
use crate::config::{Bind, Ready};
use crate::ipc::Address;
use crate::launch::Order;
use crate::manager::event::News;
use crate::manager::host::notify;
use crate::manager::process::deployment::Deployment;
use crate::manager::process::environment::{self, Placeholders};
use crate::manager::process::identity::{IdentityWish, UserIdentity};
use crate::manager::process::launcher::{Launcher, ProcessName};
use crate::manager::process::unix_socket::SocketPlace;
use crate::manager::process::{Ending, ProcessEnd};
use crate::manager::rollout::InstanceId;
use crate::manager::world::World;
use crate::systemd::units::Units;

/// The accept queue length of a listening socket that an instance inherits.
const PASSED_ON_BACKLOG: i32 = 4096;

/// All decisions about an instance that precede its process.
pub(super) struct Prepared {
    /// The order that tells the launcher which program to become.
    pub(super) order: Order,
    /// Where the instance listens.
    pub(super) address: Address,
    /// The listening socket that the instance inherits, with `bind: inherit`.
    pub(super) passed_on: Option<TcpListener>,
    /// The place of the instance's unix socket, with `bind: unix`.
    pub(super) socket_place: Option<SocketPlace>,
    /// The notify socket of the instance, with `ready: notify`.
    pub(super) readiness: Option<Readiness>,
}

/// Determines the user of an instance, without making the owner wait. There is none for an
/// executable that was lost.
pub(super) async fn identity(
    deployment: &Deployment,
    default_user: &str,
) -> anyhow::Result<UserIdentity> {
    deployment.executable.descriptor()?;
    UserIdentity::ask(IdentityWish {
        user: deployment.process.user.as_deref(),
        group: deployment.process.group.as_deref(),
        owner: deployment.executable.owner,
        default_user,
    })
    .await
}

/// Chooses the address of an instance and prepares what its launcher needs.
pub(super) fn prepare(
    id: InstanceId,
    slot: u32,
    service: &str,
    deployment: &Deployment,
    (identity, busy_patience): (UserIdentity, Option<Duration>),
    world: &mut World,
) -> anyhow::Result<Prepared> {
    let process = &deployment.process;
    let mut placeholders = Placeholders {
        instance: slot,
        name: service.to_owned(),
        ..Placeholders::default()
    };
    let mut passed_on = None;
    let mut socket_place = None;
    let address = match process.bind {
        Bind::Port => {
            let port = world.ports.take(id, process.address, service, slot)?;
            placeholders.port = Some(port);
            Address::Tcp(SocketAddr::new(process.address, port))
        }
        Bind::Inherit => {
            let socket = listening_socket(SocketAddr::new(process.address, 0))?;
            let address = socket.local_addr()?;
            passed_on = Some(socket);
            Address::Tcp(address)
        }
        Bind::Unix => {
            let user = identity.credentials.as_ref();
            let place = world.socket_folders.make(id, user)?;
            let socket = place.socket();
            placeholders.socket = Some(socket.display().to_string());
            socket_place = Some(place);
            Address::Unix(socket)
        }
    };
    let notify_path = (process.ready == Ready::Notify).then(|| notify::path(&world.run_dir, id));
    let owner = match &identity.credentials {
        Some(credentials) => credentials.uid,
        None => rustix::process::geteuid().as_raw(),
    };
    let readiness = notify_path.clone().map(|path| {
        let made = Readiness::begin(id, path, owner, &world.supervision);
        made.context("cannot make the notify socket")
    });
    let mut environment = environment_of(deployment, &identity, &placeholders, notify_path);
    // systemd names each socket that it passes on.
    if passed_on.is_some() {
        environment.insert("LISTEN_FDNAMES".to_owned(), service.to_owned());
    }
    // The folder as it was when the deployment was made, so an instance that is started again later
    // stays in its release.
    let beside = deployment.executable.known_as.parent();
    let directory = deployment.folder.as_deref().or(beside);
    let directory = directory.unwrap_or(Path::new("/")).to_owned();
    let args = process.args.iter();
    let order = Order {
        program: deployment.executable.path.clone(),
        known_as: deployment.executable.known_as.clone(),
        args: args.map(|argument| placeholders.fill(argument)).collect(),
        environment,
        directory: directory.clone(),
        other_directory: process.working_directory.clone().unwrap_or(directory),
        credentials: identity.credentials,
        limits: process.limits.process.clone(),
        inherits: passed_on.is_some(),
        in_scope: false,
        busy_patience,
        die_with: None,
    };
    Ok(Prepared {
        order,
        address,
        passed_on,
        socket_place,
        readiness: readiness.transpose()?,
    })
}

/// Returns the environment of an instance: the variables of its user, then those that smoothserve
/// sets, then those of the service's file. Later ones win.
fn environment_of(
    deployment: &Deployment,
    identity: &UserIdentity,
    placeholders: &Placeholders,
    notify_path: Option<PathBuf>,
) -> BTreeMap<String, String> {
    let mut environment = environment::base(identity);
    environment.insert("SMOOTHSERVE_SERVICE".to_owned(), placeholders.name.clone());
    environment.insert(
        "SMOOTHSERVE_INSTANCE".to_owned(),
        placeholders.instance.to_string(),
    );
    if let Some(port) = placeholders.port {
        environment.insert("PORT".to_owned(), port.to_string());
    }
    if let Some(socket) = &placeholders.socket {
        environment.insert("SOCKET".to_owned(), socket.clone());
    }
    if let Some(path) = notify_path {
        environment.insert("NOTIFY_SOCKET".to_owned(), path.display().to_string());
    }
    environment.extend(deployment.process.environment.clone());
    environment.extend(deployment.environment_file.clone());
    environment
}

/// Runs the process of an instance: creates the launcher, waits for the permit, lets the launcher
/// become the instance, and waits for the end. Reports the launch, and returns the end.
pub(super) async fn run(
    name: ProcessName,
    order: Order,
    deployment: Rc<Deployment>,
    socket: Option<TcpListener>,
    (units, stop_timeout): (Option<Units>, Duration),
    report: impl Fn(News),
) -> Ending {
    let launcher = match &units {
        Some(units) => {
            let limits = &deployment.process.limits.scope;
            Launcher::spawn_in_scope(&name, units, limits, stop_timeout).await
        }
        None => Launcher::spawn(&name, stop_timeout).await,
    };
    match launcher {
        Ok(launcher) => {
            let (permit, permitted) = oneshot::channel();
            report(News::Launched(launcher.process.clone(), permit));
            match (permitted.await, deployment.executable.descriptor()) {
                (Ok(()), Ok(executable)) => {
                    let busy = |waits| report(News::Busy(waits));
                    launcher.go(order, executable, socket, busy).await
                }
                (_, Err(error)) => Ending::Ended(ProcessEnd::not_started(&error.to_string())),
                (Err(_), _) => Ending::Ended(ProcessEnd::told("was not let go")),
            }
        }
        Err(error) => Ending::Ended(ProcessEnd::not_started(&format!("{error:#}"))),
    }
}

/// Opens a socket that listens already, although no process accepts from it yet.
fn listening_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(PASSED_ON_BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}
