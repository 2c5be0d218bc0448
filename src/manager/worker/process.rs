//! The manager's side of a proxy worker: starts the process, connects to its control socket, and
//! exchanges messages with it.
//!
//! The worker listens on its own control socket in the run directory. The manager creates this
//! socket and passes it as standard input, so a later manager can connect to a worker that already
//! runs. Under systemd, the worker has its own scope and outlives the manager; otherwise it ends
//! with the manager.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::certificates::ServiceCertificates;
use super::listeners::OpenListener;
use super::sieve::{ExpectedReport, Judgement, Sieve, WorkerKnowledge};
use crate::config::ScopeLimits;
use crate::ipc::{
    self, BoundCounts, CertificateId, Channel, ChannelError, EndpointId, FromWorker, MESSAGES,
    ToWorker, WireTable, WorkerReader,
};
use crate::log_level::LogLevel;
use crate::manager::event::WorkerEvent;
use crate::manager::host::children::{self, AwaitedChild};
use crate::manager::host::pidfd::Pidfd;
use crate::manager::host::worker_user::{WORKER_USERS, worker_user};
use crate::run_dir;
use crate::systemd::units::{SLICE, Scope, Units};

/// How long a worker may still run after its control connection was closed. Normally the connection
/// closes because the worker ends.
const GRACE: Duration = Duration::from_secs(1);

/// How long a worker whose control connection broke may drain after it got the signal to drain.
const SIGNAL_DRAIN: Duration = Duration::from_secs(35);

/// How long a worker may take to read one message. A worker that hangs is killed after as many
/// unanswered pings.
const SLOWEST_READER: Duration = Duration::from_secs(15);

/// How many messages wait to be sent to a worker. All certificates of many thousand services fit.
const MOST_UNSENT: usize = 1 << 16;

/// How many messages of a worker wait for the owner of the state.
const MOST_UNREAD: usize = 64;

/// A running worker.
#[derive(Debug)]
pub struct WorkerProcess {
    /// The number of the worker, which grows with every worker.
    pub generation: u32,
    /// The number of the worker's process.
    pub pid: u32,
    /// Whether the worker was told to accept no new connections.
    pub draining: bool,
    /// Whether the worker was told to drain faster, after it had begun to.
    pub hurried: bool,
    /// Whether the worker has confirmed its first table.
    pub serving: bool,
    /// The number of the last table that the worker has confirmed.
    pub applied: u64,
    /// The draining endpoints to which the worker has no connection and will open none.
    pub idle: BTreeSet<EndpointId>,
    /// The certificates in the last table that the worker was sent.
    certificates: BTreeSet<CertificateId>,
    /// The last table that the worker got, or `None` if the worker has refused it. The next table
    /// is sent as the difference from this one.
    table: Option<Rc<WireTable>>,
    /// The number of pings in a row that the worker has not answered.
    pub unanswered: u32,
    /// Whether the worker drains and has nothing left but tunnels.
    pub only_tunnels: bool,
    sieve: Sieve,
    /// Whether the worker can connect to instances on unix sockets. A worker that has not said so
    /// yet counts as one that can.
    pub unix_sockets: bool,
    /// The open client connections of the worker, and the state of its bounds.
    pub bounds: (u32, BoundCounts),
    /// The worker sees what is mounted in the folder of the instances' sockets after its start.
    pub(super) sees_mounts: bool,
    is_current: bool,
    /// Whether the worker speaks this build's version of the messages. A worker of another build
    /// has to say so first. The others are sent the frozen part of the messages alone.
    speaks: bool,
    pidfd: Rc<Pidfd>,
    outgoing: mpsc::Sender<(ToWorker, Option<OwnedFd>)>,
}

/// The state of a worker that is saved for the next manager. Managers of all builds read it, so no
/// field may be renamed or removed, and a new one needs a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedWorker {
    /// The number of the worker, as in [`WorkerProcess`].
    pub generation: u32,
    pid: u32,
    #[serde(default)]
    draining: bool,
    /// As in [`WorkerProcess`].
    #[serde(default)]
    sees_mounts: bool,
}

