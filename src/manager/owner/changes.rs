//! How the manager reacts when files on disk have changed without a command, and when a certificate
//! expires soon.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::disk::{Found, ServiceFiles};
use super::manager::Manager;
use super::ports::conflict_with_others;
use super::reload::watch_files;
use crate::config::ServiceConfig;
use crate::events;
use crate::fingerprint::are_of_arguments;
use crate::manager::event::Event;
use crate::manager::service::{PlanReason, Service};
use crate::status::JobKind;
use crate::watch::Changed;

/// Handles changed files of a service with `auto_restart`: the service's own file, its executable,
/// or a watched file.
pub(super) fn files_changed(manager: &mut Manager, name: &str, mut found: Found) {
    let Some(service) = manager
        .services
        .get(name)
        .filter(|service| !service.is_removed())
    else {
        return;
    };
    let spec = changed_spec(manager, service, &found);
    let Some(ServiceFiles {
        material,
        certificates,
        fault,
        ..
    }) = found.take(&spec)
    else {
        return;
    };
    let Some(material) = material else {
        if let Some(fault) = fault {
            tracing::error!(service = name, error = %fault, "changed files not applied");
        }
        return;
    };
    let plan = match service.plan(&spec, material, PlanReason::FilesChanged) {
        Ok(plan) => plan,
        Err(error) => {
            tracing::error!(service = name, error = %error, "changed files not applied");
            return;
        }
    };
    if let Some(fault) = fault {
        tracing::error!(service = name, error = %fault, "changed files not applied");
        return;
    }
    if are_of_arguments(plan.changes())
        && let Some(left) = service.pause_of_arguments(Instant::now())
    {
        let changed = plan.changes().join(", ");
        tracing::warn!(
            service = name,
            note = changed,
            "files of arguments change again and again, waiting before the next restart"
        );
        look_again(manager, name, left);
        return;
    }
    Rc::make_mut(&mut manager.certificates).extend(certificates);
    let service = manager.services.get_mut(name).expect("looked up above");
    let changed = plan.changes().join(", ");
    let goal = service.apply(plan, &mut manager.world);
    if let Some(goal) = goal {
        tracing::info!(service = name, note = changed, "files changed");
        manager.world.jobs.begin(
            JobKind::Restart,
            name,
            vec![(name.to_owned(), goal)],
            Instant::now(),
        );
    }
    watch_files(manager);
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

/// Returns the new configuration of a service if it can be applied to this service alone, otherwise
/// the configuration that was last applied.
fn changed_spec(manager: &Manager, service: &Service, found: &Found) -> Arc<ServiceConfig> {
    let name = &service.spec().name;
    let refuse = |error: &str| {
        tracing::error!(
            message_id = events::CONFIGURATION_REFUSED,
            service = name,
            error,
            "changed file not applied"
        );
        service.spec().clone()
    };
    let Some(config) = &found.config else {
        return refuse(&found.faults.to_string());
    };
    let Some(spec) = config.services.get(name) else {
        return service.spec().clone();
    };
    if spec
        .listen
        .iter()
        .any(|listen| manager.listeners.get(listen).is_none())
    {
        return refuse("it names a port that is not open yet; reload smoothserve to open it");
    }
    match conflict_with_others(manager, spec, None) {
        Some(conflict) => refuse(&conflict.message),
        None => spec.clone(),
    }
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
    let refuse = |error: &str| {
        tracing::error!(
            message_id = events::CERTIFICATE_REFUSED,
            service = name,
            error,
            "changed certificate not taken"
        );
    };
    let Some(files) = found.take(&spec) else {
        return;
    };
    if let Some(fault) = files.fault {
        return refuse(&fault.to_string());
    }
    let read = files.certificates;
    let Some(certificate) = read.get(&spec) else {
        return;
    };
    let before = manager.certificates.get(&spec);
    if before.is_some_and(|before| before.digest == certificate.digest) {
        return;
    }
    if let Some(invalid) = certificate.invalidity(SystemTime::now()) {
        return refuse(&format!("it {invalid}"));
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
