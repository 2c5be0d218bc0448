//! The keeper: the process between the manager and an instance where there is no systemd. It ends
//! everything that the instance has left.
//!
//! # Theory of operation
//! A program may leave processes behind: a shell script that starts its server and ends first,
//! `npm start`, a daemon that has forked twice to get away from its parent. Nothing that such a
//! process can change about itself tells whom it belongs to, except its ancestors: whose parent has
//! ended gets the nearest subreaper for a parent, see prctl(2). So each instance has a subreaper of
//! its own, and the descendants of that one are all processes of the instance.
//!
//! The manager starts `smoothserve keeper` with a socket as standard input, and passes the socket
//! of a launcher over this. The keeper forks: its child is the [launcher](crate::launch), which
//! becomes the instance, and the keeper
//!
//! 1. tells the manager the number of its child, and reaps every process that has ended,
//! 2. tells the manager how the instance has ended, when it has, and how many processes are left,
//! 3. sends SIGTERM to what is left, and SIGKILL after `stop_timeout`, and ends when nothing is.
//!
//! When the manager asks for that, everything gets SIGKILL at once. When the manager is gone, the
//! instance gets SIGTERM, and everything SIGKILL after `stop_timeout`. If the keeper is killed, the
//! instance gets SIGTERM, and the manager is the next subreaper, which then ends everything in the
//! same way.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigHandler, SigSet, Signal as Caught, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, wait,
};

use crate::ancestry::{descendants, is_zombie, with_ancestors};
use crate::launch::{self, descriptors};

/// The byte by which the manager asks the keeper to kill everything.
pub const KILL: u8 = b'k';

/// The first and the longest pause between two rounds of killing: a process may fork while it is
/// looked for, and takes a moment to end.
const FIRST_ROUND: Duration = Duration::from_millis(10);
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// The signals that ask the manager for something, and that a person may send to everything of its
/// name. The keeper ends with its instance.
const FOR_THE_MANAGER: [Caught; 6] = [
    Caught::SIGTERM,
    Caught::SIGINT,
    Caught::SIGHUP,
    Caught::SIGQUIT,
    Caught::SIGUSR1,
    Caught::SIGUSR2,
];

/// Becomes the keeper of an instance, and in a child of this process the instance. The process must
/// have one thread only.
pub fn run() -> anyhow::Result<()> {
    let manager = UnixStream::from(descriptors::out_of_the_way(io::stdin())?);
    let launcher = descriptors::receive(&manager)?.pop();
    let launcher = launcher.context("no socket from a manager on standard input")?;
    let mut patience = [0; 8];
    (&manager).read_exact(&mut patience)?;
    rustix::process::setsid().context("cannot begin a session")?;
    rustix::process::set_child_subreaper(Some(getpid()))?;
    // A child that ends before it is waited for must not be missed.
    let mut ended = SigSet::empty();
    ended.add(Caught::SIGCHLD);
    ended.thread_block()?;
    // SAFETY: this process has one thread, so the child may do whatever it could have done.
    match unsafe { fork() }.context("cannot start a process")? {
        ForkResult::Child => {
            rustix::stdio::dup2_stdin(&launcher)?;
            drop((manager, launcher));
            launch::run()
        }
        ForkResult::Parent { child } => {
            drop(launcher);
            leave_output()?;
            for number in FOR_THE_MANAGER {
                // SAFETY: to ignore a signal runs no code at all.
                unsafe { signal(number, SigHandler::SigIgn)? };
            }
            let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
            let keeper = Keeper {
                instance: Pid::from_raw(child.as_raw()).context("a child has a number")?,
                manager: Some(manager),
                children: SignalFd::with_flags(&ended, flags)?,
                patience: Duration::from_millis(u64::from_le_bytes(patience)),
                stage: Stage::Running,
            };
            keeper.keep()
        }
    }
}