/// How a worker is started.
#[derive(Debug)]
pub(super) struct SpawnOptions<'a> {
    /// The folder for sockets and state.
    pub(super) run_dir: &'a Path,
    /// The number of the worker.
    pub(super) generation: u32,
    /// The log level until the worker gets its first table.
    pub(super) log_level: &'a LogLevel,
    /// The worker has to connect to unix sockets, even if the kernel does not confine it to those
    /// of the instances.
    pub(super) unix_sockets: bool,
    /// The worker will see what is mounted in the folder of the instances' sockets later.
    pub(super) sees_mounts: bool,
}

impl WorkerProcess {
    /// Starts a worker. All events of the worker go to `report`; [`WorkerEvent::Gone`] is the last.
    /// Must run inside a `LocalSet`.
    pub(super) fn spawn(
        options: &SpawnOptions<'_>,
        units: Option<Units>,
        report: impl Fn(WorkerEvent) + 'static,
    ) -> io::Result<WorkerProcess> {
        let &SpawnOptions {
            run_dir,
            generation,
            log_level,
            unix_sockets,
            sees_mounts,
        } = options;
        let path = socket_path(run_dir, generation);
        remove_if_there(&path)?;
        let listener = UnixListener::bind(&path)?;
        let channel = Channel::split(connect(&path)?)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("smoothserve: proxy");
        // The worker needs the level at once, because it logs before it gets its first table.
        command.args(["--log-level", &log_level.to_string()]);
        command.arg("--instances").arg(run_dir::instances(run_dir));
        if unix_sockets {
            command.arg("--unix-sockets");
        }
        if units.is_none() {
            command.arg("--die-with-parent");
        }
        if rustix::process::geteuid().is_root() {
            // If none of these users exists, the start fails, because a worker must not run as
            // root.
            let name = worker_user().map_or(WORKER_USERS[0].to_owned(), |user| user.name);
            command.args(["--user", &name]);
        }
        command
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .env_remove("NOTIFY_SOCKET")
            .process_group(0);
        let (child, awaited) = children::spawn(&mut command)?;
        let pid = child.id().unwrap_or_default();
        let pidfd = Rc::new(Pidfd::open(pid)?);
        let (outgoing, queue) = mpsc::channel(MOST_UNSENT);
        let life = Life {
            path,
            pidfd: pidfd.clone(),
            child: Some((child, awaited)),
            report,
        };
        tokio::task::spawn_local(async move {
            if let Some(units) = units {
                let description = format!("smoothserve proxy worker {generation}");
                let unlimited = ScopeLimits::default();
                let started = units
                    .start_scope(
                        &scope_name(generation),
                        SLICE,
                        &description,
                        pid,
                        &unlimited,
                        None,
                    )
                    .await;
                if let Err(error) = started {
                    life.signal(Signal::KILL);
                    tracing::error!(error = %error, "worker has no scope");
                }
            }
            life.run(channel, queue).await;
        });
        let saved = SavedWorker {
            generation,
            pid,
            draining: false,
            sees_mounts,
        };
        Ok(WorkerProcess::new(&saved, true, pidfd, outgoing))
    }

    /// Takes over a worker that an earlier manager has started, if the worker still runs.
    pub fn adopt(
        run_dir: &Path,
        saved: &SavedWorker,
        scope: &Scope,
        report: impl Fn(WorkerEvent) + 'static,
    ) -> anyhow::Result<WorkerProcess> {
        let pidfd = Rc::new(Pidfd::open(saved.pid)?);
        // The number may belong to another process by now, but no other process is in this scope.
        anyhow::ensure!(scope.holds(saved.pid), "the process has ended");
        let path = socket_path(run_dir, saved.generation);
        let channel = Channel::split(connect(&path)?)?;
        let (outgoing, queue) = mpsc::channel(MOST_UNSENT);
        let life = Life {
            path,
            pidfd: pidfd.clone(),
            child: None,
            report,
        };
        tokio::task::spawn_local(life.run(channel, queue));
        let is_current = runs_this_program(saved.pid);
        Ok(WorkerProcess::new(saved, is_current, pidfd, outgoing))
    }

