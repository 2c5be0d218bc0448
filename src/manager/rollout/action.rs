//! What the rollout core wants to be done.

use super::life::InstanceId;

/// Something to do for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutAction {
    /// Start an instance of this generation.
    Start {
        id: InstanceId,
        slot: u32,
        generation: u64,
    },
    /// Send the stop signal to an instance.
    Stop(InstanceId),
    /// Send SIGKILL to an instance.
    Kill(InstanceId),
    /// Say that an instance failed.
    Failed {
        id: InstanceId,
        slot: u32,
        generation: u64,
        failure: InstanceFailure,
        /// Whether the generation is not rolled out any further.
        gave_up: bool,
    },
}

/// How an instance failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceFailure {
    /// The instance was gone before it was ready.
    ExitedBeforeReady,
    /// The instance was not ready in time.
    NotReadyInTime,
    /// The instance was ready and ended without being asked to.
    Crashed,
}
