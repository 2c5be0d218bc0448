//! How the manager ends.
//!
//! [`Phase`] moves only forward. First the workers drain, with all instances still up; then the
//! instances are told to stop, which nobody is connected to any more; with the last of them the
//! manager ends.
//!
//! Under systemd, if the manager is asked to end only to be started again, it just ends: workers
//! and instances live on and serve, and the next manager takes them over.

use std::time::Duration;

use super::manager::{Manager, Phase};
use super::services::Services;
use crate::config::Times;
use crate::manager::event::Event;
use crate::manager::service::Service;

/// Asks systemd whether the manager is only to be started again; without systemd everything ends.
pub(super) fn ask_for_restart(manager: &mut Manager) {
    let Some(units) = manager.world.units else {
        return begin_end(manager);
    };
    let reports = manager.world.reports.clone();
    tokio::task::spawn_local(async move {
        let restarting = units.is_restarting().await.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "cannot find out why to end, ending everything");
            false
        });
        let _ = reports.send(Event::Restarting(restarting));
    });
}

/// Begins the end: the workers serve what they have accepted, with all instances still up.
pub(super) fn begin_end(manager: &mut Manager) {
    manager.phase = Phase::DrainingWorkers;
    tracing::info!("ending: draining all connections");
    let limits = DrainLimits::of(&manager.services);
    let tunnels = limits.requests + limits.tunnels;
    manager.workers.drain_all(limits.requests, tunnels);
    if manager.workers.is_empty() {
        stop_instances(manager);
    }
}

/// Cuts the present phase of the end short, because the manager was told again to end.
pub(super) fn end_faster(manager: &mut Manager) {
    match manager.phase {
        Phase::DrainingWorkers => {
            tracing::warn!("told to end again, cutting off what is still open");
            manager.workers.kill();
            stop_instances(manager);
        }
        Phase::StoppingInstances => {
            tracing::warn!("told to end again, killing the instances");
            manager.services.values_mut().for_each(Service::kill);
        }
        Phase::Serving | Phase::Leaving => {}
    }
}

/// Tells the instances to stop once nothing but tunnels is left: they have the time of their
/// tunnels to end these.
pub(super) fn look_at_end(manager: &mut Manager) {
    if manager.phase == Phase::DrainingWorkers && manager.workers.have_only_tunnels() {
        stop_instances(manager);
    }
}

/// Tells all instances to stop.
pub(super) fn stop_instances(manager: &mut Manager) {
    manager.phase = Phase::StoppingInstances;
    for service in manager.services.values_mut() {
        service.stop(false, &mut manager.world);
        if manager.workers.is_empty() {
            service.no_worker(&mut manager.world);
        }
    }
}

/// Returns true if nothing is left to be done.
pub(super) fn has_ended(manager: &Manager) -> bool {
    match manager.phase {
        Phase::Serving | Phase::DrainingWorkers => false,
        Phase::StoppingInstances => manager.services.values().all(Service::is_empty),
        Phase::Leaving => true,
    }
}

/// How long a worker may drain: as long as the most patient of its services allows.
pub(super) struct DrainLimits {
    /// The time for requests.
    pub(super) requests: Duration,
    /// The time for tunnels.
    pub(super) tunnels: Duration,
}

impl DrainLimits {
    /// The limits that these services ask for.
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
