//! One instance: its process, its address, and what the manager knows about it.

mod cause;
mod counts;
mod evidence;
mod readiness;
mod search;
mod start;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::config::{Bind, DEFAULT_ARGUMENT, Ready, UpstreamProtocol};
use crate::ipc::{Address, Probe, Protocol};
use crate::manager::event::{News, Sighting, Suspicion};
use crate::manager::host::notify::{self, NotifySocket};
use crate::manager::host::supervision::Supervision;
use crate::manager::process::deployment::Deployment;
use crate::manager::process::identity::UserIdentity;
use crate::manager::process::launcher::ProcessName;
use crate::manager::process::unix_socket::SocketPlace;
use crate::manager::process::{Ending, Process, ProcessEnd};
use crate::manager::rollout::{HeldInstance, InstanceFailure, InstanceId, LifeState};
use crate::manager::world::World;
use crate::status::{InstanceState, InstanceStatus};
use crate::systemd::units::service_slice;
use counts::InstanceCounts;
use evidence::{Evidence, EvidenceKind};
use readiness::Readiness;
use start::Prepared;

/// A started instance.
#[derive(Debug)]
pub struct Instance {
    /// The name of the service and the slot: `shop/2`.
    pub label: String,
    slot: u32,
    /// Where the instance listens. The port is 0 until it is chosen.
    pub address: Address,
    /// When the instance entered its present state.
    pub since: SystemTime,
    /// The error of the last probe that failed.
    pub last_probe: Option<String>,
    /// Why the health check keeps requests away from the instance, if it does.
    pub fault: Option<String>,
    /// The counters of the instance, summed over all workers.
    pub counts: InstanceCounts,
    /// True: the launcher waits until nobody has the executable open for writing any more.
    pub waits_for_executable: bool,
    /// How the process has ended.
    pub ended: Option<ProcessEnd>,
    deployment: Rc<Deployment>,
    process: Option<Rc<Process>>,
    /// The stop signal, if the instance was told to stop before its process existed.
    stop_signal: Option<i32>,
    /// The place of the instance's unix socket.
    socket_place: Option<SocketPlace>,
    admission: Admission,
    /// What the instance reports itself, with `ready: notify`.
    readiness: Option<Readiness>,
    /// The task that looks whether the instance itself has answered a probe. It ends with this
    /// value.
    looks: JoinSet<()>,
    /// Where the instance was seen to listen while it was not ready.
    sighting: Option<Sighting>,
    /// The task that looks where the instance listens.
    search: JoinSet<()>,
}

/// Whether workers may connect to the address of an instance.
#[derive(Debug, Default)]
enum Admission {
    /// Workers may connect, because the address is a port, or the unix socket was admitted.
    #[default]
    Admitted,
    /// The instance has to create its unix socket first. It may be ready in every other respect.
    Expected { ready: bool },
    /// There is something else in the place of the unix socket, as the text says.
    Refused(String),
}

/// The state of an instance that is saved for the next manager. Managers of all builds read it, so
/// no field may be renamed or removed, and a new one needs a default.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedInstance {
    address: Address,
    /// The number of the process, and when it was started.
    process: Option<(u32, SystemTime)>,
    socket_dir: Option<PathBuf>,
    /// The user who owns the socket in that folder.
    #[serde(default)]
    socket_user: Option<u32>,
    past_requests: u64,
}

impl Instance {
    /// Begins an instance: asks for the user that it is to run as. The rest follows when
    /// [`News::Identified`] is reported. Must run inside a `LocalSet`.
    pub fn start(
        id: InstanceId,
        slot: u32,
        service: &str,
        deployment: Rc<Deployment>,
        world: &World,
    ) -> Instance {
        let instance = Instance::new(slot, service, deployment.clone());
        let report = world.reporter(id);
        let default_user = world.default_user.clone();
        tokio::task::spawn_local(async move {
            let identity = start::identity(&deployment, &default_user).await;
            report(News::Identified(
                identity.map_err(|error| format!("{error:#}")),
            ));
        });
        instance
    }

