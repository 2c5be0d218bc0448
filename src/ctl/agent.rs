//! The agent of polkit that asks for a password on the terminal.
//!
//! polkit itself speaks to nobody: an agent of the session asks for it. A desktop has an agent. On
//! a terminal there is none, so smoothctl starts `pkttyagent` for the time of its calls, as
//! systemctl does. An agent that is there already has precedence.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// A running `pkttyagent`. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct PasswordAgent(Child);

impl PasswordAgent {
    /// Starts the agent, and waits until polkit knows it. `None` if root calls, whom polkit does
    /// not ask for a password, if nobody sits at a terminal, or if there is no `pkttyagent`.
    pub(super) fn start() -> Option<PasswordAgent> {
        let is_root = rustix::process::geteuid().is_root();
        if is_root || !io::stdin().is_terminal() {
            return None;
        }
        PasswordAgent::spawn().ok()
    }

    fn spawn() -> io::Result<PasswordAgent> {
        let (mut known, notify) = io::pipe()?;
        // The agent closes its copy when polkit knows it.
        rustix::io::fcntl_setfd(&notify, FdFlags::empty())?;
        let mut command = Command::new("pkttyagent");
        command
            .args(["--fallback", "--notify-fd"])
            .arg(notify.as_raw_fd().to_string())
            // The agent asks on the terminal of the session. Why it fails is no concern of a person
            // whom polkit then refuses.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec there is one system call, and nothing is allocated.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        let agent = command.spawn();
        drop(notify);
        let agent = PasswordAgent(agent?);
        // An agent that fails closes the pipe, too.
        known.read_to_end(&mut Vec::new())?;
        Ok(agent)
    }
}

impl Drop for PasswordAgent {
    fn drop(&mut self) {
        // SIGTERM, not SIGKILL: the agent gives the terminal back as it was. One that has been
        // stopped by Ctrl-Z must go on to end.
        for signal in [Signal::TERM, Signal::CONT] {
            let _ = kill_process(Pid::from_child(&self.0), signal);
        }
        let _ = self.0.wait();
    }
}
