//! The takeover: a new manager continues with the workers and instances of an earlier manager.
//!
//! Under systemd, workers and instances keep running and serving when the manager ends, for
//! whatever reason. The next manager reads the saved state and continues from there. If the state
//! is one of a newer build, the manager goes by the frozen part of it and by the files of the
//! configuration: all instances serve on, and are replaced as at a deploy.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::boot::boot;
use super::disk::{Found, Reading, open_again};
use super::from_workers::{let_drains_wait, start_worker};
use super::handover::want_routes;
use super::manager::Manager;
use super::ports::{drop_unused, reset_failed, store_all};
use super::reload::{refused, reload, report_refusal, take_certificates};
use super::state::{FoundState, SavedState};
use crate::events;
use crate::holder::{self, Holder};
use crate::manager::host::notify::NOTIFY_PREFIX;
use crate::manager::process::executable::STORED_PREFIX;
use crate::manager::process::unix_socket::SocketPlace;
use crate::manager::rollout::InstanceId;
use crate::manager::routes::Ownership;
use crate::manager::service::{SavedService, Service};
use crate::manager::{instance, worker};
use crate::systemd::given::Given;
use crate::systemd::units::{Scope, Units};

/// A pattern that matches the names of all scopes that smoothserve makes.
const ALL_SCOPES: &str = "smoothserve-*.scope";

/// How long unknown workers may drain before the scopes of unknown instances are ended. systemd
/// kills a worker that takes longer.
const WORKERS_END: Duration = Duration::from_secs(90);

/// Takes the sockets of ports that a holder has kept open while smoothserve was stopped. The holder
/// keeps them, too, until it is released.
pub(super) async fn held_ports(given: &mut Given, run_dir: &Path) -> Option<Holder> {
    given.supervisor?;
    match holder::take_over(run_dir).await {
        Ok(Some((holder, sockets))) => {
            given.add("held", sockets);
            Some(holder)
        }
        Ok(None) => None,
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "ports not taken over from their holder"
            );
            None
        }
    }
}

/// Returns the names of the scopes that an earlier smoothserve has left running.
pub(super) async fn scopes(given: &Given) -> BTreeSet<String> {
    if given.supervisor.is_none() {
        return BTreeSet::new();
    }
    let scopes = Units::of_this_process().list(ALL_SCOPES).await;
    let mut scopes = scopes.unwrap_or_else(|error| {
        tracing::error!(error = %error, "cannot ask systemd which instances and workers are running");
        BTreeSet::new()
    });
    scopes.retain(|name| !holder::is_scope_name(name));
    scopes
}

/// Takes over what an earlier manager has left, or starts from nothing. Ends running scopes that
/// the saved state does not name.
pub(super) async fn take_over(manager: &mut Manager, mut given: Given, scopes: BTreeSet<String>) {
    let state = manager.published.read_state().unwrap_or_else(|error| {
        tracing::error!(error = %error, "the state of the last manager cannot be read");
        None
    });
    // New numbers begin above those of all running scopes and of all folders, even of unknown ones,
    // so no name is used twice.
    let folders = manager.world.socket_folders.numbers();
    let running = scopes.iter().filter_map(|scope| number(scope));
    let last = running.chain(folders.last().copied()).max();
    manager.world.next_id += last.unwrap_or_default();
    manager
        .workers
        .number_on_from(last.unwrap_or_default().try_into().unwrap_or_default());
    let state = match state.filter(|_| manager.world.units.is_some()) {
        Some(FoundState::Whole(state)) => Some(*state),
        Some(FoundState::Frozen(state, why)) => {
            tracing::error!(
                error = why,
                "the state of the last manager is that of another build, its instances serve on until others have replaced them"
            );
            let found = Reading::Partial(manager.config_dir.clone()).run().await;
            let found = found.unwrap_or_else(|error| {
                tracing::error!(error = %error, "configuration not read");
                Found::default()
            });
            found.config.map(|config| state.with_configuration(config))
        }
        None => None,
    };
    let is_read = match state {
        Some(state) => {
            let executables = given.take_stored(STORED_PREFIX).into_iter();
            let sockets = given.take_stored(NOTIFY_PREFIX);
            restore(manager, state, executables.chain(sockets).collect()).await;
            true
        }
        None => boot(manager).await,
    };
    if is_read {
        drop_unused(manager);
    }
    forget_unknown(manager, &given, scopes, folders);
}

