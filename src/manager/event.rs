//! The events that reach the task which owns the manager's state. Work that takes time runs in a
//! separate task, which reports its result as an [`Event`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::SystemTime;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::host::sockets::SeenSocket;
use super::process::identity::UserIdentity;
use super::process::{Ending, Process};
use super::rollout::{InstanceFailure, InstanceId};
use crate::ipc::{EndpointCounts, FromWorker, ListenerId};
use crate::watch::Changed;

/// The channel on which tasks send their reports to the owner of the state.
pub type Reports = mpsc::UnboundedSender<Event>;

/// An event that the owner of the state takes in.
#[derive(Debug)]
pub enum Event {
    /// A task reports about the instance with this number.
    Instance(InstanceId, News),
    /// A task reports about the worker of this generation.
    Worker(u32, WorkerEvent),
    /// The pause after a worker's failure is over: a new worker can be started.
    WorkerDue,
    /// systemd has no copy of this closing listening socket any more.
    PortLetGo(ListenerId),
    /// The cause of an instance's failure is known.
    Diagnosed(Diagnosis),
    /// systemd has said whether it starts smoothserve again once this process has ended.
    Restarting(bool),
    /// Files on disk have changed, and no further change has followed for a moment.
    Changed(Changed),
}

/// A report about an instance.
#[derive(Debug)]
pub enum News {
    /// The user that the instance is to run as is known, or why it is not.
    Identified(Result<UserIdentity, String>),
    /// The process of the instance waits in the launcher until it gets its permit to continue.
    Launched(Rc<Process>, oneshot::Sender<()>),
    /// The instance has said that it is ready, or was seen to accept connections.
    Ready,
    /// The workers may connect to the unix socket of the instance now. The text says what is there
    /// instead of it.
    Admitted(Result<(), String>),
    /// A worker has probed the instance. An error describes why the probe failed.
    Probed(Result<(), String>),
    /// The launcher begins (true) to wait until nobody has the executable of the instance open for
    /// writing, or has executed it after such a wait (false).
    Busy(bool),
    /// Another program listens where the instance should.
    PortTaken,
    /// The workers have no connection to the instance any more.
    Idle,
    /// A worker's health check has a new result: why the instance is unhealthy, or `None` if it is
    /// healthy.
    Health(Option<String>),
    /// The worker of this generation has counted the requests of the instance.
    Counts(u32, EndpointCounts),
    /// It was seen where the instance listens that is not ready yet.
    Seen(Sighting),
    /// The process of the instance has ended or could not be created, or nobody waits for its end
    /// any more.
    Exited(Ending),
}

/// Where an instance listens that is not ready yet, and who has its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Where the processes of the instance listen.
    pub places: BTreeSet<SeenSocket>,
    /// Who else listens on the port of the instance: `nginx (process 123)`.
    pub holder: Option<String>,
}

/// A report about a worker.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The worker sent a message. The worker's next messages wait until the owner has dropped the
    /// permits of earlier ones, so a worker cannot fill the channel of the events.
    Says(FromWorker, OwnedSemaphorePermit),
    /// The connection to the worker has ended. The worker may still serve connections that it has
    /// accepted, but must accept no new ones.
    Lost,
    /// The process of the worker has ended. The text says how.
    Gone(String),
}

/// The failure of an instance, with all that is known about its cause.
#[derive(Debug)]
pub struct Diagnosis {
    /// The service of the instance.
    pub service: String,
    /// The label of the instance: `shop/2`.
    pub instance: String,
    /// The generation that the instance ran.
    pub generation: u64,
    /// The stage of its life at which the instance failed.
    pub failure: InstanceFailure,
    /// Whether the generation was given up because of the failure.
    pub gave_up: bool,
    /// The time of the failure.
    pub at: SystemTime,
    /// What happened. Everybody may read this, so it contains no output of the instance.
    pub message: String,
    /// What may be added to the message, depending on what else is found.
    pub suspicion: Option<Suspicion>,
    /// The last lines that the instance has written, each with its source.
    pub output: Vec<String>,
}

/// A cause of a failure that has to be confirmed by what the instance has written, or by a look at
/// the machine.
#[derive(Debug)]
pub struct Suspicion {
    /// The address that the instance was to listen on.
    pub address: Option<SocketAddr>,
    /// The argument that smoothserve gives to a service without `args`, if this is one.
    pub argument: Option<String>,
}
