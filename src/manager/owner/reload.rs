//! How a configuration becomes the current one, once it was read.
//!
//! All services that a change concerns are planned before any of them is changed, so a fault in one
//! of them leaves everything as it was.

use std::time::Instant;

use super::disk::{Found, ServiceFiles};
use super::manager::Manager;
use super::ports::{adopt_listeners, conflicts, locate, ports_of};
use crate::config::Config;
use crate::events;
use crate::manager::handle::CommandError;
use crate::manager::jobs::Goal;
use crate::manager::service::{Plan, PlanReason, Service};
use crate::manager::worker::certificates::ServiceCertificates;
use crate::status::JobKind;

/// Applies all changes that were found on disk, or none if there is a fault in them. Returns the
/// number of the job.
pub(super) fn reload(manager: &mut Manager, found: Found) -> Result<u32, CommandError> {
    let Some(config) = found.config else {
        return Err(refused(found.faults.to_string()));
    };
    let wanted = ports_of(manager, &config, None);
    let (bound, errors) = manager.listeners.bind(&wanted);
    let mut faults: Vec<String> = errors.iter().map(|error| locate(&config, error)).collect();
    for conflict in conflicts(manager, config.services.values(), None) {
        let file = &config.services[&conflict.second].file;
        faults.push(format!("{}: {}", file.display(), conflict.message));
    }
    let mut plans = Vec::new();
    let mut certificates = ServiceCertificates::default();
    for files in found.services {
        let spec = &files.spec;
        let file = spec.file.display();
        if let Some(fault) = files.fault.filter(|_| spec.enabled) {
            faults.push(format!("{file}: {fault}"));
        }
        certificates.extend(files.certificates);
        let Some(material) = files.material else {
            continue;
        };
        let planned = match manager.services.get(&spec.name) {
            Some(service) => service.plan(spec, material, PlanReason::Reload),
            None => Service::new(spec.clone()).plan(spec, material, PlanReason::Reload),
        };
        match planned {
            Ok(plan) => plans.push(plan),
            Err(error) => faults.push(format!("{file}: {error}")),
        }
    }
    if !faults.is_empty() {
        return Err(refused(faults.join("\n")));
    }
    manager.certificates = certificates.into();
    adopt_listeners(manager, bound, &wanted);
    let parts = adopt(manager, config, plans);
    tracing::info!(
        message_id = events::CONFIGURATION_APPLIED,
        changed = parts.len(),
        "configuration applied"
    );
    Ok(manager
        .world
        .jobs
        .begin(JobKind::Reload, "", parts, Instant::now()))
}

/// Takes the certificates of a configuration that is applied in any case. A certificate that cannot
/// be read is logged and left out.
pub(super) fn take_certificates(manager: &mut Manager, services: &mut [ServiceFiles]) {
    let mut certificates = ServiceCertificates::default();
    for files in services.iter_mut() {
        // A command can start a service that its file disables.
        if let Some(fault) = files.fault.as_ref().filter(|_| files.spec.enabled) {
            tracing::error!(
                service = files.spec.name,
                error = %fault,
                "certificate not read, clients cannot connect to the TLS ports of this service"
            );
        }
        certificates.extend(std::mem::take(&mut files.certificates));
    }
    manager.certificates = certificates.into();
}

/// Makes a configuration and the plans for its services current. Returns the goals that a job has
/// to wait for, by service.
pub(super) fn adopt(
    manager: &mut Manager,
    config: Config,
    plans: Vec<Plan>,
) -> Vec<(String, Goal)> {
    for note in config
        .notes
        .iter()
        .filter(|note| !manager.config.notes.contains(note))
    {
        tracing::warn!(note, "configuration note");
    }
    manager.set_log_level(&config);
    manager.world.default_user.clone_from(&config.default_user);
    manager.config = config.into();
    manager.world.ports.claim(&manager.config);
    let mut parts = Vec::new();
    let gone = manager.services.iter().filter(|(name, service)| {
        !manager.config.services.contains_key(*name) && !service.is_removed()
    });
    let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
    for name in gone {
        if let Some(service) = manager.services.get_mut(&name) {
            tracing::info!(service = name, "removing service");
            service.stop(true, &mut manager.world);
            parts.push((name, Goal::Stopped));
        }
    }
    for (name, spec) in &manager.config.services {
        if !manager.services.contains_key(name) {
            manager
                .services
                .insert(name.clone(), Service::new(spec.clone()));
        }
    }
    for plan in plans {
        let name = plan.spec().name.clone();
        let service = manager
            .services
            .get_mut(&name)
            .expect("all configured services are there");
        if let Some(goal) = service.apply(plan, &mut manager.world) {
            parts.push((name, goal));
        }
    }
    watch_files(manager);
    parts
}

/// Tells the watcher which files of all services to watch.
pub(super) fn watch_files(manager: &mut Manager) {
    let watched = manager
        .services
        .values()
        .filter(|service| !service.is_removed());
    manager
        .watcher
        .set(watched.map(|service| &**service.spec()));
}

/// Returns the error for a command that a configuration with faults has refused.
pub(super) fn refused(report: String) -> CommandError {
    CommandError::InvalidConfig(report)
}

/// Logs that a reload was refused.
pub(super) fn report_refusal(error: &CommandError) {
    tracing::error!(
        message_id = events::CONFIGURATION_REFUSED,
        error = %error,
        "configuration refused"
    );
}
