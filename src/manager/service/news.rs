//! What a service hears of its instances and of the workers, and what it makes of that.

use std::time::Duration;

use super::service::Service;
use crate::config::Rollout;
use crate::events;
use crate::ipc::EndpointCounts;
use crate::manager::event::News;
use crate::manager::instance::Instance;
use crate::manager::process::{Ending, ProcessEnd};
use crate::manager::rollout::{InstanceId, LifeState, RolloutEvent};
use crate::manager::worker::ExpectedReport;
use crate::manager::world::World;

/// How long an instance whose slot is empty meanwhile waits if its executable is open for writing.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

impl Service {
    /// Takes in what happened to an instance of the service.
    pub fn hear(&mut self, id: InstanceId, news: News, world: &mut World) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let mut held = self.core.instances().iter();
        let is_starting =
            held.any(|held| held.id == id && matches!(held.state, LifeState::Starting { .. }));
        match news {
            News::Identified(identity) => {
                // Start-first, nobody misses an instance that waits, and `start_timeout` ends the
                // wait.
                let is_in_place = self.spec.rollout == Rollout::InPlace;
                let is_missed = is_in_place && self.core.good().is_some();
                let times = (
                    self.spec.times.stop_timeout,
                    is_missed.then_some(BUSY_PATIENCE),
                );
                instance.identified(id, &self.spec.name, identity, times, world);
                self.moved = true;
            }
            News::Launched(process, permit) => {
                instance.launched(process, world.reporter(id));
                world.permits.push(permit);
                self.moved = true;
            }
            News::Ready => {
                if instance.can_be_reached() {
                    self.step(RolloutEvent::Ready(id), world);
                }
            }
            News::Admitted(result) => {
                if let Err(fault) = &result {
                    tracing::error!(
                        service = self.spec.name,
                        instance = instance.label,
                        error = fault,
                        "the proxy cannot use the socket"
                    );
                }
                if instance.admitted(result) {
                    self.step(RolloutEvent::Ready(id), world);
                }
            }
            News::Probed(Ok(())) => {
                if instance.probe_suffices(world.reporter(id)) && instance.can_be_reached() {
                    self.step(RolloutEvent::Ready(id), world);
                }
            }
            News::Probed(Err(fault)) => instance.not_ready(fault, world.reporter(id)),
            News::Seen(sighting) => {
                instance.seen(sighting);
                self.moved = true;
            }
            News::Busy(waits) => {
                if waits {
                    tracing::warn!(
                        service = self.spec.name,
                        instance = instance.label,
                        "waiting until the executable is not written any more"
                    );
                }
                instance.waits_for_executable = waits;
                self.moved = true;
            }
            News::Idle => self.step(RolloutEvent::Idle(id), world),
            // Whoever listens there after the end of an instance that was ready does no harm.
            News::PortTaken if !is_starting => {}
            News::PortTaken => {
                tracing::warn!(
                    service = self.spec.name,
                    instance = instance.label,
                    port = instance.port().map(|address| address.port()),
                    "another program has taken the port of the instance"
                );
                self.step(RolloutEvent::PortTaken(id), world);
            }
            News::Health(fault) => {
                let event = match fault {
                    None => RolloutEvent::Healthy(id),
                    Some(_) => RolloutEvent::Unhealthy(id),
                };
                match &fault {
                    _ if fault == instance.fault => {}
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
                self.step(event, world);
            }
            News::Counts(worker, counts) => {
                instance.counts.count(worker, counts);
                self.look_at_tunnels(id, world);
            }
            News::Exited(ending) => {
                match ending {
                    Ending::Ended(end) => instance.ended = Some(end),
                    Ending::LeftBehind(left) => self.left_behind(id, &left, world),
                }
                self.step(RolloutEvent::Exited(id), world);
                if let Some(instance) = self.instances.remove(&id) {
                    let requests = instance.counts.requests();
                    let past = &mut self.history.past_requests;
                    *past = past.saturating_add(requests);
                    world.ports.release(id);
                    world.owners.remove(&id);
                    instance.clean_up(&world.supervision);
                }
            }
        }
    }

    /// Takes in that processes of an instance do not end although they were killed, so that nobody
    /// waits for them any more. The jobs that wait for the service have failed by that.
    fn left_behind(&mut self, id: InstanceId, left: &[u32], world: &mut World) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let pids: Vec<String> = left.iter().map(u32::to_string).collect();
        let pids = pids.join(", ");
        let how = match left {
            [_] => format!("process {pids} does not end although it was killed; it is left behind"),
            _ => format!(
                "processes {pids} do not end although they were killed; they are left behind"
            ),
        };
        let error = format!("{}: {how}", instance.label);
        tracing::error!(
            service = self.spec.name,
            instance = instance.label,
            error,
            "processes of an instance left behind"
        );
        instance.ended = Some(ProcessEnd::told("was killed and does not end"));
        world.jobs.went_wrong(&self.spec.name, &error);
        self.fail(error);
    }

    /// Returns what a worker can have to say about an instance.
    pub fn expected_report(&self, id: InstanceId) -> ExpectedReport {
        let mut held = self.core.instances().iter();
        let Some(held) = held.find(|held| held.id == id) else {
            return ExpectedReport::Nothing;
        };
        let instance = self.instances.get(&id);
        let is_probed =
            |instance: &Instance| instance.probe().is_some() && instance.pid().is_some();
        match held.state {
            LifeState::Starting { .. } if instance.is_some_and(is_probed) => ExpectedReport::Probed,
            LifeState::Starting { .. } => ExpectedReport::Nothing,
            LifeState::Ready { .. } => ExpectedReport::Health,
            LifeState::Draining { .. } | LifeState::Closing { .. } | LifeState::Stopping { .. } => {
                ExpectedReport::Idle
            }
        }
    }

    /// Returns true if `counts` equal the last counts of this worker.
    pub fn has_counted(&self, worker: u32, counts: &EndpointCounts) -> bool {
        let instance = self.instances.get(&counts.id.0);
        instance.is_some_and(|instance| instance.counts.has(worker, counts))
    }

    /// Takes in that a worker has ended: its counts become past counts.
    pub fn worker_gone(&mut self, worker: u32, world: &mut World) {
        for instance in self.instances.values_mut() {
            instance.counts.gone(worker);
        }
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            self.look_at_tunnels(id, world);
        }
    }

    /// Tells the rollout core whether an instance has tunnels, if this has changed.
    fn look_at_tunnels(&mut self, id: InstanceId, world: &mut World) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let tunnels = instance.counts.tunnels() > 0;
        let mut held = self.core.instances().iter();
        if held.any(|held| held.id == id && held.tunnels != tunnels) {
            self.step(RolloutEvent::Tunnels(id, tunnels), world);
        }
    }

    /// Treats draining instances as idle, because no worker is left that could be connected to
    /// them.
    pub fn no_worker(&mut self, world: &mut World) {
        let draining: Vec<InstanceId> = self
            .core
            .instances()
            .iter()
            .filter(|instance| matches!(instance.state, LifeState::Draining { .. }))
            .map(|instance| instance.id)
            .collect();
        for id in draining {
            self.step(RolloutEvent::Idle(id), world);
        }
    }
}
