//! What comes of a change: a table for the workers, a state for the next manager, a snapshot for readers, a word to
//! systemd.
//!
//! There may be many services, of which a change concerns one. So what was made of the others is used again, as long as
//! nobody has touched them and all that it was made with, [`Shared`], is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::value::{RawValue, to_raw_value};

use super::certificates::Certificates;
use super::service::Service;
use super::state::State;
use super::status::{ServiceStatus, Snapshot};
use super::supervision::Stage;
use super::{Manager, Phase, listeners, table};
use crate::config::Config;
use crate::events;
use crate::ipc::{WireService, WireTable};
use crate::systemd::journal;

/// What was made of the services last.
#[derive(Default)]
pub(super) struct Published {
    shared: Option<Shared>,
    parts: BTreeMap<String, Arc<WireService>>,
    statuses: BTreeMap<String, Arc<ServiceStatus>>,
    /// As text.
    saved: BTreeMap<String, Rc<RawValue>>,
    /// The names of those that are not what is saved.
    unsaved: BTreeSet<String>,
    saved_config: Option<Box<RawValue>>,
}

/// What all services are shown and routed with.
struct Shared {
    config: Arc<Config>,
    certificates: Rc<Certificates>,
    listeners: listeners::Saved,
}

impl PartialEq for Shared {
    fn eq(&self, other: &Shared) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
            && Rc::ptr_eq(&self.certificates, &other.certificates)
            && self.listeners == other.listeners
    }
}

impl Manager {
    /// Publishes the difference to what was published before. What is new is written down first: whoever takes over
    /// must find all that a worker or a process could have been told.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let changed = std::mem::take(&mut self.world.changed);
        for name in &changed {
            let Some(service) = self.services.get(name) else {
                continue;
            };
            self.world.jobs.progress(name, &service.progress(), now);
            if service.is_gone() {
                tracing::info!(service = name, "service removed");
                self.services.remove(name);
                self.world.jobs.removed(name, now);
            }
        }
        self.world.jobs.forget(now);
        let different = self.different_services();
        self.published.unsaved.extend(different.iter().cloned());
        let has_new_table = self.build_table(&different);
        let has_new_worker = self.workers.have_changed();
        if has_new_table || has_new_worker || !changed.is_empty() {
            self.write_state();
        }
        if has_new_table {
            self.workers.send_table(&self.table, &self.certificates);
        }
        for permit in self.world.permits.drain(..) {
            // One that was killed meanwhile needs none.
            let _ = permit.send(());
        }
        self.publish_snapshot(&different);
        debug_assert!(self.is_up_to_date());
    }

    /// Nothing has changed without being touched.
    fn is_up_to_date(&self) -> bool {
        let known = &self.published;
        self.services.iter().all(|(name, service)| {
            let part = table::part_of(service, &self.listeners);
            let status = || service.status(&self.certificates);
            let is_shown = service.is_removed() || *known.statuses[name] == status();
            let saved = known.saved.get(name);
            let saved = saved.filter(|_| !known.unsaved.contains(name));
            let text = || serde_json::to_string(&service.save()).unwrap_or_default();
            let is_saved = saved.is_none_or(|saved| saved.get() == text());
            *known.parts[name] == part && is_shown && is_saved
        })
    }

    /// The names of the services of which other things may be to be published than were, or which are no more.
    fn different_services(&mut self) -> BTreeSet<String> {
        let touched = self.services.take_touched();
        let shared = Shared {
            config: self.config.clone(),
            certificates: self.certificates.clone(),
            listeners: self.listeners.save(),
        };
        let before = self.published.shared.as_ref();
        if before == Some(&shared) {
            return touched;
        }
        self.published.shared = Some(shared);
        self.published.saved_config = None;
        let all = self.services.keys().cloned();
        all.chain(touched).collect()
    }

    /// Builds the next table, if it is not the same as the last one.
    fn build_table(&mut self, different: &BTreeSet<String>) -> bool {
        // Even if nothing is in it, the first one is new: a worker serves once it has one.
        let is_first = self.table.number == 0;
        if different.is_empty() && !is_first {
            return false;
        }
        let parts = &mut self.published.parts;
        for name in different {
            let service = self.services.get(name);
            let part = service.map(|service| table::part_of(service, &self.listeners));
            replace(parts, name, part);
        }
        let services = self.services.values();
        let mut table = WireTable {
            number: self.table.number,
            since: 0,
            trusted_proxies: self.config.trusted_proxies.clone(),
            forwarded: self.config.forwarded,
            max_connections: self.config.max_connections,
            listeners: table::listeners(services, &self.listeners, &self.certificates),
            services: parts.values().cloned().collect(),
            removed: Vec::new(),
        };
        let is_new = is_first || table != *self.table;
        if is_new {
            table.number += 1;
            self.table = table.into();
        }
        is_new
    }

    /// Without systemd nothing is left to be taken over.
    fn write_state(&mut self) {
        if self.world.units.is_none() {
            return;
        }
        if let Err(error) = self.try_write_state() {
            tracing::error!(error = %error, "state not written, a restart of smoothserve would not find its instances");
        }
    }

    fn try_write_state(&mut self) -> io::Result<()> {
        let Published {
            saved,
            unsaved,
            saved_config,
            ..
        } = &mut self.published;
        for name in std::mem::take(unsaved) {
            match self.services.get(&name) {
                Some(service) => drop(saved.insert(name, to_raw_value(&service.save())?.into())),
                None => drop(saved.remove(&name)),
            }
        }
        let config = match saved_config {
            Some(config) => config,
            None => saved_config.insert(to_raw_value(&self.config)?),
        };
        self.state_file.write(&State {
            next_id: self.world.next_id,
            last_job: self.world.jobs.last(),
            table: self.table.number,
            worker_generation: self.workers.last_generation(),
            workers: self.workers.save(),
            listeners: self.listeners.save(),
            config,
            services: saved.clone(),
        })
    }

    fn publish_snapshot(&mut self, different: &BTreeSet<String>) {
        let summary = self.summary();
        let stage = self.stage();
        if stage == Stage::Up && self.world.supervision.stage() == Stage::Starting {
            let services = self.services.len();
            tracing::info!(message_id = events::READY, services, "smoothserve ready");
        }
        self.world.supervision.tell(stage, &summary);
        let statuses = &mut self.published.statuses;
        for name in different {
            let service = self.services.get(name).filter(|it| !it.is_removed());
            let status = service.map(|service| service.status(&self.certificates));
            replace(statuses, name, status);
        }
        let snapshot = Snapshot {
            summary,
            uid: rustix::process::geteuid().as_raw(),
            journal: journal::is_behind(std::io::stderr()),
            services: statuses.clone(),
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

    /// What systemd is to think of it.
    fn stage(&self) -> Stage {
        let came_up = || {
            let mut services = self.services.values();
            self.workers.are_serving() && services.all(Service::has_come_up)
        };
        match self.world.supervision.stage() {
            _ if self.phase != Phase::Serving => Stage::Stopping,
            // Only when it is up it can be reloading.
            Stage::Starting if came_up() => Stage::Up,
            Stage::Starting => Stage::Starting,
            _ if self.world.jobs.are_reloading() => Stage::Reloading,
            _ => Stage::Up,
        }
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

/// Keeps what is the same, so that it is quick to compare.
fn replace<T: PartialEq>(known: &mut BTreeMap<String, Arc<T>>, name: &str, now: Option<T>) {
    match now {
        None => drop(known.remove(name)),
        Some(now) if known.get(name).is_some_and(|before| **before == now) => {}
        Some(now) => drop(known.insert(name.to_owned(), Arc::new(now))),
    }
}
