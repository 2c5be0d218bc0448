//! The state of a rollout as it survives the manager.
//!
//! Moments mean nothing to another process, so times that run begin anew. How often a slot has
//! failed is forgotten, and that an old instance has just ended: a new manager goes on at once.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::desired::{Desired, RolloutTarget};
use super::life::{HeldInstance, InstanceId, LifeStage, LifeState};
use super::reconciler::{Reconciler, soak};

/// What is kept of a [`Reconciler`].
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

impl Reconciler {
    /// Returns what the next manager has to know of the rollout.
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

    /// Goes on from what was saved.
    pub fn restore(saved: SavedRollout, now: Instant) -> Reconciler {
        let policy = &saved.desired.policy;
        let instances = saved.instances.iter().map(|instance| HeldInstance {
            id: instance.id,
            slot: instance.slot,
            target: instance.target,
            tunnels: instance.tunnels,
            state: match instance.stage {
                LifeStage::Starting => LifeState::Starting {
                    ready: false,
                    not_before: now + policy.times.delay_running_time,
                    deadline: now
                        + policy
                            .times
                            .start_timeout
                            .max(policy.times.delay_running_time),
                },
                LifeStage::Soaking => LifeState::Ready {
                    since: now,
                    soak_until: Some(now + soak(saved.proven)),
                },
                LifeStage::Ready => LifeState::Ready {
                    since: now,
                    soak_until: None,
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
        }
    }

    /// Takes out an instance that has never become one: its launcher was still waiting when the
    /// manager ended.
    pub fn never_was(&mut self, id: InstanceId) {
        self.instances.retain(|instance| instance.id != id);
    }
}
