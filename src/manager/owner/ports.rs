//! The ports that are to be open, and what stands between services that want the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::manager::Manager;
use crate::config::{self, Config, Listen, ServiceConfig};
use crate::manager::service::Service;
use crate::manager::worker::listeners::{BindError, BoundSockets, SocketKeeper};

/// The addresses that are to be open: those of enabled services, even if they were stopped, since
/// clients are to be told so, and those of services that were started by hand, or are about to be
/// (`starting`).
pub(super) fn ports_of(
    manager: &Manager,
    config: &Config,
    starting: Option<&str>,
) -> BTreeSet<Listen> {
    let specs = config.services.values();
    let wanted = specs.filter(|spec| is_to_run(manager, spec, starting));
    wanted
        .flat_map(|spec| spec.listen.iter().copied())
        .collect()
}

/// The conflicts between services, those that were started by hand, or are about to be, counted as
/// enabled.
pub(super) fn conflicts<'a>(
    manager: &Manager,
    specs: impl Iterator<Item = &'a Arc<ServiceConfig>>,
    starting: Option<&str>,
) -> Vec<config::Conflict> {
    let as_it_runs = |spec: &Arc<ServiceConfig>| ServiceConfig {
        enabled: is_to_run(manager, spec, starting),
        ..(**spec).clone()
    };
    let specs: Vec<ServiceConfig> = specs.map(as_it_runs).collect();
    config::conflicts(&specs)
}

fn is_to_run(manager: &Manager, spec: &ServiceConfig, starting: Option<&str>) -> bool {
    let started = manager
        .services
        .get(&spec.name)
        .is_some_and(Service::is_wanted);
    spec.enabled || started || starting == Some(&spec.name)
}

/// Keeps the sockets that were bound for a change, hands them to the worker and to systemd, and
/// closes those that are not wanted any more.
pub(super) fn adopt_listeners(
    manager: &mut Manager,
    bound: BoundSockets,
    wanted: &BTreeSet<Listen>,
) {
    let last = manager.listeners.last_id();
    let closed = manager.listeners.adopt(bound, wanted);
    for (_, listener) in manager.listeners.iter() {
        if listener.id > last {
            manager.workers.send_listener(listener);
            if let SocketKeeper::Store(name) = &listener.keeper {
                manager.world.supervision.store(name, listener.descriptor());
            }
        }
    }
    let_go(manager, closed);
}

/// Has systemd close the sockets that it holds, too.
pub(super) fn let_go(manager: &Manager, keepers: Vec<SocketKeeper>) {
    for keeper in keepers {
        match (keeper, manager.world.units) {
            (SocketKeeper::Store(name), _) => manager.world.supervision.forget(&name),
            (SocketKeeper::Unit(unit), Some(units)) => {
                tokio::task::spawn_local(async move {
                    if let Err(error) = units.stop(&unit).await {
                        tracing::error!(unit, error = %error, "socket unit not stopped");
                    }
                });
            }
            (SocketKeeper::Unit(_), None) => {}
        }
    }
}

/// Why a port cannot be opened, after the files that ask for it.
pub(super) fn locate(config: &Config, error: &BindError) -> String {
    let services = config.services.values();
    let users = services.filter(|service| service.listen.contains(&error.listen));
    let files: BTreeSet<String> = users
        .map(|service| service.file.display().to_string())
        .collect();
    let files: Vec<String> = files.into_iter().collect();
    format!("{}: {error}", files.join(", "))
}
