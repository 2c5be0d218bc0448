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
use crate::manager::service::{Plan, PlanReason, Service};
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
        Command::Start(name) => Errand::Renew(JobKind::Start, name, answer),
        Command::Restart(name) => Errand::Renew(JobKind::Restart, name, answer),
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
    let part = NewPart::wait(name, service.goal(), None);
    let jobs = &mut manager.world.jobs;
    let job = jobs.begin(
        JobKind::Start,
        name,
        vec![part],
        String::new(),
        Instant::now(),
    );
    // The service may have reached the goal already, so the job must look at it once.
    if let Some(service) = manager.services.get_mut(name) {
        service.mark_moved();
    }
    Ok(vec![job])
}

/// Replaces the instances of a service with new instances of what was found on disk, or starts it.
/// Returns the number of the job.
pub(super) fn renew(
    manager: &mut Manager,
    kind: JobKind,
    name: &str,
    mut found: Found,
) -> Result<Vec<u32>, CommandError> {
    // What was asked for before may have started it.
    if kind == JobKind::Start && configured(manager, name)?.is_wanted() {
        return start(manager, name);
    }
    let plan = renewed(manager, name, &mut found)?;
    let job = begin_renewal(manager, kind, name, Ok(plan));
    want_routes(manager);
    Ok(vec![job])
}

/// Restarts services with what was found on disk. Those that cannot be restarted hold up nobody
/// else: each has a job of its own.
pub(super) fn restart(manager: &mut Manager, names: Vec<String>, mut found: Found) -> Vec<u32> {
    let restart = |name: String| {
        let plan = renewed(manager, &name, &mut found);
        begin_renewal(manager, JobKind::Restart, &name, plan)
    };
    let jobs = names.into_iter().map(restart).collect();
    want_routes(manager);
    jobs
}

/// Plans new instances of a service, and opens its ports if they are not open.
fn renewed(manager: &mut Manager, name: &str, found: &mut Found) -> Result<Plan, CommandError> {
    let service = configured(manager, name)?;
    let spec = service.spec().clone();
    let files = found.take(&spec);
    let files = files.ok_or_else(|| CommandError::NoSuchService(name.to_owned()))?;
    let shown = |fault: &dyn Display| refused(format!("{}: {fault}", spec.file.display()));
    let material = match (files.material, &files.fault) {
        (Some(material), _) => material,
        (None, Some(fault)) => return Err(shown(fault)),
        (None, None) => return Err(CommandError::NoSuchService(name.to_owned())),
    };
    let plan = service.plan(&spec, material, PlanReason::Command);
    let plan = plan.map_err(|error| shown(&error))?;
    if !spec.enabled {
        open_ports(manager, &spec)?;
    }
    Ok(plan)
}

/// Applies a plan for new instances, or fails. Returns the number of the job that waits for it.
fn begin_renewal(
    manager: &mut Manager,
    kind: JobKind,
    name: &str,
    plan: Result<Plan, CommandError>,
) -> u32 {
    let world = &mut manager.world;
    let part = match (plan, manager.services.get_mut(name)) {
        (Ok(plan), Some(service)) => {
            let goal = service.apply(plan, world);
            goal.map(|goal| NewPart::wait(name, goal, None))
        }
        (Ok(_), None) => None,
        (Err(CommandError::InvalidConfig(error)), _) => Some(NewPart::failed(name, error)),
        (Err(error), _) => Some(NewPart::failed(name, error.to_string())),
    };
    let parts = part.into_iter().collect();
    let jobs = &mut world.jobs;
    jobs.begin(kind, name, parts, String::new(), Instant::now())
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
    let part = NewPart::wait(name, Goal::Stopped, None);
    let jobs = &mut manager.world.jobs;
    Ok(jobs.begin(
        JobKind::Stop,
        name,
        vec![part],
        String::new(),
        Instant::now(),
    ))
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
