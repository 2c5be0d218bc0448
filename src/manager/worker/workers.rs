//! The set of proxy workers: at most one accepts connections, and older ones drain.
//!
//! A new worker takes over only when it serves: until it has confirmed its first table, the
//! previous worker goes on. An endpoint is quiescent when *every* worker has said that it is idle.
//!
//! A worker of another build may speak another version of the messages. It gets no tables then: it
//! serves on with its last one, drains like any other, and every endpoint is idle for it once it
//! has nothing left but tunnels.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::certificates::ServiceCertificates;
use super::listeners::OpenListener;
use super::process::{SavedWorker, SpawnOptions, WorkerProcess, scope_name};
use crate::events;
use crate::ipc::{BoundCounts, EndpointId, ToWorker, WireTable};
use crate::log_level::LogLevel;
use crate::manager::backoff;
use crate::manager::event::{Event, Reports, WorkerEvent};
use crate::systemd::units::{Scope, Units};

/// How long a worker keeps idle connections of clients open for one more request, when smoothserve
/// stops.
const IDLE_AT_STOP: Duration = Duration::from_secs(1);

/// The same when another worker has taken over: as long as any connection may be idle, so that the
/// replacement closes none that would not have been closed without it. A close can meet a request
/// that is on its way, and nobody waits for the end of this worker.
pub const IDLE_WHEN_REPLACED: Duration = Duration::from_secs(60);

/// A worker that lived less than this has failed at its start, so the next worker starts after a
/// pause.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How many pings in a row a worker may leave unanswered before it counts as stuck.
const PATIENCE: u32 = 3;

/// The proxy workers of the manager.
#[derive(Debug)]
pub struct Workers {
    run_dir: PathBuf,
    units: Option<Units>,
    reports: Reports,
    /// The workers, oldest first.
    workers: Vec<WorkerProcess>,
    last_generation: u32,
    started: Instant,
    /// How many workers in a row have failed at their start.
    failures: u32,
    pings: u64,
    changed: bool,
}

impl Workers {
    /// Makes a set without workers.
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

    /// Returns the number of the newest ping.
    pub fn last_ping(&self) -> u64 {
        self.pings
    }

    /// Returns the generation of the newest worker so far.
    pub fn last_generation(&self) -> u32 {
        self.last_generation
    }

    /// Makes the generations of new workers begin above `generation`.
    pub fn number_on_from(&mut self, generation: u32) {
        self.last_generation = self.last_generation.max(generation);
    }

    /// Returns the state that the next manager needs to take over the workers, oldest first.
    pub fn save(&self) -> Vec<SavedWorker> {
        self.workers.iter().map(WorkerProcess::save).collect()
    }

    /// Takes over a worker that an earlier manager has started.
    pub fn adopt(&mut self, saved: &SavedWorker) {
        let Some(units) = &self.units else { return };
        let scope = units.scope(&scope_name(saved.generation));
        match WorkerProcess::adopt(
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

    /// Returns the worker that accepts connections, or will soon.
    pub fn current(&self) -> Option<&WorkerProcess> {
        self.workers.iter().rfind(|worker| !worker.draining)
    }

    /// Returns the open client connections and the state of the bounds of all workers together.
    pub fn bounds(&self) -> (u32, BoundCounts) {
        let workers = self.workers.iter().map(|worker| worker.bounds);
        workers.fold(Default::default(), |sum, one| {
            (u32::saturating_add(sum.0, one.0), sum.1 + one.1)
        })
    }

    /// Returns true if there is no worker at all.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Returns true if a worker that does not drain has confirmed a table.
    pub fn are_serving(&self) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.serving && !worker.draining)
    }

    /// Returns the number of the last table that all workers have confirmed. A worker that gets no
    /// tables has its listeners until it drains.
    pub fn applied(&self) -> u64 {
        let workers = self.workers.iter();
        let workers = workers.filter(|worker| worker.speaks() || !worker.draining);
        let applied = workers.map(|worker| worker.applied);
        applied.min().unwrap_or(u64::MAX)
    }

    /// Returns true if a worker has started, ended or begun to drain since the last call.
    pub fn have_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Sends a table to all workers that understand it. Draining workers need it, too: they must
    /// know which endpoints drain.
    pub fn send_table(&mut self, table: &Rc<WireTable>, certificates: &ServiceCertificates) {
        let services = table.services.iter();
        let endpoints = services.flat_map(|service| &service.endpoints);
        let endpoints: BTreeSet<EndpointId> = endpoints.map(|endpoint| endpoint.id).collect();
        for worker in &mut self.workers {
            worker.idle.retain(|id| endpoints.contains(id));
            worker.send_table(table, certificates);
        }
    }

    /// Sends a listening socket to all workers that do not drain and understand it.
    pub fn send_listener(&self, listener: &OpenListener) {
        let workers = self.workers.iter().filter(|worker| !worker.draining);
        workers.for_each(|worker| worker.send_listener(listener));
    }

    /// Pings all workers, and kills those that have left too many pings unanswered.
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

    /// Tells all workers to drain: they finish the connections that they have accepted, and end.
    pub fn drain_all(&mut self, limit: Duration, tunnels: Duration) {
        for worker in &mut self.workers {
            worker.drain(IDLE_AT_STOP, limit, tunnels);
        }
        self.changed = true;
    }

