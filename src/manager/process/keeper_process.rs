//! The manager's side of a [keeper](crate::keeper).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{ChildStderr, ChildStdout, Command};

use super::passing::send_first;
use crate::ancestry::{descendants, is_zombie};
use crate::keeper::KILL;
use crate::manager::host::children;
use crate::manager::host::pidfd::Pidfd;

/// A keeper, whose child is a launcher first and then an instance.
#[derive(Debug)]
pub(super) struct KeeperProcess {
    /// The number of the keeper's process.
    pub(super) pid: u32,
    pidfd: Pidfd,
    socket: UnixStream,
    /// How long a process of the instance has to end after SIGTERM.
    pub(super) patience: Duration,
}

/// A keeper that was just started, with what its child writes.
pub(super) struct Started {
    pub(super) keeper: KeeperProcess,
    /// The number of the launcher, which waits for its order.
    pub(super) launcher: u32,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// Nobody knows how an instance has ended, since its keeper is gone. The instance may still run.
#[derive(Debug, thiserror::Error)]
#[error("its keeper was killed")]
pub(super) struct KeeperLost;

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
        };
        Ok(Started {
            launcher: keeper.next_number().await?.cast_unsigned(),
            keeper,
            stdout,
            stderr,
        })
    }

    /// Waits for the end of the instance, and returns how it has ended, and how many processes it
    /// has left.
    pub(super) async fn instance_ended(&self) -> Result<(ExitStatus, usize), KeeperLost> {
        let status = self.next_number().await.map_err(|_| KeeperLost)?;
        let left = self.next_number().await.map_err(|_| KeeperLost)?;
        let left = usize::try_from(left).unwrap_or_default();
        Ok((ExitStatus::from_raw(status), left))
    }

    /// Waits for the end of the keeper: nothing of the instance is left then.
    pub(super) async fn ended(&self) {
        // It does not fail, and if it did, there would be nothing to wait for.
        let _ = self.pidfd.ended().await;
    }

    /// Returns the processes of the instance that have not ended.
    pub(super) fn left(&self) -> Vec<u32> {
        let below = descendants(self.pid).into_iter();
        below.filter(|pid| !is_zombie(*pid)).collect()
    }

    /// Kills the instance and everything that it has left.
    pub(super) fn kill(&self) {
        // It fails if the keeper is gone; what the instance has left then ends otherwise.
        let _ = self.socket.try_write(&[KILL]);
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
