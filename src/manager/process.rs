//! The process of an instance as the manager sees it: made through the launcher, signalled and waited for through
//! its pidfd, listened to through its pipes.

mod output;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::launch::Order;
use output::{Output, Tail};

/// After the end of a process, what it started may keep its pipes open; its own last lines are there at once.
const LAST_LINES: Duration = Duration::from_millis(200);

/// The longest report of a launcher that is read.
const LONGEST_REPORT: u64 = 4096;

/// A process that lives, or has lived until a moment ago.
#[derive(Debug)]
pub struct Process {
    /// Its number, and that of its process group.
    pub pid: u32,
    pidfd: OwnedFd,
    stderr: Tail,
}

impl Process {
    /// The last lines of its stderr.
    pub fn last_lines(&self) -> Vec<String> {
        self.stderr.borrow().iter().cloned().collect()
    }

    /// Sends a signal to the process. One that is gone needs none.
    pub fn signal(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// Sends SIGKILL to the process and all that it has started in its group.
    pub fn kill_group(&self) {
        // The pidfd vouches for the number: as long as the process was not waited for, it is nobody else's.
        if pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok()
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

/// A process that waits in the launcher.
#[derive(Debug)]
pub struct Launcher {
    /// The process.
    pub process: Rc<Process>,
    child: Child,
    socket: UnixStream,
    output: Output,
}

impl Launcher {
    /// Starts a launcher. `label` names the instance in front of its lines.
    pub fn spawn(label: &str) -> io::Result<Launcher> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("smoothserve")
            .arg("launch")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let number = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let stderr = Tail::default();
        let output = Output::read(label, child.stdout.take(), child.stderr.take(), &stderr);
        Ok(Launcher {
            process: Rc::new(Process { pid, pidfd, stderr }),
            child,
            socket: UnixStream::from_std(ours)?,
            output,
        })
    }

    /// Lets the launcher become the instance, and returns when the process has ended: how, in words. `socket` is
    /// passed on to it.
    pub async fn go(
        mut self,
        order: &Order,
        executable: BorrowedFd<'_>,
        socket: Option<Rc<TcpListener>>,
    ) -> String {
        // A launcher that was killed meanwhile says nothing; how it ended says enough.
        let refusal = self
            .hand_over(order, executable, socket)
            .await
            .unwrap_or_default();
        let status = self.child.wait().await;
        let _ = tokio::time::timeout(LAST_LINES, self.output.ended()).await;
        match status {
            _ if !refusal.is_empty() => format!("could not be started: {refusal}"),
            Ok(status) => describe(status),
            Err(error) => format!("ended in an unknown way: {error}"),
        }
    }

    /// Sends the order. Returns what the launcher has to say against it; nothing once the program runs.
    async fn hand_over(
        &mut self,
        order: &Order,
        executable: BorrowedFd<'_>,
        socket: Option<Rc<TcpListener>>,
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
