//! How the manager carries out commands, which come over D-Bus or from a signal.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use super::disk::Found;
use super::errands::{Answer, Errand};
use super::handover::want_routes;
use super::manager::{Manager, Phase};
use super::ports::{adopt_listeners, conflict_with_others, locate, ports_of};
use super::reload::refused;
use crate::config::ServiceConfig;
use crate::manager::handle::{Command, CommandError};
use crate::manager::jobs::{Goal, NewPart};
use crate::manager::service::{PlanReason, Service};
use crate::status::JobKind;

/// Carries out a command as far as this is possible at once, or makes an errand of it. The answer
/// has the numbers of the jobs that do the rest.
pub(super) fn perform(manager: &mut Manager, command: Command, answer: Answer) {
    let errand = match command {
        _ if manager.phase != Phase::Serving => {
            let late = Err(CommandError::ShuttingDown);
            return manager.errands.answer(answer, late);
        }
        Command::Start(name) if is_running(manager, &name) => {
            let done = start(manager, &name);
            return manager.errands.answer(answer, done);
        }
        Command::Stop(name) if !manager.errands.are_about(&name) => {
            let done = stop(manager, &name).map(|job| vec![job]);
            return manager.errands.answer(answer, done);
        }
        Command::Cancel(job) => {
            let done = cancel(manager, job);
            return manager.errands.answer(answer, done);
        }
        Command::Reload => Errand::Reload(Some(answer)),
        Command::Start(name) => Errand::Renew(JobKind::Start, vec![name], answer),
        Command::Restart(name) => Errand::Renew(JobKind::Restart, vec![name], answer),
        Command::RestartAll => Errand::RestartAll(answer),
        Command::Stop(name) => Errand::Stop(name, answer),
    };
    manager.errands.queue(errand);
}

/// Returns true if a service should run, and nothing that was asked for before can change that.
fn is_running(manager: &Manager, name: &str) -> bool {
    configured(manager, name).is_ok_and(Service::is_wanted) && !manager.errands.are_about(name)
}

/// Waits for a service that should already run.
fn start(manager: &mut Manager, name: &str) -> Result<Vec<u32>, CommandError> {
    let service = configured(manager, name)?;
    let parts = vec![(name.to_owned(), service.goal())];
    let jobs = &mut manager.world.jobs;
    let job = jobs.begin(JobKind::Start, name, parts, Instant::now());
    // The service may have reached the goal already, so the job must look at it once.
    if let Some(service) = manager.services.get_mut(name) {
        service.mark_moved();
    }
    Ok(vec![job])
}

/// Replaces the instances of services with new instances of what was found on disk, with one job
/// for each service.
pub(super) fn renew(
    manager: &mut Manager,
    kind: JobKind,
    names: Vec<String>,
    mut found: Found,
) -> Result<Vec<u32>, CommandError> {
    // What was asked for before may have started it.
    if let (JobKind::Start, [name]) = (kind, names.as_slice())
        && configured(manager, name)?.is_wanted()
    {
        return start(manager, name);
    }
    let mut plans = Vec::new();
    for name in names {
        let service = configured(manager, &name)?;
        let spec = service.spec().clone();
        let files = found.take(&spec);
        let files = files.ok_or_else(|| CommandError::NoSuchService(name.clone()))?;
        let shown = |fault: &dyn Display| format!("{}: {fault}", spec.file.display());
        let plan = match (files.material, &files.fault) {
            (Some(material), _) => {
                let plan = service.plan(&spec, material, PlanReason::Command);
                plan.map_err(|error| shown(&error))
            }
            (None, Some(fault)) => Err(shown(fault)),
            (None, None) => return Err(CommandError::NoSuchService(name.clone())),
        };
        if !spec.enabled {
            open_ports(manager, &spec)?;
        }
        plans.push((name, plan));
    }
    // One service alone is refused. Of many, those that cannot be renewed hold up nobody else.
    if let [(_, Err(error))] = plans.as_slice() {
        return Err(refused(error.clone()));
    }
    let mut jobs = Vec::new();
    for (name, plan) in plans {
        let service = manager.services.get_mut(&name).expect("looked up above");
        let part = match plan {
            Ok(plan) => {
                let goal = service.apply(plan, &mut manager.world);
                goal.map(|goal| NewPart::wait(&name, goal, None))
            }
            Err(error) => Some(NewPart::failed(&name, error)),
        };
        let parts = part.into_iter().collect();
        let all = &mut manager.world.jobs;
        jobs.push(all.begin_parts(kind, &name, parts, String::new(), Instant::now()));
    }
    want_routes(manager);
    Ok(jobs)
}

/// Opens the ports of a service that a command starts although its file disables it. The ports of a
/// disabled service are not open otherwise.
fn open_ports(manager: &mut Manager, spec: &Arc<ServiceConfig>) -> Result<(), CommandError> {
    if let Some(conflict) = conflict_with_others(manager, spec) {
        return Err(refused(conflict.message));
    }
    let wanted = ports_of(manager, &manager.config, &BTreeSet::new(), Some(&spec.name));
    let (bound, errors) = manager.listeners.bind(&wanted);
    if let Some(error) = errors.first() {
        return Err(refused(locate(&manager.config, error)));
    }
    adopt_listeners(manager, bound, &wanted);
    Ok(())
}

/// Drains and stops the instances of a service. Returns the number of the job.
pub(super) fn stop(manager: &mut Manager, name: &str) -> Result<u32, CommandError> {
    let known = manager.services.get(name);
    if !known.is_some_and(Service::is_shown) {
        return Err(CommandError::NoSuchService(name.to_owned()));
    }
    let service = manager.services.get_mut(name).expect("looked up above");
    service.stop(&mut manager.world);
    want_routes(manager);
    let parts = vec![(name.to_owned(), Goal::Stopped)];
    Ok(manager
        .world
        .jobs
        .begin(JobKind::Stop, name, parts, Instant::now()))
}

/// Returns the names of the services that should run.
pub(super) fn running(manager: &Manager) -> Vec<String> {
    let services = manager.services.iter();
    let wanted = services.filter(|(_, service)| service.is_wanted());
    wanted.map(|(name, _)| name.clone()).collect()
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
            // Another job that waits for the same instances waits in vain.
            let has_given_up = |generation| service.has_given_up(generation);
            let error = format!("the rollout of {name} was canceled");
            let jobs = &mut manager.world.jobs;
            jobs.give_up(&name, has_given_up, &error, Instant::now());
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
