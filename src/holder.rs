//! The holder: keeps ports open while smoothserve is stopped, as a socket unit does, for ports that
//! no unit holds.
//!
//! A port that a reload has opened belongs to smoothserve alone: its unit, once `daemon-reload` has
//! made it, cannot bind the port as long as smoothserve has it. So when smoothserve is stopped, it
//! leaves these sockets to a process of its own. A second socket with `SO_REUSEPORT` in the unit
//! would be no way out: whatever is in the queue of the first one when that closes is reset.
//!
//! # Theory of operation
//! The holder listens on a unix socket in the run directory. Whoever connects there, as the user of
//! the holder, gets all its sockets, and may give it more. The manager that ends gives sockets; the
//! next one takes them, puts them into systemd's store, and then releases the holder, which ends. A
//! manager that fails before that leaves the holder as it was, since nobody has to give a socket
//! back. A manager that could not take the sockets gives its own to the same holder at its end.
//! While no manager is connected, the holder waits for the first connection of a client, and has
//! systemd start smoothserve. It never accepts or reads anything itself.
//!
//! The scope of the holder stops with `smoothserve.socket`, as socket units do, and with the slice.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::ipc::{Channel, MessageReceiver, MessageSender, WireMessage};
use crate::systemd::units::{SERVICE, Units};

/// How long the other side may take for one message.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after systemd did not start smoothserve, for example because it still stops it.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long a manager may take to connect before systemd is asked to start it again.
const STARTED_PAUSE: Duration = Duration::from_secs(5);

/// How long a manager tries to take over the sockets of a holder that does not answer.
const TRIES: Duration = Duration::from_secs(15);

/// The pause before the second try. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How many sockets a holder takes, as many as a worker.
const MOST_SOCKETS: usize = 4096;

/// What a holder and a manager say to each other. The manager may be of another build, so none of
/// this ever changes.
#[derive(Debug, Serialize, Deserialize)]
enum HolderMessage {
    /// A listening socket, which comes with the message.
    Socket,
    /// The manager has got all sockets.
    AllSent,
    /// The manager has kept all sockets, so the holder ends.
    Release,
}

impl WireMessage for HolderMessage {
    const LONGEST: usize = 1 << 10;
}

/// A holder that has passed its sockets to this manager, and still has them, too.
pub struct Holder {
    sender: MessageSender<HolderMessage>,
    _receiver: MessageReceiver<HolderMessage>,
}

impl Holder {
    /// Lets the holder end, because its sockets are kept elsewhere.
    pub async fn release(mut self) {
        if let Err(error) = self.sender.send(&HolderMessage::Release, None).await {
            tracing::warn!(error = %error, "the holder of the ports not released");
        }
    }

    /// Leaves sockets to the holder.
    async fn give(&mut self, sockets: &[(&str, BorrowedFd<'_>)]) -> anyhow::Result<()> {
        for (_, socket) in sockets {
            let sending = self.sender.send(&HolderMessage::Socket, Some(*socket));
            timeout(PATIENCE, sending).await??;
        }
        Ok(())
    }
}

/// Takes over the sockets of a holder, if there is one for this run directory. Tries again for
/// [`TRIES`], because nobody else can open the ports as long as the holder has them. Must run
/// inside a tokio runtime.
pub async fn take_over(run_dir: &Path) -> anyhow::Result<Option<(Holder, Vec<TcpListener>)>> {
    let until = Instant::now() + TRIES;
    let mut pause = FIRST_PAUSE;
    loop {
        match try_take_over(run_dir).await {
            Err(error) if Instant::now() + pause < until => {
                let error = format!("{error:#}");
                tracing::warn!(error, "ports not taken over yet, trying again");
                sleep(pause).await;
                pause *= 2;
            }
            result => return result,
        }
    }
}

async fn try_take_over(run_dir: &Path) -> anyhow::Result<Option<(Holder, Vec<TcpListener>)>> {
    let Some(stream) = connect(run_dir)? else {
        return Ok(None);
    };
    let (sender, mut receiver) = Channel::split(stream)?;
    let mut sockets = Vec::new();
    loop {
        let message = timeout(PATIENCE, receiver.receive()).await;
        match message.context("the holder of the ports does not answer")?? {
            Some(HolderMessage::Socket) => {
                sockets.extend(receiver.take_descriptor().map(TcpListener::from));
            }
            Some(HolderMessage::AllSent) => break,
            Some(HolderMessage::Release) | None => {
                anyhow::bail!("the holder of the ports has closed the connection")
            }
        }
    }
    let _receiver = receiver;
    Ok(Some((Holder { sender, _receiver }, sockets)))
}

/// Connects to the holder of a run directory. `None`: nobody listens there.
fn connect(run_dir: &Path) -> anyhow::Result<Option<UnixStream>> {
    match UnixStream::connect(path(run_dir)) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(error).context("cannot connect to the holder of the ports"),
        },
    }
}

