//! The way to the manager for all that runs beside its own loop: commands in, snapshots out. D-Bus
//! is built on this alone.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::status::Snapshot;

/// The way to the manager for everyone outside of its own loop.
#[derive(Debug, Clone)]
pub struct ManagerHandle {
    commands: mpsc::Sender<CommandRequest>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A command on its way to the manager, with the place for the answer.
#[derive(Debug)]
pub struct CommandRequest {
    /// The command.
    pub command: Command,
    /// Takes the numbers of the jobs that the command made, in the order of the services' names, or
    /// why there are none.
    pub answer: oneshot::Sender<Result<Vec<u32>, CommandError>>,
}

impl ManagerHandle {
    /// Makes a handle, and the ends of it that the manager's loop holds.
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

    /// Asks the manager for something and waits for the numbers of the jobs, not for their ends.
    pub async fn command(&self, command: Command) -> Result<Vec<u32>, CommandError> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(CommandRequest { command, answer })
            .await
            .map_err(|_| CommandError::ShuttingDown)?;
        answered.await.unwrap_or(Err(CommandError::ShuttingDown))
    }

    /// Returns the state as it is now and as it changes.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

/// What can be asked of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Apply all that changed on disk. One job, of which the services' rollouts are the steps.
    Reload,
    /// Bring a service into its running state.
    Start(String),
    /// Drain a service and stop its instances.
    Stop(String),
    /// Replace every instance of a service.
    Restart(String),
    /// Restart every running service: a job for each.
    RestartAll,
    /// Give a job up; what it has replaced stays replaced.
    Cancel(u32),
}

/// Why a command made no job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No service of this name is configured.
    #[error("no service is named {0:?}")]
    NoSuchService(String),
    /// The job of this number has ended or never was.
    #[error("there is no job {0}")]
    NoSuchJob(u32),
    /// The configuration has faults; this is the whole report, a line or more for each.
    #[error("the configuration has faults, nothing was changed:\n{0}")]
    InvalidConfig(String),
    /// smoothserve is stopping.
    #[error("smoothserve is shutting down")]
    ShuttingDown,
}
