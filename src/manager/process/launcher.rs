//! The start of an instance's process: first a launcher is started; it waits until the manager lets
//! it go, and then it becomes the instance. Without systemd, a keeper stands between the two.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::ending::{Ending, ProcessEnd};
use super::keeper_process::KeeperProcess;
use super::killed::Unkillable;
use super::output::{Output, Tail};
use super::passing::send_first;
use super::process::{Process, ProcessKeeper};
use crate::config::ScopeLimits;
use crate::launch::{BUSY, Order};
use crate::manager::host::children;
use crate::manager::host::pidfd::Pidfd;
use crate::systemd::journal;
use crate::systemd::units::{Units, service_slice};

/// How long to read output after the end of a process. Its last lines are there at once, but its
/// children may keep the pipes open.
const LAST_LINES: Duration = Duration::from_millis(200);

/// The longest report of a launcher that is read, in bytes.
const LONGEST_REPORT: u64 = 4096;

/// A launcher that waits until it is let go. When this value is dropped, the launcher ends.
#[derive(Debug)]
pub struct Launcher {
    /// The process of the launcher, and later of the instance.
    pub process: Rc<Process>,
    socket: UnixStream,
    parent: Parent,
}

/// The parent of a process, which learns how it ends, and where the process writes its output.
#[derive(Debug)]
enum Parent {
    /// The parent is a keeper. The process writes to pipes, which the manager reads.
    Keeper(Rc<KeeperProcess>, Output),
    /// The parent is the manager. The process writes to a stream of journald. The text is the value
    /// of `JOURNAL_STREAM`.
    Manager(Child, String),
}

/// The names of a process.
#[derive(Debug)]
pub struct ProcessName {
    /// The name of the service: the identifier of the process's lines in the journal.
    pub service: String,
    /// The label `shop/2`, which precedes the process's lines on a terminal.
    pub label: String,
    /// The name of the scope: `smoothserve-shop-2-17.scope`.
    pub scope: String,
}

impl Launcher {
    /// Starts a launcher with a keeper. What the instance leaves is killed after `stop_timeout`.
    /// Must run inside a `LocalSet`.
    pub async fn spawn(name: &ProcessName, stop_timeout: Duration) -> anyhow::Result<Launcher> {
        let (socket, theirs) = order_socket()?;
        let started = KeeperProcess::spawn(theirs, stop_timeout).await?;
        let keeper = Rc::new(started.keeper);
        let stderr = Tail::default();
        let output = Output::read(&name.label, started.stdout, started.stderr, &stderr);
        let kept = ProcessKeeper::Keeper {
            keeper: keeper.clone(),
            stderr,
        };
        let pidfd = Pidfd::open(started.launcher)?;
        let process = Process::new(started.launcher, SystemTime::now(), pidfd, kept);
        Ok(Launcher {
            process: Rc::new(process),
            socket,
            parent: Parent::Keeper(keeper, output),
        })
    }

    /// Starts a launcher in a scope of its own, with the journal as its output. Once the scope is
    /// told to stop, systemd kills what is left in it after `stop_timeout`.
    pub async fn spawn_in_scope(
        name: &ProcessName,
        units: &Units,
        limits: &ScopeLimits,
        stop_timeout: Duration,
    ) -> anyhow::Result<Launcher> {
        let started = SystemTime::now();
        let slice = service_slice(&name.service);
        let output = journal::stream(&name.service, &slice).or_else(|error| {
            tracing::warn!(
                service = name.service,
                instance = name.label,
                error = %error,
                "cannot open a stream to journald, the instance writes to the stderr of smoothserve"
            );
            std::io::stderr().as_fd().try_clone_to_owned()
        })?;
        let journal_stream = journal::variable_for(&output)?;
        let (socket, theirs) = order_socket()?;
        let child = Command::new("/proc/self/exe")
            .arg0("smoothserve: launch")
            .stdin(Stdio::from(theirs))
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let pidfd = Pidfd::open(pid)?;
        let description = format!("smoothserve instance {}", name.label);
        let scope = units
            .start_scope(
                &name.scope,
                &slice,
                &description,
                pid,
                limits,
                Some(stop_timeout),
            )
            .await?;
        let kept = ProcessKeeper::in_scope(scope, slice, pid);
        let process = Process::new(pid, started, pidfd, kept);
        Ok(Launcher {
            process: Rc::new(process),
            socket,
            parent: Parent::Manager(child, journal_stream),
        })
    }

