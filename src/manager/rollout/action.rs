//! What the rollout core wants to be done.

use super::life::InstanceId;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutAction {
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
        failure: InstanceFailure,
        /// The generation is not rolled out any further.
        gave_up: bool,
    },
}

/// How an instance failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceFailure {
    /// It was gone before it was ready.
    ExitedBeforeReady,
    /// It was not ready in time.
    NotReadyInTime,
    /// It was ready and went without being asked to.
    Crashed,
}
