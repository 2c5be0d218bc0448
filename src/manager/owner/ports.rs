//! The ports that should be open, and the conflicts between services that want the same port.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::manager::Manager;
use crate::config::{self, Config, Listen, ServiceConfig};
use crate::events;
use crate::holder;
use crate::ipc::ListenerId;
use crate::manager::event::Event;
use crate::manager::service::Service;
use crate::manager::worker::listeners::{BindError, BoundSockets, OpenListener, SocketCopies};
use crate::systemd::units::{SOCKETS, Units};

/// A pattern that matches the names of all socket units of ports.
const ALL_PORTS: &str = "smoothserve-port-*.socket";

/// Returns the addresses that should be open. These are the addresses of enabled services, even of
/// stopped ones, so that their clients get an answer that says so; and the addresses of services
/// that a command has started, or is about to start (`starting`), without those that give way.
pub(super) fn ports_of(
    manager: &Manager,
    config: &Config,
    yielding: &BTreeSet<String>,
    starting: Option<&str>,
) -> BTreeSet<Listen> {
    let specs = config.services.values();
    let specs = specs.filter(|spec| !yielding.contains(&spec.name));
    let wanted = specs.filter(|spec| is_to_run(manager, spec, starting));
    wanted
        .flat_map(|spec| spec.listen.iter().copied())
        .collect()
}

/// Binds sockets for the wanted addresses that are not open yet, and logs those that cannot be
/// opened.
pub(super) fn bind_logged(
    manager: &Manager,
    wanted: &BTreeSet<Listen>,
) -> (BoundSockets, Vec<BindError>) {
    let (bound, errors) = manager.listeners.bind(wanted);
    for error in &errors {
        tracing::error!(
            message_id = events::PORT_NOT_OPENED,
            error = %error,
            "port not opened, its services are not reachable there"
        );
    }
    (bound, errors)
}

/// Returns what is in the way of `spec` if a command starts this one service while the others stay
/// as they are. A service that a command has started counts as enabled.
pub(super) fn conflict_with_others(
    manager: &Manager,
    spec: &Arc<ServiceConfig>,
) -> Option<config::Conflict> {
    let as_it_runs = |other: &Arc<ServiceConfig>| ServiceConfig {
        enabled: is_to_run(manager, other, Some(&spec.name)),
        ..(**other).clone()
    };
    let services = manager.services.values();
    let others = services
        .filter(|service| !service.is_removed())
        .map(Service::spec)
        .filter(|other| other.name != spec.name);
    let specs: Vec<ServiceConfig> = others.chain([spec]).map(as_it_runs).collect();
    // Others may be in the way of each other, if they could not be changed at a reload.
    config::conflicts(&specs)
        .into_iter()
        .find(|conflict| [&conflict.first, &conflict.second].contains(&&spec.name))
}

fn is_to_run(manager: &Manager, spec: &ServiceConfig, starting: Option<&str>) -> bool {
    let service = manager.services.get(&spec.name);
    let started = service.is_some_and(|service| service.would_run(spec));
    spec.enabled || started || starting == Some(&spec.name)
}

/// Keeps the sockets that were bound for a change, passes them to the workers and to systemd, and
/// closes the sockets that are no longer wanted, at once or once nobody can get them any more.
pub(super) fn adopt_listeners(
    manager: &mut Manager,
    bound: BoundSockets,
    wanted: &BTreeSet<Listen>,
) {
    let last = manager.listeners.last_id();
    let closed = manager.listeners.adopt(bound, wanted);
    pass_on(manager, last);
    let_go(manager, closed);
}

/// Closes the sockets that systemd or the holder has passed to this manager and that no service
/// uses. Called only when the configuration is known.
pub(super) fn drop_unused(manager: &mut Manager) {
    let last = manager.listeners.last_id();
    let closed = manager.listeners.drop_unused();
    pass_on(manager, last);
    let_go(manager, closed);
}

