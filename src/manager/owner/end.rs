//! The end of the manager.
//!
//! [`Phase`] only moves forward. First the workers drain while all instances are still up. Then the
//! instances are told to stop, when no worker is connected to them any more. When the last instance
//! has ended, the manager ends.
//!
//! Under systemd, a manager that is restarted ends at once: its workers and instances keep running
//! and serving, and the next manager takes them over.

use std::time::Duration;

use super::manager::{Manager, Phase};
use super::services::Services;
use crate::config::Times;
use crate::manager::event::Event;
use crate::manager::service::Service;

/// Asks systemd whether it will start the manager again. Without systemd, everything ends.
pub(super) fn ask_for_restart(manager: &mut Manager) {
    let Some(units) = manager.world.units else {
        return begin_end(manager);
    };
    let reports = manager.world.reports.clone();
    tokio::task::spawn_local(async move {
        // systemd itself ends the instances and workers at shutdown. So what runs is left alone if
        // systemd does not say what it wants.
        let restarting = units.is_restarting().await.unwrap_or_else(|error| {
            tracing::error!(
                error = %error,
                "cannot find out why to end: instances and workers run on"
            );
            true
        });
        let _ = reports.send(Event::Restarting(restarting));
    });
}

/// Begins the end: the workers finish the connections that they have accepted, while all instances
/// are still up.
pub(super) fn begin_end(manager: &mut Manager) {
    manager.phase = Phase::DrainingWorkers;
    tracing::info!("stopping: draining all connections");
    let limits = DrainLimits::of(&manager.services);
    let tunnels = limits.requests + limits.tunnels;
    manager.workers.drain_all(limits.requests, tunnels);
    if manager.workers.is_empty() {
        stop_instances(manager);
    }
}

/// Shortens the current phase of the end, because the manager was told to end a second time.
pub(super) fn end_faster(manager: &mut Manager) {
    match manager.phase {
        Phase::DrainingWorkers => {
            tracing::warn!("asked to stop again, cutting off open connections");
            manager.workers.kill();
            stop_instances(manager);
        }
        Phase::StoppingInstances => {
            tracing::warn!("asked to stop again, killing the instances");
            manager.services.values_mut().for_each(Service::kill);
        }
        Phase::Serving | Phase::Leaving => {}
    }
}

/// Tells the instances to stop once the workers have only tunnels left. The instances can then
/// close their tunnels themselves, within `tunnel_drain_timeout`.
pub(super) fn look_at_end(manager: &mut Manager) {
    if manager.phase == Phase::DrainingWorkers && manager.workers.have_only_tunnels() {
        stop_instances(manager);
    }
}

/// Tells all instances to stop.
pub(super) fn stop_instances(manager: &mut Manager) {
    manager.phase = Phase::StoppingInstances;
    for service in manager.services.values_mut() {
        service.stop(&mut manager.world);
        if manager.workers.is_empty() {
            service.no_worker(&mut manager.world);
        }
    }
}

/// Returns true if the manager has nothing left to wait for.
pub(super) fn has_ended(manager: &Manager) -> bool {
    match manager.phase {
        Phase::Serving | Phase::DrainingWorkers => false,
        Phase::StoppingInstances => manager.services.values().all(Service::is_empty),
        Phase::Leaving => true,
    }
}

/// How long a worker may drain: the longest limits that any of its services asks for.
pub(super) struct DrainLimits {
    /// The limit for requests.
    pub(super) requests: Duration,
    /// The limit for tunnels.
    pub(super) tunnels: Duration,
}

impl DrainLimits {
    /// Returns the longest limits that `services` ask for.
    pub(super) fn of(services: &Services) -> DrainLimits {
        let longest = |time: fn(&Times) -> Duration| {
            let times = services.values().map(|service| time(&service.spec().times));
            times.max().unwrap_or_default()
        };
        DrainLimits {
            requests: longest(|times| times.drain_timeout),
            tunnels: longest(|times| times.tunnel_drain_timeout),
        }
    }
}
