//! Confines a worker. A worker reads what strangers send, and needs nothing but the sockets that
//! the manager gives it, so it gives up everything else.
//!
//! # Theory of operation
//! There are two steps. [`enter`] comes first, while the process has one thread: the root folder,
//! user, capabilities and Landlock rules belong to a thread, and the threads that it starts inherit
//! them. [`seal`] comes when all threads run: seccomp can filter all of them at once, and a filter
//! that is installed late need not allow what only the start needs, like starting a thread.
//!
//! # Unix sockets
//! In its root folder ([`root_folder`]) the worker finds the sockets of the instances and no
//! others. Some systems do not permit such a folder to users, and most containers do not. There the
//! worker may open unix sockets only if it has to, that is if a service with `bind: unix` exists
//! when it starts; then it can connect to all that its user can connect to. If such a service comes
//! later, the manager replaces the worker.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use nix::unistd::User;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::root_folder::{self, RootFolderError};
use super::system_calls;
use crate::launch::{self, Credentials};
use crate::logging;

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

/// What a worker keeps of its rights.
#[derive(Debug, Clone, Copy, Default)]
pub struct SandboxOptions<'a> {
    /// The user that the worker becomes; `None` to stay the user that it is.
    pub user: Option<&'a str>,
    /// The folder that holds the unix sockets of the instances, as an absolute path; `None` if the
    /// worker connects to no unix socket.
    pub instances: Option<&'a Path>,
    /// The worker may open unix sockets even if the kernel does not permit it a root folder of its
    /// own.
    pub needs_unix_sockets: bool,
}

/// How a worker is confined.
#[derive(Debug)]
pub struct Confinement {
    /// The user that the worker runs as now, if it was told to become one.
    user: Option<String>,
    landlock: RulesetStatus,
    unix_sockets: UnixSockets,
    /// Why the worker has no root folder of its own.
    no_root_folder: Option<RootFolderError>,
}

/// The unix sockets that a worker can connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnixSockets {
    /// Those of the instances.
    OfInstances,
    /// None, because the worker cannot open a unix socket.
    None,
    /// All that its user can connect to.
    All,
}

impl Confinement {
    /// Returns true if the worker can connect to the unix sockets of instances.
    pub fn reaches_unix_sockets(&self) -> bool {
        self.unix_sockets != UnixSockets::None
    }
}

/// Gives up what a process with one thread can give up: the files of this machine, its user, if it
/// is to run as another one, all capabilities, access to files, listening on other ports, signals
/// to other processes. Must be called before any thread is started.
pub fn enter(options: &SandboxOptions<'_>) -> Result<Confinement, SandboxError> {
    // The user is looked up in files.
    let user = options.user.map(find_user).transpose()?;
    let (unix_sockets, no_root_folder) = change_root_folder(options);
    user.as_ref().map(become_user).transpose()?;
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
        user: options.user.map(str::to_owned),
        landlock: restricted.ruleset,
        unix_sockets,
        no_root_folder,
    })
}

/// Changes to a root folder that holds the sockets of the instances alone. Without one, the system
/// call filter decides about unix sockets.
fn change_root_folder(options: &SandboxOptions<'_>) -> (UnixSockets, Option<RootFolderError>) {
    let Some(instances) = options.instances else {
        return (UnixSockets::None, None);
    };
    let mut places = vec![instances];
    places.extend(logging::socket().filter(|socket| socket.exists()));
    match root_folder::enter(&places) {
        Ok(()) => (UnixSockets::OfInstances, None),
        Err(error) if options.needs_unix_sockets => (UnixSockets::All, Some(error)),
        Err(error) => (UnixSockets::None, Some(error)),
    }
}

fn find_user(name: &str) -> Result<User, SandboxError> {
    let user = User::from_name(name).ok().flatten();
    user.ok_or_else(|| SandboxError::NoUser(name.to_owned()))
}

/// Changes to another user for good, so that the worker cannot become root again.
fn become_user(user: &User) -> Result<(), SandboxError> {
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
    let filter = system_calls::filter(confinement.reaches_unix_sockets())?;
    seccompiler::apply_filter_all_threads(&filter)?;
    let landlock = match confinement.landlock {
        RulesetStatus::FullyEnforced => "enforced",
        RulesetStatus::PartiallyEnforced => "partly enforced by this kernel",
        RulesetStatus::NotEnforced => "not known to this kernel",
    };
    let unix_sockets = match confinement.unix_sockets {
        UnixSockets::OfInstances => "instances",
        UnixSockets::None => "none",
        UnixSockets::All => "all",
    };
    let user = confinement.user.as_deref();
    tracing::info!(user, landlock, unix_sockets, "worker confined");
    if let (UnixSockets::All, Some(error)) = (confinement.unix_sockets, &confinement.no_root_folder)
    {
        tracing::warn!(%error, "the worker can connect to all unix sockets of its user");
    }
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
            let confinement = enter(&SandboxOptions::default()).unwrap();
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