/// Lets go of the pipes of the instance's output, which would not end before the keeper otherwise.
fn leave_output() -> io::Result<()> {
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

struct Keeper {
    instance: Pid,
    /// The socket to the manager, until the manager is gone.
    manager: Option<UnixStream>,
    /// Can be read when a child has ended.
    children: SignalFd,
    /// How long a process has to end after SIGTERM.
    patience: Duration,
    stage: Stage,
}

/// How far the end of the instance's processes has come. It only moves down this list.
enum Stage {
    /// The instance runs.
    Running,
    /// What is there has got SIGTERM, and gets SIGKILL at this time.
    Ending(Instant),
    /// Everything gets SIGKILL. The next round is after this pause.
    Killing(Duration),
}

impl Keeper {
    fn keep(mut self) -> anyhow::Result<()> {
        self.tell(self.instance.as_raw_nonzero().get());
        while self.reap() {
            let pause = match &mut self.stage {
                Stage::Running => None,
                Stage::Ending(until) => Some(until.saturating_duration_since(Instant::now())),
                Stage::Killing(pause) => {
                    signal_all(Signal::KILL);
                    let now = *pause;
                    *pause = LONGEST_ROUND.min(now * 2);
                    Some(now)
                }
            };
            self.wait(pause)?;
            if matches!(self.stage, Stage::Ending(until) if until <= Instant::now()) {
                self.stage = Stage::Killing(FIRST_ROUND);
            }
        }
        Ok(())
    }

    /// Tells the manager a number. It fails if the manager is gone, which `wait` notices.
    fn tell(&self, number: i32) {
        if let Some(mut manager) = self.manager.as_ref() {
            let _ = manager.write_all(&number.to_le_bytes());
        }
    }

    /// Reaps all children that have ended. Returns false if no child is left.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.instance => {
                    self.tell(status.as_raw());
                    let left = descendants(std::process::id());
                    let left = left.into_iter().filter(|pid| !is_zombie(*pid)).count();
                    self.tell(i32::try_from(left).unwrap_or(i32::MAX));
                    self.end(signal_all);
                }
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Begins the end: sends SIGTERM by `signal`, unless that has been done.
    fn end(&mut self, signal: impl Fn(Signal)) {
        if matches!(self.stage, Stage::Running) {
            signal(Signal::TERM);
            signal(Signal::CONT);
            self.stage = Stage::Ending(Instant::now() + self.patience);
        }
    }

    /// Waits for the end of a child or a word of the manager, for no longer than `pause`.
    fn wait(&mut self, pause: Option<Duration>) -> io::Result<()> {
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        let mut sources = vec![PollFd::new(&self.children, PollFlags::IN)];
        if let Some(manager) = &self.manager {
            sources.push(PollFd::new(manager, PollFlags::IN));
        }
        match poll(&mut sources, pause.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_word = sources
            .get(1)
            .is_some_and(|manager| !manager.revents().is_empty());
        while let Ok(Some(_)) = self.children.read_signal() {}
        if let (true, Some(manager)) = (has_word, &self.manager) {
            self.hear(manager.try_clone()?);
        }
        Ok(())
    }

    fn hear(&mut self, mut manager: UnixStream) {
        let mut word = [0];
        match manager.read(&mut word) {
            Ok(1) if word == [KILL] => self.stage = Stage::Killing(FIRST_ROUND),
            Ok(1) => {}
            _ => {
                self.manager = None;
                let instance = self.instance;
                // It was not reaped yet in this stage, so no other process has its number.
                self.end(|signal| {
                    let _ = rustix::process::kill_process(instance, signal);
                });
            }
        }
    }
}

/// Sends a signal to all processes of the instance.
fn signal_all(signal: Signal) {
    let own = std::process::id();
    for pid in descendants(own) {
        let Some(process) = Pid::from_raw(pid.cast_signed()) else {
            continue;
        };
        // The number may belong to another process by now; that of the pidfd does not change.
        if let Ok(process) = pidfd_open(process, PidfdFlags::empty())
            && with_ancestors(pid).any(|ancestor| ancestor == own)
        {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(process, signal);
        }
    }
}
