//! The manager: owns the desired and the actual state of all services.
//!
//! # Theory of operation
//! One task owns everything and waits in [`Manager::run`] for the next thing to happen: a command, news of an instance
//! or of the worker, changed files, a signal, a deadline. Each is taken in by the service that it concerns, whose pure
//! rollout core says what to do. Then [`Manager::settle`] compares the result with what was published before: the
//! worker gets a new table if it differs, jobs learn how far their services are, and readers get a new snapshot.
//! Nothing here waits for anything else, so nothing can hang: whatever takes time happens in a task of its own that
//! reports back as an event.
//!
//! # Shutting down
//! [`Phase`] moves only forward. First the worker drains, with all instances still up; then the instances are told to
//! stop, which nobody is connected to any more; with the last of them the manager ends.

mod backoff;
mod commands;
pub mod dbus;
mod deployment;
mod environment;
mod executable;
mod identity;
mod instance;
mod jobs;
mod listeners;
mod notify;
mod ports;
pub mod process;
mod rollout;
mod run_dir;
mod service;
mod signals;
mod sockets;
pub mod status;
mod table;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{mpsc, watch};

use self::instance::News;
use self::jobs::Jobs;
use self::listeners::Listeners;
use self::notify::Notify;
use self::rollout::InstanceId;
use self::service::{Reason, Service};
use self::status::{Command, Handle, Request, Snapshot};
use self::worker::Worker;
use crate::config::{self, Config};
use crate::events;
use crate::ipc::{EndpointId, FromWorker, Table, ToWorker};
use crate::systemd::journal;
use crate::watch::Watcher;

/// How long idle client connections are kept open for one more request when smoothserve ends.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// A worker that lived shorter than this has failed at its start; the next one waits a little.
const WORKER_START: Duration = Duration::from_secs(1);

/// What the manager is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of `smoothserve.yaml`.
    pub config_dir: PathBuf,
    /// The folder for sockets and state.
    pub run_dir: PathBuf,
    /// Where to offer D-Bus besides the private socket.
    pub bus: dbus::Bus,
}

/// Something that happened.
#[derive(Debug)]
enum Event {
    /// To an instance.
    Instance(InstanceId, News),
    /// To the worker of this generation.
    Worker(u32, worker::Event),
    /// It is time to start a worker again.
    WorkerDue,
    /// The files of a service have changed and are quiet again.
    FilesChanged(String),
    /// A process says that it is ready.
    SaidReady(u32),
}

/// Brings tasks' reports to the manager.
type Reports = mpsc::UnboundedSender<Event>;

/// What the services share.
struct World {
    next_id: InstanceId,
    jobs: Jobs,
    ports: ports::Ports,
    /// The services of all instances.
    owners: HashMap<InstanceId, String>,
    /// Services that may stand elsewhere than at the last [`Manager::settle`].
    changed: BTreeSet<String>,
    reports: Reports,
    run_dir: PathBuf,
    default_user: String,
}

impl World {
    fn reporter(&self, id: InstanceId) -> impl Fn(News) + Clone + 'static {
        let reports = self.reports.clone();
        move |news| {
            // Without a manager there is nobody left who wants to know.
            let _ = reports.send(Event::Instance(id, news));
        }
    }
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    DrainingWorker,
    StoppingInstances,
}

struct Manager {
    options: Options,
    config: Config,
    services: BTreeMap<String, Service>,
    listeners: Listeners,
    worker: Option<Worker>,
    worker_generation: u32,
    worker_started: Instant,
    /// Workers in a row that failed at their start.
    worker_failures: u32,
    /// As last sent.
    table: Table,
    world: World,
    watcher: Watcher,
    snapshots: watch::Sender<Arc<Snapshot>>,
    phase: Phase,
}

/// Runs the manager until it is told to end.
pub fn run(mut options: Options) -> anyhow::Result<()> {
    // Instances are told paths in it, and run elsewhere.
    options.run_dir = std::path::absolute(&options.run_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let _lock = run_dir::prepare(&options.run_dir)?;
        let signals = signals::Signals::new()?;
        let (handle, requests, snapshots) = Handle::new();
        let private_socket = options.run_dir.join("bus");
        dbus::serve(handle, &private_socket, options.bus).await?;
        let (reports, events) = mpsc::unbounded_channel();
        let mut manager = Manager::new(options, snapshots, reports)?;
        manager.boot();
        manager.run(signals, requests, events).await
    })
}

