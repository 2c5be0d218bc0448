use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::reconciler::{MOST_LOST_PORTS, PAUSE, SOAK};
use super::*;
use crate::config::Times;
use crate::manager::backoff;

fn policy(in_place: bool) -> RolloutPolicy {
    RolloutPolicy {
        in_place,
        times: Times {
            delay_running_time: Duration::ZERO,
            start_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            tunnel_drain_timeout: Duration::from_secs(40),
            stop_timeout: Duration::from_secs(10),
        },
    }
}

/// Simulates everything around the core, and checks the invariants at every step.
struct World {
    core: Reconciler,
    now: Instant,
    next_id: InstanceId,
    next_target: RolloutTarget,
    /// Versions whose instances exit before they are ready.
    bad: BTreeSet<u64>,
    /// Versions whose instances answer no health probe.
    silent: BTreeSet<u64>,
    quiescent: BTreeSet<InstanceId>,
    seen_ready: BTreeSet<InstanceId>,
    log: Vec<RolloutAction>,
}

impl World {
    fn new(count: u32, in_place: bool) -> World {
        let target = RolloutTarget {
            generation: 1,
            version: 1,
        };
        let desired = Desired {
            running: true,
            count,
            target,
            policy: policy(in_place),
            takes_over: false,
        };
        let mut world = World {
            core: Reconciler::new(desired.clone()),
            now: Instant::now(),
            next_id: 1,
            next_target: target,
            bad: BTreeSet::new(),
            silent: BTreeSet::new(),
            quiescent: BTreeSet::new(),
            seen_ready: BTreeSet::new(),
            log: Vec::new(),
        };
        world.send(RolloutEvent::Desire(desired));
        world
    }

    fn send(&mut self, event: RolloutEvent) {
        match event {
            RolloutEvent::Idle(id) => drop(self.quiescent.insert(id)),
            RolloutEvent::Ready(id) => drop(self.seen_ready.insert(id)),
            _ => {}
        }
        let before = self.core.clone();
        let actions = self.core.handle(self.now, event.clone(), &mut self.next_id);
        self.check(&before, &event, &actions);
        self.log.extend(actions);
        let asked = self.core.instances().iter().find(|instance| {
            let soak = Soak::Asked;
            matches!(instance.state, LifeState::Ready { soak: it, .. } if it == soak)
                && !self.silent.contains(&instance.target.version)
        });
        if let Some(id) = asked.map(|instance| instance.id) {
            self.send(RolloutEvent::Healthy(id));
        }
    }

    fn check(&self, before: &Reconciler, event: &RolloutEvent, actions: &[RolloutAction]) {
        for action in actions {
            let RolloutAction::Stop(id) = action else {
                continue;
            };
            let was = before
                .instances
                .iter()
                .find(|instance| instance.id == *id)
                .map(|instance| instance.state);
            let allowed = match was {
                Some(LifeState::Starting { .. }) => true,
                Some(LifeState::Draining { deadline }) => {
                    self.quiescent.contains(id) || deadline <= self.now
                }
                // A ready instance cannot stop in one step: that would need a drain time of zero.
                Some(
                    LifeState::Ready { .. }
                    | LifeState::Closing { .. }
                    | LifeState::Stopping { .. },
                )
                | None => false,
            };
            assert!(allowed, "stopped {id} from {was:?} by {event:?}");
        }
        for new in self.core.instances() {
            let old = before.instances.iter().find(|old| old.id == new.id);
            if let (Some(old), LifeState::Stopping { .. }) = (old, new.state)
                && let LifeState::Closing { deadline } = old.state
            {
                let over = !new.tunnels || deadline <= self.now;
                assert!(over, "tunnels of {new:?} were cut by {event:?}");
            }
        }
        for instance in self.core.instances() {
            if instance.is_ready() {
                assert!(
                    self.seen_ready.contains(&instance.id),
                    "{instance:?} is routed without readiness"
                );
            }
        }
        if self.core.desired.running {
            let lost = (1..=self.core.desired.count.min(before.desired.count))
                .filter(|&slot| {
                    let was_ready = before.in_slot(slot).any(|instance| {
                        instance.is_ready()
                            && *event != RolloutEvent::Exited(instance.id)
                            && *event != RolloutEvent::Unhealthy(instance.id)
                    });
                    was_ready && !self.core.in_slot(slot).any(HeldInstance::is_ready)
                })
                .count();
            let allowed = usize::from(self.core.desired.policy.in_place);
            assert!(
                lost <= allowed,
                "{lost} slots lost their ready instance by {event:?}"
            );
            if lost == 1 {
                let unready = (1..=self.core.desired.count)
                    .filter(|&slot| !self.core.in_slot(slot).any(HeldInstance::is_ready))
                    .count();
                assert_eq!(
                    unready, 1,
                    "a slot was taken down beside another by {event:?}"
                );
            }
        }
        let deadline = self.core.deadline();
        assert!(
            deadline.is_none_or(|at| at > self.now),
            "the deadline is not ahead: {:?}",
            self.core
        );
    }

