//! The plan of a change to a service: made first, without changing anything, and then applied.

use std::rc::Rc;
use std::sync::Arc;

use super::service::{Service, desired};
use crate::config::ServiceConfig;
use crate::events;
use crate::manager::jobs::Goal;
use crate::manager::process::deployment::{Deployment, Material};
use crate::manager::rollout::{RolloutEvent, RolloutTarget};
use crate::manager::world::World;

/// What a change on disk, or a command, means for a service.
pub struct Plan {
    spec: Arc<ServiceConfig>,
    deployment: Option<Deployment>,
    running: bool,
}

impl Plan {
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
        let running = match reason {
            PlanReason::Command => true,
            // A service that a command has started or stopped stays so until `enabled` changes in
            // its file.
            _ if spec.enabled != self.spec.enabled
                || self.history.last_generation == 0
                || self.removed =>
            {
                spec.enabled
            }
            _ => was_running,
        };
        let deployment = if running && self.needs_deployment(spec, &material, reason, was_running) {
            Some(self.deployment(spec, material)?)
        } else {
            None
        };
        Ok(Plan {
            spec: spec.clone(),
            deployment,
            running,
        })
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
        let already_tried =
            reason == PlanReason::FilesChanged && !differs(self.core.desired().target.generation);
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

    /// Applies a plan. Returns the goal that a job has to wait for, if anything changes.
    pub fn apply(&mut self, plan: Plan, world: &mut World) -> Option<Goal> {
        let count_before = self.core.desired().count;
        let was_running = self.core.desired().running;
        self.spec = plan.spec;
        self.removed = false;
        let mut target = self.core.desired().target;
        let changed = plan.deployment.is_some()
            || plan.running != was_running
            || count_before != u32::from(self.spec.instance_count);
        if let Some(deployment) = plan.deployment {
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
        self.step(
            RolloutEvent::Desire(desired(&self.spec, plan.running, target)),
            world,
        );
        if !changed && !self.is_rolling_out() {
            return None;
        }
        Some(self.goal())
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
