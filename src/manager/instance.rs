//! One instance: its process, its address, and what is known of it.

mod evidence;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

use super::World;
use evidence::{Evidence, Kind};

use super::counts::Counts;
use super::deployment::Deployment;
use super::environment::{self, Places};
use super::identity::{self, Identity};
use super::notify::Notify;
use super::process::{self, Launcher, Process};
use super::rollout::{self, Failure, InstanceId, State};
use super::status::{InstanceState, InstanceStatus};
use super::unix_socket;
use crate::config::{Bind, Ready, UpstreamProtocol};
use crate::ipc::{Address, EndpointCounts, Probe, Protocol};
use crate::launch::Order;
use crate::systemd::units::Units;

/// The queue of a passed-on socket.
const PASSED_ON_BACKLOG: i32 = 4096;

/// Something that is heard of an instance.
#[derive(Debug)]
pub enum News {
    /// Its process waits in the launcher, until it is allowed to go on.
    Launched(Rc<Process>, oneshot::Sender<()>),
    /// It said itself that it is ready, or was seen to take connections.
    Ready,
    /// The worker probed it.
    Probed(Result<(), String>),
    /// The worker has no connection to it any more.
    Idle,
    /// The worker's health check changed its mind.
    Health(Option<String>),
    /// The figures of the worker of this generation.
    Counts(u32, EndpointCounts),
    /// Its process has ended, or could not be made: how, in words.
    Exited(String),
}

/// A started instance.
#[derive(Debug)]
pub struct Instance {
    /// `shop/2`.
    pub label: String,
    /// Where it listens.
    pub address: Address,
    /// Since when it is in its state.
    pub since: SystemTime,
    /// The last probe that failed.
    pub last_probe: Option<String>,
    /// Why the health check holds it out of the balance.
    pub fault: Option<String>,
    /// The workers' figures.
    pub counts: Counts,
    /// How its process ended.
    pub ended: Option<String>,
    deployment: Rc<Deployment>,
    process: Option<Rc<Process>>,
    /// Told to stop before the process was there.
    stop_signal: Option<i32>,
    /// The folder of its unix socket.
    socket_dir: Option<PathBuf>,
}

/// What is kept of an instance for the next manager.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    address: Address,
    /// Its number, and when it was started.
    process: Option<(u32, SystemTime)>,
    socket_dir: Option<PathBuf>,
    past_requests: u64,
}

impl Instance {
    /// Chooses an address and sets a process going. Whatever goes wrong is reported as [`News::Exited`].
    pub fn start(
        id: InstanceId,
        slot: u32,
        service: &str,
        deployment: Rc<Deployment>,
        world: &mut World,
    ) -> Instance {
        let mut instance = Instance::new(slot, service, deployment);
        let report = world.reporter(id);
        let name = process::Name {
            service: service.to_owned(),
            label: instance.label.clone(),
            scope: scope(service, slot, id),
        };
        match instance.prepare(id, slot, service, world) {
            Ok((order, socket)) => {
                let deployment = instance.deployment.clone();
                let units = world.units;
                tokio::task::spawn_local(run(name, order, deployment, socket, units, report));
            }
            Err(error) => report(News::Exited(format!("could not be started: {error:#}"))),
        }
        instance
    }

    fn new(slot: u32, service: &str, deployment: Rc<Deployment>) -> Instance {
        Instance {
            label: format!("{service}/{slot}"),
            address: Address::Tcp(SocketAddr::new(deployment.process.address, 0)),
            since: SystemTime::now(),
            last_probe: None,
            fault: None,
            counts: Counts::default(),
            ended: None,
            deployment,
            process: None,
            stop_signal: None,
            socket_dir: None,
        }
    }

    /// What to keep.
    pub fn save(&self) -> Saved {
        Saved {
            address: self.address.clone(),
            process: self
                .process
                .as_ref()
                .map(|process| (process.pid, process.started)),
            socket_dir: self.socket_dir.clone(),
            past_requests: self.counts.past_requests(),
        }
    }

