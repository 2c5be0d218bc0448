//! Confines a worker. A worker reads what strangers send, and needs nothing but the sockets that
//! the manager gives it, so it gives up everything else.
//!
//! # Theory of operation
//! There are two steps. [`enter`] comes first, while the process has one thread: user, capabilities
//! and Landlock rules belong to a thread, and the threads that it starts inherit them. [`seal`]
//! comes when all threads run: seccomp can filter all of them at once, and a filter that is
//! installed late need not allow what only the start needs, like starting a thread.
//!
//! A system call that is not allowed fails with `EPERM` instead of ending the worker. Another C
//! library may try a newer system call before the allowed one, and that must not cost a request.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use nix::libc;
use nix::unistd::User;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::launch::{self, Credentials};

/// The newest version of Landlock whose rules are used. An older kernel enforces those that it
/// knows.
const LANDLOCK: ABI = ABI::V6;

/// The number of capabilities to drop, higher than any kernel has.
const MOST_CAPABILITIES: u32 = 64;

/// Why a worker does not start: a worker that cannot be confined must not run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The user does not exist.
    #[error("there is no user {0}")]
    NoUser(String),
    /// A system call failed that must not fail.
    #[error("{0}: {1}")]
    Refused(&'static str, #[source] io::Error),
    /// The worker could not change to the user.
    #[error("{0:#}")]
    User(anyhow::Error),
    /// The kernel has Landlock, but does not accept these rules.
    #[error("Landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// The system call filter is invalid, or the kernel does not accept it.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// How a worker is confined.
#[derive(Debug)]
pub struct Confinement {
    /// The user that the worker runs as now, if it was told to become one.
    user: Option<String>,
    landlock: RulesetStatus,
}

/// Gives up what a process with one thread can give up: its user, if it is to run as another one,
/// all capabilities, access to files, listening on other ports, signals to other processes. Must be
/// called before any thread is started.
pub fn enter(user: Option<&str>) -> Result<Confinement, SandboxError> {
    user.map(become_user).transpose()?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(refused("capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("no_new_privs"))?;
    limit(Resource::Core, 0)?;
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(Confinement {
        user: user.map(str::to_owned),
        landlock: restricted.ruleset,
    })
}

/// Changes to the user `name` for good, so that the worker cannot become root again.
fn become_user(name: &str) -> Result<(), SandboxError> {
    let user = User::from_name(name).ok().flatten();
    let user = user.ok_or_else(|| SandboxError::NoUser(name.to_owned()))?;
    // After this, no program that the worker executes can get the capabilities back. Where the
    // kernel refuses, the worker had no capabilities to give up.
    for capability in
        (0..MOST_CAPABILITIES).map(|number| CapabilitySet::from_bits_retain(1 << number))
    {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let credentials = Credentials {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: vec![user.gid.as_raw()],
    };
    launch::take_credentials(&credentials).map_err(SandboxError::User)
}

/// Installs a system call filter on all threads that allows only what serving needs. Must be called
/// after the last thread was started.
pub fn seal(confinement: &Confinement) -> Result<(), SandboxError> {
    limit(Resource::Nproc, 0)?;
    seccompiler::apply_filter_all_threads(&filter()?)?;
    let landlock = match confinement.landlock {
        RulesetStatus::FullyEnforced => "enforced",
        RulesetStatus::PartiallyEnforced => "partly enforced by this kernel",
        RulesetStatus::NotEnforced => "not known to this kernel",
    };
    tracing::info!(user = confinement.user, landlock, "worker confined");
    Ok(())
}

fn refused(what: &'static str) -> impl Fn(rustix::io::Errno) -> SandboxError {
    move |error| SandboxError::Refused(what, error.into())
}

fn limit(resource: Resource, most: u64) -> Result<(), SandboxError> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(resource, limit).map_err(refused("resource limits"))
}

/// System calls that serving needs, whatever their arguments are.
const ALLOWED: &[libc::c_long] = &[
    // Sockets, and what is read from and written to them.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // A message that is too long for a datagram goes to journald as a file in memory.
    libc::SYS_memfd_create,
    // Threads start and end, and the last ones may be starting at this moment.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// Older forms of the calls above that exist on this architecture only.
#[cfg(target_arch = "x86_64")]
const ALSO_ALLOWED: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const ALSO_ALLOWED: &[libc::c_long] = &[];

/// System calls that are allowed only if one argument, given by its number, has one of these
/// values.
fn allowed_with() -> Vec<(libc::c_long, u8, SeccompCmpOp, Vec<u64>)> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let number = |value: i32| u64::from(value.cast_unsigned());
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(number);
    let executable = number(libc::PROT_EXEC);
    let own = u64::from(std::process::id());
    vec![
        (libc::SYS_socket, 0, Eq, families.to_vec()),
        (libc::SYS_ioctl, 1, Eq, vec![libc::FIONBIO]),
        (libc::SYS_mmap, 2, MaskedEq(executable), vec![0]),
        (libc::SYS_mprotect, 2, MaskedEq(executable), vec![0]),
        (libc::SYS_prctl, 0, Eq, vec![number(libc::PR_SET_NAME)]),
        // The C library aborts the process by this call, for example when its heap is corrupt.
        (libc::SYS_tgkill, 0, Eq, vec![own]),
    ]
}

fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let always = ALLOWED.iter().chain(ALSO_ALLOWED);
    let mut rules: BTreeMap<_, _> = always.map(|&call| (call, Vec::new())).collect();
    for (call, argument, comparison, values) in allowed_with() {
        let rule = |value| {
            let length = SeccompCmpArgLen::Dword;
            let condition = SeccompCondition::new(argument, length, comparison.clone(), value)?;
            SeccompRule::new(vec![condition])
        };
        let alternatives: Result<_, _> = values.into_iter().map(rule).collect();
        rules.insert(call, alternatives?);
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests Landlock alone: the system call filter would refuse the same calls, so it is not
    /// installed.
    #[test]
    fn files_and_ports_are_closed_to_one_that_has_entered() {
        // Landlock confines the thread that calls `enter` and the threads that it starts, so this
        // is a new one.
        let attempts = std::thread::spawn(|| {
            let confinement = enter(None).unwrap();
            assert_eq!(
                confinement.landlock,
                RulesetStatus::FullyEnforced,
                "this kernel has no Landlock"
            );
            assert!(
                std::fs::metadata("/").is_ok(),
                "only to look is left to the filter"
            );
            [
                std::fs::File::open("/dev/null").map(drop),
                std::fs::read_dir("/").map(drop),
                std::fs::write("/tmp/smoothserve-sandbox", "").map(drop),
                std::process::Command::new("/bin/true").status().map(drop),
                std::net::TcpListener::bind("127.0.0.1:0").map(drop),
            ]
        });
        for attempt in attempts.join().unwrap() {
            let error = attempt.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
