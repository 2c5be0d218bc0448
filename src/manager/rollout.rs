//! The rollout core: decides, for one service, what to do next so that the actual state becomes the desired one.
//!
//! Pure: [`Reconciler::handle`] takes an event and the time and returns actions; the shell around it performs them and
//! feeds back what happened. Whatever is interrupted, the next event finds the difference again and goes on.
//!
//! # Theory of operation
//! A **target** is what every slot is to run: a generation (grows with every deploy and restart) of a version (equal
//! for generations with the same content). The **good** target is the last one that proved itself; its executable is
//! kept open by the shell, so it can always be started again.
//!
//! An instance lives `Starting → Ready → Draining → Closing → Stopping` and is then gone; it never moves back. It is
//! `Closing` only if it has tunnels when it is told to stop: as long as they are open, but no longer than
//! `tunnel_drain_timeout`, it can end them itself. Then they are cut off, and `stop_timeout` begins. Each slot
//! `1..=count` is to hold one ready instance that fits the target:
//!
//! * A slot with neither a starting nor a ready instance is **missing**: one is started, after the backoff of its
//!   failures. Missing slots are started side by side, and nothing is rotated before every slot is ready, so a crash
//!   in the middle of a rotation is repaired first.
//! * A slot whose ready instance does not fit is **rotated**, one at a time. Start-first: a second instance starts in
//!   the slot, and when it is ready the old one drains. In place: the old one drains and stops, which makes the slot
//!   missing.
//! * A ready instance of a target that is not reached yet **soaks** before the next thing happens, beside the old one if
//!   the rotation is start-first: the first of a new version for long, after which the version is proven, every other for
//!   a short **pause**. There is a pause, too, between the end of an old instance and the start of the next new one. So
//!   what crashes at once has replaced nothing, and those who are being served are not crowded out by processes that
//!   start and end.
//! * If an instance of an unfinished target fails to start or crashes, the target is **given up**: the good one becomes
//!   the target again, and slots that were already replaced are rotated back by the same rules. A version that has
//!   nothing good before it is not given up but tried again with backoff.
//!
//! # Invariants, held by the property tests below
//! * A rotation never lowers the number of ready instances below what it was (start-first), or by more than one (in
//!   place).
//! * No instance is told to stop before it is quiescent, unless its drain time is over or it was never routed.
//! * A failed start takes no ready instance away.
//! * From every state, a world that behaves leads to the newest desired state.
//! * All of this holds, too, when the core is saved and restored at any moment, see [`Saved`].

mod saved;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::backoff;
pub use saved::{Saved, Stage};

/// How long the first instance of a new version must live beside the old ones before those go.
pub const SOAK: Duration = Duration::from_secs(5);

/// How long nothing happens after a step of a rotation. To start a process and to end one takes some milliseconds from all
/// others on the machine, which must stay rare among the many in which requests are served.
pub const PAUSE: Duration = Duration::from_millis(200);

/// Names an instance for ever.
pub type InstanceId = u64;

/// What every slot is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Grows with every deploy and restart.
    pub generation: u64,
    /// Equal for generations of the same content.
    pub version: u64,
}

/// What is wanted of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// False: no instance at all.
    pub running: bool,
    /// The number of slots.
    pub count: u32,
    /// The newest generation that was asked for.
    pub target: Target,
    /// How and how fast.
    pub policy: Policy,
}

/// How instances are replaced, and the times that bound each state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Drain the old instance before the new one starts.
    pub in_place: bool,
    /// The least time from start to ready.
    pub delay_running_time: Duration,
    /// The most time from start to ready.
    pub start_timeout: Duration,
    /// The most time in draining.
    pub drain_timeout: Duration,
    /// The most time in closing.
    #[serde(default)]
    pub tunnel_drain_timeout: Duration,
    /// The most time in stopping before SIGKILL.
    pub stop_timeout: Duration,
}

/// How long an instance of a target that is not reached yet soaks.
fn soak(proven: bool) -> Duration {
    match proven {
        true => PAUSE,
        false => SOAK,
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The desired state was changed.
    Desire(Desired),
    /// A starting instance showed its readiness.
    Ready(InstanceId),
    /// The worker has no connection to a draining instance and will not open one, but for its tunnels.
    Idle(InstanceId),
    /// Whether an instance has tunnels.
    Tunnels(InstanceId, bool),
    /// The process is gone, or could not be made.
    Exited(InstanceId),
    /// Stop rolling out the newest target and go back to the good one.
    Cancel,
    /// A deadline has passed.
    Tick,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start an instance of this generation.
    Start {
        id: InstanceId,
        slot: u32,
        generation: u64,
    },
    /// Send the stop signal.
    Stop(InstanceId),
    /// Send SIGKILL.
    Kill(InstanceId),
    /// Say that an instance failed.
    Failed {
        id: InstanceId,
        slot: u32,
        generation: u64,
        failure: Failure,
        /// The generation is not rolled out any further.
        gave_up: bool,
    },
}

/// How an instance failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It was gone before it was ready.
    ExitedBeforeReady,
    /// It was not ready in time.
    NotReadyInTime,
    /// It was ready and went without being asked to.
    Crashed,
}

