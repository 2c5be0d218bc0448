//! The control thread: speaks with the manager, gives tables to the data threads, and proves that
//! draining endpoints are idle.
//!
//! # Theory of operation
//! One loop owns all of this state and handles one event at a time: a manager connects, the manager
//! sends a message, a data thread reports, a probe has a finding, a signal arrives, a time is over.
//! The data threads serve the last table with or without a manager. A new manager first gets a
//! report of the present state. A draining worker opens no listener any more, but still takes new
//! tables and still reports idle endpoints: its last connections need both.
//!
//! The order in which a table is taken over matters. First, the probes of endpoints that the table
//! drains are stopped. Then [`Quiescence`] begins to wait for what the threads report about these
//! endpoints. Only then do the threads get the table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::drain_signals::DrainSignals;
use super::manager_link::{LinkFault, ManagerLink};
use super::overload::OverloadGuard;
use super::probe::{Finding, Probers};
use super::quiescence::Quiescence;
use super::sockets::Sockets;
use super::worker_drain::{DrainTimes, WorkerDrain};
use crate::ipc::{
    BoundCounts, EndpointCounts, EndpointId, EndpointState, FromWorker, HealthCheck, Overload,
    ToWorker, WireTable,
};
use crate::log_pace::LogPace;
use crate::logging;
use crate::proxy::shared::certificates::ListenerCertificates;
use crate::proxy::shared::heap;
use crate::proxy::shared::table::Table;
use crate::proxy::shared::threads::{ThreadCommand, ThreadEvent, ThreadReport, Threads};

/// The least time between two reports of the counters.
const COUNTS_INTERVAL: Duration = Duration::from_millis(200);

/// How much each endpoint adds to the time between two reports of the counters, so that very long
/// reports do not fill the channel.
const COUNTS_INTERVAL_PER_ENDPOINT: Duration = Duration::from_micros(200);

/// How often the overload guard looks at the memory in use.
const CALM_LOOKS: Duration = Duration::from_millis(100);

/// How often it looks while it takes measures.
const BUSY_LOOKS: Duration = Duration::from_millis(5);

/// The least time between two times when free memory is given back to the system. Meanwhile, the
/// data threads may have to wait for the allocator.
const TRIM_PAUSE: Duration = Duration::from_millis(500);