    /// Chooses an address and starts the process of an instance that runs as this user. It waits
    /// for `busy_patience` (`None`: until it is stopped) while its executable is open for writing.
    /// Once it has failed, what it has left is killed after `stop_timeout`. Any error on the way is
    /// reported as [`News::Exited`].
    pub fn identified(
        &mut self,
        id: InstanceId,
        service: &str,
        identity: Result<UserIdentity, String>,
        (stop_timeout, busy_patience): (Duration, Option<Duration>),
        world: &mut World,
    ) {
        let report = world.reporter(id);
        let name = ProcessName {
            service: service.to_owned(),
            label: self.label.clone(),
            scope: scope_name(service, self.slot, id),
        };
        let prepared = identity.map_err(anyhow::Error::msg).and_then(|identity| {
            let deployment = &self.deployment;
            let user = (identity, busy_patience);
            start::prepare(id, self.slot, service, deployment, user, world)
        });
        match prepared {
            Ok(prepared) => {
                let Prepared {
                    order,
                    address,
                    passed_on,
                    socket_place,
                    readiness,
                } = prepared;
                self.address = address;
                self.readiness = readiness;
                self.expect_socket(socket_place, report.clone());
                let deployment = self.deployment.clone();
                let scopes = (world.units, stop_timeout);
                let port = self.port();
                tokio::task::spawn_local(async move {
                    let run = start::run(name, order, deployment, passed_on, scopes, &report);
                    let ending = run.await;
                    evidence::look_at_end(port, &report).await;
                    report(News::Exited(ending));
                });
            }
            Err(error) => {
                let end = ProcessEnd::not_started(&format!("{error:#}"));
                report(News::Exited(Ending::Ended(end)));
            }
        }
    }

    fn new(slot: u32, service: &str, deployment: Rc<Deployment>) -> Instance {
        Instance {
            label: format!("{service}/{slot}"),
            slot,
            address: Address::Tcp(SocketAddr::new(deployment.process.address, 0)),
            since: SystemTime::now(),
            last_probe: None,
            fault: None,
            counts: InstanceCounts::default(),
            waits_for_executable: false,
            ended: None,
            deployment,
            process: None,
            stop_signal: None,
            socket_place: None,
            admission: Admission::default(),
            readiness: None,
            looks: JoinSet::new(),
            sighting: None,
            search: JoinSet::new(),
        }
    }

    /// Waits for the socket of the instance if it has a place for one.
    fn expect_socket(&mut self, place: Option<SocketPlace>, report: impl Fn(News) + 'static) {
        if let Some(place) = &place {
            self.admission = Admission::Expected { ready: false };
            place.admit(move |result| report(News::Admitted(result)));
        }
        self.socket_place = place;
    }

    /// Returns the state that the next manager needs to take over the instance.
    pub fn save(&self) -> SavedInstance {
        let place = self.socket_place.as_ref();
        SavedInstance {
            address: self.address.clone(),
            process: self
                .process
                .as_ref()
                .map(|process| (process.pid, process.started)),
            socket_dir: place.map(|place| place.path().to_owned()),
            socket_user: place.map(SocketPlace::user),
            past_requests: self.counts.past_requests(),
        }
    }

    /// Takes over an instance that an earlier manager has started, and its notify socket, if it has
    /// one. If its process is gone, this is reported as [`News::Exited`].
    pub fn adopt(
        id: InstanceId,
        slot: u32,
        service: &str,
        deployment: Rc<Deployment>,
        (saved, notify_socket): (SavedInstance, Option<OwnedFd>),
        world: &mut World,
    ) -> Instance {
        let mut instance = Instance::new(slot, service, deployment);
        if let (Address::Tcp(address), Bind::Port) =
            (&saved.address, instance.deployment.process.bind)
        {
            world.ports.take_again(id, address.port());
        }
        instance.address = saved.address;
        // The previous manager may have ended before the instance created its socket.
        let place = saved.socket_dir;
        let place = place.map(|folder| SocketPlace::again(folder, saved.socket_user));
        instance.expect_socket(place, world.reporter(id));
        instance.counts = InstanceCounts::new(saved.past_requests);
        let scope = world
            .units
            .as_ref()
            .map(|units| units.scope(&scope_name(service, slot, id)));
        let process = scope
            .zip(saved.process)
            .and_then(|(scope, (pid, started))| {
                Process::adopt(pid, started, scope, service_slice(service)).ok()
            });
        let report = world.reporter(id);
        if let Some(socket) = notify_socket {
            let path = notify::path(&world.run_dir, id);
            match NotifySocket::adopt(socket, &path) {
                Ok(socket) => instance.readiness = Some(Readiness::new(id, path, socket)),
                Err(error) => {
                    tracing::error!(instance = instance.label, error = %error, "notify socket lost");
                }
            }
        }
        match process {
            Some(process) => {
                let process = Rc::new(process);
                instance.launched(process.clone(), report.clone());
                let port = instance.port();
                tokio::task::spawn_local(async move {
                    let ending = process.ended().await;
                    evidence::look_at_end(port, &report).await;
                    report(News::Exited(ending));
                });
            }
            None => {
                let end = ProcessEnd::told("ended while smoothserve was away");
                report(News::Exited(Ending::Ended(end)));
            }
        }
        instance
    }

    /// Takes in that the process of the instance exists now. What the instance reports itself goes
    /// to `report`.
    pub fn launched(&mut self, process: Rc<Process>, report: impl Fn(News) + 'static) {
        if let Some(signal) = self.stop_signal {
            process.signal(signal);
        }
        if let Some(readiness) = &mut self.readiness {
            readiness.listen(&self.label, &process, report);
        }
        self.process = Some(process);
    }

