//! The proxy workers: at most one that accepts, and older ones that drain.
//!
//! A new worker takes over only once it serves: until it has used its first table, the one before goes on. An endpoint
//! is quiescent when *every* worker has said that it is idle.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::certificates::Certificates;
use super::instance::News;
use super::listeners::Listener;
use super::worker::{self, Worker};
use super::{Event, Manager, Phase, Reports, backoff};
use crate::events;
use crate::ipc::{EndpointCounts, EndpointId, FromWorker, ToWorker, WireTable};
use crate::systemd::units::Units;

/// How long idle client connections are kept open for one more request when a worker drains.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// A worker that lived shorter than this has failed at its start; the next one waits a little.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// Unanswered pings after which a worker is stuck.
const PATIENCE: u32 = 3;

/// All of them.
#[derive(Debug)]
pub struct Workers {
    run_dir: PathBuf,
    units: Option<Units>,
    reports: Reports,
    /// Oldest first.
    workers: Vec<Worker>,
    last_generation: u32,
    started: Instant,
    /// In a row, at their start.
    failures: u32,
    pings: u64,
    changed: bool,
}

impl Workers {
    /// None yet.
    pub fn new(run_dir: PathBuf, units: Option<Units>, reports: Reports) -> Workers {
        Workers {
            run_dir,
            units,
            reports,
            workers: Vec::new(),
            last_generation: 0,
            started: Instant::now(),
            failures: 0,
            pings: 0,
            changed: false,
        }
    }

    /// The number of the newest, ever.
    pub fn last_generation(&self) -> u32 {
        self.last_generation
    }

    /// No number up to this one is used again.
    pub fn number_on_from(&mut self, generation: u32) {
        self.last_generation = self.last_generation.max(generation);
    }

    /// What to keep.
    pub fn save(&self) -> Vec<worker::Saved> {
        self.workers.iter().map(Worker::save).collect()
    }

    /// Takes over a worker of an earlier manager.
    pub fn adopt(&mut self, saved: &worker::Saved) {
        let Some(units) = &self.units else { return };
        let scope = units.scope(&worker::scope(saved.generation));
        match Worker::adopt(
            &self.run_dir,
            saved,
            &scope,
            self.reporter(saved.generation),
        ) {
            Ok(worker) => {
                tracing::info!(pid = worker.pid, "worker taken over");
                self.workers.push(worker);
                self.changed = true;
            }
            Err(error) => {
                tracing::error!(error = %error, "worker cannot be taken over");
                tokio::task::spawn_local(async move { scope.stop().await });
            }
        }
    }

    /// The one that accepts, or is about to.
    pub fn current(&self) -> Option<&Worker> {
        self.workers.iter().rfind(|worker| !worker.draining)
    }