/// The pause after the control socket failed to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the control thread, and with it the worker, ends with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("data thread {0} has ended")]
    ThreadEnded(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The state of the control thread.
pub(crate) struct Control {
    threads: Arc<Threads>,
    table: Arc<Table>,
    /// Earlier tables, as long as a data thread may use them, so that they are freed on the control
    /// thread and no thread that serves requests spends time on that.
    replaced: Vec<Arc<Table>>,
    sockets: Sockets,
    certificates: ListenerCertificates,
    quiescence: Quiescence,
    probers: Probers,
    /// The probing endpoints that have answered.
    ready: BTreeSet<EndpointId>,
    /// The active endpoints that the health check has taken out, with the reasons.
    faults: BTreeMap<EndpointId, String>,
    /// The active endpoints whose health the manager has asked for, and which are healthy.
    healthy: BTreeSet<EndpointId>,
    manager: Option<ManagerLink>,
    /// The connections and counters in the last report to the manager.
    counted: Option<(u32, BoundCounts, Vec<EndpointCounts>)>,
    next_counts: Instant,
    overload: OverloadGuard,
    next_look: Instant,
    /// When free memory may be given back to the system again.
    next_trim: Instant,
    /// How often the beginning of an overload is logged.
    overloads: LogPace,
    /// True if the beginning of the present overload was logged.
    overload_told: bool,
    drain: Option<WorkerDrain>,
    /// The number of the manager's last ping, and the threads that have not answered it yet.
    ping: (u64, BTreeSet<usize>),
    findings: mpsc::UnboundedReceiver<(EndpointId, Finding)>,
    reports: mpsc::UnboundedReceiver<ThreadReport>,
    /// Whether the worker can connect to unix sockets, for the manager.
    unix_sockets: bool,
}

impl Control {
    /// Makes a control thread without a manager and without a table. `threads` report to `reports`.
    /// Managers are told by `unix_sockets` whether the worker can connect to unix sockets.
    pub(crate) fn new(
        threads: Arc<Threads>,
        certificates: ListenerCertificates,
        reports: mpsc::UnboundedReceiver<ThreadReport>,
        unix_sockets: bool,
    ) -> Control {
        let (found, findings) = mpsc::unbounded_channel();
        Control {
            table: Arc::default(),
            replaced: Vec::new(),
            sockets: Sockets::default(),
            certificates,
            quiescence: Quiescence::new(threads.count()),
            probers: Probers::new(found, threads.budget().probes),
            threads,
            ready: BTreeSet::new(),
            faults: BTreeMap::new(),
            healthy: BTreeSet::new(),
            manager: None,
            counted: None,
            next_counts: Instant::now(),
            overload: OverloadGuard::new(),
            next_look: Instant::now(),
            next_trim: Instant::now(),
            overloads: LogPace::default(),
            overload_told: false,
            drain: None,
            ping: (0, BTreeSet::new()),
            findings,
            reports,
            unix_sockets,
        }
    }

    /// Runs the control thread until the worker has drained. Must run on a `LocalRuntime`.
    pub(crate) async fn run(mut self, socket: UnixListener) -> Result<(), ControlError> {
        let mut signals = DrainSignals::new()?;
        while !self.is_drained() {
            let (next_counts, next_look) = (self.next_counts, self.next_look);
            self.tell_only_tunnels();
            let until = self.drain_end();
            let cut = self.drain.as_ref().and_then(WorkerDrain::cut);
            tokio::select! {
                manager = accept(&socket) => self.greet(manager),
                message = receive(&mut self.manager) => self.hear(message).await,
                Some(report) = self.reports.recv() => self.note(report)?,
                Some((endpoint, finding)) = self.findings.recv() => self.find(endpoint, finding),
                () = sleep_until(next_counts), if self.manager.is_some() => self.count(),
                () = sleep_until(next_look) => self.look_at_memory(),
                () = signals.drain() => self.drain(&DrainTimes::OF_SIGNAL, "signal"),
                () = wait_until(cut) => self.cut_tunnels(),
                () = wait_until(until) => {
                    let connections = self.threads.connections();
                    if connections > 0 {
                        tracing::warn!(connections, "drain time is over, cutting off what is left");
                    }
                    break;
                }
            }
        }
        self.end().await;
        Ok(())
    }

    /// Lets a new manager replace the one before, and reports the present state to it.
    fn greet(&mut self, socket: std::os::unix::net::UnixStream) {
        if let Some(drain) = &mut self.drain {
            drain.set_told(false);
        }
        match ManagerLink::greet(socket, self.unix_sockets) {
            Ok(manager) => self.manager = Some(manager),
            Err(error) => {
                tracing::warn!(%error, "manager refused");
                return;
            }
        }
        tracing::info!("manager connected");
        self.sockets.forget_unopened();
        self.counted = None;
        self.next_counts = Instant::now();
        let acknowledged = self.quiescence.acknowledged();
        // The manager needs the counts to understand the messages about idle endpoints.
        let mut messages = vec![self.counts()];
        if acknowledged > 0 {
            messages.push(FromWorker::Acknowledged(acknowledged));
        }
        messages.extend(self.quiescence.idle_endpoints().map(FromWorker::Idle));
        messages.extend(self.ready.iter().map(|&endpoint| FromWorker::Probed {
            endpoint,
            result: Ok(()),
        }));
        messages.extend(self.faults.iter().map(|(&endpoint, fault)| {
            let fault = Some(fault.as_str().into());
            FromWorker::Health { endpoint, fault }
        }));
        messages.extend(self.healthy.iter().map(|&endpoint| FromWorker::Health {
            endpoint,
            fault: None,
        }));
        for message in messages {
            self.say(message);
        }
    }

    fn say(&mut self, message: FromWorker) {
        if let Some(manager) = &self.manager
            && let Err(fault) = manager.say(message)
        {
            self.lose(&fault);
        }
    }

    fn lose(&mut self, fault: &LinkFault) {
        tracing::warn!(error = %fault, "manager connection lost");
        self.manager = None;
    }

    /// Handles a message of the manager, or the end of the connection to it.
    async fn hear(&mut self, message: Result<ToWorker, LinkFault>) {
        match message {
            Ok(ToWorker::Listener(id)) => {
                let descriptor = self.manager.as_mut().and_then(ManagerLink::take_descriptor);
                if let Err(error) = self.sockets.add(id, descriptor) {
                    tracing::error!(listener = id.0, %error, "listening socket refused");
                }
            }
            Ok(ToWorker::Certificate(certificate)) => {
                if let Err(error) = self.certificates.add(certificate) {
                    tracing::error!(%error, "certificate refused");
                }
            }
            Ok(ToWorker::Table(table)) => self.take_over(table).await,
            Ok(ToWorker::Drain {
                idle,
                limit,
                tunnels,
            }) => {
                let times = DrainTimes {
                    idle,
                    limit,
                    tunnels,
                };
                self.drain(&times, "manager");
            }
            Ok(ToWorker::Ping(number)) => {
                self.ping = (number, (0..self.threads.count()).collect());
                for thread in 0..self.threads.count() {
                    self.command(thread, ThreadCommand::Ping(number));
                }
            }
            Ok(ToWorker::NotUnderstood) => {
                // The manager will soon have a worker of its own build.
                tracing::warn!("message of another build ignored, the table stays as it is");
                let manager = self.manager.as_mut();
                if let Some(manager) = manager {
                    while manager.take_descriptor().is_some() {}
                }
            }
            Err(fault) => self.lose(&fault),
        }
    }

    async fn take_over(&mut self, mut table: WireTable) {
        if table.number <= self.table.number {
            // A new manager may not know that this table was taken over.
            self.say(FromWorker::Acknowledged(self.quiescence.acknowledged()));
            return;
        }
        let draining = self.drain.is_some();
        let sockets = &self.sockets;
        // A draining worker gets no sockets and needs none.
        let is_known = |id| draining || sockets.contains(id);
        let named: BTreeSet<_> = table.certificates().collect();
        let number = table.number;
        let log_level = table.log_level.take();
        let (certificates, threads) = (&self.certificates, self.threads.count());
        let table = match self.table.succeed(table, is_known, certificates, threads) {
            Ok(table) => Arc::new(table),
            Err(error) => {
                tracing::error!(%error, "table refused");
                self.say(FromWorker::Refused(number));
                return;
            }
        };
        if let Some(level) = log_level {
            set_log_level(&level);
        }
        let before = std::mem::replace(&mut self.table, table.clone());
        self.certificates.keep(&named);
        self.threads
            .limit_connections(table.max_connections, table.listeners.len());
        self.threads.memory().limit(table.max_memory);
        self.probers.follow(&before, &table).await;
        self.replaced.push(before);
        self.forget_findings(&table);
        let drained = table
            .endpoints()
            .filter(|(_, state)| *state >= EndpointState::Draining);
        self.quiescence
            .sent(table.number, drained.map(|(spec, _)| spec.id));
        let opened = self.sockets.follow(&table);
        for thread in 0..self.threads.count() {
            let table = table.clone();
            let opened = opened.clone();
            self.command(thread, ThreadCommand::Apply { table, opened });
        }
    }

    fn forget_findings(&mut self, table: &Table) {
        let is = |id: &EndpointId, state| table.state(*id) == Some(state);
        self.ready.retain(|id| is(id, EndpointState::Probing));
        self.faults.retain(|id, _| is(id, EndpointState::Active));
        self.healthy
            .retain(|id| is(id, EndpointState::Active) && table.check(*id) == HealthCheck::Report);
    }

    fn command(&self, thread: usize, command: ThreadCommand) {
        // If the thread has ended, it reports that itself, and the worker ends.
        let _ = self.threads.send(thread, command);
    }

    /// Handles a report of a data thread.
    fn note(&mut self, report: ThreadReport) -> Result<(), ControlError> {
        let thread = report.thread;
        match report.event {
            ThreadEvent::Applied(table) => {
                if let Some(table) = self.quiescence.applied(thread, table) {
                    self.replaced.retain(|replaced| replaced.number >= table);
                    self.say(FromWorker::Acknowledged(table));
                }
            }
            ThreadEvent::Idle { endpoint, table } => {
                if self.quiescence.idle(thread, endpoint, table) {
                    if self.has_tunnels(endpoint) {
                        self.say(self.counts());
                    }
                    self.say(FromWorker::Idle(endpoint));
                }
            }
            ThreadEvent::Pong(number) => {
                let (last, waiting) = &mut self.ping;
                if number == *last && waiting.remove(&thread) && waiting.is_empty() {
                    self.say(FromWorker::Pong(number));
                }
            }
            ThreadEvent::Closed => {
                if let Some(drain) = &mut self.drain {
                    drain.note_closed(thread);
                }
            }
            // The loop checks after every event whether this was the last thread.
            ThreadEvent::Empty => {}
            ThreadEvent::Ended => return Err(ControlError::ThreadEnded(thread)),
        }
        Ok(())
    }

    /// Handles the finding of a probe, unless a table has changed the state of the endpoint
    /// meanwhile.
    fn find(&mut self, endpoint: EndpointId, finding: Finding) {
        if self.table.state(endpoint) != Some(finding.concerns()) {
            return;
        }
        let message = match finding {
            Finding::Ready => {
                self.ready.insert(endpoint);
                let result = Ok(());
                FromWorker::Probed { endpoint, result }
            }
            Finding::NotReady(fault) => {
                let result = Err(fault.into());
                FromWorker::Probed { endpoint, result }
            }
            Finding::Out(fault) => {
                self.healthy.remove(&endpoint);
                self.faults.insert(endpoint, fault.clone());
                let fault = Some(fault.into());
                FromWorker::Health { endpoint, fault }
            }
            Finding::In => {
                self.faults.remove(&endpoint);
                if self.table.check(endpoint) == HealthCheck::Report {
                    self.healthy.insert(endpoint);
                }
                let fault = None;
                FromWorker::Health { endpoint, fault }
            }
        };
        self.say(message);
    }

    /// Reports the counters, if they have changed and the manager has read the earlier messages.
    fn count(&mut self) {
        let connections = self.threads.connections();
        let counts: Vec<_> = self
            .table
            .endpoints()
            .map(|(spec, _)| spec.counts())
            .collect();
        let pause = COUNTS_INTERVAL_PER_ENDPOINT * u32::try_from(counts.len()).unwrap_or(u32::MAX);
        self.next_counts = Instant::now() + COUNTS_INTERVAL.max(pause);
        let is_listening = self.manager.as_ref().is_some_and(ManagerLink::is_listening);
        let current = Some((connections, self.threads.bounds(), counts));
        if is_listening && self.counted != current {
            self.counted = current;
            self.say_counts();
        }
    }

    /// Looks whether the worker uses too much memory, and has the data threads free some.
    fn look_at_memory(&mut self) {
        let memory = self.threads.memory();
        let (in_use, most) = (heap::in_use(), memory.most());
        let before = memory.overload();
        let step = self.overload.look(in_use, most);
        if step != before {
            memory.set_overload(step);
            self.log_overload(step, in_use, most);
        }
        let relief = self.overload.relief(in_use, most);
        self.next_look = Instant::now()
            + match relief {
                Some(_) => BUSY_LOOKS,
                None => CALM_LOOKS,
            };
        if let Some(relief) = relief {
            // What is free counts for the system as long as the allocator keeps it.
            if self.next_trim <= Instant::now() {
                self.next_trim = Instant::now() + TRIM_PAUSE;
                heap::trim();
            }
            for thread in 0..self.threads.count() {
                self.command(thread, ThreadCommand::Relieve(relief));
            }
        }
    }

    /// Says that an overload has begun, has another step, or is over. Strangers can make these
    /// messages come often, so they have a pace, and an end is logged only after a beginning that
    /// was.
    fn log_overload(&mut self, step: Overload, memory: u64, limit: u64) {
        let Some(measure) = step.words() else {
            if std::mem::take(&mut self.overload_told) {
                tracing::info!(memory, limit, "memory suffices again");
            }
            return;
        };
        if self.overloads.due().is_some() {
            self.overload_told = true;
            tracing::warn!(
                memory,
                limit,
                measure,
                "too much memory in use (proxy_memory_max)"
            );
        }
    }

    /// Returns a message with the present counters.
    fn counts(&self) -> FromWorker {
        let endpoints = self.table.endpoints();
        FromWorker::Counts {
            connections: self.threads.connections(),
            bounds: self.threads.bounds(),
            endpoints: endpoints.map(|(spec, _)| spec.counts()).collect(),
        }
    }

    fn has_tunnels(&self, endpoint: EndpointId) -> bool {
        let mut endpoints = self.table.endpoints();
        endpoints.any(|(spec, _)| spec.id == endpoint && spec.counts().tunnels > 0)
    }

    fn tunnels(&self) -> u32 {
        let endpoints = self.table.endpoints();
        endpoints.map(|(spec, _)| spec.counts().tunnels).sum()
    }

    /// Returns when the remaining connections are cut off; `None` if the worker does not drain.
    fn drain_end(&self) -> Option<Instant> {
        let drain = self.drain.as_ref()?;
        Some(drain.end(self.tunnels()))
    }

    /// Tells the manager, once, that the drain waits only for tunnels.
    fn tell_only_tunnels(&mut self) {
        let (connections, tunnels) = (self.threads.connections(), self.tunnels());
        let endpoints = self.table.endpoints();
        let requests = endpoints.map(|(spec, _)| spec.counts().in_flight).sum();
        let drain = self.drain.as_ref();
        let has_news = drain.is_some_and(|drain| drain.has_news(connections, tunnels, requests));
        if has_news && self.manager.is_some() {
            self.say(FromWorker::OnlyTunnels);
            if let Some(drain) = &mut self.drain {
                drain.set_told(true);
            }
        }
    }

    fn say_counts(&mut self) {
        if let Some((connections, bounds, endpoints)) = self.counted.clone() {
            self.say(FromWorker::Counts {
                connections,
                bounds,
                endpoints,
            });
        }
    }

    /// Begins to drain. If the worker drains already, only the time limits change.
    fn drain(&mut self, times: &DrainTimes, by: &'static str) {
        match &mut self.drain {
            Some(drain) => drain.change(times),
            None => {
                tracing::info!(by, connections = self.threads.connections(), "draining");
                self.drain = Some(WorkerDrain::begin(times, self.threads.count()));
                self.sockets = Sockets::default();
            }
        }
        let idle = times.idle;
        for thread in 0..self.threads.count() {
            self.command(thread, ThreadCommand::Drain { idle });
        }
    }

    /// Cuts off the tunnels, because their time in the drain is over.
    fn cut_tunnels(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.note_cut();
        }
        let connections = self.tunnels();
        if connections > 0 {
            tracing::warn!(connections, "drain time is over, cutting off the tunnels");
        }
        for thread in 0..self.threads.count() {
            self.command(thread, ThreadCommand::CutTunnels);
        }
    }

    fn is_drained(&self) -> bool {
        let drain = self.drain.as_ref();
        drain.is_some_and(|drain| !drain.is_accepting()) && self.threads.connections() == 0
    }

    async fn end(mut self) {
        self.count();
        for thread in 0..self.threads.count() {
            self.command(thread, ThreadCommand::Stop);
        }
        if let Some(manager) = self.manager.take() {
            manager.farewell().await;
        }
    }
}

/// Sets the log level that a table names.
fn set_log_level(level: &str) {
    match level.parse() {
        Ok(level) => logging::set_level(&level),
        // The manager is of another version, and will soon replace this worker by one of its own
        // version.
        Err(error) => {
            tracing::warn!(level, %error, "log level not understood, keeping the last one")
        }
    }
}

/// Accepts the next connection of a manager.
async fn accept(socket: &UnixListener) -> std::os::unix::net::UnixStream {
    loop {
        match socket
            .accept()
            .await
            .and_then(|(stream, _)| stream.into_std())
        {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept a manager");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Receives the next message of the manager; never resolves without a manager.
async fn receive(manager: &mut Option<ManagerLink>) -> Result<ToWorker, LinkFault> {
    match manager {
        Some(manager) => manager.receive().await,
        None => std::future::pending().await,
    }
}

async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
