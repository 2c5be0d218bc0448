//! The state of a rollout that is saved for the next manager.
//!
//! Another process cannot use the values of `Instant`, so running timeouts begin again. The
//! failures of slots and the pause after the end of an old instance are not saved: a new manager
//! continues at once.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::desired::{Desired, RolloutTarget};
use super::life::{HeldInstance, InstanceId, LifeStage, LifeState, Soak};
use super::reconciler::{Reconciler, soak};

/// The state of a [`Reconciler`] that is saved for the next manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedRollout {
    desired: Desired,
    target: RolloutTarget,
    good: Option<RolloutTarget>,
    proven: bool,
    instances: Vec<SavedHeldInstance>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedHeldInstance {
    id: InstanceId,
    slot: u32,
    target: RolloutTarget,
    stage: LifeStage,
    #[serde(default)]
    tunnels: bool,
}

/// The frozen part of a [`SavedRollout`], which every build finds in the state of every other one.
#[derive(Debug, Deserialize)]
pub struct FrozenRollout {
    desired: FrozenDesired,
    instances: Vec<FrozenHeldInstance>,
}

#[derive(Debug, Deserialize)]
struct FrozenDesired {
    running: bool,
}

#[derive(Debug, Deserialize)]
struct FrozenHeldInstance {
    id: InstanceId,
    slot: u32,
    /// The name of the [`LifeStage`], which may be one that this build does not know.
    stage: String,
    #[serde(default)]
    tunnels: bool,
}

impl FrozenRollout {
    /// Returns true if the service should run.
    pub fn is_running(&self) -> bool {
        self.desired.running
    }

    /// Returns the state of a rollout that has reached what `desired` asks for. All instances count
    /// as instances of its target.
    pub fn reached(self, desired: Desired) -> SavedRollout {
        let target = desired.target;
        let instances = self
            .instances
            .into_iter()
            .map(|instance| SavedHeldInstance {
                id: instance.id,
                slot: instance.slot,
                target,
                stage: match instance.stage.as_str() {
                    "Starting" => LifeStage::Starting,
                    "Draining" => LifeStage::Draining,
                    "Closing" => LifeStage::Closing,
                    "Stopping" => LifeStage::Stopping,
                    // What may get requests goes on getting them until it is replaced.
                    _ => LifeStage::Ready,
                },
                tunnels: instance.tunnels,
            });
        SavedRollout {
            target,
            good: Some(target),
            proven: true,
            instances: instances.collect(),
            desired,
        }
    }
}

impl Reconciler {
    /// Returns the state that the next manager needs to continue the rollout.
    pub fn save(&self) -> SavedRollout {
        let instances = self.instances.iter().map(|instance| SavedHeldInstance {
            id: instance.id,
            slot: instance.slot,
            target: instance.target,
            stage: instance.state.stage(),
            tunnels: instance.tunnels,
        });
        SavedRollout {
            desired: self.desired.clone(),
            target: self.target,
            good: self.good,
            proven: self.proven,
            instances: instances.collect(),
        }
    }

    /// Continues from a saved state.
    pub fn restore(saved: SavedRollout, now: Instant) -> Reconciler {
        let policy = &saved.desired.policy;
        let instances = saved.instances.iter().map(|instance| HeldInstance {
            id: instance.id,
            slot: instance.slot,
            target: instance.target,
            tunnels: instance.tunnels,
            state: match instance.stage {
                LifeStage::Starting => LifeState::starting(now, &policy.times),
                LifeStage::Soaking => LifeState::Ready {
                    since: now,
                    soak: Soak::Until(now + soak(saved.proven)),
                },
                LifeStage::Ready => LifeState::Ready {
                    since: now,
                    soak: Soak::Over,
                },
                LifeStage::Draining => LifeState::Draining {
                    deadline: now + policy.times.drain_timeout,
                },
                LifeStage::Closing => LifeState::Closing {
                    deadline: now + policy.times.tunnel_drain_timeout,
                },
                LifeStage::Stopping => LifeState::Stopping {
                    kill_at: Some(now + policy.times.stop_timeout),
                },
            },
        });
        Reconciler {
            instances: instances.collect(),
            desired: saved.desired,
            target: saved.target,
            good: saved.good,
            proven: saved.proven,
            slots: BTreeMap::new(),
            pause_until: None,
            drains_until: None,
        }
    }

    /// Removes an instance whose program never started: its launcher was still waiting when the
    /// manager ended.
    pub fn never_was(&mut self, id: InstanceId) {
        self.instances.retain(|instance| instance.id != id);
    }
}
