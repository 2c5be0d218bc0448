//! The launcher: a child of the manager that becomes an instance.
//!
//! # Theory of operation
//! The manager starts `smoothserve launch` with a socket as standard input and then decides in its
//! own time what the launcher is to become. The launcher first takes the descriptors, then reads
//! its [`Order`] until the manager ends it, which is the "go"; if the manager dies before that, the
//! launcher ends. It then makes itself what the instance is to be, step by step, and executes the
//! service's program. It reports a step that fails over the socket, in words; a socket that closes
//! without a word says that the program runs.

pub(crate) mod descriptors;
mod limits;
mod refusal;
mod signals;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::unistd::execve;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use rustix::thread::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::config::ProcessLimits;

/// The longest order, in bytes, that is read: the kernel takes no larger environment either.
const LONGEST_ORDER: u64 = 8 << 20;

/// The first pause between two tries to execute a program that is busy, which it is while somebody,
/// even a forked child, has it open for writing. Each pause is twice as long as the one before. The
/// kernel notifies nobody when the last writer has closed a program.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The longest of these pauses.
const LONGEST_BUSY_PAUSE: Duration = Duration::from_millis(500);

/// How long a program may be busy before the manager is told: a forked child has it open for a
/// moment only.
const BUSY_UNTOLD: Duration = Duration::from_millis(300);

/// What the launcher sends to the manager when it begins to wait for a program that is busy.
pub const BUSY: u8 = 0x05;

/// What a launcher is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The path of the program, without symlinks.
    pub program: PathBuf,
    /// The path by which the program knows itself, its first argument (`argv[0]`). The launcher
    /// executes this path. If it leads to another file by now than the descriptor that came with
    /// the order, a deploy has replaced it, and the launcher executes `program`, or else the
    /// descriptor's file.
    pub known_as: PathBuf,
    /// The arguments, without the program's own name.
    pub args: Vec<String>,
    /// The whole environment. The launcher adds what only it knows (`LISTEN_PID`).
    pub environment: BTreeMap<String, String>,
    /// The working directory.
    pub directory: PathBuf,
    /// The working directory if there is no such folder any more.
    pub other_directory: PathBuf,
    /// The user to run as. `None`: the manager's.
    pub credentials: Option<Credentials>,
    /// What the process may use.
    pub limits: ProcessLimits,
    /// How long to wait if somebody has the program open for writing. `None`: until the manager
    /// ends the launcher.
    pub busy_patience: Option<Duration>,
    /// True: a listening socket came with the order, to be descriptor 3.
    pub inherits: bool,
    /// True: the process is in a scope of its own, which it learns as a service of systemd does.
    pub in_scope: bool,
    /// The process at whose end the instance is to get SIGTERM.
    pub die_with: Option<u32>,
}

/// A user to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The number of the user.
    pub uid: u32,
    /// The number of the main group.
    pub gid: u32,
    /// The numbers of all groups.
    pub groups: Vec<u32>,
}

/// Becomes an instance, or returns why it could not.
pub fn run() -> anyhow::Result<()> {
    let manager = UnixStream::from(descriptors::out_of_the_way(io::stdin())?);
    let descriptors =
        descriptors::receive(&manager).context("no order from a manager on standard input")?;
    let mut order = Vec::new();
    (&manager).take(LONGEST_ORDER).read_to_end(&mut order)?;
    if order.is_empty() {
        // The manager is gone, or has given the instance up.
        return Ok(());
    }
    let order: Order = serde_json::from_slice(&order).context("malformed order")?;
    let Err(error) = become_instance(&order, descriptors, &manager) else {
        return Ok(());
    };
    // The manager reports the error, unless it died just now.
    let _ = (&manager).write_all(format!("{error:#}").as_bytes());
    Ok(())
}

