//! The state of a rollout as it survives the manager.
//!
//! Moments mean nothing to another process, so times that run begin anew. How often a slot has failed is forgotten, and
//! that an old instance has just ended: a new manager goes on at once.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Desired, Instance, InstanceId, Reconciler, State, Target, soak};

/// What is kept of a [`Reconciler`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    desired: Desired,
    target: Target,
    good: Option<Target>,
    proven: bool,
    instances: Vec<SavedInstance>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedInstance {
    id: InstanceId,
    slot: u32,
    target: Target,
    stage: Stage,
    #[serde(default)]
    tunnels: bool,
}

/// A [`State`] without its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Its readiness was not seen, or not long enough after its start.
    Starting,
    /// It gets requests and is watched before the next is replaced.
    Soaking,
    /// It gets requests.
    Ready,
    /// It gets no new requests.
    Draining,
    /// It was told to stop, and ends its tunnels.
    Closing,
    /// It was told to stop.
    Stopping,
}

impl Reconciler {
    /// What to keep.
    pub fn save(&self) -> Saved {
        let instances = self.instances.iter().map(|instance| SavedInstance {
            id: instance.id,
            slot: instance.slot,
            target: instance.target,
            stage: instance.state.stage(),
            tunnels: instance.tunnels,
        });
        Saved {
            desired: self.desired.clone(),
            target: self.target,
            good: self.good,
            proven: self.proven,
            instances: instances.collect(),
        }
    }

    /// Goes on from what was kept.
    pub fn restore(saved: Saved, now: Instant) -> Reconciler {
        let policy = &saved.desired.policy;
        let instances = saved.instances.iter().map(|instance| Instance {
            id: instance.id,
            slot: instance.slot,
            target: instance.target,
            tunnels: instance.tunnels,
            state: match instance.stage {
                Stage::Starting => State::Starting {
                    ready: false,
                    not_before: now + policy.delay_running_time,
                    deadline: now + policy.start_timeout.max(policy.delay_running_time),
                },
                Stage::Soaking => State::Ready {
                    since: now,
                    soak_until: Some(now + soak(saved.proven)),
                },
                Stage::Ready => State::Ready {
                    since: now,
                    soak_until: None,
                },
                Stage::Draining => State::Draining {
                    deadline: now + policy.drain_timeout,
                },
                Stage::Closing => State::Closing {
                    deadline: now + policy.tunnel_drain_timeout,
                },
                Stage::Stopping => State::Stopping {
                    kill_at: Some(now + policy.stop_timeout),
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

    /// Takes an instance out that has never become one: its launcher was still waiting when the manager ended.
    pub fn never_was(&mut self, id: InstanceId) {
        self.instances.retain(|instance| instance.id != id);
    }
}

impl State {
    /// How far it is.
    pub fn stage(&self) -> Stage {
        match self {
            State::Starting { .. } => Stage::Starting,
            State::Ready {
                soak_until: Some(_),
                ..
            } => Stage::Soaking,
            State::Ready { .. } => Stage::Ready,
            State::Draining { .. } => Stage::Draining,
            State::Closing { .. } => Stage::Closing,
            State::Stopping { .. } => Stage::Stopping,
        }
    }
}
