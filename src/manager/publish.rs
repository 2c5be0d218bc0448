//! What comes of a change: a table for the workers, a state for the next manager, a snapshot for readers, a word to
//! systemd.

use std::sync::Arc;
use std::time::Instant;

use super::service::Service;
use super::state::State;
use super::status::{JobKind, JobState, JobStatus, Snapshot};
use super::supervision::Stage;
use super::{Manager, Phase, table};
use crate::events;
use crate::systemd::journal;

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
        let has_new_table = self.build_table();
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
        self.publish_snapshot();
    }

    fn build_table(&mut self) -> bool {
        let views = self.services.values().map(Service::view);
        let mut table = table::build(views, &self.listeners, &self.certificates, &self.config);
        table.number = self.table.number;
        // The first one is new even if nothing is in it: a worker serves once it has one.
        let is_new = table.number == 0 || table != self.table;
        if is_new {
            table.number += 1;
            self.table = table;
        }
        is_new
    }

    /// Without systemd nothing is left to be taken over.
    fn write_state(&mut self) {
        if self.world.units.is_none() {
            return;
        }
        let services = self.services.iter();
        let state = State {
            next_id: self.world.next_id,
            table: self.table.number,
            worker_generation: self.workers.last_generation(),
            workers: self.workers.save(),
            listeners: self.listeners.save(),
            config: self.config.clone(),
            services: services
                .map(|(name, service)| (name.clone(), service.save()))
                .collect(),
        };
        if let Err(error) = self.state_file.write(&state) {
            tracing::error!(error = %error, "state not written, a restart of smoothserve would not find its instances");
        }
    }

    fn publish_snapshot(&mut self) {
        let summary = self.summary();
        let stage = self.stage();
        if stage == Stage::Up && self.world.supervision.stage() == Stage::Starting {
            let services = self.services.len();
            tracing::info!(message_id = events::READY, services, "smoothserve ready");
        }
        self.world.supervision.tell(stage, &summary);
        let services = self
            .services
            .iter()
            .filter(|(_, service)| !service.is_removed());
        let snapshot = Snapshot {
            summary,
            uid: rustix::process::geteuid().as_raw(),
            journal: journal::is_behind(std::io::stderr()),
            services: services
                .map(|(name, service)| (name.clone(), service.status(&self.certificates)))
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

    /// What systemd is to think of it.
    fn stage(&self) -> Stage {
        let came_up = || {
            let mut services = self.services.values();
            self.workers.are_serving() && services.all(Service::has_come_up)
        };
        let is_reload =
            |job: &JobStatus| job.kind == JobKind::Reload && job.state == JobState::Running;
        match self.world.supervision.stage() {
            _ if self.phase != Phase::Serving => Stage::Stopping,
            // Only when it is up it can be reloading.
            Stage::Starting if came_up() => Stage::Up,
            Stage::Starting => Stage::Starting,
            _ if self.world.jobs.status().values().any(is_reload) => Stage::Reloading,
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
