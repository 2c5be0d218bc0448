//! Processes: how to start them, look at them in proc(5), and end them.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::ClockId;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The longest time in which anything may start or end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running program, which ends when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program on these cores, with its output in a file.
    pub fn start(
        cores: &[usize],
        program: &Path,
        arguments: &[&str],
        log: &Path,
    ) -> anyhow::Result<Process> {
        let log = fs::File::create(log)?;
        let mut command = on_cores(cores, program);
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Process { child })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the process ids of the program and of all its descendants.
    pub fn tree(&self) -> Vec<u32> {
        let mut tree = vec![self.pid()];
        let mut next = 0;
        while let Some(&pid) = tree.get(next) {
            tree.extend(children(pid));
            next += 1;
        }
        tree
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid().cast_signed()) {
            // The program may have ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns a command that will run on these cores.
pub fn on_cores(cores: &[usize], program: impl AsRef<OsStr>) -> Command {
    let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
    let mut command = Command::new("taskset");
    command.args(["-c", &cores.join(",")]).arg(program);
    command
}

/// Moves this thread to these cores.
pub fn stay_on(cores: &[usize]) -> anyhow::Result<()> {
    Ok(sched_setaffinity(None, &cpu_set(cores))?)
}

/// Moves all threads of a process to these cores.
pub fn move_to(cores: &[usize], pid: u32) -> anyhow::Result<()> {
    for thread in threads(pid)? {
        sched_setaffinity(Pid::from_raw(thread.cast_signed()), &cpu_set(cores))?;
    }
    Ok(())
}

fn cpu_set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    set
}

/// Returns the ids of the threads of a process.
pub fn threads(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        threads.push(thread?.file_name().to_string_lossy().parse()?);
    }
    Ok(threads)
}

fn children(pid: u32) -> Vec<u32> {
    // The process may end meanwhile.
    let threads = threads(pid).unwrap_or_default().into_iter();
    let lists = threads.filter_map(|thread| {
        fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).ok()
    });
    lists
        .flat_map(|list| {
            let pids = list.split_ascii_whitespace();
            pids.filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// Returns the command line of a process.
pub fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

/// Returns the CPU time of processes, with all threads that they have or had.
pub fn cpu_time(pids: &[u32]) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for pid in pids {
        // This clock is exact to the nanosecond, whereas proc(5) counts ticks of 10 ms.
        let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid.cast_signed()))?;
        sum += Duration::from(clock.now()?);
    }
    Ok(sum)
}

/// Returns the share of all cores that other programs use while this one sleeps.
pub fn others_share() -> anyhow::Result<f64> {
    let idle_and_all = || -> anyhow::Result<(u64, u64)> {
        let stat = fs::read_to_string("/proc/stat")?;
        let words = stat.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<u64> = words
            .split_ascii_whitespace()
            .skip(1)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let idle = ticks.get(3..5).context("/proc/stat has too few columns")?;
        // The last two values are already contained in others.
        Ok((idle.iter().sum(), ticks.iter().take(8).sum()))
    };
    let (idle_before, all_before) = idle_and_all()?;
    thread::sleep(Duration::from_millis(200));
    let (idle, all) = idle_and_all()?;
    let all = (all - all_before).max(1) as f64;
    Ok(1.0 - (idle - idle_before) as f64 / all)
}

/// Returns the memory of processes in KiB: their own, and their part of what they share.
pub fn memory(pids: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let words = line
            .context("no line Pss in smaps_rollup")?
            .split_ascii_whitespace()
            .next();
        sum += words.context("no value in the line Pss")?.parse::<u64>()?;
    }
    Ok(sum)
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !holds() {
        ensure!(begin.elapsed() < PATIENCE, "{what}: it takes too long");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_finer_than_a_tick_and_includes_all_threads() {
        let own = [std::process::id()];
        let before = cpu_time(&own).unwrap();
        let thread = thread::spawn(|| {
            let mut number = 1_u64;
            for _ in 0..1000 {
                number = std::hint::black_box(number.wrapping_mul(3));
            }
        });
        thread.join().unwrap();
        let used = cpu_time(&own).unwrap() - before;
        assert!(used > Duration::ZERO, "{used:?}");
        assert!(cpu_time(&[own[0], own[0]]).unwrap() >= 2 * before);
        // No process has an id above 2^22.
        assert!(cpu_time(&[(1 << 22) + 1]).is_err());
    }
}