/// Closes the sockets that clients of other sockets can no longer get.
pub(super) fn close_passed(manager: &mut Manager, now: Instant) {
    let closed = manager.listeners.close_passed(now);
    let_go(manager, closed);
}

/// Passes all sockets that are newer than `last` to the workers and to systemd's store.
fn pass_on(manager: &Manager, last: ListenerId) {
    let new = |listener: &&OpenListener| listener.id > last;
    for listener in manager.listeners.sockets().filter(new) {
        manager.workers.send_listener(listener);
        store(manager, listener);
    }
}

/// Has systemd keep all sockets for the next manager. Those that it keeps already stay once in its
/// store.
pub(super) fn store_all(manager: &Manager) {
    let sockets = manager.listeners.sockets();
    sockets.for_each(|listener| store(manager, listener));
}

fn store(manager: &Manager, listener: &OpenListener) {
    let supervision = &manager.world.supervision;
    supervision.store(&listener.copies.stored, listener.descriptor());
}

/// Leaves the ports that no socket unit holds to a holder, since smoothserve is being stopped and
/// nothing else would keep them open. If the socket units are stopped, too, all ports close.
pub(super) async fn leave_ports(manager: &Manager) {
    let Some(units) = manager.world.units else {
        return;
    };
    if let Err(error) = try_leave_ports(manager, units).await {
        let error = format!("{error:#}");
        tracing::error!(error, "ports without a socket unit not kept open");
    }
}

async fn try_leave_ports(manager: &Manager, units: Units) -> anyhow::Result<()> {
    if !units.is_to_stay(SOCKETS).await? {
        return Ok(());
    }
    let held = units.list_in(&["active"], ALL_PORTS).await?;
    let sockets = manager.listeners.sockets();
    let left: Vec<_> = sockets
        .filter(|listener| !held.contains(&listener.copies.unit))
        .map(|listener| (listener.copies.unit.as_str(), listener.descriptor()))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    holder::leave(&manager.world.run_dir, units, &left).await?;
    let ports: Vec<&str> = left.iter().map(|(unit, _)| *unit).collect();
    tracing::info!(
        unit = ports.join(", "),
        "a holder keeps the ports of these units open"
    );
    Ok(())
}

/// Makes socket units fine again that could not open their ports because smoothserve has them: they
/// were started while smoothserve was restarted.
pub(super) fn reset_failed(manager: &Manager) {
    let Some(units) = manager.world.units else {
        return;
    };
    let own = manager.listeners.sockets();
    let own: BTreeSet<String> = own.map(|listener| listener.copies.unit.clone()).collect();
    tokio::task::spawn_local(async move {
        let failed = units.list_in(&["failed"], ALL_PORTS).await;
        for unit in failed.unwrap_or_default().intersection(&own) {
            if let Err(error) = units.reset_failed(unit).await {
                tracing::warn!(unit, error = %error, "state of a socket unit not reset");
            }
        }
    });
}

/// Has systemd close its own copies of closing sockets.
fn let_go(manager: &mut Manager, closing: Vec<(ListenerId, SocketCopies)>) {
    for (id, SocketCopies { unit, stored }) in closing {
        manager.world.supervision.forget(&stored);
        let Some(units) = manager.world.units else {
            manager.listeners.let_go(id);
            continue;
        };
        let reports = manager.world.reports.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = units.stop_and_wait(&unit).await {
                tracing::error!(unit, error = %error, "socket unit not stopped");
            }
            let _ = reports.send(Event::PortLetGo(id));
        });
    }
}

/// Describes why a port cannot be opened. The text begins with the files that name the port.
pub(super) fn locate(config: &Config, error: &BindError) -> String {
    let services = config.services.values();
    let users = services.filter(|service| service.listen.contains(&error.listen));
    let files: BTreeSet<String> = users
        .map(|service| service.file.display().to_string())
        .collect();
    let files: Vec<String> = files.into_iter().collect();
    format!("{}: {error}", files.join(", "))
}