/// Leaves sockets to a holder, each with the socket unit of its address: to one that is there
/// already, because its sockets could not be taken over, or to a new one. Must run inside a tokio
/// runtime.
pub async fn leave(
    run_dir: &Path,
    units: Units,
    sockets: &[(&str, BorrowedFd<'_>)],
) -> anyhow::Result<()> {
    // Whoever lives keeps its unix socket, or the next manager would not find it.
    match take_over(run_dir).await? {
        Some((mut holder, _)) => holder.give(sockets).await,
        None => leave_to_new(run_dir, units, sockets).await,
    }
}

async fn leave_to_new(
    run_dir: &Path,
    units: Units,
    sockets: &[(&str, BorrowedFd<'_>)],
) -> anyhow::Result<()> {
    let path = path(run_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    // Whoever may connect is checked again by the holder.
    let stream = UnixStream::connect(&path)?;
    let child = Command::new("/proc/self/exe")
        .args(["hold"])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .env_remove("NOTIFY_SOCKET")
        .spawn()?;
    // A process outside of a scope of its own would be killed with this one.
    let pid = child.id();
    let ports: Vec<&str> = sockets.iter().map(|(unit, _)| *unit).collect();
    units
        .start_port_scope(&scope_name(pid), pid, &ports)
        .await?;
    let (sender, _receiver) = Channel::split(stream)?;
    Holder { sender, _receiver }.give(sockets).await
}

/// Returns true if `name` is the name of a holder's scope, and not that of a service called
/// `holder`.
pub fn is_scope_name(name: &str) -> bool {
    name.strip_prefix("smoothserve-holder-")
        .and_then(|rest| rest.strip_suffix(".scope"))
        .is_some_and(|pid| pid.parse::<u32>().is_ok())
}

fn scope_name(pid: u32) -> String {
    format!("smoothserve-holder-{pid}.scope")
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("holder.sock")
}

/// Runs a holder, whose unix socket is its standard input, until it is released.
pub fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut sockets: Vec<OwnedFd> = Vec::new();
    // Set once systemd has been asked to start smoothserve, for a manager that fails.
    let mut pause = None;
    loop {
        let clients = match pause {
            None => sockets.as_slice(),
            Some(_) => &[],
        };
        match wait(&listener, clients, pause.take())? {
            Waited::Manager => {
                let (stream, _) = listener.accept()?;
                match runtime.block_on(serve(stream, &mut sockets)) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "the connection to the manager broke");
                    }
                }
            }
            Waited::Client => {
                let units = Units::of_this_process();
                pause = Some(match runtime.block_on(units.start(SERVICE)) {
                    Ok(()) => STARTED_PAUSE,
                    // A stop that is still under way is not taken back.
                    Err(error) => {
                        tracing::debug!(error = %error, "smoothserve not started yet");
                        REFUSED_PAUSE
                    }
                });
            }
            Waited::TimeOver => {}
        }
    }
}

/// What a holder waits for.
enum Waited {
    /// A manager has connected.
    Manager,
    /// A client has connected to one of the sockets.
    Client,
    /// Neither within the time.
    TimeOver,
}

fn wait(
    listener: &UnixListener,
    clients: &[OwnedFd],
    limit: Option<Duration>,
) -> anyhow::Result<Waited> {
    let limit = limit.map(Timespec::try_from).transpose()?;
    let mut all = vec![PollFd::new(listener, PollFlags::IN)];
    all.extend(
        clients
            .iter()
            .map(|socket| PollFd::new(socket, PollFlags::IN)),
    );
    rustix::io::retry_on_intr(|| poll(&mut all, limit.as_ref()))?;
    let mut ready = all.iter().map(|polled| !polled.revents().is_empty());
    Ok(match (ready.next(), ready.any(|is_ready| is_ready)) {
        (Some(true), _) => Waited::Manager,
        (_, true) => Waited::Client,
        (_, false) => Waited::TimeOver,
    })
}

/// Serves a manager until it closes the connection. Returns true if it has released the holder.
async fn serve(stream: UnixStream, sockets: &mut Vec<OwnedFd>) -> anyhow::Result<bool> {
    let peer = socket_peercred(&stream)?.uid;
    anyhow::ensure!(
        peer == rustix::process::geteuid(),
        "the peer runs as user {}",
        peer.as_raw()
    );
    let (mut sender, mut receiver) = Channel::split(stream)?;
    for socket in &*sockets {
        let sending = sender.send(&HolderMessage::Socket, Some(socket.as_fd()));
        timeout(PATIENCE, sending).await??;
    }
    // The manager that ends does not wait for this.
    let _ = sender.send(&HolderMessage::AllSent, None).await;
    while let Some(message) = receiver.receive().await? {
        match message {
            HolderMessage::Socket if sockets.len() < MOST_SOCKETS => {
                let socket = receiver
                    .take_descriptor()
                    .context("a message without a socket")?;
                let number = |socket: &OwnedFd| fstat(socket).map(|file| file.st_ino).ok();
                // The manager may have got the socket from this holder.
                if !sockets.iter().any(|known| number(known) == number(&socket)) {
                    sockets.push(socket);
                }
            }
            HolderMessage::Release => return Ok(true),
            HolderMessage::Socket | HolderMessage::AllSent => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_and_managers_of_all_builds_understand_each_other() {
        for (message, bytes) in [
            (HolderMessage::Socket, "\"Socket\""),
            (HolderMessage::AllSent, "\"AllSent\""),
            (HolderMessage::Release, "\"Release\""),
        ] {
            assert_eq!(serde_json::to_string(&message).unwrap(), bytes);
        }
        assert_eq!(path(Path::new("/run")), Path::new("/run/holder.sock"));
        assert!(is_scope_name("smoothserve-holder-7.scope"));
    }

    fn number(socket: impl AsFd) -> u64 {
        fstat(socket).unwrap().st_ino
    }

    #[tokio::test]
    async fn a_holder_that_fails_once_is_asked_again_and_gets_more_under_the_same_name() {
        let run_dir = tempfile::tempdir().unwrap();
        let run_dir = run_dir.path();
        assert!(take_over(run_dir).await.unwrap().is_none());
        let listener = UnixListener::bind(path(run_dir)).unwrap();
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sockets = vec![OwnedFd::from(held.try_clone().unwrap())];
        let holder = std::thread::spawn(move || {
            drop(listener.accept().unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            for _ in 0..2 {
                let (stream, _) = listener.accept().unwrap();
                let is_released = runtime.block_on(serve(stream, &mut sockets)).unwrap();
                assert!(!is_released);
            }
            // The one whose manager ends, and the listener, which lives on.
            (sockets, listener)
        });
        let (taken, sockets) = take_over(run_dir).await.unwrap().unwrap();
        assert_eq!(sockets.len(), 1);
        assert_eq!(number(&sockets[0]), number(&held));
        drop(taken);
        let left = [("held", held.as_fd()), ("own", own.as_fd())];
        leave(run_dir, Units::System, &left).await.unwrap();
        let (sockets, _listener) = holder.join().unwrap();
        let numbers: Vec<u64> = sockets.iter().map(number).collect();
        assert_eq!(numbers, [number(&held), number(&own)]);
        assert!(connect(run_dir).unwrap().is_some());
    }
}