    /// Sends the stop signal to the instance. If its process does not exist yet, it gets the signal
    /// as soon as it exists.
    pub fn stop(&mut self) {
        if let Some(place) = &self.socket_place {
            place.give_back();
        }
        let signal = self.deployment.process.stop_signal;
        match &self.process {
            Some(process) => process.signal(signal),
            None => self.stop_signal = Some(signal),
        }
    }

    /// Sends SIGKILL to the process and to the processes that it has started.
    pub fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Returns the process of the instance, if it exists.
    pub fn process(&self) -> Option<Rc<Process>> {
        self.process.clone()
    }

    /// Returns the number of the process, if it exists.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Returns the address at which the instance itself has to open a port, with `bind: port`.
    pub fn port(&self) -> Option<SocketAddr> {
        match (&self.address, self.deployment.process.bind) {
            (Address::Tcp(address), Bind::Port) => Some(*address),
            _ => None,
        }
    }

    /// Returns the protocol that the instance speaks.
    pub fn protocol(&self) -> Protocol {
        match self.deployment.process.protocol {
            UpstreamProtocol::Http1 => Protocol::Http1,
            UpstreamProtocol::H2c => Protocol::H2c,
        }
    }

    /// Returns how a worker probes the instance, or `None` if the instance itself reports its
    /// readiness.
    pub fn probe(&self) -> Option<Probe> {
        match &self.deployment.process.ready {
            Ready::Tcp => Some(Probe::Connect),
            Ready::Http(path) => Some(Probe::Http(path.clone())),
            Ready::Notify => None,
        }
    }

