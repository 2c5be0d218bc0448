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
//! Under systemd nothing of this is needed: there, the manager gets no child from others.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// The first and the longest pause until another look at a child whose exit status somebody else is
/// about to take, or while there is no child. The kernel notifies nobody of either.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

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

fn reap() {
    let mut pause = FIRST_LOOK;
    loop {
        let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let ended = ended.ok().and_then(|status| status.pid());
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