    /// Lets the launcher become the instance, which inherits `socket`. Calls `busy` with
    /// true if the launcher has to wait until nobody has the executable open for writing, and with
    /// false once it has executed it then. Returns when the process has ended, or should have ended
    /// since it was killed.
    pub async fn go(
        self,
        order: Order,
        executable: BorrowedFd<'_>,
        socket: Option<TcpListener>,
        busy: impl Fn(bool),
    ) -> Ending {
        let process = self.process.clone();
        match self.until_end(order, executable, socket, busy).await {
            Ok(end) => Ending::Ended(end),
            Err(Unkillable) => process.leave(),
        }
    }

    async fn until_end(
        mut self,
        mut order: Order,
        executable: BorrowedFd<'_>,
        socket: Option<TcpListener>,
        busy: impl Fn(bool),
    ) -> Result<ProcessEnd, Unkillable> {
        match &self.parent {
            Parent::Keeper(keeper, _) => order.die_with = Some(keeper.pid),
            Parent::Manager(_, stream) => {
                order.in_scope = true;
                let variable = journal::STREAM_VARIABLE.to_owned();
                order.environment.insert(variable, stream.clone());
            }
        }
        let process = self.process.clone();
        let handing = self.hand_over(&order, executable, socket, busy);
        // A launcher that was killed in between reports nothing; how it ended says enough.
        let refusal = process.killed.bounds(handing).await?.unwrap_or_default();
        let status = match &mut self.parent {
            Parent::Keeper(keeper, output) => {
                let status = process.killed.bounds(keeper.instance_ended()).await?;
                let _ = tokio::time::timeout(LAST_LINES, output.ended()).await;
                if status.is_err() {
                    let ending = children::end_orphans(keeper.patience);
                    // One that has failed is replaced at once.
                    match process.was_told_to_end() {
                        true => ending.await,
                        false => drop(tokio::task::spawn_local(ending)),
                    }
                }
                status.map_err(io::Error::other)
            }
            Parent::Manager(child, _) => {
                let status = process.killed.bounds(child.wait()).await?;
                status.map(|status| (status, process.left_by(status)))
            }
        };
        process.remains_ended().await?;
        Ok(match status {
            _ if !refusal.is_empty() => ProcessEnd::not_started(&refusal),
            Ok((status, left)) => ProcessEnd::with_status(status, left),
            Err(error) => ProcessEnd::told(&format!("ended in an unknown way: {error}")),
        })
    }

    /// Sends the order to the launcher. Returns the error that the launcher reports, or nothing
    /// once the program runs.
    async fn hand_over(
        &mut self,
        order: &Order,
        executable: BorrowedFd<'_>,
        socket: Option<TcpListener>,
        busy: impl Fn(bool),
    ) -> io::Result<String> {
        let mut descriptors = vec![executable];
        descriptors.extend(socket.iter().map(|socket| socket.as_fd()));
        loop {
            self.socket.writable().await?;
            let attempt = self.socket.try_io(Interest::WRITABLE, || {
                send_first(&self.socket, &descriptors)
            });
            match attempt {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        }
        drop(socket);
        self.socket.write_all(&serde_json::to_vec(order)?).await?;
        self.socket.shutdown().await?;
        let mut report = Vec::new();
        let mut socket = (&mut self.socket).take(LONGEST_REPORT);
        let mut waited = false;
        while socket.read_buf(&mut report).await? > 0 {
            if report.first() == Some(&BUSY) {
                report.remove(0);
                waited = true;
                busy(true);
            }
        }
        if waited && report.is_empty() {
            busy(false);
        }
        Ok(String::from_utf8_lossy(&report).into_owned())
    }
}

/// Makes the socket of a launcher that has no order yet, and the end that is the launcher's. It
/// ends if its socket is closed before an order comes.
fn order_socket() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
}