    fn desire(&mut self, change: impl FnOnce(&mut Desired)) {
        let mut desired = self.core.desired().clone();
        change(&mut desired);
        self.send(RolloutEvent::Desire(desired));
    }

    fn deploy(&mut self, new_version: bool, bad: bool) {
        self.next_target.generation += 1;
        if new_version {
            self.next_target.version += 1;
            if bad {
                self.bad.insert(self.next_target.version);
            }
        }
        let target = self.next_target;
        self.desire(|desired| desired.target = target);
    }

    fn pick(&self, which: usize, wanted: impl Fn(&LifeState) -> bool) -> Option<HeldInstance> {
        let found: Vec<HeldInstance> = self
            .core
            .instances()
            .iter()
            .filter(|instance| wanted(&instance.state))
            .copied()
            .collect();
        (!found.is_empty()).then(|| found[which % found.len()])
    }

    /// Simulates what a starting process does when it runs.
    fn come_up(&mut self, instance: HeldInstance) {
        if self.bad.contains(&instance.target.version) {
            self.send(RolloutEvent::Exited(instance.id));
        } else {
            self.send(RolloutEvent::Ready(instance.id));
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.core.deadline().filter(|&at| at <= end) {
            self.now = at.max(self.now);
            self.send(RolloutEvent::Tick);
        }
        self.now = end;
        self.send(RolloutEvent::Tick);
    }

    /// Plays a world without faults until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.core.converged() {
                return;
            }
            if let Some(instance) = self.pick(0, |state| {
                matches!(state, LifeState::Starting { ready: false, .. })
            }) {
                self.come_up(instance);
            } else if let Some(instance) =
                self.pick(0, |state| matches!(state, LifeState::Draining { .. }))
            {
                self.send(RolloutEvent::Idle(instance.id));
            } else if let Some(instance) =
                self.pick(0, |state| matches!(state, LifeState::Stopping { .. }))
            {
                self.send(RolloutEvent::Exited(instance.id));
            } else if let Some(at) = self.core.deadline() {
                self.now = at.max(self.now);
                self.send(RolloutEvent::Tick);
            } else {
                panic!("stuck: {:#?}", self.core);
            }
        }
        panic!("does not settle: {:#?}", self.core);
    }

    /// Lets a pause pass without events.
    fn pause(&mut self) {
        let before = self.core.instances().to_vec();
        self.pass(PAUSE - Duration::from_millis(1));
        assert_eq!(self.core.instances(), before);
        self.pass(Duration::from_millis(1));
        assert_ne!(self.core.instances(), before);
    }

    /// Simulates the end of an old instance that was replaced.
    fn drain_and_stop(&mut self, slot: u32) {
        let old = self.pick(0, |state| matches!(state, LifeState::Draining { .. }));
        let old = old.unwrap();
        assert_eq!((old.slot, old.target.generation), (slot, 1));
        self.send(RolloutEvent::Idle(old.id));
        self.send(RolloutEvent::Exited(old.id));
    }

    fn generations(&self) -> Vec<u64> {
        let mut slots: Vec<(u32, u64)> = self
            .core
            .instances()
            .iter()
            .map(|instance| (instance.slot, instance.target.generation))
            .collect();
        slots.sort_unstable();
        slots
            .into_iter()
            .map(|(_, generation)| generation)
            .collect()
    }

    fn gave_up(&self, wanted: u64) -> bool {
        self.log.iter().any(|action| {
            matches!(action, RolloutAction::Failed { generation, gave_up: true, .. } if *generation == wanted)
        })
    }

    fn failures(&self) -> Vec<(u64, InstanceFailure)> {
        let failures = self.log.iter().filter_map(|action| match action {
            RolloutAction::Failed {
                generation,
                failure,
                ..
            } => Some((*generation, *failure)),
            _ => None,
        });
        failures.collect()
    }
}

