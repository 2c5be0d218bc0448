//! The connection of the control thread to the manager.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::ipc::{
    Channel, ChannelError, FromWorker, MESSAGES, ManagerReader, MessageReceiver, MessageSender,
    ToWorker,
};

/// How many messages may wait for a manager that does not read. A manager that is further behind
/// had better connect again: it then gets a report of the present state.
const MOST_WAITING: usize = 1 << 16;

/// How long sending the last messages may take when the worker ends.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// The connection to a manager that was accepted.
pub(crate) struct ManagerLink {
    receiver: MessageReceiver<ToWorker>,
    reader: ManagerReader,
    outgoing: mpsc::Sender<FromWorker>,
    writer: JoinHandle<()>,
}

/// Why a manager was refused, or why the connection to it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkFault {
    #[error("the peer runs as user {0}")]
    Stranger(u32),
    #[error("the manager does not read")]
    Slow,
    #[error("the manager has closed the connection")]
    Gone,
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl ManagerLink {
    /// Accepts a manager, which must be root or run as the same user as the worker, and tells it
    /// whether this worker can connect to unix sockets.
    pub(crate) fn greet(socket: UnixStream, unix_sockets: bool) -> Result<ManagerLink, LinkFault> {
        let peer = sockopt::socket_peercred(&socket)
            .map_err(std::io::Error::from)?
            .uid;
        if !peer.is_root() && peer != rustix::process::geteuid() {
            return Err(LinkFault::Stranger(peer.as_raw()));
        }
        let (sender, receiver) = Channel::split(socket)?;
        let (outgoing, messages) = mpsc::channel(MOST_WAITING);
        let manager = ManagerLink {
            receiver,
            reader: ManagerReader::default(),
            outgoing,
            writer: tokio::task::spawn_local(write(sender, messages)),
        };
        manager.say(FromWorker::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            messages: MESSAGES,
            unix_sockets,
        })?;
        Ok(manager)
    }

    /// Queues a message for the manager. Does not wait until it is sent.
    pub(crate) fn say(&self, message: FromWorker) -> Result<(), LinkFault> {
        self.outgoing
            .try_send(message)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LinkFault::Slow,
                mpsc::error::TrySendError::Closed(_) => LinkFault::Gone,
            })
    }

    /// Returns true if all messages so far were taken from the queue to be sent.
    pub(crate) fn is_listening(&self) -> bool {
        self.outgoing.capacity() == self.outgoing.max_capacity()
    }

    /// Receives the next message, and keeps the descriptor that comes with it. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<ToWorker, LinkFault> {
        let reader = &mut self.reader;
        let message = self.receiver.receive_as(|frame| Ok(reader.read(frame)));
        message.await?.ok_or(LinkFault::Gone)
    }

    /// Takes the descriptor that came with the last message.
    pub(crate) fn take_descriptor(&mut self) -> Option<std::os::fd::OwnedFd> {
        self.receiver.take_descriptor()
    }

    /// Ends the connection, after waiting a moment until the last messages are sent.
    pub(crate) async fn farewell(mut self) {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.outgoing, closed));
        let _ = timeout(FAREWELL_LIMIT, &mut self.writer).await;
    }
}

impl Drop for ManagerLink {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

async fn write(mut sender: MessageSender<FromWorker>, mut messages: mpsc::Receiver<FromWorker>) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = sender.send(&message, None).await {
            tracing::debug!(%error, "cannot reach the manager");
            return;
        }
    }
}
