//! What follows from a change: jobs get their progress, the workers a new table if it differs, the
//! next manager a saved state, readers a new snapshot, and systemd a status.

use std::time::Instant;

use super::end::DrainLimits;
use super::handover::move_routes;
use super::manager::{Manager, Phase};
use super::published::Sources;
use crate::events;
use crate::manager::host::supervision::SupervisionStage;
use crate::manager::service::Service;
use crate::manager::worker::Workers;
use crate::status::{ProxyStatus, kept_in_words};

/// Publishes the differences from what was published before. The state is saved first: the next
/// manager must know of everything that a worker or a process may have been told.
pub(super) fn settle(manager: &mut Manager) {
    move_routes(manager);
    let any_moved = settle_jobs(manager);
    let any_job = manager.world.jobs.have_changed();
    let touched = manager.services.take_touched();
    let summary = summary(manager);
    let sources = Sources {
        config: &manager.config,
        log_level: &manager.log_level,
        services: &manager.services,
        routes: &manager.routes,
        held: &manager.held,
        listeners: &manager.listeners,
        certificates: &manager.certificates,
    };
    let published = &mut manager.published;
    let different = published.note_differences(touched, &sources);
    let has_new_table = published.build_table(&different, &sources);
    let has_new_worker = manager.workers.have_changed();
    let is_to_be_saved = has_new_table || has_new_worker || any_moved || any_job;
    // Without systemd, workers and instances end with the manager, so there is nothing to save.
    if is_to_be_saved && manager.world.units.is_some() {
        let written = published.write_state(&sources, &manager.workers, &manager.world);
        if let Err(error) = written {
            tracing::error!(error = %error, "state not written, a restart of smoothserve would not find its instances");
        }
    }
    if has_new_table {
        let table = published.table();
        manager.workers.send_table(table, sources.certificates);
    }
    if std::mem::take(&mut manager.world.hurries_workers) {
        let limits = DrainLimits::of(&manager.services);
        let (requests, tunnels) = (limits.requests, limits.tunnels);
        manager.workers.hurry_unaware(requests, tunnels);
    }
    let table = published.table().number;
    let jobs = manager.world.jobs.status();
    let proxy = proxy_status(&manager.workers);
    published.show(&different, &sources, summary.clone(), proxy, jobs);
    debug_assert!(published.is_up_to_date(&sources));
    let applied = manager.workers.applied();
    manager.listeners.close_confirmed(table, applied);
    for permit in manager.world.permits.drain(..) {
        // Sending fails if the launcher was killed in between, and then it needs no permit.
        let _ = permit.send(());
    }
    tell_systemd(manager, &summary);
}

/// Updates the jobs with the progress of services that have moved, and drops removed services whose
/// last instance is gone. Returns true if any service has moved.
fn settle_jobs(manager: &mut Manager) -> bool {
    let now = Instant::now();
    let jobs = &mut manager.world.jobs;
    let moved = manager.services.take_moved();
    for name in &moved {
        let Some(service) = manager.services.get(name) else {
            continue;
        };
        jobs.progress(name, &service.progress(), now);
        if service.is_gone() {
            tracing::info!(service = name, "service removed");
            manager.services.remove(name);
            jobs.removed(name, now);
        }
    }
    for (name, service) in manager.services.iter().filter(|(_, it)| it.is_leaving()) {
        let awaited = service.kept().keys().map(String::as_str).collect();
        jobs.kept(name, &awaited, || kept_in_words(service.kept()), now);
    }
    jobs.forget(now);
    !moved.is_empty()
}

fn tell_systemd(manager: &mut Manager, summary: &str) {
    let stage = stage(manager);
    let supervision = &mut manager.world.supervision;
    if stage == SupervisionStage::Up && supervision.stage() == SupervisionStage::Starting {
        let services = manager.services.len();
        tracing::info!(message_id = events::READY, services, "smoothserve ready");
    }
    supervision.tell(stage, summary);
}

/// Returns the stage that systemd should see.
fn stage(manager: &Manager) -> SupervisionStage {
    let came_up = || {
        let mut services = manager.services.values();
        manager.workers.are_serving() && services.all(Service::has_come_up)
    };
    match manager.world.supervision.stage() {
        _ if manager.phase != Phase::Serving => SupervisionStage::Stopping,
        // A reload counts only after the manager has come up.
        SupervisionStage::Starting if came_up() => SupervisionStage::Up,
        SupervisionStage::Starting => SupervisionStage::Starting,
        _ if manager.world.jobs.are_reloading() => SupervisionStage::Reloading,
        _ => SupervisionStage::Up,
    }
}

fn proxy_status(workers: &Workers) -> ProxyStatus {
    let (connections, bounds) = workers.bounds();
    ProxyStatus {
        connections,
        most_connections: bounds.most_connections,
        waiting: bounds.waiting,
        refused_requests: bounds.refused_requests,
        refused_connections: bounds.refused_connections,
        closed_idle: bounds.closed_idle,
        memory: bounds.memory,
        most_memory: bounds.most_memory,
        overload: bounds.overload.words().map(Into::into),
        refused_streams: bounds.refused_streams,
        closed_largest: bounds.closed_largest,
    }
}

/// Returns the whole state in one line: `3 services, 8/8 instances ready; rolling shop 2/3`.
fn summary(manager: &Manager) -> String {
    let readiness = manager.services.values().map(Service::readiness);
    let (ready, wanted) = readiness.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let mut summary = match manager.phase {
        Phase::Serving => String::new(),
        _ => "ending; ".to_owned(),
    };
    let services = manager.services.len();
    let plural = if services == 1 { "" } else { "s" };
    summary += &format!("{services} service{plural}, {ready}/{wanted} instances ready");
    let busy = manager.services.iter().filter_map(|(name, service)| {
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
