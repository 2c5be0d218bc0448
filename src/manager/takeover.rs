//! From what an earlier manager has left to a manager that goes on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::service::Service;
use super::state::State;
use super::status::Command;
use super::{EXECUTABLE, Manager, instance, worker};
use crate::events;
use crate::systemd::given::Given;
use crate::systemd::units::Units;

/// The names of all scopes that a smoothserve makes.
const ALL_SCOPES: &str = "smoothserve-*.scope";

/// systemd gives a worker this long to drain.
const WORKERS_END: Duration = Duration::from_secs(90);

/// Between two looks at whether workers have ended.
const LOOK: Duration = Duration::from_millis(200);

/// The scopes that are there already.
pub async fn scopes(given: &Given) -> BTreeSet<String> {
    if given.supervisor.is_none() {
        return BTreeSet::new();
    }
    Units::of_this_process()
        .list(ALL_SCOPES)
        .await
        .unwrap_or_else(|error| {
            tracing::error!(error = %error, "cannot see what is running already");
            BTreeSet::new()
        })
}

impl Manager {
    /// Goes on with what is there, or starts from nothing. Whatever of it nobody knows is ended.
    pub(super) fn take_over(&mut self, mut given: Given, scopes: BTreeSet<String>) {
        let state = self.state_file.read().unwrap_or_else(|error| {
            tracing::error!(error = %error, "the state of the last manager cannot be read");
            None
        });
        // A name that is in use is not used again, whether it is known what it stands for or not.
        let last = scopes.iter().filter_map(|scope| number(scope)).max();
        self.world.next_id += last.unwrap_or_default();
        self.workers
            .number_on_from(last.unwrap_or_default().try_into().unwrap_or_default());
        match state.filter(|_| self.world.units.is_some()) {
            Some(state) => {
                let executables = given.take_stored(EXECUTABLE).into_iter().collect();
                self.restore(state, executables);
            }
            None => self.boot(),
        }
        self.forget_unknown(&given, scopes);
    }

    fn restore(&mut self, state: State, mut executables: BTreeMap<String, OwnedFd>) {
        self.world.next_id = self.world.next_id.max(state.next_id);
        self.world.jobs.number_on_from(state.last_job);
        self.world
            .default_user
            .clone_from(&state.config.default_user);
        self.read_certificates(&state.config);
        self.config = state.config;
        self.world.ports.claim(&self.config);
        for error in self.listeners.restore(state.listeners) {
            tracing::error!(error = %error, "port not opened, its services are not reachable there");
        }
        for (name, saved) in state.services {
            match Service::restore(saved, &mut executables, &mut self.world) {
                Ok(service) => self.services.insert(name, service),
                Err(error) => {
                    tracing::error!(service = name, error = %error, "service cannot be taken over");
                }
            }
        }
        for name in executables.keys() {
            self.world.supervision.forget(name);
        }
        // From here on the table is the successor of the last one: nothing that was routed is missing in it.
        Rc::make_mut(&mut self.table).number = state.table;
        self.workers.number_on_from(state.worker_generation);
        state
            .workers
            .iter()
            .for_each(|saved| self.workers.adopt(saved));
        for (_, listener) in self.listeners.iter() {
            self.workers.send_listener(listener);
        }
        match self.workers.current().map(|worker| worker.is_current()) {
            Some(true) => {}
            Some(false) => {
                tracing::info!("another smoothserve is installed now, replacing the worker");
                self.start_worker();
            }
            None => self.start_worker(),
        }
        for service in self.services.values_mut() {
            service.tick(&mut self.world);
        }
        tracing::info!(
            message_id = events::TOOK_OVER,
            services = self.services.len(),
            "took over from the last smoothserve"
        );
        // What has changed on disk since, or would have been a reload.
        if let Err(error) = self.command(Command::Reload) {
            tracing::error!(error = %error, "everything goes on as it was");
        }
    }

    /// Ends scopes, closes sockets and drops descriptors that nobody knows.
    fn forget_unknown(&mut self, given: &Given, scopes: BTreeSet<String>) {
        let unused = self.listeners.drop_unused();
        self.let_go(unused);
        for name in given.left() {
            tracing::info!(name, "stored descriptor is not needed any more");
            self.world.supervision.forget(name);
        }
        let Some(units) = self.world.units else {
            return;
        };
        let workers = self.workers.save();
        let workers = workers.iter().map(|saved| worker::scope(saved.generation));
        let instances = self.services.values().flat_map(Service::scopes);
        let known: BTreeSet<String> = workers.chain(instances).collect();
        let unknown: BTreeSet<String> = scopes.difference(&known).cloned().collect();
        for name in &unknown {
            tracing::warn!(unit = name, "ending a process that nobody knows");
        }
        tokio::task::spawn_local(end(units, unknown));
    }
}

/// Ends scopes: workers first, since what they have accepted needs the instances.
async fn end(units: Units, scopes: BTreeSet<String>) {
    let (workers, instances): (BTreeSet<String>, _) =
        scopes.into_iter().partition(|name| worker::is_scope(name));
    for name in &workers {
        units.scope(name).stop().await;
    }
    let begin = Instant::now();
    while begin.elapsed() < WORKERS_END {
        match units.list(ALL_SCOPES).await {
            Ok(left) if !left.is_disjoint(&workers) => tokio::time::sleep(LOOK).await,
            _ => break,
        }
    }
    for name in &instances {
        units.scope(name).stop().await;
    }
}

/// The number at the end of a scope's name.
fn number(scope: &str) -> Option<u64> {
    let name = scope.strip_suffix(".scope")?;
    name.rsplit_once('-')?.1.parse().ok()
}

impl Service {
    /// The scopes of its instances.
    fn scopes(&self) -> impl Iterator<Item = String> {
        self.slots()
            .map(|(id, slot)| instance::scope(&self.spec().name, slot, id))
    }
}
