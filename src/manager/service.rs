//! One service: the shell around its rollout core. It performs the core's actions on real processes and feeds back
//! what happens to them.

mod diagnosis;
mod saved;
mod show;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::World;
use super::deployment::Deployment;
use super::instance::{Instance, News};
use super::jobs::Goal;
use super::rollout::{self, Action, Desired, InstanceId, Policy, Reconciler, State, Target};
use super::status;
use crate::config::{Rollout, ServiceConfig};
use crate::events;
use crate::fingerprint::Fingerprint;
use crate::ipc::{EndpointCounts, EndpointId, EndpointState, Probe, WireEndpoint};
pub use diagnosis::Diagnosis;
pub use saved::Saved;

/// One configured service, or one that was removed and whose instances are not gone yet.
pub struct Service {
    spec: Arc<ServiceConfig>,
    core: Reconciler,
    /// Those that a slot may still be started with, by generation.
    deployments: BTreeMap<u64, Rc<Deployment>>,
    instances: BTreeMap<InstanceId, Instance>,
    /// The file is gone; the service ends with its last instance.
    removed: bool,
    /// All instances were ready at one time since it was started.
    came_up: bool,
    /// The newest generation that all instances had and were ready.
    finished: u64,
    last_generation: u64,
    last_version: u64,
    crashes: u32,
    /// Requests of instances that are gone.
    past_requests: u64,
    last_error: Option<status::Failure>,
}

/// What a change on disk or a command means for a service; made before anything is touched.
pub struct Plan {
    spec: Arc<ServiceConfig>,
    deployment: Option<Deployment>,
    running: bool,
}

impl Plan {
    /// The configuration that it is for.
    pub fn spec(&self) -> &Arc<ServiceConfig> {
        &self.spec
    }
}

/// Why a service is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// smoothserve was told to apply what changed.
    Reload,
    /// Its files were seen to change.
    FilesChanged,
    /// It is to be started, or replaced as it is.
    Command,
}

impl Service {
    /// A service that is configured but of which nothing was started yet.
    pub fn new(spec: Arc<ServiceConfig>) -> Service {
        let target = Target {
            generation: 0,
            version: 0,
        };
        Service {
            core: Reconciler::new(desired(&spec, false, target)),
            spec,
            deployments: BTreeMap::new(),
            instances: BTreeMap::new(),
            removed: false,
            came_up: false,
            finished: 0,
            last_generation: 0,
            last_version: 0,
            crashes: 0,
            past_requests: 0,
            last_error: None,
        }
    }

    /// Its configuration as it was last applied.
    pub fn spec(&self) -> &Arc<ServiceConfig> {
        &self.spec
    }

    /// It was removed and nothing of it is left.
    pub fn is_gone(&self) -> bool {
        self.removed && self.instances.is_empty()
    }

    /// It is no longer configured.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// No process of it is left.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// Looks at the disk and decides what is to be done to make `spec` real. Touches nothing.
    pub fn plan(&self, spec: &Arc<ServiceConfig>, reason: Reason) -> std::io::Result<Plan> {
        let was_running = self.core.desired().running;
        let running = match reason {
            Reason::Command => true,
            // A service that was stopped or started by hand stays so until its file says something new.
            _ if spec.enabled != self.spec.enabled || self.last_generation == 0 || self.removed => {
                spec.enabled
            }
            _ => was_running,
        };
        let deployment = if running && self.needs_deployment(spec, reason, was_running) {
            Some(self.deployment(spec)?)
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
        reason: Reason,
        was_running: bool,
    ) -> bool {
        if reason == Reason::Command || !was_running {
            return true;
        }
        let now = Fingerprint::take(spec);
        let differs = |generation: u64| {
            self.deployments
                .get(&generation)
                .is_none_or(|deployment| !deployment.is(&spec.process, &now))
        };
        let already_tried =
            reason == Reason::FilesChanged && !differs(self.core.desired().target.generation);
        differs(self.core.target().generation) && !already_tried
    }

    /// What is on disk now, under the version of the deployment that has the same content, if there is one.
    fn deployment(&self, spec: &Arc<ServiceConfig>) -> std::io::Result<Deployment> {
        let mut deployment = Deployment::take(spec, self.last_version + 1)?;
        if let Some(same) = self
            .deployments
            .values()
            .find(|known| deployment.same_content(known))
        {
            deployment.version = same.version;
        }
        Ok(deployment)
    }

    /// Makes a plan real. The goal is what a job has to wait for, if anything changes.
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
            self.last_generation += 1;
            self.last_version = self.last_version.max(deployment.version);
            target = Target {
                generation: self.last_generation,
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
            rollout::Event::Desire(desired(&self.spec, plan.running, target)),
            world,
        );
        if !changed && !self.is_rolling_out() {
            return None;
        }
        Some(self.goal())
    }

