//! The reconciler, the heart of the rollout core: the slots of one service, and the rules that move
//! them toward the desired state.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::action::{InstanceFailure, RolloutAction};
use super::desired::{Desired, RolloutTarget};
use super::event::RolloutEvent;
use super::life::{HeldInstance, InstanceId, LifeState, Soak};
use crate::manager::backoff;

/// How long the first instance of a new version must stay up before the old instances are replaced.
pub const SOAK: Duration = Duration::from_secs(5);

/// How long a rotation pauses after each step. Starting or ending a process costs every other
/// process on the machine some milliseconds, so this must stay rare while requests are served.
pub const PAUSE: Duration = Duration::from_millis(200);

/// How many times in a row a slot may lose its port to another program before this is a failure.
pub const MOST_LOST_PORTS: u32 = 5;

/// The failures of one slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// The number of failures in a row. [`backoff::RECOVERED_AFTER`] of readiness resets it.
    failures: u32,
    /// Whether the slot is missing because its instance failed, and not because of an in-place
    /// rotation.
    failed: bool,
    retry_at: Option<Instant>,
    /// How many times in a row another program has taken the port of an instance in the slot.
    lost_ports: u32,
}

/// The state of one service's rollout.
#[derive(Debug, Clone)]
pub struct Reconciler {
    pub(super) desired: Desired,
    /// The target that the rollout works toward: the desired target or, if that was given up, the
    /// good one.
    pub(super) target: RolloutTarget,
    pub(super) good: Option<RolloutTarget>,
    /// Whether the first instance of `target` has survived its soak.
    pub(super) proven: bool,
    pub(super) instances: Vec<HeldInstance>,
    pub(super) slots: BTreeMap<u32, Slot>,
    /// The end of the pause after an old instance has ended.
    pub(super) pause_until: Option<Instant>,
    /// The least time at which a drain that begins now is over without proof.
    pub(super) drains_until: Option<Instant>,
}

impl Reconciler {
    /// Makes the rollout of a service without instances. The first [`RolloutEvent::Desire`] starts
    /// it.
    pub fn new(desired: Desired) -> Self {
        Reconciler {
            target: desired.target,
            desired: Desired {
                running: false,
                ..desired
            },
            good: None,
            proven: false,
            instances: Vec::new(),
            slots: BTreeMap::new(),
            pause_until: None,
            drains_until: None,
        }
    }

    /// Makes drains that begin from now on wait at least until then for the proof that the instance
    /// is idle, because something that has not heard of them may send it requests. In place, the
    /// requests of the service would have to wait, too, so such drains do not become longer.
    pub fn set_drains_until(&mut self, until: Option<Instant>) {
        self.drains_until = until;
    }

    /// Handles one event and returns the actions for it, in order. `next_id` numbers new instances.
    pub fn handle(
        &mut self,
        now: Instant,
        event: RolloutEvent,
        next_id: &mut InstanceId,
    ) -> Vec<RolloutAction> {
        let mut actions = Vec::new();
        match event {
            RolloutEvent::Desire(desired) => self.desire(desired),
            RolloutEvent::Ready(id) => self.seen_ready(id),
            RolloutEvent::PortTaken(id) => self.port_taken(id, now, &mut actions),
            RolloutEvent::Healthy(id) => self.healthy(id),
            RolloutEvent::Unhealthy(id) => self.unhealthy(id, now, &mut actions),
            RolloutEvent::Idle(id) => self.idle(id, now, &mut actions),
            RolloutEvent::Tunnels(id, tunnels) => self.count_tunnels(id, tunnels),
            RolloutEvent::Exited(id) => self.exited(id, now, &mut actions),
            RolloutEvent::Cancel => self.cancel(),
            RolloutEvent::Retry => self.retry(),
            RolloutEvent::Tick => {}
        }
        self.expire(now, &mut actions);
        self.reconcile(now, next_id, &mut actions);
        actions
    }

