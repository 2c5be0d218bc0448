//! The actions that the rollout core asks for.

use super::life::InstanceId;

/// An action for one service.
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
    /// Report that an instance failed.
    Failed {
        id: InstanceId,
        slot: u32,
        generation: u64,
        failure: InstanceFailure,
        /// Whether the rollout of the generation was given up.
        gave_up: bool,
    },
}

/// How an instance failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceFailure {
    /// The process of the instance ended before the instance was ready.
    ExitedBeforeReady,
    /// The instance was still not ready after `start_timeout`.
    NotReadyInTime,
    /// The instance had been ready and failed its health check before the rollout had ended.
    Unhealthy,
    /// The instance had been ready and ended without being told to stop.
    Crashed,
}
