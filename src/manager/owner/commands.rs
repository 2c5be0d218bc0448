//! How the manager carries out commands, which come over D-Bus or from a signal.

use std::sync::Arc;
use std::time::Instant;

use super::manager::{Manager, Phase};
use super::ports::{adopt_listeners, conflict_with_others, locate, ports_of};
use super::reload::{refused, reload};
use crate::config::ServiceConfig;
use crate::events;
use crate::manager::handle::{Command, CommandError};
use crate::manager::jobs::Goal;
use crate::manager::service::{PlanReason, Service};
use crate::status::JobKind;

/// Carries out a command as far as this is possible at once, and returns the numbers of the jobs
/// that do the rest.
pub(super) fn perform(manager: &mut Manager, command: Command) -> Result<Vec<u32>, CommandError> {
    if manager.phase != Phase::Serving {
        return Err(CommandError::ShuttingDown);
    }
    match command {
        Command::Reload => reload(manager)
            .inspect_err(|error| {
                tracing::error!(
                    message_id = events::CONFIGURATION_REFUSED,
                    error = %error,
                    "configuration refused"
                );
            })
            .map(|job| vec![job]),
        Command::Start(name) => start(manager, name),
        Command::Restart(name) => renew(manager, JobKind::Restart, vec![name]),
        Command::Stop(name) => stop(manager, &name).map(|job| vec![job]),
        Command::RestartAll => restart_all(manager),
        Command::Cancel(job) => cancel(manager, job),
    }
}

/// Starts a service. If the service should already run, the job only waits until it does.
fn start(manager: &mut Manager, name: String) -> Result<Vec<u32>, CommandError> {
    let service = configured(manager, &name)?;
    if !service.is_wanted() {
        return renew(manager, JobKind::Start, vec![name]);
    }
    let parts = vec![(name.clone(), service.goal())];
    let jobs = &mut manager.world.jobs;
    let job = jobs.begin(JobKind::Start, &name, parts, Instant::now());
    // The service may have reached the goal already, so the job must look at it once.
    if let Some(service) = manager.services.get_mut(&name) {
        service.mark_moved();
    }
    Ok(vec![job])
}

/// Replaces the instances of services with new instances of what is on disk now, with one job for
/// each service.
fn renew(
    manager: &mut Manager,
    kind: JobKind,
    names: Vec<String>,
) -> Result<Vec<u32>, CommandError> {
    let mut plans = Vec::new();
    for name in names {
        let service = configured(manager, &name)?;
        let spec = service.spec().clone();
        let plan = service
            .plan(&spec, PlanReason::Command)
            .map_err(|error| refused(format!("{}: {error}", spec.file.display())))?;
        if !spec.enabled {
            open_ports(manager, &spec)?;
        }
        plans.push((name, plan));
    }
    let mut jobs = Vec::new();
    for (name, plan) in plans {
        let service = manager.services.get_mut(&name).expect("looked up above");
        let goal = service.apply(plan, &mut manager.world);
        let parts = goal.map(|goal| (name.clone(), goal)).into_iter().collect();
        jobs.push(manager.world.jobs.begin(kind, &name, parts, Instant::now()));
    }
    Ok(jobs)
}

/// Opens the ports of a service that a command starts although its file disables it. The ports of a
/// disabled service are not open otherwise.
fn open_ports(manager: &mut Manager, spec: &Arc<ServiceConfig>) -> Result<(), CommandError> {
    if let Some(conflict) = conflict_with_others(manager, spec, Some(&spec.name)) {
        return Err(refused(conflict.message));
    }
    let wanted = ports_of(manager, &manager.config, Some(&spec.name));
    let (bound, errors) = manager.listeners.bind(&wanted);
    if let Some(error) = errors.first() {
        return Err(refused(locate(&manager.config, error)));
    }
    adopt_listeners(manager, bound, &wanted);
    Ok(())
}

fn stop(manager: &mut Manager, name: &str) -> Result<u32, CommandError> {
    configured(manager, name)?;
    let service = manager.services.get_mut(name).expect("looked up above");
    service.stop(false, &mut manager.world);
    let parts = vec![(name.to_owned(), Goal::Stopped)];
    Ok(manager
        .world
        .jobs
        .begin(JobKind::Stop, name, parts, Instant::now()))
}

fn restart_all(manager: &mut Manager) -> Result<Vec<u32>, CommandError> {
    let running: Vec<String> = manager
        .services
        .iter()
        .filter(|(_, service)| service.is_wanted())
        .map(|(name, _)| name.clone())
        .collect();
    renew(manager, JobKind::Restart, running)
}

fn cancel(manager: &mut Manager, id: u32) -> Result<Vec<u32>, CommandError> {
    let parts = manager
        .world
        .jobs
        .cancel(id, Instant::now())
        .ok_or(CommandError::NoSuchJob(id))?;
    for (name, goal) in parts {
        if let (Some(service), Goal::Running { generation }) =
            (manager.services.get_mut(&name), goal)
        {
            service.cancel(generation, &mut manager.world);
        }
    }
    Ok(Vec::new())
}

fn configured<'a>(manager: &'a Manager, name: &str) -> Result<&'a Service, CommandError> {
    let service = manager
        .services
        .get(name)
        .filter(|service| !service.is_removed());
    service.ok_or_else(|| CommandError::NoSuchService(name.to_owned()))
}
