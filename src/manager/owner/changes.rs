//! How the manager reacts when files on disk have changed without a command, and when a certificate
//! expires soon.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::disk::{Found, ServiceFiles};
use super::group::bound_together;
use super::manager::Manager;
use super::planning::{Consequence, ServiceFault, plan};
use super::reload::apply;
use crate::config::{Config, Conflict, Lack, ServiceConfig, conflicts};
use crate::events;
use crate::fingerprint::are_of_arguments;
use crate::manager::event::Event;
use crate::manager::jobs::NewPart;
use crate::manager::service::{ChangeSubject, Plan, PlanReason};
use crate::status::JobKind;
use crate::watch::Changed;

/// Handles changed files of a service with `auto_restart`: the service's own file, its executable,
/// or a watched file. Services that can only change together are changed together.
pub(super) fn files_changed(manager: &mut Manager, name: &str, mut found: Found) {
    let Some(service) = manager
        .services
        .get(name)
        .filter(|service| !service.is_removed())
    else {
        return;
    };
    let known = service.spec().clone();
    let changed = changed_config(manager, &known, &mut found);
    let refusal = changed.as_ref().err().cloned();
    // What was refused is left out: the executable may have changed all the same.
    let (config, lacks) = changed.unwrap_or_else(|_| ((*manager.config).clone(), BTreeMap::new()));
    let on_disk = found
        .config
        .as_ref()
        .and_then(|disk| disk.services.get(name));
    let is_as_on_disk = on_disk == config.services.get(name);
    let is_applied = |files: &ServiceFiles| {
        let spec = config.services.get(&files.spec.name);
        spec.is_some_and(|spec| *spec == files.spec)
    };
    let files = found.services.into_iter().filter(is_applied).collect();
    let mut planned = plan(manager, config, files, lacks, PlanReason::FilesChanged);
    let cause = |fault: &ServiceFault| match fault.consequence {
        Consequence::Impaired => None,
        _ => Some(fault.causes.clone()),
    };
    if let Some(error) = planned.faults.iter().find_map(cause) {
        tracing::error!(service = name, error, "changed files not applied");
        return refuse(manager, name, &refusal.unwrap_or(error));
    }
    let changed = changes_of(&planned.plans);
    if planned
        .plans
        .iter()
        .all(|plan| are_of_arguments(plan.changes()))
        && let Some(service) = manager.services.get(name)
        && let Some(left) = service.pause_of_arguments(Instant::now())
    {
        tracing::warn!(
            service = name,
            note = changed,
            "files of arguments change again and again, waiting before the next restart"
        );
        look_again(manager, name, left);
        return;
    }
    if !is_as_on_disk {
        // A service that a reload could not change still runs as before.
        planned.held.extend(manager.held.get(name).cloned());
    }
    let (parts, _) = apply(manager, planned);
    if let Some(refusal) = refusal {
        refuse(manager, name, &refusal);
    }
    if parts.iter().any(NewPart::is_open) {
        tracing::info!(service = name, note = changed, "files changed");
        let parts = parts.into_iter().filter(NewPart::is_open).collect();
        let jobs = &mut manager.world.jobs;
        jobs.begin(JobKind::Restart, name, parts, String::new(), Instant::now());
    }
}

/// Names what is different in the services that are planned.
fn changes_of(plans: &[Plan]) -> String {
    let changes: Vec<&str> = plans
        .iter()
        .flat_map(Plan::changes)
        .map(String::as_str)
        .collect();
    changes.join(", ")
}

/// Looks at the files of a service again after a while.
fn look_again(manager: &Manager, name: &str, after: Duration) {
    let reports = manager.world.reports.clone();
    let changed = Changed::Files(name.to_owned());
    tokio::task::spawn_local(async move {
        tokio::time::sleep(after).await;
        // Sending fails only when the manager has ended.
        let _ = reports.send(Event::Changed(changed));
    });
}

fn refuse(manager: &mut Manager, name: &str, error: &str) {
    if let Some(service) = manager.services.get_mut(name) {
        service.refuse(ChangeSubject::Files, error);
    }
}

/// What the machine lacks for services, by name.
type Lacks = BTreeMap<String, Vec<Lack>>;