    /// There is none at all.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// One of them uses a table.
    pub fn are_serving(&self) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.serving && !worker.draining)
    }

    /// Whether there are others than at the last question.
    pub fn have_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Sends a table to all of them: those that drain have to know which endpoints do.
    pub fn send_table(&mut self, table: &Rc<WireTable>, certificates: &Certificates) {
        let services = table.services.iter();
        let endpoints = services.flat_map(|service| &service.endpoints);
        let endpoints: BTreeSet<EndpointId> = endpoints.map(|endpoint| endpoint.id).collect();
        for worker in &mut self.workers {
            worker.idle.retain(|id| endpoints.contains(id));
            worker.send_table(table, certificates);
        }
    }

    /// Sends a listening socket to the one that accepts.
    pub fn send_listener(&self, listener: &Listener) {
        let workers = self.workers.iter().filter(|worker| !worker.draining);
        for worker in workers {
            match listener.descriptor().try_clone_to_owned() {
                Ok(descriptor) => worker.send(ToWorker::Listener(listener.id), Some(descriptor)),
                Err(error) => tracing::error!(error = %error, "cannot copy a listening socket"),
            }
        }
    }

    /// Asks all of them whether they are stuck, and kills those that are.
    pub fn beat(&mut self) {
        self.pings += 1;
        for worker in &mut self.workers {
            if worker.unanswered >= PATIENCE {
                tracing::error!(pid = worker.pid, "worker does not answer, killing it");
                worker.kill();
            }
            worker.unanswered += 1;
            worker.send(ToWorker::Ping(self.pings), None);
        }
    }

    /// Lets all of them serve what they have accepted, and end.
    pub fn drain_all(&mut self, limit: Duration, tunnels: Duration) {
        for worker in &mut self.workers {
            worker.drain(IDLE_GRACE, limit, tunnels);
        }
        self.changed = true;
    }

    /// Ends all of them.
    pub fn kill(&self) {
        self.workers.iter().for_each(Worker::kill);
    }

    /// Whether none has anything left but tunnels.
    fn have_only_tunnels(&self) -> bool {
        self.workers.iter().all(|worker| worker.only_tunnels)
    }

    /// Whether no worker can have a connection to an endpoint that drains.
    fn is_idle(&self, endpoint: EndpointId) -> bool {
        self.workers
            .iter()
            .all(|worker| worker.idle.contains(&endpoint))
    }

    fn reporter(&self, generation: u32) -> impl Fn(worker::Event) + 'static {
        let reports = self.reports.clone();
        move |event| drop(reports.send(Event::Worker(generation, event)))
    }

    fn get(&mut self, generation: u32) -> Option<&mut Worker> {
        self.workers
            .iter_mut()
            .find(|worker| worker.generation == generation)
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        self.last_generation += 1;
        self.started = Instant::now();
        let generation = self.last_generation;
        let report = self.reporter(generation);
        let worker = Worker::spawn(&self.run_dir, generation, self.units, report)?;
        tracing::info!(pid = worker.pid, "worker started");
        self.changed = true;
        self.workers.push(worker);
        Ok(())
    }
}

impl Manager {
    /// Starts a worker. Older ones go on until it serves.
    pub(super) fn start_worker(&mut self) {
        match self.workers.spawn() {
            Ok(()) => {
                for (_, listener) in self.listeners.iter() {
                    self.workers.send_listener(listener);
                }
                self.send_table_to_new();
            }
            Err(error) => self.worker_failed(&format!("cannot start it: {error}")),
        }
    }

    /// Before the first table is made there is nothing to send.
    fn send_table_to_new(&mut self) {
        if let Some(worker) = self.workers.workers.last_mut()
            && self.table.number > 0
        {
            worker.send_table(&self.table, &self.certificates);
        }
    }

    /// Something happened to a worker.
    pub(super) fn worker(&mut self, generation: u32, event: worker::Event) {
        match event {
            worker::Event::Says(message) => self.worker_says(generation, message),
            worker::Event::Lost => {
                if let Some(worker) = self.workers.get(generation) {
                    worker.draining = true;
                }
                if self.workers.current().is_none() && self.phase == Phase::Serving {
                    self.start_worker();
                }
            }
            worker::Event::Gone(ending) => self.worker_gone(generation, &ending),
        }
    }

    /// Takes in what a worker says, and believes it as little as possible: what does not concern a known instance
    /// in a fitting state is dropped on the way to it.
    fn worker_says(&mut self, generation: u32, message: FromWorker) {
        let Some(worker) = self.workers.get(generation) else {
            return;
        };
        match message {
            FromWorker::Hello { version } => tracing::info!(version, "worker connected"),
            FromWorker::Acknowledged(_) if worker.serving => {}
            FromWorker::Acknowledged(_) => {
                worker.serving = true;
                self.drain_older_than(generation);
            }
            FromWorker::Probed { endpoint, result } => {
                self.instance(endpoint.0, News::Probed(result))
            }
            // What an old worker thinks of an instance is of no importance any more.
            FromWorker::Health { .. } if worker.draining => {}
            FromWorker::Health { endpoint, fault } => {
                self.instance(endpoint.0, News::Health(fault))
            }
            FromWorker::Idle(endpoint) => {
                if !self.world.owners.contains_key(&endpoint.0) {
                    return;
                }
                worker.idle.insert(endpoint);
                self.look_at_idle(endpoint);
            }
            FromWorker::OnlyTunnels => {
                worker.only_tunnels = true;
                self.look_at_end();
            }
            FromWorker::Counts { endpoints, .. } => {
                for counts in endpoints {
                    self.counts(generation, counts);
                }
            }
            FromWorker::Refused(_) => worker.refuses_table(),
            FromWorker::Pong(_) => worker.unanswered = 0,
        }
    }

