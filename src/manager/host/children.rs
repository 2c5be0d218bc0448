//! The children of the manager: those that it has started and waits for, and those that it has
//! got from others.
//!
//! # Theory of operation
//! The first process of a container becomes the parent of every process whose own parent has
//! ended, and has to reap it: otherwise each stays a zombie for ever. The same is true of a child
//! subreaper, see prctl(2). A thread waits for the end of any child, without reaping it, and reaps
//! those that nobody else waits for. Whoever starts a child says so while it is started, so the
//! thread takes nobody's exit status.
//!
//! What an instance has started is below its keeper, which is a child that the manager waits for.
//! If a keeper is killed, its descendants become children of the manager that nobody waits for, as
//! all other orphans, and the manager ends these.
//!
//! Under systemd nothing of this is needed: there, the manager gets no child from others.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};

use crate::ancestry::{descendants, with_ancestors};

/// The first and the longest pause until another look at a child whose exit status somebody else is
/// about to take, or while there is no child. The kernel notifies nobody of either.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// The first and the longest pause between two looks whether orphans have ended.
const FIRST_ROUND: Duration = Duration::from_millis(10);
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// How long orphans have to end after SIGKILL.
const MERCY: Duration = Duration::from_secs(5);

/// The children that somebody waits for.
static AWAITED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Somebody waits for the end of a child, as long as this value lives.
#[derive(Debug)]
pub struct AwaitedChild {
    pid: i32,
}

impl Drop for AwaitedChild {
    fn drop(&mut self) {
        let mut awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.remove(&self.pid);
    }
}

/// Starts a child whose exit status only the caller takes, while the second value lives.
pub fn spawn(command: &mut Command) -> io::Result<(Child, AwaitedChild)> {
    // A child that ends at once is not looked at before it is noted here. If there is no program
    // to start, its process is waited for within `spawn`.
    let mut awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    let pid = child.id().unwrap_or_default().cast_signed();
    awaited.insert(pid);
    Ok((child, AwaitedChild { pid }))
}

/// Makes this process the parent of all its descendants whose own parents have ended, and reaps
/// every child that nobody waits for.
pub fn adopt_orphans() -> io::Result<()> {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))?;
    thread::Builder::new().name("reaper".into()).spawn(reap)?;
    Ok(())
}

/// Ends all orphans: with SIGTERM, and after `patience` with SIGKILL. They get that at once if the
/// future is dropped, because the manager ends.
pub async fn end_orphans(patience: Duration) {
    let _last = KillOrphans;
    let until = Instant::now() + patience;
    let mut pause = FIRST_ROUND;
    let mut left = signal_orphans(Signal::TERM);
    while !left.is_empty() {
        let now = Instant::now();
        let rest = until.saturating_duration_since(now);
        if now > until + MERCY {
            let left: Vec<String> = left.iter().map(u32::to_string).collect();
            let error = format!("processes that were killed do not end: {}", left.join(", "));
            tracing::error!(error, "processes of a lost keeper are left alone");
            return;
        }
        tokio::time::sleep(if rest.is_zero() {
            pause
        } else {
            pause.min(rest)
        })
        .await;
        pause = LONGEST_ROUND.min(pause * 2);
        left = match Instant::now() < until {
            true => orphans().collect(),
            false => signal_orphans(Signal::KILL),
        };
    }
}

/// Kills all orphans when it is dropped.
struct KillOrphans;

impl Drop for KillOrphans {
    fn drop(&mut self) {
        signal_orphans(Signal::KILL);
    }
}

/// Sends a signal to all orphans, and returns their numbers.
fn signal_orphans(signal: Signal) -> Vec<u32> {
    let found: Vec<u32> = orphans().collect();
    for &pid in &found {
        let process = rustix::process::Pid::from_raw(pid.cast_signed());
        // The number may belong to another process by now; that of the pidfd does not change.
        if let Some(Ok(process)) = process.map(|pid| pidfd_open(pid, PidfdFlags::empty()))
            && is_orphan(pid)
        {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(process, signal);
        }
    }
    found
}

/// Lists the descendants of this process that are below no child that somebody waits for.
fn orphans() -> impl Iterator<Item = u32> {
    let below = descendants(std::process::id()).into_iter();
    below.filter(|pid| is_orphan(*pid))
}

fn is_orphan(pid: u32) -> bool {
    let own = std::process::id();
    let line: Vec<u32> = with_ancestors(pid).collect();
    let place = line.iter().position(|&ancestor| ancestor == own);
    let child = place.and_then(|place| line.get(place.checked_sub(1)?));
    // A child that is just being started is noted when this lock is free again.
    let awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner);
    child.is_some_and(|child| !awaited.contains(&child.cast_signed()))
}

fn reap() {
    let mut pause = FIRST_LOOK;
    let mut last = None;
    loop {
        let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let ended = ended.ok().and_then(|status| status.pid());
        // Only as long as it is the same child, somebody is slow to take its status.
        if ended != last {
            (last, pause) = (ended, FIRST_LOOK);
        }
        if ended.is_some_and(is_reaped) {
            pause = FIRST_LOOK;
        } else {
            thread::sleep(pause);
            pause = LONGEST_LOOK.min(pause * 2);
        }
    }
}

/// Reaps an ended child if nobody waits for it. Returns false if somebody does.
fn is_reaped(pid: Pid) -> bool {
    let awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_free = !awaited.contains(&pid.as_raw());
    is_free
        && matches!(
            waitpid(pid, Some(WaitPidFlag::WNOHANG)),
            Ok(_) | Err(Errno::ECHILD)
        )
}
