//! The plan of a change, made before anything is changed: what can be applied, and what cannot.
//!
//! Faults of the files of the configuration refuse a reload as a whole, and whoever checks the
//! files sees the same faults. The state of the world refuses nothing: an executable that is
//! missing, a certificate that cannot be read or a port that another program has are faults of the
//! one service that they belong to. Such a service goes on with what it runs, or is not started,
//! and everything else is applied. A service that a command has started, and that has something
//! which the files now give to another one, gives way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::disk::ServiceFiles;
use super::manager::Manager;
use super::ports::{bind_logged, ports_of};
use crate::config::{Config, Lack, Listen, ServiceConfig, conflicts, excludes};
use crate::manager::jobs::NewPart;
use crate::manager::service::{Plan, PlanReason, Service};
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::{BindError, BoundSockets};

/// What can be applied of a configuration, and what cannot.
pub(super) struct Planned {
    /// The configuration. Services that have to go on with what they run are in it as they were
    /// last applied.
    pub(super) config: Config,
    /// The plans of services.
    pub(super) plans: Vec<Plan>,
    /// The services that go on with what they run.
    pub(super) held: BTreeSet<String>,
    /// What cannot be applied, service by service.
    pub(super) faults: Vec<ServiceFault>,
    /// The certificates in use from now on.
    pub(super) certificates: ServiceCertificates,
    /// The sockets for ports that are new.
    pub(super) bound: BoundSockets,
    /// The addresses that should be open.
    pub(super) listens: BTreeSet<Listen>,
}

/// Why a service is not as its file wants it.
pub(super) struct ServiceFault {
    /// The name of the service.
    pub(super) service: String,
    /// The causes, and what to do about each.
    pub(super) causes: String,
    /// What becomes of the service.
    pub(super) consequence: Consequence,
}

/// What becomes of a service with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// The service goes on with what it runs.
    Held,
    /// The service has nothing to run, and is not started.
    NotStarted,
    /// The service was changed all the same, and something of it does not work.
    Impaired,
}

impl ServiceFault {
    /// Returns the failed part of a job.
    pub(super) fn part(&self) -> NewPart {
        let ServiceFault {
            service, causes, ..
        } = self;
        let error = match self.consequence {
            Consequence::Held => format!("{service} goes on with what it runs: {causes}"),
            Consequence::NotStarted => format!("{service} was not started: {causes}"),
            Consequence::Impaired => format!("{service}: {causes}"),
        };
        NewPart::failed(service, error)
    }
}

/// Plans to apply a configuration with the files of its services. Changes nothing.
pub(super) fn plan(
    manager: &Manager,
    config: Config,
    files: Vec<ServiceFiles>,
    mut lacks: BTreeMap<String, Vec<Lack>>,
    reason: PlanReason,
) -> Planned {
    let yielding = yielding(manager, &config);
    let listens = ports_of(manager, &config, &yielding, None);
    let (bound, errors) = bind_logged(manager, &listens);
    let mut planned = Planned {
        plans: Vec::new(),
        held: BTreeSet::new(),
        faults: Vec::new(),
        certificates: ServiceCertificates::default(),
        bound,
        listens,
        config,
    };
    for files in files {
        let name = &files.spec.name;
        let lacks = lacks.remove(name).unwrap_or_default();
        match yielding.contains(name) {
            true => planned.plans.push(Plan::without_start(files.spec)),
            false => planned.add(manager, files, &lacks, &errors, reason),
        }
    }
    if !planned.held.is_empty() {
        planned.keep_what_is_held(manager);
        planned.keep_what_is_excluded(manager, &yielding);
        planned.listens = ports_of(manager, &planned.config, &yielding, None);
        // Dropped first: an address cannot be bound twice.
        planned.bound = BoundSockets::none();
        planned.bound = manager.listeners.bind(&planned.listens).0;
    }
    // A service that keeps sites needs its certificate for them.
    for service in manager.services.values() {
        let known = &manager.certificates;
        planned.certificates.keep(service.spec(), known);
    }
    planned
}

impl Planned {
    fn add(
        &mut self,
        manager: &Manager,
        files: ServiceFiles,
        lacks: &[Lack],
        unbound: &[BindError],
        reason: PlanReason,
    ) {
        let spec = files.spec;
        let service = manager.services.get(&spec.name);
        let known = service.filter(|service| service.is_shown());
        let would_run = known.map_or(spec.enabled, |service| service.would_run(&spec));
        let mut causes: Vec<String> = Vec::new();
        let mut hinders = false;
        if would_run {
            causes.extend(lacks.iter().map(|lack| lack.fault.to_string()));
            hinders |= lacks.iter().any(|lack| lack.hinders);
            if let Some(fault) = files.fault {
                if causes.is_empty() {
                    causes.push(format!("{}: {fault}", spec.file.display()));
                }
                hinders = true;
            }
            let worse =
                known.and_then(|known| worse(manager, known.spec(), &spec, &files.certificates));
            hinders |= worse.is_some();
            // The files may have said so already.
            causes.extend(worse.filter(|_| causes.is_empty()));
            let own = |error: &&BindError| spec.listen.contains(&error.listen);
            for error in unbound.iter().filter(own) {
                causes.push(format!("{}: {error}", spec.file.display()));
                hinders |= known.is_some_and(|known| !known.spec().listen.contains(&error.listen));
            }
        }
        let runs = known.is_some_and(Service::is_running);
        // Without a process nothing can get worse, so a port that is not there only impairs.
        let hinders = hinders && (runs || causes_of_start(lacks));
        let plan = match (hinders, files.material) {
            (false, Some(material)) => {
                let new;
                let service = match service {
                    Some(service) => service,
                    None => {
                        new = Service::new(spec.clone());
                        &new
                    }
                };
                let plan = service.plan(&spec, material, reason);
                plan.map_err(|error| causes.push(format!("{}: {error}", spec.file.display())))
            }
            // Nothing on disk is needed to stop.
            _ if !would_run => Ok(Plan::without_start(spec.clone())),
            _ => Err(()),
        };
        let consequence = match plan {
            Ok(plan) => {
                self.plans.push(plan);
                self.certificates.extend(files.certificates);
                Consequence::Impaired
            }
            Err(()) if runs => {
                self.held.insert(spec.name.clone());
                let known = known.map(|known| Plan::stay(known.spec().clone()));
                self.plans.extend(known);
                Consequence::Held
            }
            Err(()) => {
                self.plans.push(Plan::without_start(spec.clone()));
                self.certificates.extend(files.certificates);
                Consequence::NotStarted
            }
        };
        if !causes.is_empty() {
            self.faults.push(ServiceFault {
                service: spec.name.clone(),
                causes: causes.join("\n"),
                consequence,
            });
        }
    }
}