    /// Without systemd there are no scopes, and nothing keeps the limits that a scope would have. This is said once, not
    /// with every generation.
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

    /// Where it is wanted to get.
    pub fn goal(&self) -> Goal {
        match self.core.desired().running {
            true => Goal::Running {
                generation: self.core.target().generation,
            },
            false => Goal::Stopped,
        }
    }

    /// It is on its way to its target, and nothing has gone wrong on it yet.
    fn is_rolling_out(&self) -> bool {
        self.core.desired().running
            && !self.core.converged()
            && self.core.waiting().next().is_none()
    }

    /// It is configured, but what is on disk cannot be started. It is looked at again when that changes.
    pub fn not_started(&mut self, error: &std::io::Error) {
        tracing::error!(
            message_id = events::SERVICE_NOT_STARTED,
            service = self.spec.name,
            error = %error,
            "service not started"
        );
        self.last_error = Some(status::Failure {
            at: SystemTime::now(),
            message: error.to_string(),
        });
    }

    /// Drains and stops all instances. `removed`: and the service with them.
    pub fn stop(&mut self, removed: bool, world: &mut World) {
        self.removed |= removed;
        let wanted = Desired {
            running: false,
            ..self.core.desired().clone()
        };
        self.step(rollout::Event::Desire(wanted), world);
    }

    /// Gives the rollout of this generation up, if it is still the one.
    pub fn cancel(&mut self, generation: u64, world: &mut World) {
        if self.core.desired().target.generation == generation {
            self.step(rollout::Event::Cancel, world);
        }
    }