fn become_instance(
    order: &Order,
    descriptors: Vec<OwnedFd>,
    manager: &UnixStream,
) -> anyhow::Result<()> {
    let mut descriptors = descriptors.into_iter();
    let executable = descriptors
        .next()
        .context("the order came without its executable")?;
    let executable = descriptors::out_of_the_way(executable)?;
    rustix::process::setsid().context("cannot begin a session")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    limits::set(&order.limits)?;
    let of_unit = match order.in_scope {
        true => variables_of_unit(),
        false => BTreeMap::new(),
    };
    if let Some(credentials) = &order.credentials {
        take_credentials(credentials)?;
    }
    if let Some(parent) = order.die_with {
        die_with(parent)?;
    }
    enter(order)?;

    let mut environment = order.environment.clone();
    environment.extend(of_unit);
    let inherited = if order.inherits {
        let socket = descriptors
            .next()
            .context("the order came without its socket")?;
        environment.insert("LISTEN_FDS".into(), "1".into());
        environment.insert("LISTEN_PID".into(), std::process::id().to_string());
        Some(socket)
    } else {
        None
    };
    let (path, keep) = program(order, &executable)?;
    let search_path = environment.get("PATH").map(String::as_str);
    if let Some(cause) = refusal::not_found_by_env(&path, search_path) {
        return Err(cannot_execute(order, &cause));
    }
    let program = text("the path of the program", path.as_os_str().as_bytes())?;
    let args = std::iter::once(order.known_as.as_os_str().as_bytes())
        .chain(order.args.iter().map(|argument| argument.as_bytes()));
    let args = args.enumerate();
    let args = args.map(|(number, argument)| text(&format!("argument {number}"), argument));
    let args = args.collect::<anyhow::Result<Vec<_>>>()?;
    let environment = environment.iter().map(|(key, value)| {
        let variable = format!("{key}={value}");
        text(
            &format!("the environment variable {key:?}"),
            variable.as_bytes(),
        )
    });
    let environment = environment.collect::<anyhow::Result<Vec<_>>>()?;
    signals::reset().context("cannot reset the signals")?;
    descriptors::arrange(inherited, keep.then_some(&executable))?;
    let execute = || execve(&program, &args, &environment);
    let error = while_busy(execute, order.busy_patience, manager);
    let cause = refusal::explain(&path, error);
    let cause = cause.unwrap_or_else(|| io::Error::from(error).to_string());
    Err(cannot_execute(order, &cause))
}

fn cannot_execute(order: &Order, cause: &str) -> anyhow::Error {
    anyhow::anyhow!("cannot execute {}: {cause}", order.program.display())
}

/// Changes to the working directory.
fn enter(order: &Order) -> anyhow::Result<()> {
    let mut directory = &order.directory;
    let mut entered = std::env::set_current_dir(directory);
    if entered
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        directory = &order.other_directory;
        entered = std::env::set_current_dir(directory);
    }
    entered.map_err(|error| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let cause = denied.then(|| refusal::not_entered(directory)).flatten();
        let cause = cause.unwrap_or_else(|| error.to_string());
        anyhow::anyhow!(
            "cannot change to the directory {}: {cause}",
            directory.display()
        )
    })
}

/// Converts a text for the kernel. The error names the text by `what` and does not quote it,
/// because everybody may read the error, and arguments and variables may contain secrets.
fn text(what: &str, bytes: &[u8]) -> anyhow::Result<CString> {
    CString::new(bytes).map_err(|_| anyhow::anyhow!("{what} contains a NUL byte"))
}

/// Returns the path to execute, and true if the descriptor must stay open for it.
fn program(order: &Order, executable: &OwnedFd) -> io::Result<(PathBuf, bool)> {
    let wanted = rustix::fs::fstat(executable)?;
    let same =
        |found: std::fs::Metadata| found.dev() == wanted.st_dev && found.ino() == wanted.st_ino;
    for path in [&order.known_as, &order.program] {
        if std::fs::metadata(path).is_ok_and(same) {
            return Ok((path.clone(), false));
        }
    }
    // The kernel hands the interpreter of a script this same path, which must still be open then.
    Ok((
        PathBuf::from(format!("/proc/self/fd/{}", executable.as_raw_fd())),
        is_script(executable),
    ))
}

fn is_script(executable: &OwnedFd) -> bool {
    let mut magic = [0; 2];
    let path = Path::new("/proc/self/fd").join(executable.as_raw_fd().to_string());
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && magic == *b"#!"
}

