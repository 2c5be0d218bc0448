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
//! [`Phase`] moves only forward. First the workers drain, with all instances still up; then the instances are told to
//! stop, which nobody is connected to any more; with the last of them the manager ends.
//!
//! # Taking over
//! Under systemd workers and instances live on when the manager ends, by whatever cause, and serve. The next manager
//! reads in [`state`] what they are and goes on where the last one stood ([`takeover`]). If it is asked to end only to be
//! started again, it just ends.

mod backoff;
mod certificates;
mod commands;
mod counts;
pub mod dbus;
mod deployment;
mod environment;
mod executable;
mod identity;
mod instance;
mod jobs;
mod listeners;
mod notify;
mod pidfd;
mod ports;
pub mod process;
mod publish;
mod rollout;
pub(crate) mod run_dir;
mod service;
mod services;
mod signals;
mod sockets;
mod state;
pub mod status;
mod supervision;
mod table;
mod takeover;
mod unix_socket;
mod worker;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot, watch};

use self::certificates::Certificates;
use self::executable::Executable;
use self::instance::News;
use self::jobs::Jobs;
use self::listeners::Listeners;
use self::notify::Notify;
use self::publish::Published;
use self::rollout::InstanceId;
use self::service::{Diagnosis, Reason, Service};
use self::services::Services;
use self::state::StateFile;
use self::status::{Command, Handle, Request, Snapshot};
use self::supervision::Supervision;
use self::workers::Workers;
use crate::config::{self, Config};
use crate::events;
use crate::ipc::WireTable;
use crate::systemd::given::Given;
use crate::systemd::units::Units;
use crate::watch::{Changed, Watcher};

/// Between two looks at whether the workers are stuck, and two signs of life to systemd.
const HEARTBEAT: Duration = Duration::from_secs(5);

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

/// Between two reminders that a certificate is to be renewed.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Something that happened.
#[derive(Debug)]
enum Event {
    /// To an instance.
    Instance(InstanceId, News),
    /// To the worker of this generation.
    Worker(u32, worker::Event),
    /// It is time to start a worker again.
    WorkerDue,
    /// The cause of a failure is known.
    Diagnosed(Diagnosis),
    /// systemd has said whether this process is to be started again once it has ended.
    Restarting(bool),
    /// On disk, and is quiet again.
    Changed(Changed),
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
    /// Launchers that may go on once it is written down that they are there.
    permits: Vec<oneshot::Sender<()>>,
    supervision: Supervision,
    /// Where processes are put into scopes of their own, and so outlive the manager.
    units: Option<Units>,
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

    /// Keeps an executable open for the next manager.
    fn keep_executable(&self, service: &str, generation: u64, executable: &Executable) {
        self.supervision.store(
            &executable_name(service, generation),
            executable.descriptor(),
        );
    }

    fn forget_executable(&self, service: &str, generation: u64) {
        self.supervision
            .forget(&executable_name(service, generation));
    }
}

/// What an executable is called in systemd's store.
fn executable_name(service: &str, generation: u64) -> String {
    format!("{EXECUTABLE}{service}-{generation}")
}

const EXECUTABLE: &str = "executable-";

/// What the socket on which instances say that they are ready is called in systemd's store.
const NOTIFY: &str = "notify";

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    DrainingWorkers,
    StoppingInstances,
    /// Everything stays as it is for the next manager.
    Leaving,
}

struct Manager {
    options: Options,
    config: Arc<Config>,
    services: Services,
    listeners: Listeners,
    certificates: Rc<Certificates>,
    workers: Workers,
    /// As last sent, whole.
    table: Rc<WireTable>,
    published: Published,
    state_file: StateFile,
    world: World,
    watcher: Watcher,
    snapshots: watch::Sender<Arc<Snapshot>>,
    phase: Phase,
}

/// Runs the manager until it is told to end.
pub fn run(mut options: Options, mut given: Given) -> anyhow::Result<()> {
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
        let control_socket = match given.control_socket() {
            Some(socket) => dbus::Socket::Given(socket),
            None => dbus::Socket::Path(options.run_dir.join("bus")),
        };
        let (reports, events) = mpsc::unbounded_channel();
        let scopes = takeover::scopes(&given).await;
        let bus = options.bus;
        let mut manager = Manager::new(options, &mut given, snapshots, reports)?;
        manager.take_over(given, scopes);
        manager.settle();
        // Whoever asks finds everything that is there.
        dbus::serve(handle, control_socket, bus).await?;
        manager.run(signals, requests, events).await
    })
}

