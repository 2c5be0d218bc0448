//! The limits of an instance that hold for a process rather than for its scope.
//!
//! The launcher sets them before it becomes the instance's user, who may not be allowed to. A limit
//! that cannot be set is an error: otherwise an instance would run with wrong limits, and nobody
//! would notice in time.

use std::fs;
use std::str::FromStr;

use anyhow::Context;
use rustix::process::{Resource, Rlimit};

use crate::config::{Nofile, ProcessLimits};

/// The file with this process's adjustment of the OOM score.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// The file with the nice value of this process's session, see sched(7).
const SESSION_NICE: &str = "/proc/self/autogroup";

/// The file with the most descriptors that the kernel allows any process.
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// Sets all limits that are given.
pub(super) fn set(limits: &ProcessLimits) -> anyhow::Result<()> {
    if let Some(wanted) = limits.nofile {
        set_nofile(wanted)?;
    }
    if let Some(wanted) = limits.nice {
        set_nice(wanted)?;
    }
    match limits.oom_score_adjust {
        Some(wanted) => set_oom_score(wanted)?,
        None => like_others_when_memory_is_short(),
    }
    Ok(())
}

fn set_nofile(wanted: Nofile) -> anyhow::Result<()> {
    let own = rustix::process::getrlimit(Resource::Nofile).maximum;
    let most = read::<u64>(NR_OPEN).or(own);
    let set = |infinity: Option<u64>| {
        let limit = Rlimit {
            current: wanted.soft.or(infinity),
            maximum: wanted.hard.or(infinity),
        };
        rustix::process::setrlimit(Resource::Nofile, limit)
    };
    let result = match set(most) {
        // Without the right to raise its limit, that is the most a process can have.
        Err(_) if wanted.hard.is_none() => set(own),
        result => result,
    };
    let shown = |limit: Option<u64>| limit.map_or("any number".to_owned(), |n| n.to_string());
    result.with_context(|| match wanted.hard > most {
        true => format!(
            "`limit_nofile` is {wanted}, and the kernel allows no more than {}; give less, or raise fs.nr_open",
            shown(most)
        ),
        false => format!(
            "`limit_nofile` is {wanted}, and smoothserve itself may have no more than {}; give less, or raise \
             LimitNOFILE= in the unit of smoothserve",
            shown(own)
        ),
    })
}

fn set_nice(wanted: i32) -> anyhow::Result<()> {
    let own = rustix::process::getpriority_process(None)?;
    rustix::process::setpriority_process(None, wanted).with_context(|| {
        format!("`nice` is {wanted}, and smoothserve, which has {own}, is not allowed to give less; give {own} or more")
    })?;
    // An instance is a session. Where the kernel divides the CPU among sessions first, see
    // sched(7), the session's value is what tells instances apart. Other users than root may not
    // set that often, so they may go without.
    let _ = fs::write(SESSION_NICE, wanted.to_string());
    Ok(())
}

fn set_oom_score(wanted: i32) -> anyhow::Result<()> {
    let own: i32 = read(OOM_SCORE).unwrap_or_default();
    fs::write(OOM_SCORE, wanted.to_string()).with_context(|| {
        format!(
            "`oom_score_adjust` is {wanted}, and smoothserve, which has {own}, is not allowed to give less; give {own} \
             or more"
        )
    })
}

/// Undoes the manager's own protection from being killed when the machine is out of memory, which
/// is not meant for instances. If that fails the instance runs all the same.
fn like_others_when_memory_is_short() {
    if read::<i32>(OOM_SCORE).is_some_and(|score| score < 0) {
        let _ = fs::write(OOM_SCORE, "0");
    }
}

/// Reads the number in a file.
fn read<N: FromStr>(file: &str) -> Option<N> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