/// Returns the configuration in which only the changed service is different, and those that can
/// only change together with it, with what the machine lacks for them. The error says why they
/// cannot be changed without a reload.
fn changed_config(
    manager: &Manager,
    known: &Arc<ServiceConfig>,
    found: &mut Found,
) -> Result<(Config, Lacks), String> {
    let name = &known.name;
    let refuse = |error: String| {
        tracing::error!(
            message_id = events::CONFIGURATION_REFUSED,
            service = name,
            error,
            "changed file not applied"
        );
        error
    };
    let Some(disk) = &found.config else {
        // The faults may quote secrets, which the journal may have and everybody may not.
        refuse(found.faults.to_string());
        return Err(found.faults.places());
    };
    let mut config = (*manager.config).clone();
    if !disk.services.contains_key(name) {
        return Ok((config, Lacks::new()));
    }
    let group = bound_together(&manager.config, disk, name);
    for other in &group {
        let spec = disk.services.get(other);
        let Some(spec) = spec.filter(|spec| other == name || spec.auto_restart) else {
            return Err(refuse(format!(
                "{other} has to change together with it; reload smoothserve to apply both"
            )));
        };
        let is_known = manager.services.get(other);
        if is_known.is_none_or(|service| service.is_removed()) {
            return Err(refuse(format!(
                "{other} is new and has to start together with it; reload smoothserve to apply both"
            )));
        }
        let mut listen = spec.listen.iter();
        if listen.any(|listen| manager.listeners.get(listen).is_none()) {
            return Err(refuse(
                "it names a port that is not open yet; reload smoothserve to open it".to_owned(),
            ));
        }
        config.services.insert(other.clone(), spec.clone());
    }
    let enabled = config.services.values().filter(|spec| spec.enabled);
    let enabled = enabled.map(Arc::as_ref);
    // Services that could not be changed at a reload may be in the way of others, but not of these.
    let is_of_group =
        |conflict: &Conflict| group.contains(&conflict.first) || group.contains(&conflict.second);
    if let Some(conflict) = conflicts(enabled).into_iter().find(is_of_group) {
        return Err(refuse(conflict.message));
    }
    let mut lacks = std::mem::take(&mut found.lacks);
    lacks.retain(|name, _| group.contains(name));
    Ok((config, lacks))
}

/// Handles a changed certificate of a service whose other files are unchanged.
pub(super) fn certificate_changed(manager: &mut Manager, name: &str, mut found: Found) {
    let known = manager
        .services
        .get(name)
        .filter(|service| !service.is_removed());
    let Some(spec) = known.map(|service| service.spec().clone()) else {
        return;
    };
    let refuse = |manager: &mut Manager, error: &str| {
        tracing::error!(
            message_id = events::CERTIFICATE_REFUSED,
            service = name,
            error,
            "changed certificate not taken"
        );
        if let Some(service) = manager.services.get_mut(name) {
            service.refuse(ChangeSubject::Certificate, error);
        }
    };
    let Some(files) = found.take(&spec) else {
        return;
    };
    if let Some(fault) = files.fault {
        return refuse(manager, &fault.to_string());
    }
    let read = files.certificates;
    let Some(certificate) = read.get(&spec) else {
        return;
    };
    let before = manager.certificates.get(&spec);
    let is_in_use = before.is_some_and(|before| before.digest == certificate.digest);
    if let Some(invalid) = certificate
        .invalidity(SystemTime::now())
        .filter(|_| !is_in_use)
    {
        return refuse(manager, &format!("it {invalid}"));
    }
    if let Some(service) = manager.services.get_mut(name) {
        service.forget_refusal(ChangeSubject::Certificate);
    }
    if is_in_use {
        return;
    }
    tracing::info!(
        message_id = events::CERTIFICATE_RENEWED,
        service = name,
        "certificate renewed"
    );
    Rc::make_mut(&mut manager.certificates).extend(read);
}

/// Logs the certificates that should already have been renewed.
pub(super) fn remind_of_certificates(manager: &Manager) {
    let now = SystemTime::now();
    for (name, service) in manager.services.iter() {
        let certificate = manager.certificates.get(service.spec());
        if let Some(note) = certificate.and_then(|certificate| certificate.end_is_near(now)) {
            tracing::warn!(
                message_id = events::CERTIFICATE_EXPIRES,
                service = name,
                note,
                "certificate expires soon"
            );
        }
    }
}
