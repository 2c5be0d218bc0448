//! The events that the rollout core handles.

use super::desired::Desired;
use super::life::InstanceId;

/// An event for one service.
#[derive(Debug, Clone, PartialEq)]
pub enum RolloutEvent {
    /// The desired state was changed.
    Desire(Desired),
    /// A starting instance has shown that it is ready.
    Ready(InstanceId),
    /// A starting instance cannot have its port, because another program has taken it.
    PortTaken(InstanceId),
    /// A ready instance has answered a health probe that began when its soak was over.
    Healthy(InstanceId),
    /// A ready instance has failed several health probes in a row.
    Unhealthy(InstanceId),
    /// No worker has a connection to a draining instance, or will open one. Tunnels do not count.
    Idle(InstanceId),
    /// An instance has got its first tunnel (true), or has lost its last one (false).
    Tunnels(InstanceId, bool),
    /// The process of an instance has ended, or could not be created.
    Exited(InstanceId),
    /// Stop rolling out the newest target and go back to the good one.
    Cancel,
    /// Try slots again at once that wait for their backoff.
    Retry,
    /// A deadline has passed.
    Tick,
}
