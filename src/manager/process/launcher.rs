//! The start of an instance's process: first a launcher is started; it waits until the manager lets
//! it go, and then it becomes the instance.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::output::{Output, Tail};
use super::process::{Process, ProcessKeeper};
use crate::config::ScopeLimits;
use crate::launch::Order;
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
    child: Child,
    socket: UnixStream,
    output: Destination,
}

/// Where a process writes its output.
#[derive(Debug)]
enum Destination {
    /// The process writes to pipes, which the manager reads.
    Manager(Output),
    /// The process writes to a stream of journald. The text is the value of `JOURNAL_STREAM`.
    Journal(String),
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
    /// Starts a launcher as a child of the manager.
    pub fn spawn(name: &ProcessName) -> anyhow::Result<Launcher> {
        let (mut child, socket) = launch(Stdio::piped(), Stdio::piped())?;
        let pid = child.id().unwrap_or_default();
        let stderr = Tail::default();
        let output = Output::read(
            &name.label,
            child.stdout.take(),
            child.stderr.take(),
            &stderr,
        );
        let process = Process {
            pid,
            started: SystemTime::now(),
            pidfd: Pidfd::open(pid)?,
            told_to_end: Cell::default(),
            keeper: ProcessKeeper::Manager(stderr),
        };
        Ok(Launcher {
            process: Rc::new(process),
            child,
            socket,
            output: Destination::Manager(output),
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
        let (child, socket) = launch(output.try_clone()?.into(), output.into())?;
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
        let process = Process {
            pid,
            started,
            pidfd,
            told_to_end: Cell::default(),
            keeper: ProcessKeeper::Systemd { scope, slice },
        };
        Ok(Launcher {
            process: Rc::new(process),
            child,
            socket,
            output: Destination::Journal(journal_stream),
        })
    }

    /// Lets the launcher become the instance, which inherits `socket`. Returns when the process has
    /// ended, with a text that says how.
    pub async fn go(
        mut self,
        mut order: Order,
        executable: BorrowedFd<'_>,
        socket: Option<TcpListener>,
    ) -> String {
        if let Destination::Journal(stream) = &self.output {
            order
                .environment
                .insert(journal::STREAM_VARIABLE.to_owned(), stream.clone());
        }
        // A launcher that was killed in between reports nothing; how it ended says enough.
        let refusal = self
            .hand_over(&order, executable, socket)
            .await
            .unwrap_or_default();
        let status = self.child.wait().await;
        if let Destination::Manager(output) = &mut self.output {
            let _ = tokio::time::timeout(LAST_LINES, output.ended()).await;
        }
        self.process.left_behind().await;
        match status {
            _ if !refusal.is_empty() => format!("could not be started: {refusal}"),
            Ok(status) => describe(status),
            Err(error) => format!("ended in an unknown way: {error}"),
        }
    }

    /// Sends the order to the launcher. Returns the error that the launcher reports, or nothing
    /// once the program runs.
    async fn hand_over(
        &mut self,
        order: &Order,
        executable: BorrowedFd<'_>,
        socket: Option<TcpListener>,
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
        (&mut self.socket)
            .take(LONGEST_REPORT)
            .read_to_end(&mut report)
            .await?;
        Ok(String::from_utf8_lossy(&report).into_owned())
    }
}

/// Starts a launcher that has no order yet. It ends if its socket is closed before an order comes.
fn launch(stdout: Stdio, stderr: Stdio) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new("/proc/self/exe")
        .arg0("smoothserve")
        .arg("launch")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(stdout)
        .stderr(stderr)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

fn send_first(socket: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(
        socket.as_fd(),
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => {
            let core = if status.core_dumped() {
                " (core dumped)"
            } else {
                ""
            };
            match nix::sys::signal::Signal::try_from(signal) {
                Ok(signal) => format!("was killed by {signal}{core}"),
                Err(_) => format!("was killed by signal {signal}{core}"),
            }
        }
        (None, None) => "ended in an unknown way".to_owned(),
    }
}