    /// When [`Service::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.core.deadline()
    }

    /// Lets what is due happen.
    pub fn tick(&mut self, world: &mut World) {
        self.step(rollout::Event::Tick, world);
    }

    /// Something happened to one of its instances.
    pub fn hear(&mut self, id: InstanceId, news: News, world: &mut World) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        match news {
            News::Launched(process, permit) => {
                instance.launched(process);
                world.permits.push(permit);
                world.changed.insert(self.spec.name.clone());
            }
            News::Ready => self.step(rollout::Event::Ready(id), world),
            News::Probed(Ok(())) => {
                if instance.probe_suffices(world.reporter(id)) {
                    self.step(rollout::Event::Ready(id), world);
                }
            }
            News::Probed(Err(fault)) => instance.last_probe = Some(fault),
            News::Idle => self.step(rollout::Event::Idle(id), world),
            News::Health(fault) => {
                match &fault {
                    Some(fault) => tracing::warn!(
                        message_id = events::INSTANCE_UNHEALTHY,
                        service = self.spec.name,
                        instance = instance.label,
                        error = fault,
                        "instance unhealthy"
                    ),
                    None => tracing::info!(
                        service = self.spec.name,
                        instance = instance.label,
                        "instance healthy again"
                    ),
                }
                instance.fault = fault;
            }
            News::Counts(worker, counts) => {
                instance.counts.count(worker, counts);
                self.look_at_tunnels(id, world);
            }
            News::Exited(how) => {
                instance.ended = Some(how);
                self.step(rollout::Event::Exited(id), world);
                if let Some(instance) = self.instances.remove(&id) {
                    self.past_requests += instance.counts.requests();
                    world.ports.release(id);
                    world.owners.remove(&id);
                    instance.clean_up();
                }
            }
        }
    }

    /// Whether this is what is known already.
    pub fn has_counted(&self, worker: u32, counts: &EndpointCounts) -> bool {
        let instance = self.instances.get(&counts.id.0);
        instance.is_some_and(|instance| instance.counts.has(worker, counts))
    }

    /// A worker has ended; what it counted is history.
    pub fn worker_gone(&mut self, worker: u32, world: &mut World) {
        for instance in self.instances.values_mut() {
            instance.counts.gone(worker);
        }
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            self.look_at_tunnels(id, world);
        }
    }

    /// Takes in whether an instance has tunnels, if that has changed.
    fn look_at_tunnels(&mut self, id: InstanceId, world: &mut World) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let tunnels = instance.counts.tunnels() > 0;
        let mut held = self.core.instances().iter();
        if held.any(|held| held.id == id && held.tunnels != tunnels) {
            self.step(rollout::Event::Tunnels(id, tunnels), world);
        }
    }

    /// Takes its draining instances for idle: there is no worker that could be connected to them.
    pub fn no_worker(&mut self, world: &mut World) {
        let draining: Vec<InstanceId> = self
            .core
            .instances()
            .iter()
            .filter(|instance| matches!(instance.state, State::Draining { .. }))
            .map(|instance| instance.id)
            .collect();
        for id in draining {
            self.step(rollout::Event::Idle(id), world);
        }
    }

    /// Ends the patience: SIGKILL for all that is left.
    pub fn kill(&mut self) {
        for instance in self.instances.values() {
            instance.kill();
        }
    }

    fn step(&mut self, event: rollout::Event, world: &mut World) {
        let before: Vec<rollout::Instance> = self.core.instances().to_vec();
        for action in self.core.handle(Instant::now(), event, &mut world.next_id) {
            match action {
                Action::Start {
                    id,
                    slot,
                    generation,
                } => self.start(id, slot, generation, world),
                Action::Stop(id) => {
                    if let Some(instance) = self.instances.get_mut(&id) {
                        tracing::info!(
                            service = self.spec.name,
                            instance = instance.label,
                            "stopping instance"
                        );
                        instance.stop();
                    }
                }
                Action::Kill(id) => {
                    if let Some(instance) = self.instances.get(&id) {
                        tracing::warn!(
                            service = self.spec.name,
                            instance = instance.label,
                            "instance did not stop in time, killing it"
                        );
                        instance.kill();
                    }
                }
                Action::Failed {
                    id,
                    generation,
                    failure,
                    gave_up,
                    ..
                } => self.failed(id, generation, failure, gave_up, world),
            }
        }
        self.note_changes(&before);
        self.prune(world);
        world.changed.insert(self.spec.name.clone());
    }

    fn start(&mut self, id: InstanceId, slot: u32, generation: u64, world: &mut World) {
        let deployment = self.deployments[&generation].clone();
        let instance = Instance::start(id, slot, &self.spec.name, deployment, world);
        tracing::info!(
            service = self.spec.name,
            instance = instance.label,
            id,
            generation,
            "starting instance"
        );
        self.instances.insert(id, instance);
        world.owners.insert(id, self.spec.name.clone());
    }

    /// Says what moved on, and remembers since when.
    fn note_changes(&mut self, before: &[rollout::Instance]) {
        let unmoved = before.len() == self.core.instances().len()
            && before.iter().all(|old| {
                self.core
                    .instances()
                    .iter()
                    .any(|new| new.id == old.id && kind(&new.state) == kind(&old.state))
            });
        // The newest first: a new instance is ready before the old one drains.
        for new in self.core.instances().iter().rev() {
            let old = before.iter().find(|old| old.id == new.id);
            if old.is_some_and(|old| kind(&old.state) == kind(&new.state)) {
                continue;
            }
            let Some(instance) = self.instances.get_mut(&new.id) else {
                continue;
            };
            instance.since = SystemTime::now();
            match new.state {
                State::Ready { .. } => {
                    instance.accepted();
                    tracing::info!(
                        service = self.spec.name,
                        instance = instance.label,
                        "instance ready"
                    );
                }
                State::Draining { .. } => {
                    tracing::info!(
                        service = self.spec.name,
                        instance = instance.label,
                        "draining instance"
                    );
                }
                _ => {}
            }
        }
        if !unmoved && self.core.converged() {
            self.came_up = self.core.desired().running;
            let generation = self.core.target().generation;
            match self.core.desired().running {
                true if generation > self.finished => {
                    self.finished = generation;
                    tracing::info!(
                        message_id = events::ROLLOUT_FINISHED,
                        service = self.spec.name,
                        generation,
                        "rollout finished"
                    );
                }
                true => {
                    tracing::info!(service = self.spec.name, generation, "service is as wanted")
                }
                false => tracing::info!(
                    message_id = events::SERVICE_STOPPED,
                    service = self.spec.name,
                    "service stopped"
                ),
            }
        }
    }

    /// Its instances, as far as the worker is concerned with them.
    pub fn endpoints(&self) -> Vec<WireEndpoint> {
        let endpoints = self.core.instances().iter().filter_map(|held| {
            let instance = self.instances.get(&held.id)?;
            let state = match held.state {
                // Nobody but the instance itself says when it is ready.
                State::Starting { .. } if instance.probe().is_none() => return None,
                // There is nobody to be asked yet.
                State::Starting { .. } if instance.pid().is_none() => return None,
                State::Starting { .. } => EndpointState::Probing,
                State::Ready { .. } => EndpointState::Active,
                State::Draining { .. } => EndpointState::Draining,
                State::Closing { .. } => EndpointState::Draining,
                State::Stopping { .. } if held.tunnels => EndpointState::Cut,
                // It was never routed, or it has drained.
                State::Stopping { .. } => EndpointState::Draining,
            };
            Some(WireEndpoint {
                id: EndpointId(held.id),
                address: instance.address.clone(),
                protocol: instance.protocol(),
                state,
                probe: instance.probe().unwrap_or(Probe::Connect),
            })
        });
        endpoints.collect()
    }

    /// Forgets deployments that nothing runs and nothing can be started with any more, so that their executables are
    /// closed.
    fn prune(&mut self, world: &World) {
        let core = &self.core;
        let is_used = |generation: u64| {
            let running = core.instances().iter().map(|instance| instance.target);
            let startable = [core.desired().target, core.target()];
            let mut used = running.chain(startable).chain(core.good());
            used.any(|target| target.generation == generation)
        };
        self.deployments.retain(|&generation, _| {
            let used = is_used(generation);
            if !used {
                world.forget_executable(&self.spec.name, generation);
            }
            used
        });
    }

    /// The instance whose process this is.
    pub fn instance_of(&self, pid: u32) -> Option<InstanceId> {
        let mut instances = self.instances.iter();
        instances
            .find(|(_, instance)| instance.pid() == Some(pid))
            .map(|(id, _)| *id)
    }

    /// Its instances, and the slots that they are in.
    pub fn slots(&self) -> impl Iterator<Item = (InstanceId, u32)> {
        let instances = self.core.instances().iter();
        instances.map(|instance| (instance.id, instance.slot))
    }

    /// It has an instance that gets requests, or has failed to have one, or needs none.
    pub fn has_come_up(&self) -> bool {
        let mut instances = self.core.instances().iter();
        !self.is_wanted() || self.last_error.is_some() || instances.any(rollout::Instance::is_ready)
    }

    /// Requests for its hosts are its own, even if it was stopped.
    pub fn is_routed(&self) -> bool {
        !self.removed && (self.spec.enabled || self.core.desired().running)
    }

    /// It is to run.
    pub fn is_wanted(&self) -> bool {
        !self.removed && self.core.desired().running
    }
}

fn desired(spec: &ServiceConfig, running: bool, target: Target) -> Desired {
    Desired {
        running,
        count: u32::from(spec.instance_count),
        target,
        policy: Policy {
            in_place: spec.rollout == Rollout::InPlace,
            delay_running_time: spec.delay_running_time,
            start_timeout: spec.start_timeout,
            drain_timeout: spec.drain_timeout,
            tunnel_drain_timeout: spec.tunnel_drain_timeout,
            stop_timeout: spec.stop_timeout,
        },
    }
}

fn kind(state: &State) -> std::mem::Discriminant<State> {
    std::mem::discriminant(state)
}
