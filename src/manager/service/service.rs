//! The service itself: its state, and how it handles commands.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::diagnosis;
use super::history::{ChangeSubject, History, SavedFailure, SavedRefusal};
use crate::config::{Rollout, ServiceConfig};
use crate::events;
use crate::ipc::{EndpointId, EndpointState, HealthCheck, Probe, WireEndpoint};
use crate::manager::event::Diagnosis;
use crate::manager::instance::Instance;
use crate::manager::jobs::Goal;
use crate::manager::process::deployment::Deployment;
use crate::manager::rollout::{
    Desired, HeldInstance, InstanceFailure, InstanceId, LifeState, Reconciler, RolloutAction,
    RolloutEvent, RolloutPolicy, RolloutTarget, Soak,
};
use crate::manager::world::World;
use crate::status::{FailureReport, Moment};

/// A configured service, or a removed service whose instances are not all gone yet.
pub struct Service {
    /// The file of the service, as it was last applied.
    pub(super) spec: Arc<ServiceConfig>,
    /// The rollout core, which decides what to do to reach the desired state.
    pub(super) core: Reconciler,
    /// The deployments that a slot may still be started from, by generation.
    pub(super) deployments: BTreeMap<u64, Rc<Deployment>>,
    /// The instances that have a process, or will have one soon.
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    /// Whether the service's file is gone. A removed service ends with its last instance.
    pub(super) removed: bool,
    /// True: the service should not run any more, and runs on for the sites that it keeps.
    pub(super) leaving: bool,
    /// The sites that stay with the service until others have arrived, by the names of those.
    pub(super) keeps: BTreeMap<String, Vec<String>>,
    /// The history of the service.
    pub(super) history: History,
    /// What people should know about the files of the service.
    pub(super) remarks: Vec<String>,
    /// When the instances were last replaced because of nothing but files that arguments name.
    pub(super) arguments_changed: Option<Instant>,
    /// Whether the progress of the service may have changed since [`Service::take_moved`] was last
    /// called.
    pub(super) moved: bool,
}

impl Service {
    /// Makes a service of which nothing was started yet.
    pub fn new(spec: Arc<ServiceConfig>) -> Service {
        let target = RolloutTarget {
            generation: 0,
            version: 0,
        };
        Service {
            core: Reconciler::new(desired(&spec, false, target)),
            spec,
            deployments: BTreeMap::new(),
            instances: BTreeMap::new(),
            removed: false,
            leaving: false,
            keeps: BTreeMap::new(),
            history: History::default(),
            remarks: Vec::new(),
            arguments_changed: None,
            moved: false,
        }
    }

    /// Returns the configuration of the service as it was last applied.
    pub fn spec(&self) -> &Arc<ServiceConfig> {
        &self.spec
    }

    /// Returns true if the progress of the service may have changed since the last call.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Marks the progress of the service as changed, so that jobs look at it.
    pub fn mark_moved(&mut self) {
        self.moved = true;
    }

    /// Returns true if no process of the service is left.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// Returns the goal of a job that waits until the service has reached its desired state.
    pub fn goal(&self) -> Goal {
        match self.is_wanted() {
            true => Goal::Running {
                generation: self.core.target().generation,
            },
            false => Goal::Stopped,
        }
    }

    /// Takes in that the service cannot be started from what is on disk. The service is planned
    /// again when its files change.
    pub fn not_started(&mut self, error: &str) {
        tracing::error!(
            message_id = events::SERVICE_NOT_STARTED,
            service = self.spec.name,
            error,
            "service not started"
        );
        self.fail(error.to_owned());
    }

    /// Remembers an error of the service that has nothing to do with the output of an instance.
    pub(super) fn fail(&mut self, message: String) {
        self.history.last_error = Some(SavedFailure {
            at: Moment(SystemTime::now()),
            message,
            output: Vec::new(),
        });
    }

    /// Drains and stops all instances. If the service was removed, it ends with the last of them.
    pub fn stop(&mut self, world: &mut World) {
        self.leaving = false;
        let wanted = Desired {
            running: false,
            ..self.core.desired().clone()
        };
        self.step(RolloutEvent::Desire(wanted), world);
    }

    /// Remembers that a change on disk was not applied, until it is applied or gone.
    pub fn refuse(&mut self, subject: ChangeSubject, message: &str) {
        self.history.refused = Some(SavedRefusal {
            at: Moment(SystemTime::now()),
            message: message.to_owned(),
            subject,
        });
        self.moved = true;
    }