    /// Returns true if a successful probe alone shows that the instance is ready. Otherwise the
    /// instance itself must have answered, and [`News::Ready`] is reported as soon as this can be
    /// seen. Must run inside a `LocalSet`.
    pub fn probe_suffices(&mut self, report: impl Fn(News) + Clone + 'static) -> bool {
        let process = &self.deployment.process;
        let kind = match (&process.ready, process.bind) {
            (Ready::Notify, _) => return false,
            (Ready::Tcp, Bind::Inherit) => EvidenceKind::TakesFromQueue,
            (_, Bind::Port) => EvidenceKind::Listens,
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
        self.last_probe = Some(format!(
            "{} is answered, but not by this instance yet",
            self.address
        ));
        if self.looks.is_empty() {
            self.looks
                .spawn_local(evidence::watch(evidence, report.clone()));
        }
        self.look_for_it(report);
        false
    }

    /// Returns true if the instance, which is ready, can get requests. Otherwise its unix socket is
    /// not admitted yet, and it can once [`Instance::admitted`] says so.
    pub fn can_be_reached(&mut self) -> bool {
        match &mut self.admission {
            Admission::Admitted => true,
            Admission::Expected { ready } => {
                *ready = true;
                false
            }
            Admission::Refused(_) => false,
        }
    }

    /// Takes in whether the unix socket of the instance was admitted. Returns true if this was all
    /// that the instance lacked to be ready.
    pub fn admitted(&mut self, result: Result<(), String>) -> bool {
        let admission = match result {
            Ok(()) => Admission::Admitted,
            Err(fault) => Admission::Refused(fault),
        };
        let before = std::mem::replace(&mut self.admission, admission);
        matches!(self.admission, Admission::Admitted)
            && matches!(before, Admission::Expected { ready: true })
    }

    /// Takes in that a probe of the instance has failed. Begins to look where the instance listens
    /// instead. Must run inside a `LocalSet`.
    pub fn not_ready(&mut self, fault: String, report: impl Fn(News) + 'static) {
        self.last_probe = Some(fault);
        self.look_for_it(report);
    }

    fn look_for_it(&mut self, report: impl Fn(News) + 'static) {
        if let Some(process) = self.process.as_ref().filter(|_| self.search.is_empty()) {
            let process = Rc::downgrade(process);
            let address = self.address.clone();
            self.search
                .spawn_local(search::watch(process, address, report));
        }
    }

    /// Takes in where the instance listens that is not ready.
    pub fn seen(&mut self, sighting: Sighting) {
        self.sighting = Some(sighting);
    }

    /// Says why the instance is probably not ready, and what to do about it, as far as it was seen.
    pub fn hindrance(&self) -> Option<String> {
        let process = &self.deployment.process;
        let sighting = self.sighting.as_ref()?;
        let is_in_arguments = process
            .args
            .iter()
            .any(|argument| argument.contains("{port}"));
        let hint = match self.default_argument() {
            Some(argument) => cause::PortHint::Default(argument),
            None if is_in_arguments => cause::PortHint::Arguments,
            None => cause::PortHint::Nothing,
        };
        cause::of_unreadiness(sighting, &self.address, process.bind, hint)
    }

    /// Returns the argument that smoothserve gives to the instance because its service has no
    /// `args`.
    fn default_argument(&self) -> Option<String> {
        let process = &self.deployment.process;
        let Address::Tcp(address) = self.address else {
            return None;
        };
        let is_default = process.bind == Bind::Port && process.args == [DEFAULT_ARGUMENT];
        is_default.then(|| DEFAULT_ARGUMENT.replace("{port}", &address.port().to_string()))
    }

    /// Returns what may have caused a failure before the instance was ready, beside what
    /// [`Instance::describe`] says.
    pub fn suspicion(&self, failure: InstanceFailure) -> Option<Suspicion> {
        let has_failed = self.ended.as_ref().is_some_and(ProcessEnd::ended_badly);
        if failure != InstanceFailure::ExitedBeforeReady || !has_failed {
            return None;
        }
        let is_own = self.deployment.process.bind == Bind::Port;
        let address = match self.address {
            Address::Tcp(address) if is_own => Some(address),
            _ => None,
        };
        let argument = self.default_argument();
        Some(Suspicion { address, argument })
    }

    /// Takes in that the instance is ready.
    pub fn accepted(&mut self) {
        self.last_probe = None;
        self.sighting = None;
        self.search.abort_all();
    }

    /// Describes a failure and its cause. The output of the instance is not part of the text.
    pub fn describe(&self, failure: InstanceFailure, start_timeout: Duration) -> String {
        let mut message = self.label.clone();
        let ended = self.ended.as_ref();
        let how = ended.map_or("ended in an unknown way", |ending| &ending.how);
        match failure {
            InstanceFailure::ExitedBeforeReady => {
                message += &format!(" {how}");
                if ended.is_none_or(|ending| ending.has_run) {
                    message += " before it was ready";
                }
                if let Some(cause) = ended.and_then(cause::of_early_end) {
                    message += &format!("; {cause}");
                }
            }
            InstanceFailure::Unhealthy => {
                let fault = self.fault.as_deref().unwrap_or("no answer");
                message += &format!(" was ready, and then failed its health check: {fault}");
            }
            InstanceFailure::Crashed => message += &format!(" {how} while it was serving"),
            InstanceFailure::NotReadyInTime => {
                let seconds = start_timeout.as_secs_f64();
                message += &format!(" was not ready within {seconds} s (start_timeout)");
                message += &match (&self.admission, &self.last_probe) {
                    _ if self.waits_for_executable => {
                        let path = self.deployment.executable.path.display();
                        format!("; {path} was still open for writing")
                    }
                    (Admission::Refused(fault), _) => format!("; {fault}"),
                    (_, Some(probe)) => format!("; last probe: {probe}"),
                    (_, None) if self.probe().is_none() => {
                        "; it never sent READY=1 to NOTIFY_SOCKET".to_owned()
                    }
                    (_, None) => String::new(),
                };
                if let Some(cause) = self.hindrance().filter(|_| !self.waits_for_executable) {
                    message += &format!("; {cause}");
                }
            }
        }
        message
    }

    /// Returns the instance as snapshots show it.
    pub fn status(&self, held: &HeldInstance) -> InstanceStatus {
        InstanceStatus {
            id: held.id,
            slot: held.slot,
            generation: held.target.generation,
            pid: self.pid().unwrap_or_default(),
            address: self.address.to_string(),
            state: match held.state {
                LifeState::Starting { .. } => InstanceState::Starting,
                LifeState::Ready { .. } => InstanceState::Ready,
                LifeState::Draining { .. } => InstanceState::Draining,
                LifeState::Closing { .. } | LifeState::Stopping { .. } => InstanceState::Stopping,
            },
            since: self.since,
            in_flight: self.counts.in_flight(),
            tunnels: self.counts.tunnels(),
            requests: self.counts.requests(),
            fault: self.fault.clone(),
        }
    }

    /// Removes the files that the instance leaves behind, those in its own folder in another
    /// thread.
    pub fn clean_up(&self, supervision: &Supervision) {
        if let Some(readiness) = &self.readiness {
            readiness.clean_up(supervision);
        }
        if let Some(place) = &self.socket_place {
            place.remove(&self.label);
        }
    }
}

/// Returns the name under which systemd stores the notify socket of an instance.
pub fn stored_socket(id: InstanceId) -> String {
    notify::stored_name(id)
}

/// Returns the name of an instance's scope. Two instances never have the same name.
pub fn scope_name(service: &str, slot: u32, id: InstanceId) -> String {
    format!("smoothserve-{service}-{slot}-{id}.scope")
}
