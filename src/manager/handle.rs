//! The handle through which other tasks use the manager: commands go in, snapshots come out. The
//! D-Bus side uses nothing else of the manager.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::status::Snapshot;

/// A handle to the manager for tasks outside its own loop.
#[derive(Debug, Clone)]
pub struct ManagerHandle {
    commands: mpsc::Sender<CommandRequest>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A command on its way to the manager, with the channel for the answer.
#[derive(Debug)]
pub struct CommandRequest {
    /// What the manager is asked to do.
    pub command: Command,
    /// Receives the numbers of the jobs that the command has made, ordered by the names of the
    /// services, or the reason why the command made no jobs.
    pub answer: oneshot::Sender<Result<Vec<u32>, CommandError>>,
}

impl ManagerHandle {
    /// Makes a handle, and the receiving ends for the manager's loop.
    pub fn new() -> (
        ManagerHandle,
        mpsc::Receiver<CommandRequest>,
        watch::Sender<Arc<Snapshot>>,
    ) {
        let (commands, requests) = mpsc::channel(64);
        let (publish, snapshots) = watch::channel(Arc::default());
        (
            ManagerHandle {
                commands,
                snapshots,
            },
            requests,
            publish,
        )
    }

    /// Sends a command to the manager. Returns the numbers of its jobs as soon as they have begun,
    /// and does not wait for their ends.
    pub async fn command(&self, command: Command) -> Result<Vec<u32>, CommandError> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(CommandRequest { command, answer })
            .await
            .map_err(|_| CommandError::ShuttingDown)?;
        answered.await.unwrap_or(Err(CommandError::ShuttingDown))
    }

    /// Returns a receiver that has the newest snapshot and hears of each newer one.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

/// A command to the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Apply all changes on disk. This makes one job, whose parts are the rollouts of the services.
    Reload,
    /// Bring a service into its running state.
    Start(String),
    /// Drain a service and stop its instances.
    Stop(String),
    /// Replace every instance of a service.
    Restart(String),
    /// Restart every running service: a job for each.
    RestartAll,
    /// Cancel a job. Instances that the job has already replaced stay replaced.
    Cancel(u32),
}

/// Why a command made no job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No service of this name is configured.
    #[error("no service is named {0:?}")]
    NoSuchService(String),
    /// No running job has this number.
    #[error("there is no job {0}")]
    NoSuchJob(u32),
    /// The configuration has faults. The text is the whole report, with one or more lines for each
    /// fault.
    #[error("the configuration has faults, nothing was changed:\n{0}")]
    InvalidConfig(String),
    /// smoothserve is stopping.
    #[error("smoothserve is shutting down")]
    ShuttingDown,
}