impl Planned {
    /// Puts the services that go on with what they run into the configuration as they were last
    /// applied.
    fn keep_what_is_held(&mut self, manager: &Manager) {
        for name in &self.held {
            if let Some(service) = manager.services.get(name) {
                let services = &mut self.config.services;
                services.insert(name.clone(), service.spec().clone());
            }
        }
    }

    /// Leaves those services as they were that cannot listen beside one that goes on with what it
    /// runs: the clients of one of them would not reach it.
    fn keep_what_is_excluded(&mut self, manager: &Manager, yielding: &BTreeSet<String>) {
        while let Some((spec, cause)) = self.excluded(manager, yielding) {
            let name = &spec.name;
            self.plans.retain(|plan| plan.spec().name != *name);
            let known = manager.services.get(name);
            let known = known.filter(|service| service.is_shown());
            let consequence = match known {
                Some(service) if service.is_running() => {
                    self.held.insert(name.clone());
                    self.plans.push(Plan::stay(service.spec().clone()));
                    Consequence::Held
                }
                Some(service) => {
                    let as_it_was = service.spec().clone();
                    self.plans.push(Plan::without_start(as_it_was.clone()));
                    self.config.services.insert(name.clone(), as_it_was);
                    Consequence::NotStarted
                }
                None => {
                    self.config.services.remove(name);
                    Consequence::NotStarted
                }
            };
            self.faults.push(ServiceFault {
                service: name.clone(),
                causes: format!("{}: {cause}", spec.file.display()),
                consequence,
            });
            self.keep_what_is_held(manager);
        }
    }

    /// Finds a service that is to be changed, but cannot listen beside one that is not, and says
    /// why.
    fn excluded(
        &self,
        manager: &Manager,
        yielding: &BTreeSet<String>,
    ) -> Option<(Arc<ServiceConfig>, String)> {
        let known = |name: &String| manager.services.get(name);
        let held = self.held.iter().filter_map(known);
        let held: Vec<&Arc<ServiceConfig>> = held.map(Service::spec).collect();
        let mut changed = self.config.services.values().filter(|spec| {
            let known = known(&spec.name);
            let is_changed = known.is_none_or(|known| known.spec() != *spec);
            let is_started = known.is_some_and(|known| known.would_run(spec));
            is_changed && (spec.enabled || is_started && !yielding.contains(&spec.name))
        });
        changed.find_map(|spec| {
            let cause = held.iter().find_map(|held| excludes(held, spec))?;
            Some((spec.clone(), cause))
        })
    }
}

/// Returns true if one of these keeps a service from being started.
fn causes_of_start(lacks: &[Lack]) -> bool {
    lacks.iter().any(|lack| lack.hinders)
}

/// Says what is wrong with the certificate that was read, if it is out of date, and another one
/// that is not is in use.
fn worse(
    manager: &Manager,
    known: &ServiceConfig,
    spec: &ServiceConfig,
    read: &ServiceCertificates,
) -> Option<String> {
    let (before, after) = (manager.certificates.get(known)?, read.get(spec)?);
    let now = SystemTime::now();
    let invalidity = after.invalidity(now)?;
    let path = spec.tls.as_ref()?.certificate.display();
    let cause = format!(
        "{}: the certificate {path} {invalidity}",
        spec.file.display()
    );
    before.invalidity(now).is_none().then_some(cause)
}

/// Returns the services that a command has started although their files disable them, and that
/// cannot run beside the others any more.
fn yielding(manager: &Manager, config: &Config) -> BTreeSet<String> {
    let (enabled, disabled): (Vec<_>, Vec<_>) =
        config.services.values().partition(|spec| spec.enabled);
    let mut running: Vec<ServiceConfig> = Vec::new();
    let mut yielding = BTreeSet::new();
    let is_started = |spec: &&Arc<ServiceConfig>| {
        let service = manager.services.get(&spec.name);
        service.is_some_and(|service| service.would_run(spec))
    };
    for spec in disabled.into_iter().filter(is_started) {
        let spec = ServiceConfig {
            enabled: true,
            ..(**spec).clone()
        };
        let enabled = enabled.iter().map(|spec| &***spec);
        let mut others = enabled.chain(&running);
        match others.any(|other| !conflicts([other, &spec]).is_empty()) {
            true => drop(yielding.insert(spec.name)),
            false => running.push(spec),
        }
    }
    yielding
}