#[test]
fn a_drain_waits_for_those_who_have_not_heard_of_it() {
    for (in_place, waits) in [(false, 50), (true, 30)] {
        let mut world = World::new(1, in_place);
        world.settle();
        let until = world.now + Duration::from_secs(50);
        world.core.set_drains_until(Some(until));
        world.desire(|desired| desired.running = false);
        let count = |world: &World, wanted: fn(&LifeState) -> bool| {
            let instances = world.core.instances().iter();
            instances.filter(|instance| wanted(&instance.state)).count()
        };
        world.pass(Duration::from_secs(waits) - Duration::from_millis(1));
        let draining = |state: &LifeState| matches!(state, LifeState::Draining { .. });
        assert_eq!(count(&world, draining), 1);
        world.pass(Duration::from_millis(1));
        assert_eq!(count(&world, draining), 0);
    }
}

#[test]
fn the_first_start_brings_all_instances_up_side_by_side() {
    let mut world = World::new(3, false);
    assert_eq!(world.generations(), [1, 1, 1]);
    world.settle();
    assert_eq!(
        (world.core.settled(), world.core.good()),
        (
            3,
            Some(RolloutTarget {
                generation: 1,
                version: 1
            })
        )
    );
}

#[test]
fn start_first_replaces_one_by_one_and_soaks_the_first_of_a_new_version() {
    let mut world = World::new(2, false);
    world.settle();
    world.deploy(true, false);
    assert_eq!(world.generations(), [1, 2, 1]);
    let new = world
        .pick(0, |state| matches!(state, LifeState::Starting { .. }))
        .unwrap();
    world.come_up(new);
    world.pass(SOAK - Duration::from_millis(1));
    assert!(
        world
            .pick(0, |state| matches!(state, LifeState::Draining { .. }))
            .is_none()
    );
    world.pass(Duration::from_millis(1));
    assert_eq!(
        world
            .pick(0, |state| matches!(state, LifeState::Draining { .. }))
            .unwrap()
            .target
            .generation,
        1
    );
    world.settle();
    assert_eq!(world.generations(), [2, 2]);
}

#[test]
fn the_first_instance_of_a_service_that_takes_sites_over_soaks() {
    let mut world = World::new(2, false);
    world.desire(|desired| desired.takes_over = true);
    while let Some(starting) = world.pick(0, |state| {
        matches!(state, LifeState::Starting { ready: false, .. })
    }) {
        world.come_up(starting);
    }
    assert_eq!((world.core.settled(), world.core.arrived()), (2, false));
    world.pass(SOAK - Duration::from_millis(1));
    assert!(!world.core.arrived());
    world.pass(Duration::from_millis(1));
    assert!(world.core.arrived() && world.core.converged());
}

#[test]
fn an_instance_that_takes_sites_over_and_crashes_is_watched_at_its_next_try_as_well() {
    let mut world = World::new(1, false);
    world.desire(|desired| desired.takes_over = true);
    for _ in 0..2 {
        world.pass(Duration::from_secs(1));
        let starting = world.pick(0, |state| {
            matches!(state, LifeState::Starting { ready: false, .. })
        });
        let starting = starting.unwrap();
        world.come_up(starting);
        world.pass(SOAK / 2);
        assert!(!world.core.arrived());
        world.send(RolloutEvent::Exited(starting.id));
    }
}

#[test]
fn a_version_that_was_given_up_never_arrives() {
    let mut world = World::new(2, false);
    world.settle();
    assert!(world.core.arrived());
    world.deploy(true, true);
    world.settle();
    assert!(world.core.converged() && !world.core.arrived());
}

#[test]
fn a_slot_that_waits_for_its_backoff_can_be_tried_again_at_once() {
    let mut world = World::new(1, false);
    world.send(RolloutEvent::Exited(1));
    assert_eq!(world.core.instances(), []);
    world.send(RolloutEvent::Retry);
    assert_eq!(world.generations(), [1]);
}

