//! The readiness that an instance with `ready: notify` reports itself.
//!
//! One task reads the instance's notify socket as long as the instance lives, because a program may
//! go on to send messages, and would wait for a full queue. A message counts only if its sender is
//! a process of the instance. The task takes one message in a millisecond, so whoever can write to
//! the socket cannot keep the manager busy, and it reports readiness once.

use std::io;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::log_pace::LogPace;
use crate::manager::event::News;
use crate::manager::host::notify::{self, NotifySocket};
use crate::manager::host::supervision::Supervision;
use crate::manager::process::Process;
use crate::manager::rollout::InstanceId;

/// The pause after a message, which bounds how much of the manager's time a sender can take.
const PAUSE: Duration = Duration::from_millis(1);

static STRANGERS: LogPace = LogPace::new();

/// The notify socket of an instance, and the task that reads it.
#[derive(Debug)]
pub(super) struct Readiness {
    id: InstanceId,
    path: PathBuf,
    /// The socket, until the process of the instance exists.
    socket: Option<NotifySocket>,
    /// The task ends when this value is dropped.
    reader: JoinSet<()>,
}

impl Readiness {
    /// Creates the socket of an instance that runs as user `owner`, and has systemd keep it.
    pub(super) fn begin(
        id: InstanceId,
        path: PathBuf,
        owner: u32,
        supervision: &Supervision,
    ) -> io::Result<Readiness> {
        let socket = NotifySocket::bind(&path, owner)?;
        supervision.store(&notify::stored_name(id), socket.descriptor());
        Ok(Readiness::new(id, path, socket))
    }

    /// Makes the readiness of an instance with a socket that an earlier manager has created.
    pub(super) fn new(id: InstanceId, path: PathBuf, socket: NotifySocket) -> Readiness {
        Readiness {
            id,
            path,
            socket: Some(socket),
            reader: JoinSet::new(),
        }
    }

    /// Begins to read the socket, now that the process of the instance exists. Must run inside a
    /// `LocalSet`.
    pub(super) fn listen(
        &mut self,
        label: &str,
        process: &Rc<Process>,
        report: impl Fn(News) + 'static,
    ) {
        if let Some(socket) = self.socket.take() {
            let (label, process) = (label.to_owned(), Rc::downgrade(process));
            self.reader.spawn_local(async move {
                if let Err(error) = read(socket, &label, process, report).await {
                    tracing::error!(instance = label, error = %error, "cannot receive from the notify socket");
                }
            });
        }
    }

    /// Removes what is left of the socket after the end of the instance.
    pub(super) fn clean_up(&self, supervision: &Supervision) {
        supervision.forget(&notify::stored_name(self.id));
        // A file that stays behind does no harm: no number is used twice.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn read(
    socket: NotifySocket,
    label: &str,
    process: Weak<Process>,
    report: impl Fn(News),
) -> io::Result<()> {
    let mut is_ready = false;
    loop {
        let message = socket.receive().await?;
        let Some(process) = process.upgrade() else {
            return Ok(());
        };
        // Only a message that would change something is worth the look at its sender.
        if message.is_ready && !is_ready {
            is_ready = !socket.is_strange(&message) && process.holds(message.pid);
            if is_ready {
                report(News::Ready);
            } else if let Some(count) = STRANGERS.due() {
                tracing::warn!(
                    instance = label,
                    pid = message.pid,
                    uid = message.uid,
                    count,
                    "READY=1 does not come from the instance, ignored"
                );
            }
        }
        drop(process);
        tokio::time::sleep(PAUSE).await;
    }
}
