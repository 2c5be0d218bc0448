//! The proxy worker: accepts, routes, balances and forwards.
//!
//! # Threads
//! One data thread for each core ([`thread`]) serves connections, each with a runtime of its own
//! and state that it shares with nobody. The main thread is the control thread ([`control`]): it
//! speaks with the manager, probes the endpoints, and sends each table, checked and compiled once
//! ([`shared::table`]), to every data thread.
//!
//! # Floors, and the way of a request through them
//! Each folder is a floor. A floor uses the floors below it and none above it.
//!
//! * [`thread`]: a data thread accepts a connection. The data thread with the fewest connections
//!   serves it, and parks it while it is idle.
//! * [`connection`]: a trusted proxy in front first tells whose connection it is; then comes the
//!   TLS handshake; then the first bytes show whether the client speaks HTTP/1 or HTTP/2. The
//!   requests are read one after the other.
//! * [`exchange`]: the head of a request is checked and routed, and becomes a request to forward.
//!   An instance is found for it, and on the connection to that instance the upload of the request
//!   and the download of the response take place at the same time. Whatever goes wrong becomes a
//!   response here, in one place.
//! * [`view`]: the thread's own view of the table: which listener leads to which service, and which
//!   endpoint of the service is claimed. The claim lends an idle connection to the instance, or
//!   opens one.
//! * [`control`] stands beside these. It makes the tables that the views follow, and serves no
//!   request.
//! * [`net`]: connections as bytes, with or without TLS or HTTP/2 on them.
//! * [`shared`]: what all threads share: the table, its routers and certificates, and the messages
//!   between the threads.
//! * [`policy`]: the rules that the file of a service sets for requests before an instance gets
//!   them, and for responses before the client gets them. They are compiled with the table, kept in
//!   the view and asked by the exchange.
//! * [`http`]: HTTP on the wire: heads are parsed, checked and written anew, and bodies are framed
//!   anew.

#[cfg(any(test, feature = "internals"))]
#[doc(hidden)]
pub mod check;
mod connection;
mod control;
mod exchange;
mod http;
mod memory_limit;
mod net;
mod policy;
mod root_folder;
mod sandbox;
mod shared;
mod system_calls;
mod thread;
mod view;

pub use shared::heap::CountingHeap;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Resource, Rlimit, Signal, getppid, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use control::control::{Control, ControlError};
use sandbox::{Confinement, SandboxError, SandboxOptions};
use shared::budget::Budget;
use shared::certificates::ListenerCertificates;
use shared::threads::Threads;

/// The highest number of data threads of a worker; more threads never help.
const MOST_THREADS: usize = 256;

/// How a worker runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerOptions {
    /// How many data threads there are; by default as many as this process has cores.
    pub threads: Option<NonZeroUsize>,
    /// The user that the worker changes to when it starts; `None` to stay the user that it is.
    pub user: Option<String>,
    /// The folder that holds the unix sockets of the instances, as an absolute path. The worker
    /// reaches no other file; without this folder it connects to no unix socket.
    pub instances: Option<PathBuf>,
    /// The worker may connect to unix sockets even if the kernel does not permit it a root folder
    /// with nothing else in it.
    pub needs_unix_sockets: bool,
    /// The kernel kills the worker when the process that made the control socket, and is its
    /// parent, ends.
    pub die_with_parent: bool,
}