    /// Takes over what an earlier manager has started. If its process is gone, that is reported as any end is.
    pub fn adopt(
        id: InstanceId,
        slot: u32,
        service: &str,
        deployment: Rc<Deployment>,
        saved: Saved,
        world: &mut World,
    ) -> Instance {
        let mut instance = Instance::new(slot, service, deployment);
        if let (Address::Tcp(address), Bind::Port) =
            (&saved.address, instance.deployment.process.bind)
        {
            world.ports.take_again(id, address.port());
        }
        instance.address = saved.address;
        instance.socket_dir = saved.socket_dir;
        // It may have been about to listen.
        if let Some(folder) = &instance.socket_dir {
            unix_socket::admit_worker(folder);
        }
        instance.counts = Counts::new(saved.past_requests);
        let scope = world
            .units
            .as_ref()
            .map(|units| units.scope(&scope(service, slot, id)));
        let process = scope
            .zip(saved.process)
            .and_then(|(scope, (pid, started))| Process::adopt(pid, started, scope).ok());
        let report = world.reporter(id);
        match process {
            Some(process) => {
                let process = Rc::new(process);
                instance.process = Some(process.clone());
                tokio::task::spawn_local(async move {
                    let ended = process.ended().await;
                    report(News::Exited(match ended {
                        Ok(()) => {
                            "ended (how is not known, it was started before smoothserve itself)"
                                .to_owned()
                        }
                        Err(error) => format!("was lost: {error}"),
                    }));
                });
            }
            None => report(News::Exited("ended while smoothserve was away".to_owned())),
        }
        instance
    }

    /// Finds out all that the launcher needs to know.
    fn prepare(
        &mut self,
        id: InstanceId,
        slot: u32,
        service: &str,
        world: &mut World,
    ) -> anyhow::Result<(Order, Option<TcpListener>)> {
        let deployment = self.deployment.clone();
        let process = &deployment.process;
        let identity = Identity::find(identity::Wish {
            user: process.user.as_deref(),
            group: process.group.as_deref(),
            owner: deployment.executable.owner,
            default_user: &world.default_user,
        })?;
        let mut places = Places {
            instance: slot,
            name: service.to_owned(),
            ..Places::default()
        };
        let mut passed_on = None;
        match process.bind {
            Bind::Port => {
                let port = world.ports.take(id, process.address, service, slot)?;
                self.address = Address::Tcp(SocketAddr::new(process.address, port));
                places.port = Some(port);
            }
            Bind::Inherit => {
                let socket = listening_socket(SocketAddr::new(process.address, 0))?;
                self.address = Address::Tcp(socket.local_addr()?);
                passed_on = Some(socket);
            }
            Bind::Unix => {
                let folder = world.run_dir.join("instances").join(id.to_string());
                let user = identity.credentials.as_ref();
                let socket = unix_socket::make_place(&folder, user)?;
                unix_socket::admit_worker(&folder);
                places.socket = Some(socket.display().to_string());
                self.address = Address::Unix(socket);
                self.socket_dir = Some(folder);
            }
        }
        let order = Order {
            program: deployment.executable.path.clone(),
            args: process
                .args
                .iter()
                .map(|argument| places.fill(argument))
                .collect(),
            environment: self.environment(&identity, &places, world),
            directory: match &process.working_directory {
                Some(directory) => directory.clone(),
                None => deployment
                    .executable
                    .path
                    .parent()
                    .unwrap_or(Path::new("/"))
                    .to_owned(),
            },
            credentials: identity.credentials,
            limits: process.limits.process.clone(),
            inherits: passed_on.is_some(),
            die_with: world.units.is_none().then(std::process::id),
        };
        Ok((order, passed_on))
    }

    fn environment(
        &self,
        identity: &Identity,
        places: &Places,
        world: &World,
    ) -> BTreeMap<String, String> {
        let mut environment = environment::base(identity);
        environment.insert("SMOOTHSERVE_SERVICE".to_owned(), places.name.clone());
        environment.insert(
            "SMOOTHSERVE_INSTANCE".to_owned(),
            places.instance.to_string(),
        );
        if let Some(port) = places.port {
            environment.insert("PORT".to_owned(), port.to_string());
        }
        if let Some(socket) = &places.socket {
            environment.insert("SOCKET".to_owned(), socket.clone());
        }
        if self.deployment.process.ready == Ready::Notify {
            environment.insert(
                "NOTIFY_SOCKET".to_owned(),
                Notify::path(&world.run_dir).display().to_string(),
            );
        }
        environment.extend(self.deployment.process.environment.clone());
        environment.extend(self.deployment.environment_file.clone());
        environment
    }

    /// Its process is there.
    pub fn launched(&mut self, process: Rc<Process>) {
        if let Some(signal) = self.stop_signal {
            process.signal(signal);
        }
        self.process = Some(process);
    }

    /// The signal that asks it to stop; a process that is not there yet gets it as soon as it is.
    pub fn stop(&mut self) {
        let signal = self.deployment.process.stop_signal;
        match &self.process {
            Some(process) => process.signal(signal),
            None => self.stop_signal = Some(signal),
        }
    }

    /// SIGKILL for its process and what that started.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Its process.
    pub fn process(&self) -> Option<Rc<Process>> {
        self.process.clone()
    }

