//! System calls, counted by strace(1).

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{threads, wait_until};

/// Counts the system calls that all threads of a process make during some work.
pub fn system_calls(pid: u32, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let counts = tempfile::NamedTempFile::new()?;
    let mut tracer = Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string(), "-o"])
        .arg(counts.path())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run strace, which `make bench` installs")?;
    let is_traced = |thread| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
        status.is_ok_and(|status| status.contains(&format!("TracerPid:\t{}\n", tracer.id())))
    };
    let attached = wait_until("strace", || {
        threads(pid).is_ok_and(|threads| threads.into_iter().all(is_traced))
    });
    let done = attached.and_then(|()| work());
    kill_process(Pid::from_child(&tracer), Signal::INT)?;
    tracer.wait()?;
    done?;
    total(&fs::read_to_string(counts.path())?)
}

/// Parses the total in the last line that strace prints.
fn total(text: &str) -> anyhow::Result<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let total = lines.find_map(|mut words| {
        let count = words.next()?;
        (words.next()? == "total").then_some(count)
    });
    Ok(total.context("strace printed no total")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_not_taken_from_a_system_call() {
        let text = "    calls syscall\n--------- ----------------\n     4010 recvfrom\n     4000 sendto\n       71 epoll_wait\n\
             --------- ----------------\n     8081 total\n";
        assert_eq!(total(text).unwrap(), 8081);
        assert!(total("").is_err());
    }
}
