//! The plan of a change to a service: made first, without changing anything, and then applied.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::service::{Service, desired};
use crate::config::ServiceConfig;
use crate::events;
use crate::fingerprint::{Parts, are_of_arguments};
use crate::manager::jobs::Goal;
use crate::manager::process::deployment::{Deployment, Material};
use crate::manager::rollout::{Desired, HeldInstance, RolloutEvent, RolloutTarget};
use crate::manager::world::World;

/// The least time between two automatic restarts for which only files of arguments have changed.
const BETWEEN_ARGUMENTS: Duration = Duration::from_secs(60);

/// What a change on disk, or a command, means for a service.
pub struct Plan {
    spec: Arc<ServiceConfig>,
    deployment: Option<Deployment>,
    running: bool,
    /// True: whatever keeps the service from what it should be is tried again.
    settles: bool,
    /// The names of what is different from what should run until now.
    changes: Vec<String>,
    /// Generations of which some parts are not known, and what they consist of.
    adopted: Option<(Vec<u64>, Parts)>,
    /// What people should know about the files.
    remarks: Vec<String>,
}

impl Plan {
    /// Makes the plan to go on with what a service runs, although it should be changed.
    pub fn stay(spec: Arc<ServiceConfig>) -> Plan {
        Plan {
            running: true,
            ..Plan::without_start(spec)
        }
    }

    /// Makes the plan to take a configuration without new instances, because they cannot be started
    /// from what is on disk. It is for services that do not run.
    pub fn without_start(spec: Arc<ServiceConfig>) -> Plan {
        Plan {
            spec,
            deployment: None,
            running: false,
            settles: false,
            changes: Vec::new(),
            adopted: None,
            remarks: Vec::new(),
        }
    }

    /// Returns the names of what is different from what should run until now, such as
    /// `the executable`, if new instances have to run it.
    pub fn changes(&self) -> &[String] {
        match self.deployment {
            Some(_) => &self.changes,
            None => &[],
        }
    }

    /// Returns the configuration that the plan is for.
    pub fn spec(&self) -> &Arc<ServiceConfig> {
        &self.spec
    }
}

/// Why a service is planned again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanReason {
    /// A reload was requested.
    Reload,
    /// The files of the service have changed on disk.
    FilesChanged,
    /// A command starts the service, or restarts it.
    Command,
}

impl Service {
    /// Decides what has to be done to apply `spec`, with what was found on disk for it. Changes
    /// nothing.
    pub fn plan(
        &self,
        spec: &Arc<ServiceConfig>,
        material: Material,
        reason: PlanReason,
    ) -> std::io::Result<Plan> {
        let was_running = self.core.desired().running;
        let running = reason == PlanReason::Command || self.would_run(spec);
        let changes = match self.deployments.get(&self.core.target().generation) {
            Some(deployment) => deployment.changes(&spec.process, &material.fingerprint),
            None => Vec::new(),
        };
        let remarks = material.fingerprint.remarks.clone();
        let adopted = self.adopted(spec, &material);
        let deployment = if running && self.needs_deployment(spec, &material, reason, was_running) {
            Some(self.deployment(spec, material)?)
        } else {
            None
        };
        Ok(Plan {
            spec: spec.clone(),
            deployment,
            running,
            settles: reason == PlanReason::Reload,
            changes,
            adopted,
            remarks,
        })
    }

    /// Finds the deployments of which some parts are not known, and which otherwise equal what is
    /// on disk now.
    fn adopted(&self, spec: &Arc<ServiceConfig>, material: &Material) -> Option<(Vec<u64>, Parts)> {
        let equal = self.deployments.iter().filter(|(_, deployment)| {
            deployment.lacks_parts() && deployment.is(&spec.process, &material.fingerprint)
        });
        let equal: Vec<u64> = equal.map(|(&generation, _)| generation).collect();
        (!equal.is_empty()).then(|| (equal, material.fingerprint.parts.clone()))
    }

    fn needs_deployment(
        &self,
        spec: &Arc<ServiceConfig>,
        material: &Material,
        reason: PlanReason,
        was_running: bool,
    ) -> bool {
        if reason == PlanReason::Command || !was_running {
            return true;
        }
        let differs = |generation: u64| {
            self.deployments
                .get(&generation)
                .is_none_or(|deployment| !deployment.is(&spec.process, &material.fingerprint))
        };
        // What could not be executed, because it was still being written, was not tried.
        let desired = self.core.desired().target.generation;
        let already_tried = reason == PlanReason::FilesChanged
            && !differs(desired)
            && self.history.untried != Some(desired);
        differs(self.core.target().generation) && !already_tried
    }

    /// Makes a deployment of what was found on disk. It gets the version of a known deployment with
    /// the same content, if there is one, otherwise a new version.
    fn deployment(
        &self,
        spec: &Arc<ServiceConfig>,
        material: Material,
    ) -> std::io::Result<Deployment> {
        let version = self.history.last_version + 1;
        let mut deployment = Deployment::new(&spec.process, version, material)?;
        if let Some(same) = self
            .deployments
            .values()
            .find(|known| deployment.same_content(known))
        {
            deployment.version = same.version;
        }
        Ok(deployment)
    }