#[test]
fn a_pause_follows_each_new_instance_and_each_old_one() {
    for in_place in [false, true] {
        let mut world = World::new(2, in_place);
        world.settle();
        world.deploy(false, false);
        for slot in [1, 2] {
            if in_place {
                world.drain_and_stop(slot);
            }
            let new = world.pick(0, |state| matches!(state, LifeState::Starting { .. }));
            let new = new.unwrap();
            assert_eq!(new.slot, slot);
            world.come_up(new);
            // A new manager begins the pause anew, and the pause does not get longer by that.
            world.core = Reconciler::restore(world.core.save(), world.now);
            world.pause();
            if !in_place {
                world.drain_and_stop(slot);
                if slot == 1 {
                    world.pause();
                }
            }
        }
        assert!(world.core.converged());
    }
}

#[test]
fn in_place_an_old_instance_is_gone_before_the_new_one_starts() {
    let mut world = World::new(1, true);
    world.settle();
    world.deploy(false, false);
    let old = world.core.instances()[0].id;
    let count = |world: &World| world.core.instances().len();
    assert!(matches!(
        world.core.instances()[0].state,
        LifeState::Draining { .. }
    ));
    world.send(RolloutEvent::Tick);
    assert_eq!(count(&world), 1, "while it drains");
    world.send(RolloutEvent::Idle(old));
    assert_eq!(count(&world), 1, "while it stops");
    world.send(RolloutEvent::Exited(old));
    assert_eq!(count(&world), 1);
    assert_ne!(world.core.instances()[0].id, old);
    // What cannot be ended holds nobody up for ever.
    world.settle();
    world.deploy(false, false);
    let old = world.core.instances()[0].id;
    world.send(RolloutEvent::Idle(old));
    world.pass(Duration::from_secs(10));
    assert_eq!(count(&world), 2);
}

#[test]
fn a_failed_start_gives_the_version_up_and_leaves_the_old_instances() {
    let mut world = World::new(3, false);
    world.settle();
    let old: Vec<HeldInstance> = world.core.instances().to_vec();
    world.deploy(true, true);
    world.settle();
    assert_eq!(
        world
            .core
            .instances()
            .iter()
            .map(|i| i.id)
            .collect::<Vec<_>>(),
        old.iter().map(|i| i.id).collect::<Vec<_>>()
    );
    assert!(world.gave_up(2));
    assert_eq!(world.failures(), [(2, InstanceFailure::ExitedBeforeReady)]);
}

#[test]
fn an_instance_that_is_not_ready_in_time_is_stopped_and_then_killed() {
    let mut world = World::new(1, false);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.failures(), [(1, InstanceFailure::NotReadyInTime)]);
    assert!(world.log.contains(&RolloutAction::Stop(1)));
    world.pass(Duration::from_secs(10));
    assert!(world.log.contains(&RolloutAction::Kill(1)));
}

/// Returns a world with an instance that has tunnels and was told to stop.
fn closing() -> (World, InstanceId) {
    let mut world = World::new(1, false);
    world.settle();
    let id = world.core.instances()[0].id;
    world.send(RolloutEvent::Tunnels(id, true));
    world.desire(|desired| desired.running = false);
    assert!(
        !world.log.contains(&RolloutAction::Stop(id)),
        "it has requests"
    );
    world.send(RolloutEvent::Idle(id));
    assert!(world.log.contains(&RolloutAction::Stop(id)));
    (world, id)
}

#[test]
fn tunnels_have_their_own_time_and_then_the_instance_has_its_own() {
    let (mut world, id) = closing();
    world.pass(Duration::from_millis(39_999));
    let state = |world: &World| world.core.instances()[0].state.stage();
    assert_eq!(state(&world), LifeStage::Closing);
    world.pass(Duration::from_millis(1));
    assert_eq!(state(&world), LifeStage::Stopping);
    world.send(RolloutEvent::Tunnels(id, false));
    world.pass(Duration::from_millis(9_999));
    assert!(!world.log.contains(&RolloutAction::Kill(id)));
    world.pass(Duration::from_millis(1));
    assert!(world.log.contains(&RolloutAction::Kill(id)));
}