    /// Kills all workers.
    pub fn kill(&self) {
        self.workers.iter().for_each(WorkerProcess::kill);
    }

    /// Returns true if all workers have nothing left but tunnels.
    pub fn have_only_tunnels(&self) -> bool {
        self.workers.iter().all(|worker| worker.only_tunnels)
    }

    /// Returns true if no worker has, or can open, a connection to this draining endpoint.
    pub fn is_idle(&self, endpoint: EndpointId) -> bool {
        self.workers.iter().all(|worker| worker.is_idle(endpoint))
    }

    fn reporter(&self, generation: u32) -> impl Fn(WorkerEvent) + 'static {
        let reports = self.reports.clone();
        move |event| drop(reports.send(Event::Worker(generation, event)))
    }

    /// Returns the worker of a generation, for changes.
    pub fn get_mut(&mut self, generation: u32) -> Option<&mut WorkerProcess> {
        self.workers
            .iter_mut()
            .find(|worker| worker.generation == generation)
    }

    /// Starts a worker, which becomes the newest. With `unix_sockets` it has to connect to unix
    /// sockets. With `sees_mounts` it will see what is mounted in their folder later.
    pub fn spawn(
        &mut self,
        log_level: &LogLevel,
        unix_sockets: bool,
        sees_mounts: bool,
    ) -> std::io::Result<()> {
        self.last_generation += 1;
        self.started = Instant::now();
        let generation = self.last_generation;
        let report = self.reporter(generation);
        let options = SpawnOptions {
            run_dir: &self.run_dir,
            generation,
            log_level,
            unix_sockets,
            sees_mounts,
        };
        let worker = WorkerProcess::spawn(&options, self.units, report)?;
        tracing::info!(pid = worker.pid, "worker started");
        self.changed = true;
        self.workers.push(worker);
        Ok(())
    }

    /// Removes a worker that has ended.
    pub fn remove(&mut self, generation: u32) -> Option<WorkerProcess> {
        let mut workers = self.workers.iter();
        let index = workers.position(|worker| worker.generation == generation)?;
        self.changed = true;
        Some(self.workers.remove(index))
    }

    /// Sends all that a worker needs to serve to the worker of this generation alone.
    pub fn send_all<'a>(
        &mut self,
        generation: u32,
        listeners: impl Iterator<Item = &'a OpenListener>,
        table: &Rc<WireTable>,
        certificates: &ServiceCertificates,
    ) {
        let Some(worker) = self.get_mut(generation) else {
            return;
        };
        if !worker.draining {
            listeners.for_each(|listener| worker.send_listener(listener));
        }
        // Before the first table exists, there is nothing to send.
        if table.number > 0 {
            worker.send_table(table, certificates);
        }
    }

    /// Tells all workers that are older than `generation` to drain, because that worker has taken
    /// over.
    pub fn drain_older_than(&mut self, generation: u32, limit: Duration, tunnels: Duration) {
        let workers = self.workers.iter_mut();
        let older = workers.filter(|worker| worker.generation < generation && !worker.draining);
        for worker in older {
            tracing::info!(
                message_id = events::WORKER_REPLACED,
                pid = worker.pid,
                "worker replaced, the old one drains"
            );
            worker.drain(IDLE_WHEN_REPLACED, limit + IDLE_WHEN_REPLACED, tunnels);
            self.changed = true;
        }
    }

    /// Has the workers that get no tables close idle connections soon, once.
    pub fn hurry_unaware(&mut self, limit: Duration, tunnels: Duration) {
        let workers = self.workers.iter_mut();
        let unaware =
            workers.filter(|worker| !worker.speaks() && worker.draining && !worker.hurried);
        for worker in unaware {
            worker.hurried = true;
            worker.drain(IDLE_AT_STOP, limit, tunnels);
        }
    }

    /// Returns true if all workers see what is mounted in the folder of the instances' sockets
    /// after their start.
    pub fn see_mounts(&self) -> bool {
        self.workers.iter().all(|worker| worker.sees_mounts)
    }

    /// Returns true if a worker gets no tables, so that it does not hear of endpoints that drain.
    pub fn have_unaware(&self) -> bool {
        self.workers.iter().any(|worker| !worker.speaks())
    }

    /// Returns the scopes of the workers that are not known to understand the tables of this build,
    /// and so may send requests to any instance.
    pub fn scopes_of_other_builds(&self) -> Vec<Scope> {
        let workers = self.workers.iter().filter(|worker| !worker.speaks());
        let units = self.units.iter();
        let scopes = units.flat_map(|units| {
            let workers = workers.clone();
            workers.map(|worker| units.scope(&scope_name(worker.generation)))
        });
        scopes.collect()
    }

    /// Returns the endpoints to which at least one worker says it has no connection.
    pub fn idle_endpoints(&self) -> BTreeSet<EndpointId> {
        let idle = self.workers.iter().flat_map(|worker| &worker.idle);
        idle.copied().collect()
    }

    /// Counts the failure of a worker. Returns how long to wait before the next start, or `None` if
    /// the last worker had run for a while and the next can start at once.
    pub fn pause_after_failure(&mut self) -> Option<Duration> {
        if self.started.elapsed() >= SHORT_LIFE {
            self.failures = 0;
            return None;
        }
        self.failures += 1;
        Some(backoff::delay(self.failures, self.last_generation.into()))
    }
}