    /// Returns when to send the next [`RolloutEvent::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let instances = self
            .instances
            .iter()
            .filter_map(|instance| match instance.state {
                LifeState::Starting {
                    ready: true,
                    not_before,
                    ..
                } => Some(not_before),
                LifeState::Starting { deadline, .. }
                | LifeState::Draining { deadline }
                | LifeState::Closing { deadline } => Some(deadline),
                LifeState::Ready {
                    soak: Soak::Until(until),
                    ..
                } => Some(until),
                LifeState::Ready { .. } => None,
                LifeState::Stopping { kill_at } => kill_at,
            });
        let retries = (1..=self.desired.count)
            .filter(|_| self.desired.running)
            .filter_map(|slot| self.slots.get(&slot)?.retry_at);
        instances.chain(retries).chain(self.pause_until).min()
    }

    /// Returns the instances, oldest first.
    pub fn instances(&self) -> &[HeldInstance] {
        &self.instances
    }

    /// Returns the newest desired state.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Returns the target that the rollout works toward. It differs from the desired target if that
    /// was given up.
    pub fn target(&self) -> RolloutTarget {
        self.target
    }

    /// Returns the good target, to which the rollout can go back.
    pub fn good(&self) -> Option<RolloutTarget> {
        self.good
    }

    /// Returns the slots that wait for their backoff, and when each wait ends.
    pub fn waiting(&self) -> impl Iterator<Item = (u32, Instant)> {
        (1..=self.desired.count)
            .filter(|&slot| self.desired.running && !self.in_slot(slot).any(HeldInstance::is_live))
            .filter_map(|slot| Some((slot, self.slots.get(&slot)?.retry_at?)))
    }

    /// Returns the number of slots that have reached the desired state.
    pub fn settled(&self) -> u32 {
        let slots = (1..=self.desired.count).filter(|&slot| {
            self.in_slot(slot)
                .any(|instance| instance.is_ready() && self.fits(instance))
        });
        slots.count() as u32
    }

    /// Returns true if all slots have reached the target and no other instance is left.
    pub fn converged(&self) -> bool {
        let wanted = if self.desired.running {
            self.desired.count
        } else {
            0
        };
        self.instances.len() as u32 == wanted
            && (!self.desired.running || self.settled() == wanted)
            && !self.soaking()
    }

    /// Returns true if every slot has a ready instance of what was asked for, no other instance
    /// gets requests, and none is watched any more. A target that was given up is never reached,
    /// unless it has the same version as the good one.
    pub fn arrived(&self) -> bool {
        let mut ready = self.instances.iter().filter(|instance| instance.is_ready());
        self.desired.running
            && self.target.version == self.desired.target.version
            && self.settled() == self.desired.count
            && !self.soaking()
            && ready.all(|instance| self.fits(instance))
    }

    /// Returns true if an instance is just being replaced in place, or is about to be repaired.
    /// Without any ready instance, the requests of the service wait for the new one.
    pub fn is_replacing_in_place(&self) -> bool {
        self.desired.running
            && self.desired.policy.in_place
            && self.good.is_some()
            && self.waiting().next().is_none()
            && !self.instances.is_empty()
    }

    fn desire(&mut self, desired: Desired) {
        let restarted = desired.running && !self.desired.running;
        if desired.target != self.desired.target || restarted {
            self.target = desired.target;
            self.proven = self
                .good
                .is_some_and(|good| good.version == desired.target.version);
            self.retry();
            for slot in self.slots.values_mut() {
                slot.lost_ports = 0;
            }
        }
        self.desired = desired;
    }

    fn retry(&mut self) {
        for slot in self.slots.values_mut() {
            slot.retry_at = None;
        }
    }

    fn seen_ready(&mut self, id: InstanceId) {
        if let Some(LifeState::Starting { ready, .. }) = self.state_mut(id) {
            *ready = true;
        }
    }

    /// Replaces a starting instance that cannot have its port, unless this has happened too often.
    fn port_taken(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<RolloutAction>) {
        let is_starting = |state| matches!(state, LifeState::Starting { .. });
        let mut instances = self.instances.iter();
        let Some(instance) = instances.find(|it| it.id == id && is_starting(it.state)) else {
            return;
        };
        let slot = self.slots.entry(instance.slot).or_default();
        if slot.lost_ports < MOST_LOST_PORTS {
            slot.lost_ports += 1;
            self.stop(id, now, actions);
        }
    }

    fn healthy(&mut self, id: InstanceId) {
        let mut instances = self.instances.iter_mut();
        if let Some(instance) = instances.find(|instance| instance.id == id)
            && let LifeState::Ready { soak, .. } = &mut instance.state
            && *soak == Soak::Asked
        {
            *soak = Soak::Over;
            self.proven |= instance.target == self.target;
        }
    }

    /// Counts a ready instance as failed if it is watched or its target is unfinished. Whoever is
    /// unhealthy later may recover.
    fn unhealthy(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<RolloutAction>) {
        let unfinished = self.good != Some(self.target);
        let target = self.target;
        let mut instances = self.instances.iter_mut();
        let Some(instance) = instances.find(|instance| instance.id == id) else {
            return;
        };
        let LifeState::Ready { soak, .. } = &mut instance.state else {
            return;
        };
        if *soak == Soak::Over && !(unfinished && instance.target == target) {
            return;
        }
        *soak = Soak::Over;
        let instance = *instance;
        self.failed(&instance, InstanceFailure::Unhealthy, now, actions);
        // An instance that does not fit any more is replaced like every other one.
        if self.fits(&instance) {
            self.drain(id, now);
        }
    }

    fn idle(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<RolloutAction>) {
        if matches!(self.state_mut(id), Some(LifeState::Draining { .. })) {
            self.stop(id, now, actions);
        }
    }

    fn count_tunnels(&mut self, id: InstanceId, tunnels: bool) {
        let mut instances = self.instances.iter_mut();
        if let Some(instance) = instances.find(|instance| instance.id == id) {
            instance.tunnels = tunnels;
        }
    }

    fn exited(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<RolloutAction>) {
        let Some(index) = self.instances.iter().position(|instance| instance.id == id) else {
            return;
        };
        let instance = self.instances.remove(index);
        match instance.state {
            LifeState::Starting { .. } => {
                self.failed(&instance, InstanceFailure::ExitedBeforeReady, now, actions)
            }
            LifeState::Ready { .. } => {
                self.failed(&instance, InstanceFailure::Crashed, now, actions)
            }
            LifeState::Draining { .. } | LifeState::Closing { .. } | LifeState::Stopping { .. } => {
                self.pause_until = Some(now + PAUSE);
            }
        }
    }

    fn cancel(&mut self) {
        if let Some(good) = self.good {
            self.target = good;
            self.proven = true;
        }
    }

    /// Moves on the instances and slots whose time has passed.
    fn expire(&mut self, now: Instant, actions: &mut Vec<RolloutAction>) {
        for index in 0..self.instances.len() {
            let HeldInstance {
                id, state, tunnels, ..
            } = self.instances[index];
            match state {
                LifeState::Starting {
                    ready: true,
                    not_before,
                    ..
                } if not_before <= now => self.became_ready(index, now),
                LifeState::Starting {
                    ready: false,
                    deadline,
                    ..
                } if deadline <= now => {
                    let instance = self.instances[index];
                    self.failed(&instance, InstanceFailure::NotReadyInTime, now, actions);
                    self.stop(id, now, actions);
                }
                LifeState::Ready {
                    since,
                    soak: Soak::Until(until),
                } if until <= now => {
                    let soak = Soak::Asked;
                    self.instances[index].state = LifeState::Ready { since, soak };
                }
                LifeState::Draining { deadline } if deadline <= now => self.stop(id, now, actions),
                LifeState::Closing { deadline } if deadline <= now || !tunnels => {
                    let kill_at = Some(now + self.desired.policy.times.stop_timeout);
                    self.instances[index].state = LifeState::Stopping { kill_at };
                }
                LifeState::Stopping { kill_at: Some(at) } if at <= now => {
                    self.instances[index].state = LifeState::Stopping { kill_at: None };
                    actions.push(RolloutAction::Kill(id));
                }
                _ => {}
            }
        }
        for slot in self.slots.values_mut() {
            slot.retry_at = slot.retry_at.filter(|&at| at > now);
        }
        self.pause_until = self.pause_until.filter(|&at| at > now);
    }

    fn became_ready(&mut self, index: usize, now: Instant) {
        let target = self.instances[index].target;
        // In place, it was awaited, and is drained as soon as its soak is over.
        let is_superseded = self.desired.policy.in_place && !self.fits(&self.instances[index]);
        let reached = match self.good {
            Some(good) if good != target => false,
            // It may have been ready before, and have crashed while it was watched.
            _ => self.proven || !self.desired.takes_over,
        };
        let soaks = target == self.target && !reached;
        self.instances[index].state = LifeState::Ready {
            since: now,
            soak: match soaks || is_superseded {
                true => Soak::Until(now + soak(self.proven || is_superseded)),
                false => Soak::Over,
            },
        };
        if let Some(slot) = self.slots.get_mut(&self.instances[index].slot) {
            slot.retry_at = None;
            slot.lost_ports = 0;
        }
        if self.good.is_none() {
            self.good = Some(target);
            self.proven |= target == self.target && !soaks;
        }
    }

    /// Counts a failure of a slot, and gives up the target if it is unfinished.
    fn failed(
        &mut self,
        instance: &HeldInstance,
        failure: InstanceFailure,
        now: Instant,
        actions: &mut Vec<RolloutAction>,
    ) {
        let HeldInstance {
            id,
            slot,
            target,
            state,
            ..
        } = *instance;
        let record = self.slots.entry(slot).or_default();
        if matches!(state, LifeState::Ready { since, .. } if since + backoff::RECOVERED_AFTER <= now)
        {
            record.failures = 0;
        }
        record.failures += 1;
        record.failed = true;
        record.retry_at = Some(now + backoff::delay(record.failures, id));
        let before = self
            .good
            .filter(|&good| good != target && target == self.target);
        if let Some(good) = before {
            self.target = good;
            self.proven = true;
        }
        actions.push(RolloutAction::Failed {
            id,
            slot,
            generation: target.generation,
            failure,
            gave_up: before.is_some(),
        });
    }

    /// Compares the actual state with the desired state and takes the next step.
    fn reconcile(
        &mut self,
        now: Instant,
        next_id: &mut InstanceId,
        actions: &mut Vec<RolloutAction>,
    ) {
        self.retire(now, actions);
        if !self.desired.running {
            if self.instances.is_empty() {
                // A stopped service starts from scratch: there is no good target to go back to.
                self.good = None;
                self.slots.clear();
            }
            return;
        }
        for slot in 1..=self.desired.count {
            if !self.is_taken(slot) && self.may_start(slot, now) {
                let target = self.repair_target(slot);
                self.start(slot, target, now, next_id, actions);
            }
        }
        self.rotate(now, next_id, actions);
        if self.converged() {
            self.good = Some(self.target);
            self.proven = true;
        }
    }

    /// Returns true if a slot has an instance that gets requests, or will get them. In place, an
    /// old instance has to be gone before there is another one, unless it survives even SIGKILL.
    fn is_taken(&self, slot: u32) -> bool {
        let in_place = self.desired.policy.in_place;
        self.in_slot(slot).any(|instance| {
            let is_killed = matches!(instance.state, LifeState::Stopping { kill_at: None });
            instance.is_live() || (in_place && !is_killed)
        })
    }

    /// Retires instances that are no longer wanted: superfluous, stale or replaced ones.
    fn retire(&mut self, now: Instant, actions: &mut Vec<RolloutAction>) {
        let ids: Vec<InstanceId> = self.instances.iter().map(|instance| instance.id).collect();
        for id in ids {
            let Some(instance) = self.instances.iter().find(|instance| instance.id == id) else {
                continue;
            };
            let surplus = !self.desired.running || instance.slot > self.desired.count;
            match instance.state {
                LifeState::Starting { .. }
                    if surplus || (self.stale(instance) && !self.is_awaited(instance)) =>
                {
                    self.stop(id, now, actions)
                }
                LifeState::Ready { .. } if surplus || self.replaced(instance) => {
                    self.drain(id, now)
                }
                _ => {}
            }
        }
    }

    /// Returns true for a starting instance that is not needed: its slot already has a ready
    /// instance that fits, or it runs neither the target nor, as a repair, the good version.
    fn stale(&self, instance: &HeldInstance) -> bool {
        let repair = Some(instance.target) == self.good
            && !self.in_slot(instance.slot).any(HeldInstance::is_ready);
        let served = self
            .in_slot(instance.slot)
            .any(|other| other.is_ready() && self.fits(other));
        served || !(instance.target == self.target || repair)
    }

    /// Returns true for a starting instance if the service, which has worked before, has no ready
    /// instance, and would have none for longer if a newer target replaced this instance now.
    fn is_awaited(&self, instance: &HeldInstance) -> bool {
        self.desired.policy.in_place
            && self.good.is_some()
            && instance.target.generation < self.target.generation
            && !self.instances.iter().any(HeldInstance::is_ready)
    }

    /// Returns true for a ready instance if another ready instance in its slot replaces it.
    fn replaced(&self, instance: &HeldInstance) -> bool {
        self.in_slot(instance.slot).any(|other| {
            let settled = other.is_ready() && !other.is_soaking();
            let better = !self.fits(instance) || other.id > instance.id;
            other.id != instance.id && settled && self.fits(other) && better
        })
    }

    /// Replaces the next slot whose instance does not fit, when all slots are ready and nothing
    /// else is under way.
    fn rotate(&mut self, now: Instant, next_id: &mut InstanceId, actions: &mut Vec<RolloutAction>) {
        let busy = self.instances.iter().any(|instance| match instance.state {
            LifeState::Starting { .. } | LifeState::Draining { .. } | LifeState::Closing { .. } => {
                true
            }
            LifeState::Ready { soak, .. } => soak != Soak::Over,
            // An instance that survives even SIGKILL must not block the rollout.
            LifeState::Stopping { kill_at } => kill_at.is_some(),
        });
        let all_ready =
            (1..=self.desired.count).all(|slot| self.in_slot(slot).any(HeldInstance::is_ready));
        if busy || !all_ready || self.pause_until.is_some() {
            return;
        }
        let next = (1..=self.desired.count).find_map(|slot| {
            let unfit = self
                .in_slot(slot)
                .find(|instance| instance.is_ready() && !self.fits(instance))?;
            self.may_start(slot, now).then_some((slot, unfit.id))
        });
        match next {
            Some((_, old)) if self.desired.policy.in_place => self.drain(old, now),
            Some((slot, _)) => self.start(slot, self.target, now, next_id, actions),
            None => {}
        }
    }

    /// Returns the target for a missing slot. After the first crash in the slot during an unproven
    /// rollout, this is the good target, which has worked before. If that fails, too, the new
    /// version may be the fix, so the slot gets the newest target again.
    fn repair_target(&self, slot: u32) -> RolloutTarget {
        let first_crash = self
            .slots
            .get(&slot)
            .is_some_and(|slot| slot.failed && slot.failures == 1);
        match self.good {
            Some(good) if !self.proven && first_crash => good,
            _ => self.target,
        }
    }

    fn start(
        &mut self,
        slot: u32,
        target: RolloutTarget,
        now: Instant,
        next_id: &mut InstanceId,
        actions: &mut Vec<RolloutAction>,
    ) {
        let id = *next_id;
        *next_id += 1;
        let state = LifeState::starting(now, &self.desired.policy.times);
        self.instances.push(HeldInstance {
            id,
            slot,
            target,
            state,
            tunnels: false,
        });
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.retry_at = None;
            slot.failed = false;
        }
        actions.push(RolloutAction::Start {
            id,
            slot,
            generation: target.generation,
        });
    }

    fn drain(&mut self, id: InstanceId, now: Instant) {
        let deadline = now + self.desired.policy.times.drain_timeout;
        let least = self.drains_until.filter(|_| !self.desired.policy.in_place);
        let deadline = least.map_or(deadline, |least| deadline.max(least));
        if let Some(state) = self.state_mut(id) {
            *state = LifeState::Draining { deadline };
        }
    }

    fn stop(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<RolloutAction>) {
        let policy = &self.desired.policy;
        let deadline = now + policy.times.tunnel_drain_timeout;
        let kill_at = now + policy.times.stop_timeout;
        let mut instances = self.instances.iter_mut();
        if let Some(instance) = instances.find(|instance| instance.id == id) {
            instance.state = match instance.tunnels && deadline > now {
                true => LifeState::Closing { deadline },
                false => LifeState::Stopping {
                    kill_at: Some(kill_at),
                },
            };
            actions.push(RolloutAction::Stop(id));
        }
    }

    fn may_start(&self, slot: u32, now: Instant) -> bool {
        self.slots
            .get(&slot)
            .and_then(|slot| slot.retry_at)
            .is_none_or(|at| at <= now)
    }

    fn soaking(&self) -> bool {
        self.instances.iter().any(HeldInstance::is_soaking)
    }

    /// Returns true if an instance runs the target, or a newer generation of the same version,
    /// which is equivalent.
    fn fits(&self, instance: &HeldInstance) -> bool {
        instance.target.version == self.target.version
            && instance.target.generation >= self.target.generation
    }

    /// Returns the instances of a slot.
    pub(super) fn in_slot(&self, slot: u32) -> impl Iterator<Item = &HeldInstance> {
        self.instances
            .iter()
            .filter(move |instance| instance.slot == slot)
    }

    fn state_mut(&mut self, id: InstanceId) -> Option<&mut LifeState> {
        self.instances
            .iter_mut()
            .find(|instance| instance.id == id)
            .map(|instance| &mut instance.state)
    }
}

/// Returns how long an instance of an unfinished target soaks.
pub(super) fn soak(proven: bool) -> Duration {
    match proven {
        true => PAUSE,
        false => SOAK,
    }
}