impl Manager {
    fn new(
        options: Options,
        snapshots: watch::Sender<Arc<Snapshot>>,
        reports: Reports,
    ) -> anyhow::Result<Manager> {
        let watcher = watch_files(reports.clone()).context("cannot watch files")?;
        receive_notifications(&options.run_dir, reports.clone())
            .context("cannot make the notify socket")?;
        Ok(Manager {
            world: World {
                next_id: 1,
                jobs: Jobs::default(),
                ports: ports::Ports::default(),
                owners: HashMap::new(),
                changed: BTreeSet::new(),
                reports,
                run_dir: options.run_dir.clone(),
                default_user: String::new(),
            },
            options,
            config: Config {
                default_user: String::new(),
                trusted_proxies: Vec::new(),
                services: BTreeMap::new(),
                notes: Vec::new(),
            },
            services: BTreeMap::new(),
            listeners: Listeners::default(),
            worker: None,
            worker_generation: 0,
            worker_started: Instant::now(),
            worker_failures: 0,
            table: Table::default(),
            watcher,
            snapshots,
            phase: Phase::Serving,
        })
    }

    /// Starts what is configured. What is wrong is said and left out: the good services run.
    fn boot(&mut self) {
        let (config, faults) = config::load_partial(&self.options.config_dir);
        if !faults.is_empty() {
            tracing::error!(
                message_id = events::CONFIGURATION_REFUSED,
                error = %faults,
                "configuration has faults, the services without any are started"
            );
        }
        let wanted = self.ports_of(&config, None);
        let (bound, errors) = self.listeners.bind(&wanted);
        for error in &errors {
            tracing::error!(
                message_id = events::PORT_NOT_OPENED,
                error = %error,
                "port not opened, its services are not reachable there"
            );
        }
        self.listeners.adopt(bound, &wanted);
        self.start_worker();
        let mut plans = Vec::new();
        let mut failures = Vec::new();
        for spec in config.services.values() {
            match Service::new(spec.clone()).plan(spec, Reason::Reload) {
                Ok(plan) => plans.push(plan),
                Err(error) => failures.push((spec.name.clone(), error)),
            }
        }
        self.adopt(config, plans);
        for (name, error) in failures {
            if let Some(service) = self.services.get_mut(&name) {
                service.not_started(&error);
            }
        }
    }

