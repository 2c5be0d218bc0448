//! The start of a manager when there is nothing to take over from an earlier one.

use super::from_workers::start_worker;
use super::manager::Manager;
use super::ports::{adopt_listeners, ports_of};
use super::reload::{adopt, read_certificates};
use crate::config;
use crate::events;
use crate::manager::service::{PlanReason, Service};

/// Starts the configured services. A service with faults is logged and skipped; the others start.
pub(super) fn boot(manager: &mut Manager) {
    let (config, faults) = config::load_partial(&manager.config_dir);
    manager.set_log_level(&config);
    if !faults.is_empty() {
        tracing::error!(
            message_id = events::CONFIGURATION_REFUSED,
            error = %faults,
            "configuration has faults, the services without any are started"
        );
    }
    let wanted = ports_of(manager, &config, None);
    let (bound, errors) = manager.listeners.bind(&wanted);
    for error in &errors {
        tracing::error!(
            message_id = events::PORT_NOT_OPENED,
            error = %error,
            "port not opened, its services are not reachable there"
        );
    }
    adopt_listeners(manager, bound, &wanted);
    read_certificates(manager, &config);
    let mut plans = Vec::new();
    let mut failures = Vec::new();
    for spec in config.services.values() {
        match Service::new(spec.clone()).plan(spec, PlanReason::Reload) {
            Ok(plan) => plans.push(plan),
            Err(error) => failures.push((spec.name.clone(), error)),
        }
    }
    adopt(manager, config, plans);
    // The configuration decides what a worker has to reach.
    start_worker(manager);
    for (name, error) in failures {
        if let Some(service) = manager.services.get_mut(&name) {
            service.not_started(&error);
        }
    }
}