/// One instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Its slot.
    pub slot: u32,
    /// What it runs.
    pub target: Target,
    /// Where it is in its life.
    pub state: State,
    /// It has tunnels, as far as is known.
    pub tunnels: bool,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    /// Its process runs. `ready`: its readiness was seen, but `not_before` is still ahead.
    Starting {
        ready: bool,
        not_before: Instant,
        deadline: Instant,
    },
    /// It gets requests.
    Ready {
        since: Instant,
        soak_until: Option<Instant>,
    },
    /// It gets no new requests.
    Draining { deadline: Instant },
    /// It was told to stop, and ends its tunnels.
    Closing { deadline: Instant },
    /// It was told to stop; `kill_at` is empty once it was killed.
    Stopping { kill_at: Option<Instant> },
}

/// The failures of a slot.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// In a row, without [`backoff::RECOVERED_AFTER`] of readiness between them.
    failures: u32,
    /// It is missing because its instance failed, not because it was rotated in place.
    failed: bool,
    retry_at: Option<Instant>,
}

/// The state of one service.
#[derive(Debug, Clone)]
pub struct Reconciler {
    desired: Desired,
    /// What is worked towards: the desired target, or the good one after the desired was given up.
    target: Target,
    good: Option<Target>,
    /// The first instance of `target` has survived its soak.
    proven: bool,
    instances: Vec<Instance>,
    slots: BTreeMap<u32, Slot>,
    /// The pause after the end of an old instance.
    pause_until: Option<Instant>,
}