async fn restore(manager: &mut Manager, state: SavedState, mut stored: BTreeMap<String, OwnedFd>) {
    manager.set_log_level(&state.config);
    manager.world.next_id = manager.world.next_id.max(state.next_id);
    manager.world.jobs.number_on_from(state.last_job);
    manager
        .world
        .default_user
        .clone_from(&state.config.default_user);
    // A service that was removed needs its certificate as long as it keeps a site for another one.
    let removed = state.services.values().map(SavedService::spec);
    let removed = removed.filter(|spec| !state.config.services.contains_key(&spec.name));
    let specs = state.config.services.values().chain(removed).cloned();
    match Reading::Certificates(specs.collect()).run().await {
        Ok(mut found) => take_certificates(manager, &mut found.services),
        Err(error) => tracing::error!(error = %error, "certificates not read"),
    }
    manager.config = state.config;
    manager.world.ports.claim(&manager.config);
    for error in manager.listeners.restore(state.listeners) {
        tracing::error!(error = %error, "port not opened, its services are not reachable there");
    }
    let is_stored = |name: &str| stored.contains_key(name);
    let closed = state.services.values().map(|saved| {
        let closed = saved.closed_executables(is_stored);
        // What is configured now may be elsewhere, and answer.
        let subject = format!("the executable that {} has run", saved.spec().name);
        (subject, closed)
    });
    let mut opened = open_again(closed.collect()).await;
    for (name, saved) in state.services {
        let service = Service::restore(saved, &mut stored, &mut opened, &mut manager.world);
        manager.services.insert(name, service);
    }
    for name in stored.keys() {
        manager.world.supervision.forget(name);
    }
    manager.world.jobs.restore(state.jobs, Instant::now());
    for (name, service) in manager.services.iter() {
        let jobs = &mut manager.world.jobs;
        let has_given_up = |generation| service.has_given_up(generation);
        jobs.give_up(name, has_given_up, service.last_error(), Instant::now());
    }
    if let Some(routes) = state.routes {
        manager.routes = Ownership::restore(routes);
    }
    manager.held = state.held;
    want_routes(manager);
    // From here on, each table is the successor of the last one, so it must not lack anything that
    // was routed before.
    manager.published.number_on_from(state.table);
    manager.workers.number_on_from(state.worker_generation);
    state
        .workers
        .iter()
        .for_each(|saved| manager.workers.adopt(saved));
    let seen = manager.workers.see_mounts();
    manager.world.socket_folders.seen_by_workers(seen);
    for listener in manager.listeners.sockets() {
        manager.workers.send_listener(listener);
    }
    // A unit that has opened a socket may be stopped.
    store_all(manager);
    match manager.workers.current().map(|worker| worker.is_current()) {
        Some(true) => {}
        Some(false) => {
            tracing::info!("another smoothserve is installed now, replacing the worker");
            start_worker(manager);
        }
        None => start_worker(manager),
    }
    // Nobody knows yet which workers understand tables.
    let_drains_wait(manager);
    for service in manager.services.values_mut() {
        service.tick(&mut manager.world);
    }
    tracing::info!(
        message_id = events::TOOK_OVER,
        services = manager.services.len(),
        "took over from the last smoothserve"
    );
    // Applies what has changed on disk in between, or what a pending reload would have applied.
    let reading = Reading::Configuration(manager.config_dir.clone());
    let found = reading.run().await;
    let found = found.map_err(|error| refused(error.to_string()));
    if let Err(error) = found.and_then(|found| reload(manager, found)) {
        report_refusal(&error);
        tracing::error!(error = %error, "changes on disk not applied, smoothserve continues with the last good configuration");
    }
}

/// Ends scopes, drops stored descriptors and removes folders that the saved state does not name.
fn forget_unknown(
    manager: &mut Manager,
    given: &Given,
    scopes: BTreeSet<String>,
    mut folders: BTreeSet<InstanceId>,
) {
    reset_failed(manager);
    for name in given.left() {
        tracing::info!(name, "stored descriptor is not needed any more");
        manager.world.supervision.forget(name);
    }
    let Some(units) = manager.world.units else {
        return;
    };
    let workers = manager.workers.save();
    let workers = workers
        .iter()
        .map(|saved| worker::scope_name(saved.generation));
    let foreign = manager.workers.scopes_of_other_builds();
    let instances = manager.services.values().flat_map(scopes_of);
    let known: BTreeSet<String> = workers.chain(instances).collect();
    let unknown: BTreeSet<String> = scopes.difference(&known).cloned().collect();
    for name in &unknown {
        tracing::warn!(unit = name, "ending a process that nobody knows");
    }
    folders.retain(|id| !manager.world.owners.contains_key(id));
    let place = |id| (id, manager.world.socket_folders.place(id));
    let places: BTreeMap<InstanceId, SocketPlace> = folders.into_iter().map(place).collect();
    tokio::task::spawn_local(async move {
        end(units, unknown, foreign).await;
        for (id, place) in places {
            place.remove(&id.to_string());
        }
    });
}

/// Ends scopes: those of workers first, because the connections they have accepted need the
/// instances. So do those of the workers of other builds, which end by themselves.
async fn end(units: Units, scopes: BTreeSet<String>, foreign: Vec<Scope>) {
    let (workers, instances): (BTreeSet<String>, _) = scopes
        .into_iter()
        .partition(|name| worker::is_scope_name(name));
    let mut ending = JoinSet::new();
    for name in workers {
        ending.spawn_local(async move { units.scope(&name).end().await });
    }
    for worker in foreign.into_iter().filter(|_| !instances.is_empty()) {
        ending.spawn_local(async move { worker.ended().await });
    }
    // What does not end holds up the instances for a while only.
    let ended = async { while ending.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(WORKERS_END, ended).await;
    for name in &instances {
        units.scope(name).stop().await;
    }
}

/// Returns the number at the end of a scope's name.
fn number(scope: &str) -> Option<u64> {
    let name = scope.strip_suffix(".scope")?;
    name.rsplit_once('-')?.1.parse().ok()
}

/// Returns the names of the scopes of a service's instances.
fn scopes_of(service: &Service) -> impl Iterator<Item = String> {
    let name = &service.spec().name;
    let slots = service.slots();
    slots.map(move |(id, slot)| instance::scope_name(name, slot, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::host::notify;
    use crate::manager::process::executable;

    #[test]
    fn names_by_which_builds_find_what_others_have_left_never_change() {
        for (name, is) in [
            (worker::scope_name(3), "smoothserve-worker-3.scope"),
            (
                instance::scope_name("shop", 1, 7),
                "smoothserve-shop-1-7.scope",
            ),
            (executable::stored_name("shop", 2), "executable-shop-2"),
            (notify::stored_name(7), "notify-7"),
        ] {
            assert_eq!(name, is);
        }
        assert!(ALL_SCOPES.starts_with("smoothserve-") && STORED_PREFIX == "executable-");
    }
}
