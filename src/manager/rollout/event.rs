//! What the rollout core takes in.

use super::desired::Desired;
use super::life::InstanceId;

/// Something that happened to a service.
#[derive(Debug, Clone, PartialEq)]
pub enum RolloutEvent {
    /// The desired state was changed.
    Desire(Desired),
    /// A starting instance showed its readiness.
    Ready(InstanceId),
    /// The worker has no connection to a draining instance and will not open one, but for its
    /// tunnels.
    Idle(InstanceId),
    /// An instance has tunnels, or has none any more.
    Tunnels(InstanceId, bool),
    /// The process of an instance is gone, or could not be made.
    Exited(InstanceId),
    /// Stop rolling out the newest target and go back to the good one.
    Cancel,
    /// A deadline has passed.
    Tick,
}