#[test]
fn the_end_of_the_last_tunnel_ends_their_time() {
    let (mut world, id) = closing();
    world.pass(Duration::from_secs(5));
    world.send(RolloutEvent::Tunnels(id, false));
    world.pass(Duration::from_secs(10));
    assert!(world.log.contains(&RolloutAction::Kill(id)));
    world.send(RolloutEvent::Exited(id));
    assert!(world.core.converged());
}

#[test]
fn tunnels_survive_another_manager() {
    let (mut world, id) = closing();
    world.core = Reconciler::restore(world.core.save(), world.now);
    world.pass(Duration::from_secs(39));
    assert_eq!(world.core.instances()[0].state.stage(), LifeStage::Closing);
    world.pass(Duration::from_secs(11));
    assert!(world.log.contains(&RolloutAction::Kill(id)));
}

#[test]
fn race_16_a_crash_in_the_middle_of_a_rotation_is_repaired_first() {
    let mut world = World::new(3, false);
    world.settle();
    world.deploy(true, false);
    let new = world
        .pick(0, |state| matches!(state, LifeState::Starting { .. }))
        .unwrap();
    let crashed = world.pick(2, LifeState::is_ready).unwrap();
    world.send(RolloutEvent::Exited(crashed.id));
    world.come_up(new);
    world.pass(SOAK * 2);
    let repair = world
        .pick(0, |state| matches!(state, LifeState::Starting { .. }))
        .unwrap();
    assert_eq!(
        (repair.slot, repair.target.generation),
        (crashed.slot, 1),
        "the version that worked repairs"
    );
    assert!(
        world
            .pick(0, |state| matches!(state, LifeState::Draining { .. }))
            .is_some()
    );
    world.settle();
    assert_eq!(world.generations(), [2, 2, 2]);
}

#[test]
fn a_new_version_cures_slots_that_the_old_one_cannot_hold() {
    let mut world = World::new(2, false);
    world.settle();
    let slot = world.core.instances()[1].slot;
    for _ in 0..3 {
        let instance = *world.core.in_slot(slot).next().unwrap();
        world.send(RolloutEvent::Exited(instance.id));
        world.pass(Duration::from_secs(1));
    }
    world.deploy(true, false);
    world.settle();
    assert_eq!(world.generations(), [2, 2]);
}

#[test]
fn a_crash_during_the_soak_gives_the_version_up() {
    let mut world = World::new(2, false);
    world.settle();
    world.deploy(true, false);
    let new = world
        .pick(0, |state| matches!(state, LifeState::Starting { .. }))
        .unwrap();
    world.come_up(new);
    world.pass(Duration::from_secs(1));
    world.send(RolloutEvent::Exited(new.id));
    world.settle();
    assert_eq!(world.generations(), [1, 1]);
    assert_eq!(world.failures(), [(2, InstanceFailure::Crashed)]);
}

#[test]
fn a_new_version_replaces_nothing_before_it_has_answered_after_its_soak() {
    for in_place in [false, true] {
        let mut world = World::new(2, in_place);
        world.settle();
        world.deploy(true, false);
        if in_place {
            world.drain_and_stop(1);
        }
        world.silent.insert(2);
        let new = world.pick(0, |state| matches!(state, LifeState::Starting { .. }));
        let new = new.unwrap();
        world.come_up(new);
        world.pass(SOAK * 10);
        let olds = |world: &World| {
            let mut olds = world.core.instances().to_vec();
            olds.retain(|instance| instance.target.version == 1 && instance.is_ready());
            olds.len()
        };
        assert_eq!(olds(&world), 2 - usize::from(in_place));
        world.send(RolloutEvent::Unhealthy(new.id));
        assert!(world.gave_up(2));
        assert_eq!(world.failures(), [(2, InstanceFailure::Unhealthy)]);
        world.settle();
        assert_eq!(world.generations(), [1, 1]);
    }
}

#[test]
fn an_instance_that_becomes_unhealthy_while_it_is_watched_fails_its_rollout() {
    for new_version in [false, true] {
        let mut world = World::new(2, false);
        world.settle();
        world.deploy(new_version, false);
        let new = world.pick(0, |state| matches!(state, LifeState::Starting { .. }));
        let new = new.unwrap();
        world.come_up(new);
        world.send(RolloutEvent::Unhealthy(new.id));
        assert!(world.gave_up(2));
        assert_eq!(
            world.core.settled(),
            2,
            "a restart does not take the old instance away"
        );
        world.settle();
        assert_eq!(world.generations(), [1, 1]);
    }
}