/// Why a worker did not start, or ended otherwise than by draining.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Standard input is not what a manager gives a worker.
    #[error(
        "standard input is no listening unix socket; the proxy worker is started by `smoothserve run`"
    )]
    NoControlSocket,
    /// The manager that started the worker has ended already.
    #[error("the manager has ended")]
    Orphaned,
    /// A data thread ended; its connections are lost.
    #[error("data thread {0} has ended unexpectedly")]
    ThreadEnded(usize),
    /// The worker could not be confined. It does not run with more rights than it needs.
    #[error("cannot confine the proxy worker: {0}")]
    Sandbox(#[from] SandboxError),
    /// TLS cannot be prepared, for example because the system has no randomness.
    #[error("cannot prepare for TLS: {0}")]
    Cryptography(#[source] rustls::Error),
    /// The system refused something that the worker needs.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ControlError> for WorkerError {
    fn from(error: ControlError) -> WorkerError {
        match error {
            ControlError::ThreadEnded(thread) => WorkerError::ThreadEnded(thread),
            ControlError::Io(error) => error.into(),
        }
    }
}

/// A worker that has what it needs, and has given up what it does not.
#[derive(Debug)]
pub struct Worker {
    control_socket: std::os::unix::net::UnixListener,
    threads: usize,
    budget: Budget,
    confinement: Confinement,
}

impl Worker {
    /// Takes the control socket from standard input, and confines the process. Must be called
    /// before any thread is started.
    pub fn prepare(options: &WorkerOptions) -> Result<Worker, WorkerError> {
        let control_socket = control_socket()?;
        let threads = thread_count(options)?;
        let budget = Budget {
            memory: memory_limit::memory_budget(),
            ..Budget::new(raise_descriptor_limit()?, threads)
        };
        let confinement = sandbox::enter(&SandboxOptions {
            user: options.user.as_deref(),
            instances: options.instances.as_deref(),
            needs_unix_sockets: options.needs_unix_sockets,
        })?;
        if options.die_with_parent {
            // The kernel forgets this signal when the user changes, so it is set after the change.
            die_with_parent()?;
        }
        Ok(Worker {
            control_socket,
            threads,
            budget,
            confinement,
        })
    }

    /// Runs the worker until it has drained.
    pub fn run(self) -> Result<(), WorkerError> {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..self.threads).map(|_| mpsc::unbounded_channel()).unzip();
        let (report, reports) = mpsc::unbounded_channel();
        let shared = Arc::new(Threads::new(senders, self.budget));
        let mut running = Vec::with_capacity(self.threads);
        for (index, commands) in receivers.into_iter().enumerate() {
            let shared = shared.clone();
            let report = report.clone();
            let thread = std::thread::Builder::new().name(format!("data-{index}"));
            running.push(thread.spawn(move || {
                thread::thread::run(index, shared, commands, report).inspect_err(
                    |error| tracing::error!(thread = index, %error, "data thread failed"),
                )
            })?);
        }
        drop(report);
        let certificates = ListenerCertificates::new().map_err(WorkerError::Cryptography)?;
        sandbox::seal(&self.confinement)?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())?;
        runtime.block_on(async {
            let control_socket = UnixListener::from_std(self.control_socket)?;
            let unix_sockets = self.confinement.reaches_unix_sockets();
            let control = Control::new(shared, certificates, reports, unix_sockets);
            control.run(control_socket).await.map_err(WorkerError::from)
        })?;
        for (index, thread) in running.into_iter().enumerate() {
            thread
                .join()
                .map_err(|_| WorkerError::ThreadEnded(index))??;
        }
        Ok(())
    }
}

fn control_socket() -> Result<std::os::unix::net::UnixListener, WorkerError> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let listens = || -> Result<bool, Errno> {
        Ok(sockopt::socket_domain(&socket)? == AddressFamily::UNIX
            && sockopt::socket_acceptconn(&socket)?)
    };
    if !listens().unwrap_or(false) {
        return Err(WorkerError::NoControlSocket);
    }
    let socket = std::os::unix::net::UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn die_with_parent() -> Result<(), WorkerError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io::Error::from)?;
    // The parent may have ended before the call above. The kernel remembers who made the control
    // socket.
    let maker = sockopt::socket_peercred(io::stdin()).map_err(io::Error::from)?;
    if getppid() != Some(maker.pid) {
        return Err(WorkerError::Orphaned);
    }
    Ok(())
}

fn thread_count(options: &WorkerOptions) -> io::Result<usize> {
    let count = match options.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?,
    };
    Ok(count.get().min(MOST_THREADS))
}

/// Raises the soft limit of open files to the hard limit, and returns the limit; `None` if there is
/// no limit.
fn raise_descriptor_limit() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(limit.maximum)
}
