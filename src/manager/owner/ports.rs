//! The ports that should be open, and the conflicts between services that want the same port.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::manager::Manager;
use crate::config::{self, Config, Listen, ServiceConfig};
use crate::manager::service::Service;
use crate::manager::worker::listeners::{BindError, BoundSockets, SocketKeeper};

/// Returns the addresses that should be open. These are the addresses of enabled services, even of
/// stopped ones, so that their clients get an answer that says so; and the addresses of services
/// that a command has started, or is about to start (`starting`).
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

/// Returns the conflicts between services. A service that a command has started, or is about to
/// start (`starting`), counts as enabled.
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

/// Returns what is in the way of `spec` if this one service gets it while the others stay as they
/// are. `starting` is as for [`conflicts`].
pub(super) fn conflict_with_others(
    manager: &Manager,
    spec: &Arc<ServiceConfig>,
    starting: Option<&str>,
) -> Option<config::Conflict> {
    let services = manager.services.values();
    let others = services
        .filter(|service| !service.is_removed())
        .map(Service::spec)
        .filter(|other| other.name != spec.name);
    conflicts(manager, others.chain([spec]), starting)
        .into_iter()
        .next()
}

fn is_to_run(manager: &Manager, spec: &ServiceConfig, starting: Option<&str>) -> bool {
    let started = manager
        .services
        .get(&spec.name)
        .is_some_and(Service::is_wanted);
    spec.enabled || started || starting == Some(&spec.name)
}

/// Keeps the sockets that were bound for a change, passes them to the workers and to systemd, and
/// closes the sockets that are no longer wanted.
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

/// Has systemd close its own copies of closed sockets.
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