impl Reconciler {
    /// A service of which nothing runs yet; the first [`Event::Desire`] sets it going.
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
        }
    }

    /// Takes in one event and returns what to do, in order. `next_id` names new instances.
    pub fn handle(&mut self, now: Instant, event: Event, next_id: &mut InstanceId) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Desire(desired) => self.desire(desired),
            Event::Ready(id) => self.seen_ready(id),
            Event::Idle(id) => self.idle(id, now, &mut actions),
            Event::Tunnels(id, tunnels) => self.count_tunnels(id, tunnels),
            Event::Exited(id) => self.exited(id, now, &mut actions),
            Event::Cancel => self.cancel(),
            Event::Tick => {}
        }
        self.expire(now, &mut actions);
        self.reconcile(now, next_id, &mut actions);
        actions
    }

    /// When to send the next [`Event::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let instances = self
            .instances
            .iter()
            .filter_map(|instance| match instance.state {
                State::Starting {
                    ready: true,
                    not_before,
                    ..
                } => Some(not_before),
                State::Starting { deadline, .. }
                | State::Draining { deadline }
                | State::Closing { deadline } => Some(deadline),
                State::Ready { soak_until, .. } => soak_until,
                State::Stopping { kill_at } => kill_at,
            });
        let retries = (1..=self.desired.count)
            .filter(|_| self.desired.running)
            .filter_map(|slot| self.slots.get(&slot)?.retry_at);
        instances.chain(retries).chain(self.pause_until).min()
    }

    /// The instances, oldest first.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// The desired state, as last given.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What is worked towards: differs from the desired target when that was given up.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The target that can be gone back to.
    pub fn good(&self) -> Option<Target> {
        self.good
    }

    /// Slots that wait for another try, and until when.
    pub fn waiting(&self) -> impl Iterator<Item = (u32, Instant)> {
        (1..=self.desired.count)
            .filter(|&slot| self.desired.running && !self.in_slot(slot).any(Instance::is_live))
            .filter_map(|slot| Some((slot, self.slots.get(&slot)?.retry_at?)))
    }

    /// Slots that are as they are wanted.
    pub fn settled(&self) -> u32 {
        let slots = (1..=self.desired.count).filter(|&slot| {
            self.in_slot(slot)
                .any(|instance| instance.is_ready() && self.fits(instance))
        });
        slots.count() as u32
    }

    /// The target is reached in all slots and nothing else is left over.
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

    fn desire(&mut self, desired: Desired) {
        let restarted = desired.running && !self.desired.running;
        if desired.target != self.desired.target || restarted {
            self.target = desired.target;
            self.proven = self
                .good
                .is_some_and(|good| good.version == desired.target.version);
            for slot in self.slots.values_mut() {
                slot.retry_at = None;
            }
        }
        self.desired = desired;
    }

    fn seen_ready(&mut self, id: InstanceId) {
        if let Some(State::Starting { ready, .. }) = self.state_mut(id) {
            *ready = true;
        }
    }

    fn idle(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<Action>) {
        if matches!(self.state_mut(id), Some(State::Draining { .. })) {
            self.stop(id, now, actions);
        }
    }

    fn count_tunnels(&mut self, id: InstanceId, tunnels: bool) {
        let mut instances = self.instances.iter_mut();
        if let Some(instance) = instances.find(|instance| instance.id == id) {
            instance.tunnels = tunnels;
        }
    }

    fn exited(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<Action>) {
        let Some(index) = self.instances.iter().position(|instance| instance.id == id) else {
            return;
        };
        let instance = self.instances.remove(index);
        match instance.state {
            State::Starting { .. } => {
                self.failed(&instance, Failure::ExitedBeforeReady, now, actions)
            }
            State::Ready { .. } => self.failed(&instance, Failure::Crashed, now, actions),
            State::Draining { .. } | State::Closing { .. } | State::Stopping { .. } => {
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

    /// Moves on whatever has waited long enough.
    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for index in 0..self.instances.len() {
            let Instance {
                id,
                target,
                state,
                tunnels,
                ..
            } = self.instances[index];
            match state {
                State::Starting {
                    ready: true,
                    not_before,
                    ..
                } if not_before <= now => self.became_ready(index, now),
                State::Starting {
                    ready: false,
                    deadline,
                    ..
                } if deadline <= now => {
                    let instance = self.instances[index];
                    self.failed(&instance, Failure::NotReadyInTime, now, actions);
                    self.stop(id, now, actions);
                }
                State::Ready {
                    since,
                    soak_until: Some(until),
                } if until <= now => {
                    self.instances[index].state = State::Ready {
                        since,
                        soak_until: None,
                    };
                    self.proven |= target == self.target;
                }
                State::Draining { deadline } if deadline <= now => self.stop(id, now, actions),
                State::Closing { deadline } if deadline <= now || !tunnels => {
                    let kill_at = Some(now + self.desired.policy.stop_timeout);
                    self.instances[index].state = State::Stopping { kill_at };
                }
                State::Stopping { kill_at: Some(at) } if at <= now => {
                    self.instances[index].state = State::Stopping { kill_at: None };
                    actions.push(Action::Kill(id));
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
        let reached = self.good.is_none_or(|good| good == target);
        let soaks = target == self.target && !reached;
        let soak_until = soaks.then(|| now + soak(self.proven));
        self.instances[index].state = State::Ready {
            since: now,
            soak_until,
        };
        if let Some(slot) = self.slots.get_mut(&self.instances[index].slot) {
            slot.retry_at = None;
        }
        if self.good.is_none() {
            self.good = Some(target);
            self.proven |= target == self.target;
        }
    }

    /// Counts a failure against its slot, and gives an unfinished target up.
    fn failed(
        &mut self,
        instance: &Instance,
        failure: Failure,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Instance {
            id,
            slot,
            target,
            state,
            ..
        } = *instance;
        let record = self.slots.entry(slot).or_default();
        if matches!(state, State::Ready { since, .. } if since + backoff::RECOVERED_AFTER <= now) {
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
        actions.push(Action::Failed {
            id,
            slot,
            generation: target.generation,
            failure,
            gave_up: before.is_some(),
        });
    }

    /// Compares what is with what is wanted.
    fn reconcile(&mut self, now: Instant, next_id: &mut InstanceId, actions: &mut Vec<Action>) {
        self.retire(now, actions);
        if !self.desired.running {
            if self.instances.is_empty() {
                // A stopped service starts afresh: nothing of the past is gone back to.
                self.good = None;
                self.slots.clear();
            }
            return;
        }
        for slot in 1..=self.desired.count {
            if !self.in_slot(slot).any(Instance::is_live) && self.may_start(slot, now) {
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

    /// Takes out what is not wanted any more: superfluous, stale, or replaced.
    fn retire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let ids: Vec<InstanceId> = self.instances.iter().map(|instance| instance.id).collect();
        for id in ids {
            let Some(instance) = self.instances.iter().find(|instance| instance.id == id) else {
                continue;
            };
            let surplus = !self.desired.running || instance.slot > self.desired.count;
            match instance.state {
                State::Starting { .. } if surplus || self.stale(instance) => {
                    self.stop(id, now, actions)
                }
                State::Ready { .. } if surplus || self.replaced(instance) => self.drain(id, now),
                _ => {}
            }
        }
    }

    /// A starting instance that nobody waits for: neither of the target nor a repair with the good version, or in a
    /// slot that is already as it should be.
    fn stale(&self, instance: &Instance) -> bool {
        let repair = Some(instance.target) == self.good
            && !self.in_slot(instance.slot).any(Instance::is_ready);
        let served = self
            .in_slot(instance.slot)
            .any(|other| other.is_ready() && self.fits(other));
        served || !(instance.target == self.target || repair)
    }

    /// A ready instance beside another one of its slot that is to stay.
    fn replaced(&self, instance: &Instance) -> bool {
        self.in_slot(instance.slot).any(|other| {
            let settled = matches!(
                other.state,
                State::Ready {
                    soak_until: None,
                    ..
                }
            );
            let better = !self.fits(instance) || other.id > instance.id;
            other.id != instance.id && settled && self.fits(other) && better
        })
    }

    /// Replaces the next slot whose instance does not fit, when all slots are ready and nothing else is under way.
    fn rotate(&mut self, now: Instant, next_id: &mut InstanceId, actions: &mut Vec<Action>) {
        let busy = self.instances.iter().any(|instance| match instance.state {
            State::Starting { .. } | State::Draining { .. } | State::Closing { .. } => true,
            State::Ready { soak_until, .. } => soak_until.is_some(),
            // One that does not even die of SIGKILL must not hold everything up.
            State::Stopping { kill_at } => kill_at.is_some(),
        });
        let all_ready =
            (1..=self.desired.count).all(|slot| self.in_slot(slot).any(Instance::is_ready));
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

    /// What a missing slot is to run. After its first crash in the middle of a rollout that has proven nothing, that
    /// is the version that worked; if that fails too, the new one may well be the cure.
    fn repair_target(&self, slot: u32) -> Target {
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
        target: Target,
        now: Instant,
        next_id: &mut InstanceId,
        actions: &mut Vec<Action>,
    ) {
        let id = *next_id;
        *next_id += 1;
        let policy = &self.desired.policy;
        let state = State::Starting {
            ready: false,
            not_before: now + policy.delay_running_time,
            deadline: now + policy.start_timeout.max(policy.delay_running_time),
        };
        self.instances.push(Instance {
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
        actions.push(Action::Start {
            id,
            slot,
            generation: target.generation,
        });
    }

    fn drain(&mut self, id: InstanceId, now: Instant) {
        let deadline = now + self.desired.policy.drain_timeout;
        if let Some(state) = self.state_mut(id) {
            *state = State::Draining { deadline };
        }
    }

    fn stop(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<Action>) {
        let policy = &self.desired.policy;
        let deadline = now + policy.tunnel_drain_timeout;
        let kill_at = now + policy.stop_timeout;
        let mut instances = self.instances.iter_mut();
        if let Some(instance) = instances.find(|instance| instance.id == id) {
            instance.state = match instance.tunnels && deadline > now {
                true => State::Closing { deadline },
                false => State::Stopping {
                    kill_at: Some(kill_at),
                },
            };
            actions.push(Action::Stop(id));
        }
    }

    fn may_start(&self, slot: u32, now: Instant) -> bool {
        self.slots
            .get(&slot)
            .and_then(|slot| slot.retry_at)
            .is_none_or(|at| at <= now)
    }

    fn soaking(&self) -> bool {
        self.instances.iter().any(|instance| {
            matches!(
                instance.state,
                State::Ready {
                    soak_until: Some(_),
                    ..
                }
            )
        })
    }

    /// A newer generation of the same version is as good as the target itself.
    fn fits(&self, instance: &Instance) -> bool {
        instance.target.version == self.target.version
            && instance.target.generation >= self.target.generation
    }

    fn in_slot(&self, slot: u32) -> impl Iterator<Item = &Instance> {
        self.instances
            .iter()
            .filter(move |instance| instance.slot == slot)
    }

    fn state_mut(&mut self, id: InstanceId) -> Option<&mut State> {
        self.instances
            .iter_mut()
            .find(|instance| instance.id == id)
            .map(|instance| &mut instance.state)
    }
}

impl Instance {
    /// It gets requests.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    fn is_live(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Ready { .. })
    }
}

#[cfg(test)]
mod tests;