#[test]
fn an_instance_that_takes_sites_over_and_becomes_unhealthy_is_started_again() {
    let mut world = World::new(1, false);
    world.desire(|desired| desired.takes_over = true);
    let first = world.pick(0, |state| matches!(state, LifeState::Starting { .. }));
    let first = first.unwrap();
    world.come_up(first);
    world.send(RolloutEvent::Unhealthy(first.id));
    assert_eq!(world.failures(), [(1, InstanceFailure::Unhealthy)]);
    world.settle();
    assert!(world.core.arrived());
    assert_ne!(world.core.instances()[0].id, first.id);
}

#[test]
fn who_becomes_unhealthy_after_the_rollout_may_recover() {
    let mut world = World::new(2, false);
    world.settle();
    let before = world.core.save();
    world.send(RolloutEvent::Unhealthy(1));
    assert_eq!((world.core.save(), world.failures()), (before, vec![]));
}

#[test]
fn a_lost_port_is_no_failure_unless_it_happens_again_and_again() {
    for in_place in [false, true] {
        let mut world = World::new(1, in_place);
        world.settle();
        world.deploy(true, false);
        if in_place {
            world.drain_and_stop(1);
        }
        let mut tries = 0;
        while world.failures().is_empty() {
            world.pass(PAUSE);
            let new = world.pick(0, |state| matches!(state, LifeState::Starting { .. }));
            let new = new.unwrap();
            assert_eq!(new.target.version, 2);
            // The instance may have ended, or run on without its port.
            world.send(RolloutEvent::PortTaken(new.id));
            world.send(RolloutEvent::Exited(new.id));
            tries += 1;
        }
        assert_eq!(tries, 1 + MOST_LOST_PORTS);
        assert!(world.gave_up(2));
        world.deploy(true, false);
        world.settle();
        assert_eq!(world.generations(), [3]);
    }
}

#[test]
fn a_canceled_or_stopped_instance_is_not_awaited() {
    for stops in [false, true] {
        let mut world = World::new(1, true);
        world.settle();
        world.deploy(true, false);
        world.drain_and_stop(1);
        let new = world.pick(0, |state| matches!(state, LifeState::Starting { .. }));
        match stops {
            true => world.desire(|desired| desired.running = false),
            false => world.send(RolloutEvent::Cancel),
        }
        assert!(world.log.contains(&RolloutAction::Stop(new.unwrap().id)));
    }
}

#[test]
fn a_late_failure_rolls_the_replaced_slots_back() {
    let mut world = World::new(2, false);
    world.settle();
    world.deploy(true, false);
    while world.generations() != [2, 1, 2] {
        let starting = world.pick(0, |state| {
            matches!(state, LifeState::Starting { ready: false, .. })
        });
        match starting {
            Some(instance) if instance.slot == 2 => break,
            Some(instance) => world.come_up(instance),
            None => world.pass(SOAK),
        }
        if let Some(instance) = world.pick(0, |state| matches!(state, LifeState::Draining { .. })) {
            world.send(RolloutEvent::Idle(instance.id));
            world.send(RolloutEvent::Exited(instance.id));
        }
    }
    world.bad.insert(2);
    world.settle();
    assert_eq!(world.generations(), [1, 1]);
}

#[test]
fn crashes_back_off_and_recover() {
    let mut world = World::new(1, false);
    world.settle();
    let mut gaps = Vec::new();
    for _ in 0..12 {
        let instance = world.core.instances()[0];
        world.send(RolloutEvent::Exited(instance.id));
        let (_, retry_at) = world.core.waiting().next().unwrap();
        gaps.push(retry_at - world.now);
        world.settle();
    }
    assert!(
        gaps[0] < Duration::from_millis(130) && gaps[11] > Duration::from_secs(20),
        "{gaps:?}"
    );
    world.pass(backoff::RECOVERED_AFTER);
    let instance = world.core.instances()[0];
    world.send(RolloutEvent::Exited(instance.id));
    let (_, retry_at) = world.core.waiting().next().unwrap();
    assert!(retry_at - world.now < Duration::from_millis(130));
}