/// Executes the program, which does not return, or returns why that failed. Waits while somebody
/// has the program open for writing, but no longer than the manager lives.
fn while_busy(
    execute: impl Fn() -> nix::Result<Infallible>,
    patience: Option<Duration>,
    manager: &UnixStream,
) -> Errno {
    let begin = Instant::now();
    let mut pause = BUSY_PAUSE;
    let mut told = false;
    loop {
        match execute() {
            Err(Errno::ETXTBSY) => {}
            Err(error) => return error,
            Ok(never) => match never {},
        }
        let waited = begin.elapsed();
        if !told && waited >= BUSY_UNTOLD {
            told = true;
            // If the manager is gone, that is seen next.
            let _ = (&mut &*manager).write_all(&[BUSY]);
        }
        let left = patience.map(|patience| patience.saturating_sub(waited));
        if left.is_some_and(|left| left.is_zero())
            || is_gone_after(manager, left.unwrap_or(pause).min(pause))
        {
            return Errno::ETXTBSY;
        }
        pause = (pause * 2).min(LONGEST_BUSY_PAUSE);
    }
}

/// Waits for a while, and returns true as soon as the manager has ended or has given this launcher
/// up.
fn is_gone_after(manager: &UnixStream, pause: Duration) -> bool {
    // The manager has shut down its side already; a hang-up says that it has closed the socket.
    let mut polled = [PollFd::new(manager, PollFlags::empty())];
    let timeout = Timespec {
        tv_sec: pause.as_secs().cast_signed(),
        tv_nsec: pause.subsec_nanos().into(),
    };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => polled[0].revents().contains(PollFlags::HUP),
        // A signal that did not end this process.
        Err(_) => false,
    }
}

/// Becomes a user for good. The process must have one thread only.
pub fn take_credentials(credentials: &Credentials) -> anyhow::Result<()> {
    let (uid, gid) = (
        Uid::from_raw(credentials.uid),
        Gid::from_raw(credentials.gid),
    );
    let groups: Vec<Gid> = credentials
        .groups
        .iter()
        .map(|&group| Gid::from_raw(group))
        .collect();
    // What is set for the only thread is set for the process.
    rustix::thread::set_thread_groups(&groups).context("cannot set the groups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).context("cannot set the group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context("cannot set the user")?;
    ensure!(
        credentials.uid == 0 || rustix::thread::set_thread_uid(Uid::ROOT).is_err(),
        "the user could become root again"
    );
    Ok(())
}

/// Asks the kernel for SIGTERM when the parent ends. The kernel forgets that when credentials
/// change, so this comes after them.
fn die_with(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let still_there = rustix::process::getppid()
        .map(Pid::as_raw_nonzero)
        .map(|pid| pid.get() as u32);
    ensure!(still_there == Some(parent), "the manager is gone");
    Ok(())
}

/// Returns the variables by which a process learns that it is in a unit of its own, as systemd
/// sets them for a service.
fn variables_of_unit() -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    variables.insert(
        "SYSTEMD_EXEC_PID".to_owned(),
        std::process::id().to_string(),
    );
    if let Some(id) = invocation_id() {
        variables.insert("INVOCATION_ID".to_owned(), id);
    }
    variables
}

/// Reads the id of this invocation of the unit, which systemd leaves for journald, too.
fn invocation_id() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    // A line for each hierarchy, the path last, see cgroups(7).
    let (_, unit) = groups
        .lines()
        .find(|line| line.ends_with(".scope"))?
        .rsplit_once('/')?;
    let run = match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/run"),
        false => PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?),
    };
    let link = run.join("systemd/units").join(format!("invocation:{unit}"));
    let id = std::fs::read_link(link).ok()?;
    Some(id.to_str()?.to_owned())
}

/// The environment variables that systemd sets for each service by itself, and that are about the
/// manager alone, see systemd.exec(5). What else the manager has is what its unit, or whoever
/// started it, gives to it and to its instances.
const OWN_VARIABLES: [&str; 14] = [
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The prefix of the variables by which smoothserve and smoothctl are told something.
const OWN_PREFIX: &str = "SMOOTHSERVE_";

/// Returns the manager's environment as far as instances may have it.
pub fn inherited_environment() -> BTreeMap<String, String> {
    let utf8 = |value: OsString| String::from_utf8(value.into_vec()).ok();
    std::env::vars_os()
        .filter_map(|(key, value)| Some((utf8(key)?, utf8(value)?)))
        .filter(|(key, _)| !OWN_VARIABLES.contains(&key.as_str()) && !key.starts_with(OWN_PREFIX))
        .collect()
}
