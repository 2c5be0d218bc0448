//! How the owner reacts to its workers: takes in their messages, and replaces workers that have
//! ended.
//!
//! The owner trusts a worker as little as possible: a message about an unknown instance, or about
//! an instance in a state that the message does not fit, is ignored, and a worker that sends too
//! many is replaced.

use std::time::Instant;

use super::end::{DrainLimits, look_at_end, stop_instances};
use super::manager::{Manager, Phase};
use crate::config::Bind;
use crate::events;
use crate::ipc::{EndpointCounts, EndpointId, FromWorker};
use crate::manager::event::{Event, News, WorkerEvent};
use crate::manager::worker::{ExpectedReport, IDLE_WHEN_REPLACED};

/// Starts a new worker. Older workers keep accepting until the new one serves.
pub(super) fn start_worker(manager: &mut Manager) {
    let unix_sockets = needs_unix_sockets(manager);
    let sees_mounts = manager.world.socket_folders.is_shared();
    let level = &manager.log_level;
    match manager.workers.spawn(level, unix_sockets, sees_mounts) {
        Ok(()) => send_all(manager, manager.workers.last_generation()),
        Err(error) => worker_failed(manager, &format!("cannot start it: {error}")),
    }
}

/// Sends all that a worker needs to serve.
fn send_all(manager: &mut Manager, generation: u32) {
    let listeners = manager.listeners.sockets();
    let (table, certificates) = (manager.published.table(), &manager.certificates);
    let workers = &mut manager.workers;
    workers.send_all(generation, listeners, table, certificates);
}

/// Replaces a worker that cannot connect to unix sockets if a service needs them now.
pub(super) fn look_at_unix_sockets(manager: &mut Manager) {
    let current = manager.workers.current();
    if manager.phase == Phase::Serving
        && current.is_some_and(|worker| !worker.unix_sockets)
        && needs_unix_sockets(manager)
    {
        tracing::info!("a service needs unix sockets now, replacing the worker");
        start_worker(manager);
    }
}

/// Returns true if an instance listens on a unix socket, or will.
fn needs_unix_sockets(manager: &Manager) -> bool {
    let mut services = manager.services.values();
    services.any(|service| {
        let spec = service.spec();
        spec.process.bind == Bind::Unix && (spec.enabled || service.is_wanted())
    }) || manager.published.table().has_unix_sockets()
}

/// Takes in an event of a worker.
pub(super) fn take_worker_event(manager: &mut Manager, generation: u32, event: WorkerEvent) {
    match event {
        WorkerEvent::Says(message, _place) => take_message(manager, generation, message),
        WorkerEvent::Lost => {
            if let Some(worker) = manager.workers.get_mut(generation) {
                worker.draining = true;
            }
            if manager.workers.current().is_none() && manager.phase == Phase::Serving {
                start_worker(manager);
            }
        }
        WorkerEvent::Gone(ending) => worker_gone(manager, generation, &ending),
    }
}

