//! What is measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::configs::{HOST, Ports};
use crate::load::{Moderate, Outcome, Wrk, ask_once};
use crate::peers::{Peer, Peers};
use crate::process::{cpu_time, memory, wait_until};
use crate::report::{Measured, Report, Row};

/// Rounds that count; one more goes before them to warm up.
const ROUNDS: usize = 5;
const SECONDS: u64 = 2;

/// Connections of the moderate load.
const THOUGHTFUL: usize = 32;

const IDLE: usize = 10_000;

/// One of a proxy's ports.
type Port = fn(Ports) -> u16;
const TCP: Port = |ports| ports.tcp;
const DEFERRED: Port = |ports| ports.deferred;
const UNIX: Port = |ports| ports.unix;

const GET: Wrk = Wrk {
    connections: 64,
    path: "/",
    body: 0,
    close: false,
};

/// Who asks.
#[derive(Debug, Clone, Copy)]
enum Load {
    Wrk(Wrk),
    Moderate,
}

impl Load {
    fn run(self, port: u16) -> anyhow::Result<Outcome> {
        match self {
            Load::Wrk(wrk) => wrk.run(port, SECONDS),
            Load::Moderate => {
                let load = Moderate::start(port, THOUGHTFUL);
                thread::sleep(Duration::from_secs(SECONDS));
                load.stop()
            }
        }
    }
}

/// The first row alone.
pub fn quick(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let row = measure(
        peers,
        "GET, 64 connections",
        TCP,
        Load::Wrk(GET),
        [0.92, 0.92],
    )?;
    report.rows.push(row);
    Ok(())
}

/// All rows. The figures are the most that the CPU time may be of that of nginx and HAProxy.
pub fn all(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let get = |path, connections| {
        Load::Wrk(Wrk {
            connections,
            path,
            ..GET
        })
    };
    let post = Load::Wrk(Wrk { body: 4096, ..GET });
    let close = Load::Wrk(Wrk {
        close: true,
        connections: 32,
        ..GET
    });
    for (name, port, load, most) in [
        ("GET, 64 connections", TCP, get("/", 64), [0.92, 0.92]),
        ("GET, 256 connections", TCP, get("/", 256), [0.92, 0.92]),
        ("GET, equal moderate load", TCP, Load::Moderate, [1.0, 0.9]),
        ("GET, 100 KiB", TCP, get("/102400", 32), [0.95, 0.95]),
        ("GET, 10 MiB", TCP, get("/10485760", 8), [0.95, 0.95]),
        ("POST, 4 KiB", TCP, post, [0.95, 0.95]),
        ("GET, a connection each", TCP, close, [0.9, 0.9]),
        ("the same, all deferred", DEFERRED, close, [1.0, 1.0]),
        ("GET, unix sockets", UNIX, get("/", 64), [0.88, 0.88]),
    ] {
        report.rows.push(measure(peers, name, port, load, most)?);
    }
    report.notes.push(system_calls(peers)?);
    report.notes.push(idle_memory(peers)?);
    // The last, since it leaves nginx and HAProxy without the instances that they know.
    report.notes.push(rotations(peers)?);
    Ok(())
}

fn measure(
    peers: &Peers,
    name: &'static str,
    port: Port,
    load: Load,
    most: [f64; 2],
) -> anyhow::Result<Row> {
    eprintln!("{name}");
    if let Load::Wrk(wrk) = load {
        for peer in &peers.peers {
            ask_once(port(peer.ports), HOST, wrk.path, wrk.body).context(peer.name)?;
        }
    }
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let mut measured = vec![None; peers.peers.len()];
        for turn in 0..peers.peers.len() {
            let index = (turn + round) % peers.peers.len();
            let peer = &peers.peers[index];
            let before = cpu_time(&peer.pids)?;
            let outcome = load.run(port(peer.ports))?;
            let used = cpu_time(&peer.pids)? - before;
            ensure!(outcome.requests > 0, "{} answers nothing", peer.name);
            measured[index] = Some(Measured {
                cpu: used.as_secs_f64() * 1e6 / outcome.requests as f64,
                outcome,
            });
        }
        if round > 0 {
            rounds.push(measured.into_iter().flatten().collect());
        }
    }
    Ok(Row { name, most, rounds })
}

fn smoothserve(peers: &Peers) -> &Peer {
    &peers.peers[0]
}

/// System calls of the worker for a request on a connection that stays open.
fn system_calls(peers: &Peers) -> anyhow::Result<String> {
    eprintln!("system calls");
    let peer = smoothserve(peers);
    let worker = peer.pids[1].to_string();
    let counts = tempfile::NamedTempFile::new()?;
    let mut tracer = Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-p", &worker, "-o"])
        .arg(counts.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("strace is installed by `make bench`")?;
    wait_until("strace", || {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status"));
        status.is_ok_and(|status| status.contains(&format!("TracerPid:\t{}\n", tracer.id())))
    })?;
    let outcome = GET.run(peer.ports.tcp, SECONDS)?;
    let pid = rustix::process::Pid::from_child(&tracer);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    tracer.wait()?;
    let counts = std::fs::read_to_string(counts.path())?;
    let total = counts
        .lines()
        .find(|line| line.trim_end().ends_with("total"));
    let total = total.and_then(|line| line.split_ascii_whitespace().next());
    let total: f64 = total.context("strace counts nothing")?.parse()?;
    Ok(format!(
        "System calls for a GET on a connection that stays open: **{:.2}** (must ≤ 4.1).",
        total / outcome.requests as f64
    ))
}

/// Restarts, one after the other, under a moderate load.
fn rotations(peers: &Peers) -> anyhow::Result<String> {
    eprintln!("rotations");
    let port = smoothserve(peers).ports.tcp;
    let mut ratios = Vec::new();
    let (mut errors, mut restarts) = (0, 0);
    for _ in 0..ROUNDS {
        let steady = Load::Moderate.run(port)?;
        let load = Moderate::start(port, THOUGHTFUL);
        for _ in 0..3 {
            peers.smoothctl(&["restart", "tcp"])?;
            restarts += 1;
        }
        let rotating = load.stop()?;
        ratios.push(rotating.p99 / steady.p99);
        errors += rotating.errors + steady.errors;
    }
    Ok(format!(
        "p99 while all instances are being replaced again and again, against the p99 before, under moderate load: **{:.2}** \
         (must ≤ 1.3); {restarts} restarts, {errors} errors.",
        crate::report::median(ratios)
    ))
}

/// What connections cost that do nothing.
fn idle_memory(peers: &Peers) -> anyhow::Result<String> {
    eprintln!("idle connections");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    let count = IDLE.min(usize::try_from(most)? - 100);
    let mut texts = Vec::new();
    for peer in &peers.peers {
        let before = memory(&peer.pids)?;
        let mut connections = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(("127.0.0.1", peer.ports.tcp))?;
            // A proxy may have as many as it wants, and lets this one wait.
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            write!(stream, "GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
            let mut answer = [0; 1024];
            match stream.read(&mut answer) {
                Ok(_) if answer.starts_with(b"HTTP/1.1 200 ") => connections.push(stream),
                _ => break,
            }
        }
        let after = memory(&peer.pids)?;
        texts.push(format!(
            "{} {:.1} MiB with {} of them ({:.1} MiB before)",
            peer.name,
            after as f64 / 1024.0,
            connections.len(),
            before as f64 / 1024.0
        ));
    }
    Ok(format!(
        "Memory with {count} idle connections: {} (must ≤ 1.1 of nginx).",
        texts.join(", ")
    ))
}