    fn new(
        saved: &SavedWorker,
        is_current: bool,
        pidfd: Rc<Pidfd>,
        outgoing: mpsc::Sender<(ToWorker, Option<OwnedFd>)>,
    ) -> WorkerProcess {
        WorkerProcess {
            generation: saved.generation,
            pid: saved.pid,
            draining: saved.draining,
            hurried: false,
            serving: false,
            applied: 0,
            idle: BTreeSet::new(),
            certificates: BTreeSet::new(),
            table: None,
            unanswered: 0,
            only_tunnels: false,
            sieve: Sieve::new(Instant::now()),
            unix_sockets: true,
            bounds: Default::default(),
            sees_mounts: saved.sees_mounts,
            is_current,
            speaks: is_current,
            pidfd,
            outgoing,
        }
    }

    /// Returns the state that the next manager needs to take over the worker.
    pub fn save(&self) -> SavedWorker {
        SavedWorker {
            generation: self.generation,
            pid: self.pid,
            draining: self.draining,
            sees_mounts: self.sees_mounts,
        }
    }

    /// Queues a message. If the worker is gone, the message is dropped: the next worker gets the
    /// complete state anyway.
    pub fn send(&self, message: ToWorker, descriptor: Option<OwnedFd>) {
        if let Err(TrySendError::Full(_)) = self.outgoing.try_send((message, descriptor)) {
            tracing::error!(pid = self.pid, "worker does not read, killing it");
            self.kill();
        }
    }

    /// Decides whether a message of the worker counts. Kills a worker that sends too many.
    pub fn takes(
        &mut self,
        message: &FromWorker,
        (table, ping, endpoints): (u64, u64, usize),
        expected: impl Fn(EndpointId) -> ExpectedReport,
    ) -> bool {
        let knowledge = WorkerKnowledge {
            table,
            ping,
            endpoints,
            draining: self.draining,
        };
        let judgement = self
            .sieve
            .judge(Instant::now(), message, knowledge, expected);
        if judgement == Judgement::Replace {
            tracing::error!(pid = self.pid, "worker sends too many messages, killing it");
            self.kill();
        }
        judgement == Judgement::Take
    }

    /// Sends a listening socket, if the worker would understand it.
    pub(super) fn send_listener(&self, listener: &OpenListener) {
        if !self.speaks {
            return;
        }
        match listener.descriptor().try_clone_to_owned() {
            Ok(descriptor) => self.send(ToWorker::Listener(listener.id), Some(descriptor)),
            Err(error) => tracing::error!(error = %error, "cannot copy a listening socket"),
        }
    }

    /// Sends a table, if the worker would understand it. The certificates that the table names and
    /// the worker lacks are sent first.
    pub fn send_table(&mut self, table: &Rc<WireTable>, certificates: &ServiceCertificates) {
        if !self.speaks {
            return;
        }
        let named: BTreeSet<CertificateId> = table.certificates().collect();
        for id in named.difference(&self.certificates) {
            if let Some(certificate) = certificates.message(*id) {
                self.send(ToWorker::Certificate(certificate), None);
            }
        }
        self.certificates = named;
        let message = match self.table.replace(table.clone()) {
            Some(before) => table.changes_since(&before),
            None => (**table).clone(),
        };
        self.send(ToWorker::Table(message), None);
    }

    /// Notes that the worker has refused a table, so the next table is sent complete.
    pub fn refuses_table(&mut self) {
        self.table = None;
    }

    /// Tells the worker to drain: it finishes the connections that it has accepted, and ends.
    /// `limit` bounds requests, `tunnels` bounds tunnels.
    pub fn drain(&mut self, idle: Duration, limit: Duration, tunnels: Duration) {
        self.draining = true;
        let message = ToWorker::Drain {
            idle,
            limit,
            tunnels,
        };
        self.send(message, None);
    }

    /// Kills the worker.
    pub fn kill(&self) {
        self.pidfd.signal(Signal::KILL);
    }

    /// Returns true if the worker runs the same program as this process, and not another build.
    pub fn is_current(&self) -> bool {
        self.is_current
    }

