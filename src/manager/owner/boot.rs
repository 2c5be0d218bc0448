//! The start of a manager when there is nothing to take over from an earlier one.

use std::collections::BTreeSet;

use super::disk::{Found, Reading};
use super::from_workers::start_worker;
use super::manager::Manager;
use super::ports::{adopt_listeners, bind_logged, ports_of};
use super::reload::{adopt, take_certificates};
use crate::events;
use crate::manager::service::{PlanReason, Service};

/// Starts the configured services. A service with faults is logged and skipped; the others start.
/// Returns false if the configuration could not be read, so nobody knows what is needed.
pub(super) async fn boot(manager: &mut Manager) -> bool {
    let reading = Reading::Partial(manager.config_dir.clone());
    let found = reading.run().await.unwrap_or_else(|error| {
        tracing::error!(error = %error, "nothing is started before the next reload");
        Found::default()
    });
    let is_read = found.config.is_some();
    let Found {
        config,
        faults,
        mut services,
        ..
    } = found;
    let config = config.unwrap_or_else(|| (*manager.config).clone());
    manager.set_log_level(&config);
    if !faults.is_empty() {
        tracing::error!(
            message_id = events::CONFIGURATION_REFUSED,
            error = %faults,
            "configuration has faults, the services without any are started"
        );
    }
    let wanted = ports_of(manager, &config, &BTreeSet::new(), None);
    let (bound, _) = bind_logged(manager, &wanted);
    adopt_listeners(manager, bound, &wanted);
    take_certificates(manager, &mut services);
    let mut plans = Vec::new();
    let mut failures = Vec::new();
    for files in services {
        let spec = files.spec;
        let Some(material) = files.material else {
            let fault = files.fault.map(std::io::Error::other);
            failures.extend(fault.map(|fault| (spec.name.clone(), fault)));
            continue;
        };
        match Service::new(spec.clone()).plan(&spec, material, PlanReason::Reload) {
            Ok(plan) => plans.push(plan),
            Err(error) => failures.push((spec.name.clone(), error)),
        }
    }
    adopt(manager, config, plans);
    // The configuration decides what a worker has to reach.
    start_worker(manager);
    for (name, error) in failures {
        if let Some(service) = manager.services.get_mut(&name) {
            service.not_started(&error.to_string());
        }
    }
    is_read
}
