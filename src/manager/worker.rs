//! The manager's side of a proxy worker: starts its process, connects to its control socket, and carries messages.
//!
//! The worker listens on a socket of its own in the run directory, which the manager makes and hands over as standard
//! input; so a manager that comes later can connect to a worker that is already there.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::ipc::{self, Channel, ChannelError, FromWorker, ToWorker};

/// What a worker is heard of.
#[derive(Debug)]
pub enum Event {
    /// It says something.
    Says(FromWorker),
    /// Its process has ended, in words.
    Gone(String),
}

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub struct Worker {
    /// Its process.
    pub pid: u32,
    outgoing: mpsc::UnboundedSender<(ToWorker, Option<OwnedFd>)>,
}

impl Worker {
    /// Starts the worker process number `generation`; `report` hears of it from then on, [`Event::Gone`] last.
    /// Must run inside a `LocalSet`.
    pub fn spawn(
        run_dir: &Path,
        generation: u32,
        report: impl Fn(Event) + 'static,
    ) -> io::Result<Worker> {
        let path = run_dir.join(format!("worker-{generation}.sock"));
        remove_if_there(&path)?;
        let listener = UnixListener::bind(&path)?;
        let connection = UnixStream::connect(&path)?;
        let (sender, receiver) = Channel::split(connection)?;
        let child = Command::new("/proc/self/exe")
            .arg0("smoothserve")
            .args(["proxy", "--die-with-parent"])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let (outgoing, queue) = mpsc::unbounded_channel();
        tokio::task::spawn_local(async move {
            tokio::select! {
                result = send_all(sender, queue) => log_broken("sending", result),
                result = receive_all(receiver, &report) => log_broken("receiving", result),
            }
            let ending = end(child).await;
            // A socket that is left behind does no harm: the next worker has another name.
            let _ = remove_if_there(&path);
            report(Event::Gone(ending));
        });
        Ok(Worker { pid, outgoing })
    }

    /// Queues a message. When the worker is gone it is dropped: the next worker gets the whole state anyway.
    pub fn send(&self, message: ToWorker, descriptor: Option<OwnedFd>) {
        let _ = self.outgoing.send((message, descriptor));
    }
}

async fn send_all(
    mut sender: ipc::Sender<ToWorker>,
    mut queue: mpsc::UnboundedReceiver<(ToWorker, Option<OwnedFd>)>,
) -> Result<(), ChannelError> {
    use std::os::fd::AsFd;
    while let Some((message, descriptor)) = queue.recv().await {
        sender
            .send(&message, descriptor.as_ref().map(AsFd::as_fd))
            .await?;
    }
    Ok(())
}

async fn receive_all(
    mut receiver: ipc::Receiver<FromWorker>,
    report: &impl Fn(Event),
) -> Result<(), ChannelError> {
    while let Some(message) = receiver.receive().await? {
        report(Event::Says(message));
    }
    Ok(())
}

fn log_broken(direction: &str, result: Result<(), ChannelError>) {
    if let Err(error) = result {
        tracing::warn!(direction, error = %error, "the connection to the worker broke");
    }
}

/// Waits for a worker whose connection has ended. It closes that only by exiting; one that goes on without it, or that
/// spoke nonsense, is of no use.
async fn end(mut child: Child) -> String {
    let grace = std::time::Duration::from_secs(1);
    let status = match tokio::time::timeout(grace, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