    async fn run(
        &mut self,
        mut signals: signals::Signals,
        mut requests: mpsc::Receiver<Request>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) -> anyhow::Result<()> {
        self.settle();
        while !self.ended() {
            tokio::select! {
                Some(request) = requests.recv() => {
                    let answer = self.command(request.command);
                    // Jobs that can end at once must have done so when the caller looks at them.
                    self.settle();
                    let _ = request.answer.send(answer);
                }
                Some(event) = events.recv() => {
                    self.event(event);
                    while let Ok(event) = events.try_recv() {
                        self.event(event);
                    }
                }
                signal = signals.next() => self.signal(signal),
                () = until(self.deadline()) => self.tick(),
            }
            self.settle();
        }
        tracing::info!(message_id = events::ENDED, "smoothserve ended");
        Ok(())
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Instance(id, news) => self.instance(id, news),
            Event::Worker(generation, _) if generation != self.worker_generation => {}
            Event::Worker(_, worker::Event::Says(message)) => self.worker_says(message),
            Event::Worker(_, worker::Event::Gone(ending)) => self.worker_gone(&ending),
            Event::WorkerDue if self.phase == Phase::Serving => self.start_worker(),
            Event::WorkerDue => {}
            Event::FilesChanged(service) => self.files_changed(&service),
            Event::SaidReady(pid) => self.said_ready(pid),
        }
    }

    fn instance(&mut self, id: InstanceId, news: News) {
        let owner = self.world.owners.get(&id);
        if let Some(service) = owner.and_then(|name| self.services.get_mut(name)) {
            service.hear(id, news, &mut self.world);
        }
    }

    /// Finds the instance that a process belongs to.
    fn said_ready(&mut self, pid: u32) {
        let found = notify::with_ancestors(pid).find_map(|pid| {
            self.services
                .values()
                .find_map(|service| service.instance_of(pid))
        });
        if let Some(id) = found {
            self.instance(id, News::Ready);
        }
    }

    /// Takes in what the worker says, and believes it as little as possible: what does not concern a known instance
    /// in a fitting state is dropped on the way to it.
    fn worker_says(&mut self, message: FromWorker) {
        match message {
            FromWorker::Hello { version } => tracing::info!(version, "worker connected"),
            FromWorker::Acknowledged(number) => tracing::debug!(number, "table in use"),
            FromWorker::Probed { endpoint, result } => {
                self.instance(endpoint.0, News::Probed(result))
            }
            FromWorker::Health { endpoint, fault } => {
                self.instance(endpoint.0, News::Health(fault))
            }
            FromWorker::Idle(EndpointId(id)) => self.instance(id, News::Idle),
            FromWorker::Counts { endpoints, .. } => {
                for counts in endpoints {
                    self.instance(counts.id.0, News::Counts(counts));
                }
            }
        }
    }

    fn start_worker(&mut self) {
        self.worker_generation += 1;
        self.worker_started = Instant::now();
        let (generation, reports) = (self.worker_generation, self.world.reports.clone());
        let report = move |event| drop(reports.send(Event::Worker(generation, event)));
        match Worker::spawn(&self.options.run_dir, generation, report) {
            Ok(worker) => {
                tracing::info!(pid = worker.pid, "worker started");
                self.worker = Some(worker);
                self.send_listeners(|_| true);
                self.send_table();
            }
            Err(error) => self.worker_gone(&format!("cannot start it: {error}")),
        }
    }

    fn worker_gone(&mut self, ending: &str) {
        self.worker = None;
        if self.phase == Phase::Serving {
            tracing::error!(
                message_id = events::WORKER_ENDED,
                error = ending,
                "worker ended, starting another"
            );
            if self.worker_started.elapsed() >= WORKER_START {
                self.worker_failures = 0;
                self.start_worker();
                return;
            }
            self.worker_failures += 1;
            let wait = backoff::delay(self.worker_failures, self.worker_generation.into());
            let reports = self.world.reports.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(wait).await;
                let _ = reports.send(Event::WorkerDue);
            });
        } else {
            tracing::info!(status = ending, "worker ended");
            self.stop_instances();
        }
    }

    fn signal(&mut self, signal: signals::Signal) {
        match (signal, self.phase) {
            (signals::Signal::Reload, _) => {
                // What is wrong with it has been logged.
                let _ = self.command(Command::Reload);
            }
            (signals::Signal::End, Phase::Serving) => self.begin_end(),
            (signals::Signal::End, Phase::DrainingWorker) => {
                tracing::warn!("told to end again, cutting off what is still open");
                self.worker = None;
                self.stop_instances();
            }
            (signals::Signal::End, Phase::StoppingInstances) => {
                tracing::warn!("told to end again, killing the instances");
                self.services.values_mut().for_each(Service::kill);
            }
        }
    }

    /// Serves what was accepted, with all instances still up.
    fn begin_end(&mut self) {
        self.phase = Phase::DrainingWorker;
        let limit = self
            .services
            .values()
            .map(|service| service.spec().drain_timeout)
            .max()
            .unwrap_or_default();
        tracing::info!("ending: draining all connections");
        match &self.worker {
            Some(worker) => worker.send(
                ToWorker::Drain {
                    idle: IDLE_GRACE,
                    limit,
                },
                None,
            ),
            None => self.stop_instances(),
        }
    }

    fn stop_instances(&mut self) {
        self.phase = Phase::StoppingInstances;
        for service in self.services.values_mut() {
            service.stop(false, &mut self.world);
            service.no_worker(&mut self.world);
        }
    }

    fn ended(&self) -> bool {
        self.phase == Phase::StoppingInstances && self.services.values().all(Service::is_empty)
    }

    fn deadline(&self) -> Option<Instant> {
        self.services.values().filter_map(Service::deadline).min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for service in self.services.values_mut() {
            if service.deadline().is_some_and(|at| at <= now) {
                service.tick(&mut self.world);
            }
        }
    }

    /// Publishes the difference to what was published before.
    fn settle(&mut self) {
        let now = Instant::now();
        for name in std::mem::take(&mut self.world.changed) {
            let Some(service) = self.services.get(&name) else {
                continue;
            };
            self.world.jobs.progress(&name, &service.progress(), now);
            if service.is_gone() {
                tracing::info!(service = name, "service removed");
                self.services.remove(&name);
                self.world.jobs.removed(&name, now);
            }
        }
        self.world.jobs.forget(now);
        self.publish_table();
        self.publish_snapshot();
    }

    fn publish_table(&mut self) {
        let views = self.services.values().map(Service::view);
        let mut table = table::build(views, &self.listeners, &self.config.trusted_proxies);
        table.number = self.table.number;
        if table != self.table {
            table.number += 1;
            self.table = table;
            self.send_table();
        }
    }

    /// Before the first table is made there is nothing to send.
    fn send_table(&self) {
        if let Some(worker) = self.worker.as_ref().filter(|_| self.table.number > 0) {
            worker.send(ToWorker::Table(self.table.clone()), None);
        }
    }

    fn send_listeners(&self, wanted: impl Fn(&listeners::Listener) -> bool) {
        let Some(worker) = &self.worker else { return };
        for (_, listener) in self
            .listeners
            .iter()
            .filter(|(_, listener)| wanted(listener))
        {
            match listener.descriptor().try_clone_to_owned() {
                Ok(descriptor) => worker.send(ToWorker::Listener(listener.id), Some(descriptor)),
                Err(error) => tracing::error!(error = %error, "cannot copy a listening socket"),
            }
        }
    }

    fn publish_snapshot(&self) {
        let services = self
            .services
            .iter()
            .filter(|(_, service)| !service.is_removed());
        let snapshot = Snapshot {
            summary: self.summary(),
            uid: rustix::process::geteuid().as_raw(),
            journal: journal::is_behind(std::io::stderr()),
            services: services
                .map(|(name, service)| (name.clone(), service.status()))
                .collect(),
            jobs: self.world.jobs.status(),
        };
        self.snapshots.send_if_modified(|current| {
            let modified = **current != snapshot;
            if modified {
                *current = Arc::new(snapshot);
            }
            modified
        });
    }

    /// `3 services, 8/8 instances ready; rolling shop 2/3`.
    fn summary(&self) -> String {
        let readiness = self.services.values().map(Service::readiness);
        let (ready, wanted) = readiness.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let mut summary = match self.phase {
            Phase::Serving => String::new(),
            _ => "ending; ".to_owned(),
        };
        let services = self.services.len();
        let plural = if services == 1 { "" } else { "s" };
        summary += &format!("{services} service{plural}, {ready}/{wanted} instances ready");
        let busy = self.services.iter().filter_map(|(name, service)| {
            let progress = service.progress();
            let verb = if progress.running {
                "rolling"
            } else {
                "stopping"
            };
            (!progress.converged)
                .then(|| format!("; {verb} {name} {}/{}", progress.done, progress.total))
        });
        summary.extend(busy);
        summary
    }
}

fn watch_files(reports: Reports) -> std::io::Result<Watcher> {
    let (watcher, mut changed) = Watcher::new()?;
    tokio::task::spawn_local(async move {
        while let Some(service) = changed.recv().await {
            let _ = reports.send(Event::FilesChanged(service));
        }
    });
    Ok(watcher)
}

fn receive_notifications(run_dir: &Path, reports: Reports) -> std::io::Result<()> {
    let socket = Notify::bind(run_dir)?;
    tokio::task::spawn_local(async move {
        loop {
            match socket.ready().await {
                Ok(pid) => drop(reports.send(Event::SaidReady(pid))),
                Err(error) => {
                    return tracing::error!(error = %error, "cannot receive from the notify socket");
                }
            }
        }
    });
    Ok(())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