    /// Takes in which version of the messages the worker speaks. Returns true if tables can be sent
    /// to it from now on.
    pub fn greets(&mut self, messages: u32) -> bool {
        let speaks = messages == MESSAGES;
        speaks && !std::mem::replace(&mut self.speaks, speaks)
    }

    /// Returns true if the worker is given tables. Another one serves on with its last table.
    pub fn speaks(&self) -> bool {
        self.speaks
    }

    /// Returns true if the worker has no connection to this draining endpoint, and will open none.
    pub(super) fn is_idle(&self, endpoint: EndpointId) -> bool {
        match self.speaks {
            true => self.idle.contains(&endpoint),
            // Its table says nothing about the drain, but it has no requests left at all.
            false => self.only_tunnels,
        }
    }
}

/// Returns true if a process runs the same program as this one.
fn runs_this_program(pid: u32) -> bool {
    let file = |process: &str| {
        let file = std::fs::metadata(format!("/proc/{process}/exe")).ok()?;
        Some((file.dev(), file.ino()))
    };
    file(&pid.to_string()) == file("self")
}

/// Returns the name of a worker's scope.
pub fn scope_name(generation: u32) -> String {
    format!("smoothserve-worker-{generation}.scope")
}

/// Returns true if `name` is the name of a worker's scope, and not that of a service called
/// `worker`.
pub fn is_scope_name(name: &str) -> bool {
    name.strip_prefix("smoothserve-worker-")
        .and_then(|rest| rest.strip_suffix(".scope"))
        .is_some_and(|generation| generation.parse::<u32>().is_ok())
}

/// Connects to the control socket of a worker. Never waits: a worker that was taken over may leave
/// the queue of its socket full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn socket_path(run_dir: &Path, generation: u32) -> PathBuf {
    run_dir.join(format!("worker-{generation}.sock"))
}

/// The task that serves a worker from its first message to the end of its process.
struct Life<F> {
    path: PathBuf,
    pidfd: Rc<Pidfd>,
    /// The process as a child, or `None` if an earlier manager started it.
    child: Option<(Child, AwaitedChild)>,
    report: F,
}

impl<F: Fn(WorkerEvent)> Life<F> {
    async fn run(
        mut self,
        (sender, receiver): (
            ipc::MessageSender<ToWorker>,
            ipc::MessageReceiver<FromWorker>,
        ),
        queue: mpsc::Receiver<(ToWorker, Option<OwnedFd>)>,
    ) {
        let exchange = async {
            tokio::select! {
                result = send_all(sender, queue) => log_broken("sending", result),
                result = receive_all(receiver, &self.report) => log_broken("receiving", result),
            }
        };
        let mut exchange = std::pin::pin!(exchange);
        let mut ended = std::pin::pin!(ended(&mut self.child, &self.pidfd));
        // The connection usually ends with the process. It may outlive the process if a worker that
        // was taken over has given it away.
        let ending = tokio::select! {
            biased;
            () = &mut exchange => tokio::time::timeout(GRACE, &mut ended).await,
            ending = &mut ended => {
                // The last messages still count.
                let _ = tokio::time::timeout(GRACE, &mut exchange).await;
                Ok(ending)
            }
        };
        let ending = match ending {
            Ok(ending) => ending,
            Err(_) => {
                (self.report)(WorkerEvent::Lost);
                self.pidfd.signal(Signal::TERM);
                match tokio::time::timeout(SIGNAL_DRAIN, &mut ended).await {
                    Ok(ending) => ending,
                    Err(_) => {
                        self.pidfd.signal(Signal::KILL);
                        ended.await
                    }
                }
            }
        };
        // A socket file that stays behind does no harm: the next worker uses another name.
        let _ = remove_if_there(&self.path);
        (self.report)(WorkerEvent::Gone(ending));
    }

    fn signal(&self, signal: Signal) {
        self.pidfd.signal(signal);
    }
}

