//! What the owner of the state hears: everything that takes time happens in a task of its own, and
//! reports back with one of these.

use std::rc::Rc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};

use super::process::Process;
use super::rollout::{InstanceFailure, InstanceId};
use crate::ipc::{EndpointCounts, FromWorker};
use crate::watch::Changed;

/// Brings the reports of tasks to the owner of the state.
pub type Reports = mpsc::UnboundedSender<Event>;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// There is news of an instance.
    Instance(InstanceId, News),
    /// There is news of the worker of this generation.
    Worker(u32, WorkerEvent),
    /// It is time to start a worker again.
    WorkerDue,
    /// The cause of an instance's failure is known.
    Diagnosed(Diagnosis),
    /// systemd has said whether it starts smoothserve again once this process has ended.
    Restarting(bool),
    /// Files on disk have changed and are quiet again.
    Changed(Changed),
    /// The process of this number says that it is ready.
    SaidReady(u32),
}

/// What is heard of an instance.
#[derive(Debug)]
pub enum News {
    /// The process of the instance waits in the launcher until it gets its permit to go on.
    Launched(Rc<Process>, oneshot::Sender<()>),
    /// The instance said that it is ready, or was seen to take connections.
    Ready,
    /// A worker probed the instance; a fault is in words.
    Probed(Result<(), String>),
    /// The workers have no connection to the instance any more.
    Idle,
    /// The health check of the worker changed its verdict: why the instance is unhealthy, or
    /// `None`.
    Health(Option<String>),
    /// The worker of this generation counted the requests of the instance.
    Counts(u32, EndpointCounts),
    /// The process of the instance has ended or could not be made: how, in words.
    Exited(String),
}

/// What is heard of a worker.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The worker sent a message.
    Says(FromWorker),
    /// The connection to the worker has ended. It may still serve what it has accepted, but it is
    /// to accept no more.
    Lost,
    /// The process of the worker has ended: how, in words.
    Gone(String),
}

/// The failure of an instance, with all that is known of the cause.
#[derive(Debug)]
pub struct Diagnosis {
    /// The service of the instance.
    pub service: String,
    /// The label of the instance: `shop/2`.
    pub instance: String,
    /// The generation that the instance ran.
    pub generation: u64,
    /// In which part of its life the instance failed.
    pub failure: InstanceFailure,
    /// Whether the generation was given up because of the failure.
    pub gave_up: bool,
    /// The time of the failure.
    pub at: SystemTime,
    /// What happened, and the instance's own last words.
    pub message: String,
}