    /// Says what a plan changes, in words for people: `3 instances replaced`. `None`: nothing.
    pub fn describe(&self, plan: &Plan) -> Option<String> {
        let instances = |count: u32| match count {
            1 => "1 instance".to_owned(),
            count => format!("{count} instances"),
        };
        let before = self.core.desired().count;
        let count = u32::from(plan.spec.instance_count);
        let starts = format!("{} started", instances(count));
        Some(match (self.is_wanted(), plan.running) {
            (false, true) if self.leaving && plan.deployment.is_none() => "stays".to_owned(),
            (false, true) => starts,
            (true, false) => "stopped".to_owned(),
            (false, false) if self.leaving => "stopped".to_owned(),
            (true, true) if plan.deployment.is_some() && self.is_running_anything() => {
                format!("{} replaced", instances(before.min(count)))
            }
            (true, true) if plan.deployment.is_some() => starts,
            (true, true) if before < count => format!("{} started", instances(count - before)),
            (true, true) if before > count => format!("{} stopped", instances(before - count)),
            _ if plan.spec != self.spec => "settings changed, no instance replaced".to_owned(),
            (true, true) if plan.settles && !self.core.converged() => {
                "brought into its wanted state".to_owned()
            }
            _ => return None,
        })
    }

    fn is_running_anything(&self) -> bool {
        self.core.instances().iter().any(HeldInstance::is_ready)
    }

    /// Applies a plan. Returns the goal that a job has to wait for, if the service is not what it
    /// should be.
    ///
    /// A service that should not run any more is only marked: its instances run on until
    /// [`Service::stop`] is called, because sites may have to stay with it for a while.
    pub fn apply(&mut self, plan: Plan, world: &mut World) -> Option<Goal> {
        let of_arguments = are_of_arguments(plan.changes());
        let count_before = self.core.desired().count;
        let was_wanted = self.is_wanted();
        self.spec = plan.spec;
        self.removed = false;
        self.note(plan.remarks);
        if let Some((equal, parts)) = &plan.adopted {
            let known = |generation| self.deployments.get(generation);
            for deployment in equal.iter().filter_map(known) {
                deployment.adopt(parts);
            }
        }
        self.leaving = self.core.desired().running && !plan.running;
        let running = plan.running || self.leaving;
        let mut target = match plan.settles && running && plan.deployment.is_none() {
            // What the service works toward is what is on disk.
            true => self.core.target(),
            false => self.core.desired().target,
        };
        let changed = plan.deployment.is_some()
            || plan.running != was_wanted
            || count_before != u32::from(self.spec.instance_count);
        if let Some(deployment) = plan.deployment {
            self.arguments_changed = of_arguments.then(Instant::now);
            self.history.last_generation += 1;
            self.history.last_version = self.history.last_version.max(deployment.version);
            target = RolloutTarget {
                generation: self.history.last_generation,
                version: deployment.version,
            };
            if world.units.is_none() {
                self.warn_of_limits(&deployment);
            }
            world.keep_executable(&self.spec.name, target.generation, &deployment.executable);
            self.deployments
                .insert(target.generation, Rc::new(deployment));
            tracing::info!(
                message_id = events::ROLLOUT_STARTED,
                service = self.spec.name,
                generation = target.generation,
                instances = self.spec.instance_count,
                "rollout started"
            );
        }
        let takes_over = self.core.desired().takes_over;
        let wanted = Desired {
            takes_over,
            ..desired(&self.spec, running, target)
        };
        self.step(RolloutEvent::Desire(wanted), world);
        if plan.settles {
            self.step(RolloutEvent::Retry, world);
        }
        let waits = match plan.settles {
            true => self.leaving || !self.core.converged(),
            false => self.is_rolling_out(),
        };
        (changed || waits).then(|| self.goal())
    }

    /// Returns how long to wait before the instances are replaced again because of nothing but
    /// files that arguments name. Those that the service itself writes would replace them for ever.
    pub fn pause_of_arguments(&self, now: Instant) -> Option<Duration> {
        let until = self.arguments_changed? + BETWEEN_ARGUMENTS;
        let left = until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Takes in what people should know about the files of the service, and logs what is new.
    fn note(&mut self, remarks: Vec<String>) {
        for note in remarks.iter().filter(|note| !self.remarks.contains(note)) {
            tracing::warn!(
                service = self.spec.name,
                note,
                "remark about the files of the service"
            );
        }
        self.remarks = remarks;
    }

    /// Warns that limits of the service's file have no effect without systemd, because they need a
    /// scope. Warns once, not for every generation.
    fn warn_of_limits(&self, deployment: &Deployment) {
        let limits = &deployment.process.limits.scope;
        let mut known = self.deployments.values();
        let keys = limits.keys();
        if !keys.is_empty() && !known.any(|known| known.process.limits.scope == *limits) {
            tracing::warn!(
                service = self.spec.name,
                note = keys.join(", "),
                "limits that only systemd can keep have no effect"
            );
        }
    }

    /// Returns true if the service runs, has not reached its target yet, and no slot waits for its
    /// backoff.
    fn is_rolling_out(&self) -> bool {
        self.core.desired().running
            && !self.core.converged()
            && self.core.waiting().next().is_none()
    }
}