#[test]
fn delay_running_time_holds_a_ready_instance_back() {
    let mut world = World::new(1, false);
    world.desire(|desired| desired.running = false);
    world.send(RolloutEvent::Exited(1));
    world.desire(|desired| {
        desired.running = true;
        desired.policy.times.delay_running_time = Duration::from_secs(3);
    });
    let instance = world.core.instances()[0];
    world.send(RolloutEvent::Ready(instance.id));
    world.pass(Duration::from_millis(2_999));
    assert!(!world.core.instances()[0].is_ready());
    world.pass(Duration::from_millis(1));
    assert!(world.core.instances()[0].is_ready());
}

#[test]
fn race_20_the_newest_desired_state_wins() {
    let mut world = World::new(3, false);
    world.settle();
    world.deploy(true, false);
    world.deploy(true, true);
    world.desire(|desired| desired.running = false);
    world.deploy(true, false);
    world.desire(|desired| {
        desired.running = true;
        desired.count = 2;
    });
    world.settle();
    assert_eq!(world.generations(), [4, 4]);
}

#[derive(Debug, Clone)]
enum Step {
    Deploy {
        new_version: bool,
        bad: bool,
    },
    Scale(u32),
    Running(bool),
    ComeUp(usize),
    Crash(usize),
    Sicken(usize),
    LosePort(usize),
    GoIdle(usize),
    Exit(usize),
    Tunnels(usize, bool),
    Pass(u64),
    Cancel,
    Retry,
    /// Another manager takes over. One of the instances that were not ready yet never started; the
    /// number chooses which.
    TakeOver(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (any::<bool>(), any::<bool>()).prop_map(|(new_version, bad)| Step::Deploy { new_version, bad }),
        1 => (1u32..5).prop_map(Step::Scale),
        1 => any::<bool>().prop_map(Step::Running),
        8 => any::<usize>().prop_map(Step::ComeUp),
        2 => any::<usize>().prop_map(Step::Crash),
        2 => any::<usize>().prop_map(Step::Sicken),
        1 => any::<usize>().prop_map(Step::LosePort),
        6 => any::<usize>().prop_map(Step::GoIdle),
        6 => any::<usize>().prop_map(Step::Exit),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, tunnels)| Step::Tunnels(which, tunnels)),
        4 => (0u64..70_000).prop_map(Step::Pass),
        1 => Just(Step::Cancel),
        1 => Just(Step::Retry),
        2 => any::<usize>().prop_map(Step::TakeOver),
    ]
}

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::Deploy { new_version, bad } => self.deploy(new_version, bad),
            Step::Scale(count) => self.desire(|desired| desired.count = count),
            Step::Running(running) => self.desire(|desired| desired.running = running),
            Step::ComeUp(which) => {
                let starting =
                    self.pick(which, |state| matches!(state, LifeState::Starting { .. }));
                starting
                    .into_iter()
                    .for_each(|instance| self.come_up(instance));
            }
            Step::Crash(which) => {
                let any = self.pick(which, |_| true);
                any.into_iter()
                    .for_each(|instance| self.send(RolloutEvent::Exited(instance.id)));
            }
            Step::Sicken(which) => {
                let ready = self.pick(which, LifeState::is_ready);
                ready
                    .into_iter()
                    .for_each(|instance| self.send(RolloutEvent::Unhealthy(instance.id)));
            }
            Step::LosePort(which) => {
                let starting =
                    self.pick(which, |state| matches!(state, LifeState::Starting { .. }));
                starting
                    .into_iter()
                    .for_each(|instance| self.send(RolloutEvent::PortTaken(instance.id)));
            }
            Step::GoIdle(which) => {
                let draining =
                    self.pick(which, |state| matches!(state, LifeState::Draining { .. }));
                draining
                    .into_iter()
                    .for_each(|instance| self.send(RolloutEvent::Idle(instance.id)));
            }
            Step::Exit(which) => {
                let stopping = self.pick(which, |state| {
                    matches!(
                        state,
                        LifeState::Closing { .. } | LifeState::Stopping { .. }
                    )
                });
                stopping
                    .into_iter()
                    .for_each(|instance| self.send(RolloutEvent::Exited(instance.id)));
            }
            Step::Tunnels(which, tunnels) => {
                // An instance that drains gets no new tunnels.
                let live = self.pick(which, |state| !tunnels || state.is_ready());
                live.into_iter()
                    .for_each(|instance| self.send(RolloutEvent::Tunnels(instance.id, tunnels)));
            }
            Step::Pass(milliseconds) => self.pass(Duration::from_millis(milliseconds)),
            Step::Cancel => self.send(RolloutEvent::Cancel),
            Step::Retry => self.send(RolloutEvent::Retry),
            Step::TakeOver(which) => {
                self.core = Reconciler::restore(self.core.save(), self.now);
                let starting =
                    self.pick(which, |state| matches!(state, LifeState::Starting { .. }));
                if let Some(instance) = starting {
                    self.core.never_was(instance.id);
                }
                self.send(RolloutEvent::Tick);
            }
        }
    }
}