    /// Most counts are those of instances that nobody has asked for anything.
    fn counts(&mut self, generation: u32, counts: EndpointCounts) {
        let owner = self.world.owners.get(&counts.id.0);
        let service = owner.and_then(|name| self.services.get(name));
        if service.is_some_and(|service| !service.has_counted(generation, &counts)) {
            self.instance(counts.id.0, News::Counts(generation, counts));
        }
    }

    fn look_at_idle(&mut self, endpoint: EndpointId) {
        if self.workers.is_idle(endpoint) {
            self.instance(endpoint.0, News::Idle);
        }
    }

    /// The worker of this generation has taken over.
    fn drain_older_than(&mut self, generation: u32) {
        let limit = self.drain_limit();
        let tunnels = self.tunnel_limit();
        let older = self
            .workers
            .workers
            .iter_mut()
            .filter(|worker| worker.generation < generation && !worker.draining);
        for worker in older {
            tracing::info!(
                message_id = events::WORKER_REPLACED,
                pid = worker.pid,
                "worker replaced, the old one drains"
            );
            worker.drain(IDLE_GRACE, limit, tunnels);
            self.workers.changed = true;
        }
    }

    fn worker_gone(&mut self, generation: u32, ending: &str) {
        let workers = &mut self.workers.workers;
        let index = workers
            .iter()
            .position(|worker| worker.generation == generation);
        let Some(worker) = index.map(|index| workers.remove(index)) else {
            return;
        };
        self.workers.changed = true;
        for service in self.services.values_mut() {
            service.worker_gone(generation, &mut self.world);
        }
        // The others may have been waiting for this one's word alone.
        let waiting = self.workers.workers.iter().flat_map(|worker| &worker.idle);
        let waiting: BTreeSet<EndpointId> = waiting.copied().collect();
        waiting
            .into_iter()
            .for_each(|endpoint| self.look_at_idle(endpoint));
        match self.phase {
            Phase::Serving if worker.draining => {
                tracing::info!(pid = worker.pid, status = ending, "old worker ended");
            }
            Phase::Serving => self.worker_failed(ending),
            _ if self.workers.is_empty() => {
                tracing::info!(status = ending, "worker ended");
                self.stop_instances();
            }
            _ => self.look_at_end(),
        }
    }

    /// Instances have the time of their tunnels to end these, so they are told to stop when nothing else is left.
    fn look_at_end(&mut self) {
        if self.phase == Phase::DrainingWorkers && self.workers.have_only_tunnels() {
            self.stop_instances();
        }
    }

    /// Starts another worker, after a while if this one has not even lived for a moment.
    fn worker_failed(&mut self, ending: &str) {
        tracing::error!(
            message_id = events::WORKER_ENDED,
            error = ending,
            "worker ended, starting another"
        );
        if self.workers.started.elapsed() >= SHORT_LIFE {
            self.workers.failures = 0;
            self.start_worker();
            return;
        }
        self.workers.failures += 1;
        let wait = backoff::delay(self.workers.failures, self.workers.last_generation.into());
        let reports = self.world.reports.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            let _ = reports.send(Event::WorkerDue);
        });
    }
}