/// Waits for the end of a worker's process, and returns a text that says how it ended. Cancel-safe.
async fn ended(child: &mut Option<(Child, AwaitedChild)>, pidfd: &Pidfd) -> String {
    match child {
        Some((child, _)) => child
            .wait()
            .await
            .map_or_else(|error| error.to_string(), |status| status.to_string()),
        None => pidfd.ended().await.map_or_else(
            |error| error.to_string(),
            |()| "how is not known".to_owned(),
        ),
    }
}

async fn send_all(
    mut sender: ipc::MessageSender<ToWorker>,
    mut queue: mpsc::Receiver<(ToWorker, Option<OwnedFd>)>,
) -> Result<(), ChannelError> {
    while let Some((message, descriptor)) = queue.recv().await {
        let sending = sender.send(&message, descriptor.as_ref().map(AsFd::as_fd));
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(SLOWEST_READER, sending)
            .await
            .map_err(late)??;
    }
    Ok(())
}

async fn receive_all(
    mut receiver: ipc::MessageReceiver<FromWorker>,
    report: &impl Fn(WorkerEvent),
) -> Result<(), ChannelError> {
    let places = Arc::new(Semaphore::new(MOST_UNREAD));
    let mut reader = WorkerReader::default();
    while let Some(message) = receiver.receive_as(|frame| reader.read(frame)).await? {
        // The semaphore is never closed.
        if let Ok(place) = places.clone().acquire_owned().await {
            report(WorkerEvent::Says(message, place));
        }
    }
    Ok(())
}

fn log_broken(direction: &str, result: Result<(), ChannelError>) {
    if let Err(error) = result {
        tracing::warn!(direction, error = %error, "the connection to the worker broke");
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use super::*;
    use crate::config::Listen;
    use crate::manager::worker::listeners::Listeners;

    #[test]
    fn workers_of_all_builds_listen_in_the_same_place() {
        let path = socket_path(Path::new("/run"), 3);
        assert_eq!(path, Path::new("/run/worker-3.sock"));
    }

    #[test]
    fn a_worker_that_accepts_nothing_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker-1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let connected: Vec<_> = (0..10).map(|_| connect(&path)).collect();
        assert!(connected[0].is_ok());
        let error = connected[9].as_ref().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    /// Returns the names of what a worker of another build hears: with its greeting, which tells
    /// this version of the messages, and after it.
    fn heard_after(messages: u32) -> (bool, Vec<&'static str>) {
        let saved = SavedWorker {
            generation: 1,
            pid: std::process::id(),
            draining: false,
            sees_mounts: false,
        };
        let pidfd = Rc::new(Pidfd::open(saved.pid).unwrap());
        let (outgoing, mut queue) = mpsc::channel(8);
        let mut worker = WorkerProcess::new(&saved, false, pidfd, outgoing);
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = BTreeSet::from([Listen {
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port: socket.local_addr().unwrap().port(),
        }]);
        let mut listeners = Listeners::new(vec![("given".to_owned(), socket)]);
        listeners.adopt(listeners.bind(&listen).0, &listen);
        let table = Rc::new(WireTable::default());
        let is_new = worker.greets(messages);
        for listener in listeners.sockets() {
            worker.send_listener(listener);
        }
        worker.send_table(&table, &ServiceCertificates::default());
        worker.send(ToWorker::Ping(1), None);
        worker.drain(Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut heard = Vec::new();
        while let Ok((message, _)) = queue.try_recv() {
            heard.push(match message {
                ToWorker::Listener(_) => "listener",
                ToWorker::Table(_) => "table",
                ToWorker::Ping(_) => "ping",
                ToWorker::Drain { .. } => "drain",
                ToWorker::Certificate(_) | ToWorker::NotUnderstood => "something else",
            });
        }
        (is_new, heard)
    }

    #[tokio::test]
    async fn a_worker_of_another_version_hears_the_frozen_part_of_the_messages_alone() {
        let (is_new, heard) = heard_after(MESSAGES);
        assert!(is_new);
        assert_eq!(heard, ["listener", "table", "ping", "drain"]);
        for other in [0, MESSAGES - 1, MESSAGES + 1] {
            let (is_new, heard) = heard_after(other);
            assert!(!is_new);
            assert_eq!(heard, ["ping", "drain"]);
        }
    }
}