fn take_message(manager: &mut Manager, generation: u32, message: FromWorker) {
    let told = (
        manager.published.table().number,
        manager.workers.last_ping(),
        manager.world.owners.len(),
    );
    let Some(worker) = manager.workers.get_mut(generation) else {
        return;
    };
    let (services, owners) = (&manager.services, &manager.world.owners);
    let expected = |endpoint: EndpointId| {
        let owner = owners.get(&endpoint.0);
        let service = owner.and_then(|name| services.get(name));
        service.map_or(ExpectedReport::Nothing, |service| {
            service.expected_report(endpoint.0)
        })
    };
    if !worker.takes(&message, told, expected) {
        return;
    }
    match message {
        FromWorker::Hello {
            version,
            messages,
            unix_sockets,
        } => {
            tracing::info!(version = &*version, "worker connected");
            worker.unix_sockets = unix_sockets;
            if worker.greets(messages) {
                send_all(manager, generation);
            } else if !worker.speaks() {
                tracing::info!(
                    pid = worker.pid,
                    "worker speaks another version of the messages, it serves on with its last table"
                );
                let_drains_wait(manager);
            }
            look_at_unix_sockets(manager);
        }
        FromWorker::Acknowledged(table) => {
            worker.applied = table;
            if std::mem::replace(&mut worker.serving, true) {
                return;
            }
            let limits = DrainLimits::of(&manager.services);
            manager
                .workers
                .drain_older_than(generation, limits.requests, limits.tunnels);
            let_drains_wait(manager);
        }
        FromWorker::Probed { endpoint, result } => {
            manager.hear(endpoint.0, News::Probed(result.map_err(String::from)));
        }
        FromWorker::Health { endpoint, fault } => {
            manager.hear(endpoint.0, News::Health(fault.map(String::from)));
        }
        FromWorker::Idle(endpoint) => {
            if worker.idle.insert(endpoint) {
                look_at_idle(manager, endpoint);
            }
        }
        FromWorker::OnlyTunnels => {
            worker.only_tunnels = true;
            look_at_all_idle(manager);
            look_at_end(manager);
        }
        FromWorker::Counts {
            connections,
            bounds,
            endpoints,
        } => {
            worker.bounds = (connections, bounds);
            for counts in endpoints {
                take_counts(manager, generation, counts);
            }
        }
        FromWorker::Refused(_) => worker.refuses_table(),
        FromWorker::Pong(_) => worker.unanswered = 0,
        FromWorker::NotUnderstood => {}
    }
}

/// Makes drains that begin from now on wait as long as a worker that gets no tables may send
/// requests to the instance. They end earlier if the clients of that worker leave.
pub(super) fn let_drains_wait(manager: &mut Manager) {
    let longest = DrainLimits::of(&manager.services).requests + IDLE_WHEN_REPLACED;
    let is_needed = manager.workers.have_unaware();
    manager.world.drains_until = is_needed.then(|| Instant::now() + longest);
}

/// Takes in the counts of an endpoint if they differ from the last ones. Most do not differ,
/// because most instances get no requests in between.
fn take_counts(manager: &mut Manager, generation: u32, counts: EndpointCounts) {
    let owner = manager.world.owners.get(&counts.id.0);
    let service = owner.and_then(|name| manager.services.get(name));
    if service.is_some_and(|service| !service.has_counted(generation, &counts)) {
        manager.hear(counts.id.0, News::Counts(generation, counts));
    }
}

/// Looks at the endpoints that may have been waiting for one worker alone.
fn look_at_all_idle(manager: &mut Manager) {
    for endpoint in manager.workers.idle_endpoints() {
        look_at_idle(manager, endpoint);
    }
}

fn look_at_idle(manager: &mut Manager, endpoint: EndpointId) {
    if manager.workers.is_idle(endpoint) {
        manager.hear(endpoint.0, News::Idle);
    }
}

fn worker_gone(manager: &mut Manager, generation: u32, ending: &str) {
    let Some(worker) = manager.workers.remove(generation) else {
        return;
    };
    if !manager.workers.have_unaware() {
        manager.world.drains_until = None;
    }
    let seen = manager.workers.see_mounts();
    manager.world.socket_folders.seen_by_workers(seen);
    for service in manager.services.values_mut() {
        service.worker_gone(generation, &mut manager.world);
    }
    look_at_all_idle(manager);
    match manager.phase {
        Phase::Serving if worker.draining => {
            tracing::info!(pid = worker.pid, status = ending, "old worker ended");
        }
        Phase::Serving => worker_failed(manager, ending),
        _ if manager.workers.is_empty() => {
            tracing::info!(status = ending, "worker ended");
            stop_instances(manager);
        }
        _ => look_at_end(manager),
    }
}

/// Starts another worker. Waits first if the failed worker lived only for a moment.
fn worker_failed(manager: &mut Manager, ending: &str) {
    tracing::error!(
        message_id = events::WORKER_ENDED,
        error = ending,
        "worker ended, starting another"
    );
    let Some(wait) = manager.workers.pause_after_failure() else {
        return start_worker(manager);
    };
    let reports = manager.world.reports.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(wait).await;
        let _ = reports.send(Event::WorkerDue);
    });
}
