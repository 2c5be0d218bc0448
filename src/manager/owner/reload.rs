//! How a configuration becomes the current one.
//!
//! All services that a change concerns are planned before any of them is changed, so a fault in one
//! of them leaves everything as it was.

use std::sync::Arc;
use std::time::Instant;

use super::from_workers::look_at_unix_sockets;
use super::manager::Manager;
use super::ports::{adopt_listeners, conflicts, locate, ports_of};
use crate::config::{self, Config, ServiceConfig};
use crate::events;
use crate::manager::handle::CommandError;
use crate::manager::jobs::Goal;
use crate::manager::service::{Plan, PlanReason, Service};
use crate::manager::worker::certificates::ServiceCertificates;
use crate::status::JobKind;

/// Applies all changes on disk, or none if there is a fault in them. Returns the number of the job.
pub(super) fn reload(manager: &mut Manager) -> Result<u32, CommandError> {
    let config = config::load(&manager.config_dir).map_err(|faults| refused(faults.to_string()))?;
    let wanted = ports_of(manager, &config, None);
    let (bound, errors) = manager.listeners.bind(&wanted);
    let mut faults: Vec<String> = errors.iter().map(|error| locate(&config, error)).collect();
    for conflict in conflicts(manager, config.services.values(), None) {
        let file = &config.services[&conflict.second].file;
        faults.push(format!("{}: {}", file.display(), conflict.message));
    }
    let mut plans = Vec::new();
    for spec in config.services.values() {
        match plan(manager, spec, PlanReason::Reload) {
            Ok(plan) => plans.push(plan),
            Err(error) => faults.push(format!("{}: {error}", spec.file.display())),
        }
    }
    let specs = config.services.values().map(|spec| &**spec);
    let (certificates, unread) = ServiceCertificates::read(specs);
    for (spec, fault) in unread.iter().filter(|(spec, _)| spec.enabled) {
        faults.push(format!("{}: {fault}", spec.file.display()));
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

/// Reads the certificates of a configuration that is applied in any case. A certificate that cannot
/// be read is logged and left out.
pub(super) fn read_certificates(manager: &mut Manager, config: &Config) {
    let specs = config.services.values().map(|spec| &**spec);
    let (certificates, unread) = ServiceCertificates::read(specs.filter(|spec| spec.enabled));
    for (spec, fault) in unread {
        tracing::error!(
            service = spec.name,
            error = %fault,
            "certificate not read, clients cannot connect to the TLS ports of this service"
        );
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
    look_at_unix_sockets(manager);
    parts
}

fn plan(manager: &Manager, spec: &Arc<ServiceConfig>, reason: PlanReason) -> std::io::Result<Plan> {
    match manager.services.get(&spec.name) {
        Some(service) => service.plan(spec, reason),
        None => Service::new(spec.clone()).plan(spec, reason),
    }
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