impl LifeState {
    fn is_ready(&self) -> bool {
        matches!(self, LifeState::Ready { .. })
    }
}

#[test]
fn what_is_saved_can_be_read_back_and_is_the_same() {
    let mut world = World::new(2, false);
    world.settle();
    world.deploy(true, false);
    let saved = world.core.save();
    let text = serde_json::to_string(&saved).unwrap();
    let read: SavedRollout = serde_json::from_str(&text).unwrap();
    assert_eq!(read, saved);
    assert_eq!(Reconciler::restore(read, world.now).save(), saved);
    let held = world.core.instances().iter();
    let stages: Vec<LifeStage> = held.map(|instance| instance.state.stage()).collect();
    assert_eq!(
        stages,
        [LifeStage::Ready, LifeStage::Ready, LifeStage::Starting]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_invariants_and_ends_in_the_newest_desired_state(
        count in 1u32..5,
        in_place: bool,
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new(count, in_place);
        for step in steps {
            world.take(step);
        }
        // From here on nothing fails, and the newest version is a good one.
        world.deploy(true, false);
        world.desire(|desired| desired.running = true);
        world.settle();
        let newest = world.next_target.generation;
        prop_assert!(world.generations().iter().all(|&generation| generation == newest));
        prop_assert_eq!(world.core.instances().len() as u32, world.core.desired().count);
        prop_assert!(!world.gave_up(newest));
    }

    #[test]
    fn a_bad_version_after_any_history_ends_with_the_good_one_everywhere(
        count in 1u32..5,
        in_place: bool,
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut world = World::new(count, in_place);
        for step in steps {
            world.take(step);
        }
        world.deploy(true, false);
        world.desire(|desired| desired.running = true);
        world.settle();
        let good = world.next_target.generation;
        world.deploy(true, true);
        world.settle();
        prop_assert!(world.generations().iter().all(|&generation| generation == good));
    }

    #[test]
    fn commands_at_any_pace_leave_an_in_place_service_ready_again_and_again(
        start in 0u64..10_000,
        commands in prop::collection::vec((0u64..8_000, any::<bool>()), 1..30),
    ) {
        const STEP: u64 = 100;
        let mut world = World::new(1, true);
        world.settle();
        let mut begun = BTreeMap::new();
        let mut away = 0;
        for (pace, new_version) in commands {
            world.deploy(new_version, false);
            for _ in 0..=pace / STEP {
                world.pass(Duration::from_millis(STEP));
                for instance in world.core.instances().to_vec() {
                    match instance.state {
                        LifeState::Starting { .. } => {
                            let begun = *begun.entry(instance.id).or_insert(world.now);
                            if begun + Duration::from_millis(start) <= world.now {
                                world.come_up(instance);
                            }
                        }
                        LifeState::Draining { .. } => world.send(RolloutEvent::Idle(instance.id)),
                        LifeState::Stopping { .. } => world.send(RolloutEvent::Exited(instance.id)),
                        _ => {}
                    }
                }
                let is_ready = world.core.instances().iter().any(HeldInstance::is_ready);
                away = if is_ready { 0 } else { away + STEP };
                prop_assert!(away <= start + 10 * STEP, "no instance for {away} ms");
            }
        }
    }

    #[test]
    fn stopping_after_any_history_leaves_nothing(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new(3, false);
        for step in steps {
            world.take(step);
        }
        world.desire(|desired| desired.running = false);
        world.settle();
        prop_assert!(world.core.instances().is_empty());
    }
}