    /// Takes in that no change of this kind waits any more.
    pub fn forget_refusal(&mut self, subject: ChangeSubject) {
        let refused = &mut self.history.refused;
        *refused = refused.take().filter(|refused| refused.subject != subject);
    }

    /// Gives up the rollout of `generation`, unless a newer generation has replaced it.
    pub fn cancel(&mut self, generation: u64, world: &mut World) {
        if self.core.desired().target.generation == generation {
            self.step(RolloutEvent::Cancel, world);
        }
    }

    /// Returns when [`Service::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.core.deadline()
    }

    /// Lets the rollout core act on the deadlines that have passed.
    pub fn tick(&mut self, world: &mut World) {
        self.step(RolloutEvent::Tick, world);
    }

    /// Kills all instances.
    pub fn kill(&mut self) {
        for instance in self.instances.values() {
            instance.kill();
        }
    }

    /// Passes an event to the rollout core and performs the actions that it returns.
    pub(super) fn step(&mut self, event: RolloutEvent, world: &mut World) {
        let before: Vec<HeldInstance> = self.core.instances().to_vec();
        self.core.set_drains_until(world.drains_until);
        for action in self.core.handle(Instant::now(), event, &mut world.next_id) {
            match action {
                RolloutAction::Start {
                    id,
                    slot,
                    generation,
                } => self.start(id, slot, generation, world),
                RolloutAction::Stop(id) => {
                    if let Some(instance) = self.instances.get_mut(&id) {
                        tracing::info!(
                            service = self.spec.name,
                            instance = instance.label,
                            "stopping instance"
                        );
                        instance.stop();
                    }
                }
                RolloutAction::Kill(id) => {
                    if let Some(instance) = self.instances.get(&id) {
                        tracing::warn!(
                            service = self.spec.name,
                            instance = instance.label,
                            "instance did not stop in time, killing it"
                        );
                        instance.kill();
                    }
                }
                RolloutAction::Failed {
                    id,
                    generation,
                    failure,
                    gave_up,
                    ..
                } => self.failed(id, generation, failure, gave_up, world),
            }
        }
        let drains = |held: &HeldInstance| matches!(held.state, LifeState::Draining { .. });
        world.hurries_workers |= self.core.desired().policy.in_place
            && world.drains_until.is_some()
            && self.core.instances().iter().any(drains);
        self.note_changes(&before);
        self.prune(world);
        self.moved = true;
    }

    /// Starts to find out the cause of a failure, which takes a moment if it is in the journal.
    /// [`Service::diagnosed`] gets the result.
    fn failed(
        &mut self,
        id: InstanceId,
        generation: u64,
        failure: InstanceFailure,
        gave_up: bool,
        world: &World,
    ) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        if failure == InstanceFailure::Crashed {
            self.history.crashes += 1;
        }
        if instance.waits_for_executable {
            self.history.untried = Some(generation);
        }
        let diagnosis = Diagnosis {
            service: self.spec.name.clone(),
            instance: instance.label.clone(),
            generation,
            failure,
            gave_up,
            at: SystemTime::now(),
            message: instance.describe(failure, self.spec.times.start_timeout),
            suspicion: instance.suspicion(failure),
            output: Vec::new(),
        };
        diagnosis::gather(diagnosis, instance.process(), world.reports.clone());
    }

    /// Logs a failure with its cause, and fails the jobs that wait for its generation.
    pub fn diagnosed(&mut self, diagnosis: Diagnosis, world: &mut World) {
        let report = FailureReport::new(&diagnosis.message, &diagnosis.output);
        diagnosis::log(&diagnosis, &report);
        let Diagnosis {
            service,
            generation,
            at,
            message,
            output,
            ..
        } = diagnosis;
        let jobs = &mut world.jobs;
        jobs.failed(&service, generation, &message, &report, Instant::now());
        self.moved = true;
        self.history.last_error = Some(SavedFailure {
            at: Moment(at),
            message,
            output,
        });
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

    /// Logs which instances have entered a new state, and remembers the time.
    fn note_changes(&mut self, before: &[HeldInstance]) {
        let unmoved = before.len() == self.core.instances().len()
            && before.iter().all(|old| {
                self.core
                    .instances()
                    .iter()
                    .any(|new| new.id == old.id && kind(&new.state) == kind(&old.state))
            });
        // The newest instance comes first in the log: it is ready before the old one drains.
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
                LifeState::Ready { .. } => {
                    instance.accepted();
                    tracing::info!(
                        service = self.spec.name,
                        instance = instance.label,
                        "instance ready"
                    );
                }
                LifeState::Draining { .. } => {
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
            self.history.came_up = self.core.desired().running;
            let generation = self.core.target().generation;
            match self.core.desired().running {
                true if generation > self.history.finished => {
                    self.history.finished = generation;
                    tracing::info!(
                        message_id = events::ROLLOUT_FINISHED,
                        service = self.spec.name,
                        generation,
                        "rollout finished"
                    );
                }
                true => {
                    tracing::info!(service = self.spec.name, generation, "service is up")
                }
                false => tracing::info!(
                    message_id = events::SERVICE_STOPPED,
                    service = self.spec.name,
                    "service stopped"
                ),
            }
        }
    }

    /// Returns the endpoints of this service that the workers have to know.
    pub fn endpoints(&self) -> Vec<WireEndpoint> {
        let endpoints = self.core.instances().iter().filter_map(|held| {
            let instance = self.instances.get(&held.id)?;
            let state = match held.state {
                // Workers do not probe an instance that reports its readiness itself.
                LifeState::Starting { .. } if instance.probe().is_none() => return None,
                // The process does not exist yet, so there is nothing to probe.
                LifeState::Starting { .. } if instance.pid().is_none() => return None,
                LifeState::Starting { .. } => EndpointState::Probing,
                LifeState::Ready { .. } => EndpointState::Active,
                LifeState::Draining { .. } => EndpointState::Draining,
                LifeState::Closing { .. } => EndpointState::Draining,
                LifeState::Stopping { .. } if held.tunnels => EndpointState::Cut,
                // The instance was never routed, or it has drained.
                LifeState::Stopping { .. } => EndpointState::Draining,
            };
            Some(WireEndpoint {
                id: EndpointId(held.id),
                address: instance.address.clone(),
                protocol: instance.protocol(),
                state,
                probe: instance.probe().unwrap_or(Probe::Connect),
                check: match held.state {
                    LifeState::Ready {
                        soak: Soak::Until(_),
                        ..
                    } => HealthCheck::Close,
                    LifeState::Ready {
                        soak: Soak::Asked, ..
                    } => HealthCheck::Report,
                    _ => HealthCheck::Steady,
                },
            })
        });
        endpoints.collect()
    }

    /// Forgets deployments that no instance runs and no slot can be started from, which closes
    /// their executables.
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

    /// Returns the instances and their slots.
    pub fn slots(&self) -> impl Iterator<Item = (InstanceId, u32)> {
        let instances = self.core.instances().iter();
        instances.map(|instance| (instance.id, instance.slot))
    }

    /// Returns true if the service has come up: an instance gets requests, an error has occurred,
    /// or the service should not run.
    pub fn has_come_up(&self) -> bool {
        let mut instances = self.core.instances().iter();
        !self.is_wanted()
            || self.history.last_error.is_some()
            || instances.any(HeldInstance::is_ready)
    }

    /// Returns true if the service should run.
    pub fn is_wanted(&self) -> bool {
        !self.removed && !self.leaving && self.core.desired().running
    }

    /// Returns true if the service would run with this configuration. A service that a command has
    /// started or stopped stays so until `enabled` changes in its file.
    pub fn would_run(&self, spec: &ServiceConfig) -> bool {
        let is_decided_by_file = spec.enabled != self.spec.enabled
            || self.history.last_generation == 0
            || self.removed
            || self.leaving;
        match is_decided_by_file {
            true => spec.enabled,
            false => self.core.desired().running,
        }
    }

    /// Returns true if instances are kept running, be it only for sites that the service keeps.
    pub fn is_running(&self) -> bool {
        self.core.desired().running
    }

    /// Returns true if the service works toward an older generation than this one, because this one
    /// was given up.
    pub fn has_given_up(&self, generation: u64) -> bool {
        self.core.target().generation < generation
            && self.core.desired().target.generation >= generation
    }

    /// Returns the message of the last error; empty if there was none.
    pub fn last_error(&self) -> &str {
        let error = self.history.last_error.as_ref();
        error.map_or("", |error| &error.message)
    }
}

/// Returns the desired state of a service for its configuration. `target` is what its slots should
/// run.
pub(super) fn desired(spec: &ServiceConfig, running: bool, target: RolloutTarget) -> Desired {
    Desired {
        running,
        count: u32::from(spec.instance_count),
        target,
        policy: RolloutPolicy {
            in_place: spec.rollout == Rollout::InPlace,
            times: spec.times.clone(),
        },
        takes_over: false,
    }
}

fn kind(state: &LifeState) -> std::mem::Discriminant<LifeState> {
    std::mem::discriminant(state)
}