impl Manager {
    fn new(
        options: Options,
        given: &mut Given,
        snapshots: watch::Sender<Arc<Snapshot>>,
        reports: Reports,
    ) -> anyhow::Result<Manager> {
        let watcher = watch_files(reports.clone()).context("cannot watch files")?;
        let supervision = Supervision::new(given.supervisor);
        let notify = match given.datagram_socket(NOTIFY) {
            Some(socket) => Notify::adopt(socket),
            None => Notify::bind(&options.run_dir),
        };
        let notify = notify.context("cannot make the notify socket")?;
        supervision.store(NOTIFY, notify.descriptor());
        receive_notifications(notify, reports.clone());
        let units = given.supervisor.map(|_| Units::of_this_process());
        Ok(Manager {
            workers: Workers::new(options.run_dir.clone(), units, reports.clone()),
            state_file: StateFile::new(&options.run_dir),
            world: World {
                next_id: 1,
                jobs: Jobs::default(),
                ports: ports::Ports::default(),
                owners: HashMap::new(),
                changed: BTreeSet::new(),
                reports,
                permits: Vec::new(),
                supervision,
                units,
                run_dir: options.run_dir.clone(),
                default_user: String::new(),
            },
            options,
            config: Arc::new(Config {
                default_user: String::new(),
                trusted_proxies: Vec::new(),
                forwarded: false,
                max_connections: None,
                services: BTreeMap::new(),
                notes: Vec::new(),
            }),
            services: Services::default(),
            listeners: Listeners::new(given.tcp_sockets()),
            certificates: Rc::default(),
            table: Rc::default(),
            published: Published::default(),
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
        self.adopt_listeners(bound, &wanted);
        self.read_certificates(&config);
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
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What is read at the start is remarked upon then.
        let mut reminder = tokio::time::interval_at((Instant::now() + DAY).into(), DAY);
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
                _ = reminder.tick() => self.remind_of_certificates(),
                _ = heartbeat.tick() => {
                    self.workers.beat();
                    self.world.supervision.beat();
                }
            }
            self.settle();
        }
        if self.phase == Phase::Leaving {
            tracing::info!("smoothserve ended, its workers and instances go on for the next");
            return Ok(());
        }
        self.state_file.remove()?;
        tracing::info!(message_id = events::ENDED, "smoothserve ended");
        Ok(())
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Instance(id, news) => self.instance(id, news),
            Event::Worker(generation, event) => self.worker(generation, event),
            Event::WorkerDue if self.phase == Phase::Serving => self.start_worker(),
            Event::WorkerDue => {}
            Event::Diagnosed(diagnosis) => {
                if let Some(service) = self.services.get_mut(&diagnosis.service) {
                    service.diagnosed(diagnosis, &mut self.world);
                }
            }
            Event::Restarting(true) if self.phase == Phase::Serving => self.phase = Phase::Leaving,
            Event::Restarting(false) if self.phase == Phase::Serving => self.begin_end(),
            Event::Restarting(_) => {}
            Event::Changed(Changed::Files(service)) => self.files_changed(&service),
            Event::Changed(Changed::Certificate(service)) => self.certificate_changed(&service),
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

    fn signal(&mut self, signal: signals::Signal) {
        match (signal, self.phase) {
            (signals::Signal::Reload, _) => {
                // What is wrong with it has been logged.
                let _ = self.command(Command::Reload);
            }
            (signals::Signal::End, Phase::Serving) => self.ask_for_restart(),
            (signals::Signal::End, Phase::DrainingWorkers) => {
                tracing::warn!("told to end again, cutting off what is still open");
                self.workers.kill();
                self.stop_instances();
            }
            (signals::Signal::End, Phase::StoppingInstances) => {
                tracing::warn!("told to end again, killing the instances");
                self.services.values_mut().for_each(Service::kill);
            }
            (signals::Signal::End, Phase::Leaving) => {}
        }
    }

    /// Told to end, the manager leaves everything running if it is only to be started again.
    fn ask_for_restart(&mut self) {
        let Some(units) = self.world.units else {
            return self.begin_end();
        };
        let reports = self.world.reports.clone();
        tokio::task::spawn_local(async move {
            let restarting = units.is_restarting().await.unwrap_or_else(|error| {
                tracing::warn!(error = %error, "cannot find out why to end, ending everything");
                false
            });
            let _ = reports.send(Event::Restarting(restarting));
        });
    }

    /// Serves what was accepted, with all instances still up.
    fn begin_end(&mut self) {
        self.phase = Phase::DrainingWorkers;
        tracing::info!("ending: draining all connections");
        let limit = self.drain_limit();
        self.workers.drain_all(limit, limit + self.tunnel_limit());
        if self.workers.is_empty() {
            self.stop_instances();
        }
    }

    /// The most patient service decides.
    fn drain_limit(&self) -> Duration {
        let limits = self
            .services
            .values()
            .map(|service| service.spec().drain_timeout);
        limits.max().unwrap_or_default()
    }

    /// The same for tunnels.
    fn tunnel_limit(&self) -> Duration {
        let limits = self
            .services
            .values()
            .map(|service| service.spec().tunnel_drain_timeout);
        limits.max().unwrap_or_default()
    }

    fn stop_instances(&mut self) {
        self.phase = Phase::StoppingInstances;
        for service in self.services.values_mut() {
            service.stop(false, &mut self.world);
            if self.workers.is_empty() {
                service.no_worker(&mut self.world);
            }
        }
    }

    fn ended(&self) -> bool {
        match self.phase {
            Phase::Serving | Phase::DrainingWorkers => false,
            Phase::StoppingInstances => self.services.values().all(Service::is_empty),
            Phase::Leaving => true,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.services.values().filter_map(Service::deadline).min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let is_due = |service: &Service| service.deadline().is_some_and(|at| at <= now);
        let due = self.services.iter().filter(|(_, service)| is_due(service));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            if let Some(service) = self.services.get_mut(&name) {
                service.tick(&mut self.world);
            }
        }
    }
}

fn watch_files(reports: Reports) -> std::io::Result<Watcher> {
    let (watcher, mut changed) = Watcher::new()?;
    tokio::task::spawn_local(async move {
        while let Some(changed) = changed.recv().await {
            let _ = reports.send(Event::Changed(changed));
        }
    });
    Ok(watcher)
}

fn receive_notifications(socket: Notify, reports: Reports) {
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
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