    /// The number of its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// What it speaks.
    pub fn protocol(&self) -> Protocol {
        match self.deployment.process.protocol {
            UpstreamProtocol::Http1 => Protocol::Http1,
            UpstreamProtocol::H2c => Protocol::H2c,
        }
    }

    /// How the worker asks it; nothing while only the instance itself says when it is ready.
    pub fn probe(&self) -> Option<Probe> {
        match &self.deployment.process.ready {
            Ready::Tcp => Some(Probe::Connect),
            Ready::Http(path) => Some(Probe::Http(path.clone())),
            Ready::Notify => None,
        }
    }

    /// Whether a probe that succeeded shows the instance to be ready. What answers must be the instance itself: if that
    /// is not so yet, it is reported as soon as it is.
    pub fn probe_suffices(&mut self, report: impl Fn(News) + 'static) -> bool {
        let process = &self.deployment.process;
        let kind = match (&process.ready, process.bind) {
            (Ready::Notify, _) => return false,
            (Ready::Tcp, Bind::Inherit) => Kind::TakesFromQueue,
            (_, Bind::Port) => Kind::Listens,
            _ => return true,
        };
        let Address::Tcp(address) = self.address else {
            return true;
        };
        let evidence = Evidence {
            process: self.process.as_ref().map(Rc::downgrade).unwrap_or_default(),
            address,
            kind,
        };
        if evidence.is_there() == Some(true) {
            return true;
        }
        self.last_probe = Some(format!(
            "{} is answered, but not by this instance yet",
            self.address
        ));
        tokio::task::spawn_local(evidence::watch(evidence, report));
        false
    }

    /// It is ready.
    pub fn accepted(&mut self) {
        self.last_probe = None;
    }

    /// A failure with its cause, but for what it has written itself.
    pub fn describe(&self, failure: Failure, start_timeout: Duration) -> String {
        let mut message = self.label.clone();
        let how = self.ended.as_deref().unwrap_or("ended in an unknown way");
        match failure {
            Failure::ExitedBeforeReady => message += &format!(" {how} before it was ready"),
            Failure::Crashed => message += &format!(" {how} while it was serving"),
            Failure::NotReadyInTime => {
                let seconds = start_timeout.as_secs_f64();
                message += &format!(" was not ready within {seconds} s (start_timeout)");
                message += &match &self.last_probe {
                    Some(probe) => format!("; last probe: {probe}"),
                    None if self.probe().is_none() => {
                        "; it never sent READY=1 to NOTIFY_SOCKET".to_owned()
                    }
                    None => String::new(),
                };
            }
        }
        message
    }

    /// As it is shown.
    pub fn status(&self, held: &rollout::Instance) -> InstanceStatus {
        InstanceStatus {
            id: held.id,
            slot: held.slot,
            generation: held.target.generation,
            pid: self.pid().unwrap_or_default(),
            address: self.address.to_string(),
            state: match held.state {
                State::Starting { .. } => InstanceState::Starting,
                State::Ready { .. } => InstanceState::Ready,
                State::Draining { .. } => InstanceState::Draining,
                State::Closing { .. } | State::Stopping { .. } => InstanceState::Stopping,
            },
            since: self.since,
            in_flight: self.counts.in_flight(),
            tunnels: self.counts.tunnels(),
            requests: self.counts.requests(),
            fault: self.fault.clone(),
        }
    }

    /// Removes what it leaves behind in the file system.
    pub fn clean_up(&self) {
        if let Some(folder) = &self.socket_dir
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            tracing::warn!(instance = self.label, error = %error, "cannot remove the folder of a socket");
        }
    }
}

/// The scope of an instance. No name is ever used for two.
pub fn scope(service: &str, slot: u32, id: InstanceId) -> String {
    format!("smoothserve-{service}-{slot}-{id}.scope")
}

/// The life of an instance's process.
async fn run(
    name: process::Name,
    order: Order,
    deployment: Rc<Deployment>,
    socket: Option<TcpListener>,
    units: Option<Units>,
    report: impl Fn(News),
) {
    let launcher = match &units {
        Some(units) => {
            let limits = &deployment.process.limits.scope;
            Launcher::spawn_in_scope(&name, units, limits).await
        }
        None => Launcher::spawn(&name),
    };
    let how = match launcher {
        Ok(launcher) => {
            let (permit, permitted) = oneshot::channel();
            report(News::Launched(launcher.process.clone(), permit));
            match permitted.await {
                Ok(()) => {
                    let executable = deployment.executable.descriptor();
                    launcher.go(order, executable, socket).await
                }
                Err(_) => "was not let go".to_owned(),
            }
        }
        Err(error) => format!("could not be started: {error:#}"),
    };
    report(News::Exited(how));
}

fn listening_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(PASSED_ON_BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}
