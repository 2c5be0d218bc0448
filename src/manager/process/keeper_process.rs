//! The manager's side of a [keeper](crate::keeper).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{ChildStderr, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::passing::send_first;
use crate::ancestry::descendants;
use crate::keeper::KILL;
use crate::manager::host::children;
use crate::manager::host::pidfd::Pidfd;

/// How long a process has to end after SIGKILL. One that waits for a file system or a device that
/// hangs does not end before that answers, and one that has become another user gets no signal at
/// all.
const MERCY: Duration = Duration::from_secs(5);

/// A keeper, whose child is a launcher first and then an instance.
#[derive(Debug)]
pub(super) struct KeeperProcess {
    /// The number of the keeper's process.
    pub(super) pid: u32,
    pidfd: Pidfd,
    socket: UnixStream,
    /// How long a process of the instance has to end after SIGTERM.
    pub(super) patience: Duration,
    /// When the keeper was asked to kill everything.
    killed: watch::Sender<Option<Instant>>,
}

/// A keeper that was just started, with what its child writes.
pub(super) struct Started {
    pub(super) keeper: KeeperProcess,
    /// The number of the launcher, which waits for its order.
    pub(super) launcher: u32,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// Why nobody knows how an instance has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unended {
    /// The keeper is gone, and the instance may still run.
    #[error("its keeper was killed")]
    KeeperLost,
    /// It has not ended.
    #[error("it was killed and does not end")]
    Unkillable,
}

impl KeeperProcess {
    /// Starts a keeper and its launcher, which gets the socket `launcher`. What the instance leaves
    /// gets `patience` to end. Must run inside a `LocalSet`.
    pub(super) async fn spawn(launcher: OwnedFd, patience: Duration) -> io::Result<Started> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // Both are the first bytes in the socket, so there is room for them.
        send_first(&ours, &[launcher.as_fd()])?;
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        io::Write::write_all(&mut &ours, &millis.to_le_bytes())?;
        drop(launcher);
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("smoothserve: keeper")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (mut child, awaited) = children::spawn(&mut command)?;
        drop(command);
        let pid = child.id().unwrap_or_default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pidfd = Pidfd::open(pid)?;
        tokio::task::spawn_local(async move {
            // Whoever is interested in its end waits for the pidfd.
            let _ = child.wait().await;
            drop(awaited);
        });
        let keeper = KeeperProcess {
            pid,
            pidfd,
            socket: UnixStream::from_std(ours)?,
            patience,
            killed: watch::Sender::new(None),
        };
        Ok(Started {
            launcher: keeper.next_number().await?.cast_unsigned(),
            keeper,
            stdout,
            stderr,
        })
    }

    /// Waits for the end of the instance, and returns how it has ended. Fails if it has not ended
    /// although it was killed.
    pub(super) async fn instance_ended(&self) -> Result<ExitStatus, Unended> {
        tokio::select! {
            biased;
            status = self.next_number() => {
                status.map(ExitStatus::from_raw).map_err(|_| Unended::KeeperLost)
            }
            () = self.mercy_over() => Err(Unended::Unkillable),
        }
    }

    /// Waits for the end of the keeper: nothing of the instance is left then. What does not end
    /// although it was killed is left to the keeper, which goes on.
    pub(super) async fn ended(&self) {
        let in_time = tokio::select! {
            biased;
            ended = timeout(self.patience.saturating_add(MERCY), self.pidfd.ended()) => {
                ended.is_ok()
            }
            () = self.mercy_over() => false,
        };
        if !in_time {
            let left: Vec<String> = descendants(self.pid).iter().map(u32::to_string).collect();
            let error = format!("processes that were killed do not end: {}", left.join(", "));
            tracing::error!(error, "processes of an instance are left to their keeper");
        }
    }

    /// Kills the instance and everything that it has left.
    pub(super) fn kill(&self) {
        // It fails if the keeper is gone; what the instance has left then ends otherwise.
        let _ = self.socket.try_write(&[KILL]);
        let now = Instant::now();
        self.killed.send_if_modified(|at| {
            let is_first = at.is_none();
            at.get_or_insert(now);
            is_first
        });
    }

    /// Waits until what was killed should have ended.
    pub(super) async fn mercy_over(&self) {
        let mut killed = self.killed.subscribe();
        // It does not fail, since the sender is there.
        let at = killed
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|at| *at);
        match at {
            Some(at) => sleep_until(at + MERCY).await,
            None => std::future::pending().await,
        }
    }

    async fn next_number(&self) -> io::Result<i32> {
        let mut number = [0; 4];
        let mut filled = 0;
        while filled < number.len() {
            self.socket.readable().await?;
            match self.socket.try_read(&mut number[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(i32::from_le_bytes(number))
    }
}
