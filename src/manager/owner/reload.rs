//! How a configuration becomes the current one, once it was read.
//!
//! A reload is one transaction of routes: everything is planned before anything is changed
//! (`planning`), what can be applied is applied, and sites change hands when their new owners have
//! arrived (`handover`). The job of a reload succeeds exactly if the wanted state is the actual one
//! in the end, also if the reload itself had nothing to change.

use std::time::Instant;

use super::disk::{Found, ServiceFiles};
use super::handover::want_routes;
use super::manager::Manager;
use super::planning::{Consequence, Planned, ServiceFault, plan};
use super::ports::{adopt_listeners, drop_unused};
use crate::config::{Config, Listen};
use crate::events;
use crate::manager::handle::CommandError;
use crate::manager::jobs::{Goal, NewPart};
use crate::manager::service::{ChangeSubject, Plan, PlanReason, Service};
use crate::manager::worker::certificates::ServiceCertificates;
use crate::status::JobKind;

/// Applies all changes that were found on disk, or none if the files of the configuration have a
/// fault. Returns the number of the job.
pub(super) fn reload(manager: &mut Manager, found: Found) -> Result<u32, CommandError> {
    let Some(config) = found.config else {
        return Err(refused(found.faults.to_string()));
    };
    let planned = plan(
        manager,
        config,
        found.services,
        found.lacks,
        PlanReason::Reload,
    );
    let (parts, faults) = apply(manager, planned);
    // The configuration could perhaps not be read when this manager began.
    drop_unused(manager);
    let parts: Vec<NewPart> = faults.iter().map(ServiceFault::part).chain(parts).collect();
    tracing::info!(
        message_id = events::CONFIGURATION_APPLIED,
        changed = parts.len(),
        "configuration applied"
    );
    let unchanged = match manager.config.services.len() {
        1 => "nothing had changed (1 service)".to_owned(),
        count => format!("nothing had changed ({count} services)"),
    };
    let jobs = &mut manager.world.jobs;
    Ok(jobs.begin(JobKind::Reload, "", parts, unchanged, Instant::now()))
}

/// Applies what was planned. Returns the parts of a job that waits for it, and what could not be
/// applied.
pub(super) fn apply(manager: &mut Manager, planned: Planned) -> (Vec<NewPart>, Vec<ServiceFault>) {
    let Planned {
        config,
        plans,
        held,
        faults,
        certificates,
        bound,
        listens,
    } = planned;
    let renewed = renewed(manager, &config, &certificates);
    let is_global_changed = is_global_changed(&manager.config, &config);
    manager.certificates = certificates.into();
    let unreachable = missing_ports(manager);
    adopt_listeners(manager, bound, &listens);
    let applied: Vec<String> = plans.iter().map(|plan| plan.spec().name.clone()).collect();
    for name in &applied {
        manager.held.remove(name);
    }
    manager.held.extend(held);
    let mut parts = adopt(manager, config, plans);
    if is_global_changed {
        let what = "settings changed".to_owned();
        parts.push(NewPart::done("smoothserve.yaml", what));
    }
    for name in renewed {
        parts.push(NewPart::done(&name, "certificate renewed".to_owned()));
    }
    for (name, listen) in unreachable {
        if manager.listeners.get(&listen).is_some() {
            parts.push(NewPart::done(&name, format!("reachable on {listen} now")));
        }
    }
    for name in &applied {
        if let Some(service) = manager.services.get_mut(name) {
            service.forget_refusal(ChangeSubject::Files);
            service.forget_refusal(ChangeSubject::Certificate);
        }
    }
    for fault in &faults {
        let Some(service) = manager.services.get_mut(&fault.service) else {
            continue;
        };
        match fault.consequence {
            Consequence::Held => service.refuse(ChangeSubject::Files, &fault.causes),
            Consequence::NotStarted => service.not_started(&fault.causes),
            Consequence::Impaired => {}
        }
    }
    (parts, faults)
}

/// Returns the addresses on which services should listen and do not, with their names.
fn missing_ports(manager: &Manager) -> Vec<(String, Listen)> {
    let services = manager.services.values();
    let wanted = services.flat_map(|service| {
        let spec = service.spec();
        spec.listen
            .iter()
            .map(|listen| (spec.name.clone(), *listen))
    });
    wanted
        .filter(|(_, listen)| manager.listeners.get(listen).is_none())
        .collect()
}

/// Returns the services that run on with another certificate from now on.
fn renewed(manager: &Manager, config: &Config, certificates: &ServiceCertificates) -> Vec<String> {
    let specs = config.services.values().filter(|spec| {
        let service = manager.services.get(&spec.name);
        let before = service.and_then(|service| manager.certificates.get(service.spec()));
        let after = certificates.get(spec);
        before
            .zip(after)
            .is_some_and(|(before, after)| before.digest != after.digest)
    });
    specs.map(|spec| spec.name.clone()).collect()
}

/// Returns true if anything but services is different.
fn is_global_changed(before: &Config, after: &Config) -> bool {
    let without_services = |config: &Config| Config {
        // An earlier smoothserve has not saved the path.
        file: Default::default(),
        services: Default::default(),
        notes: Vec::new(),
        ..config.clone()
    };
    without_services(before) != without_services(after)
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

/// Makes a configuration and the plans for its services current. Returns the parts of a job that
/// waits for all services that are not what they should be.
pub(super) fn adopt(manager: &mut Manager, config: Config, plans: Vec<Plan>) -> Vec<NewPart> {
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
    let gone = manager.services.keys();
    let gone = gone.filter(|name| !manager.config.services.contains_key(*name));
    let gone: Vec<String> = gone.cloned().collect();
    for name in gone {
        if let Some(service) = manager.services.get_mut(&name) {
            if !service.is_removed() {
                tracing::info!(service = name, "removing service");
                service.remove();
            }
            let what = Some("removed".to_owned());
            parts.push(NewPart::wait(&name, Goal::Stopped, what));
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
        let what = service.describe(&plan);
        match (service.apply(plan, &mut manager.world), what) {
            (Some(goal), what) => parts.push(NewPart::wait(&name, goal, what)),
            (None, Some(what)) => parts.push(NewPart::done(&name, what)),
            (None, None) => {}
        }
    }
    want_routes(manager);
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
