//! The rows of the report: what is measured, and against which limits.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::clients::{self, AT_ONCE, Clients, Moderate, Own, Talk};
use crate::configs::{HOST, Ports};
use crate::handshakes;
use crate::idle::{self, Count};
use crate::load::{H2load, Outcome, Wrk, ask_once};
use crate::peers::{APART, INSTANCES, Peer, Peers, TOGETHER};
use crate::process::{cpu_time, others_share};
use crate::report::{Gate, Measured, Report, Rounds, median};
use crate::trace;

/// The clients of the moderate load, who send 8,000 requests a second.
const THOUGHTFUL: usize = 32;

/// The length of a round of the moderate load.
const MODERATE_TIME: Duration = Duration::from_secs(3);

/// The number of requests whose system calls are counted.
const TRACED: u64 = 20_000;

/// Selects one of a proxy's ports.
type Port = fn(Ports) -> u16;
const TCP: Port = |ports| ports.tcp;
const DEFERRED: Port = |ports| ports.deferred;
const UNIX: Port = |ports| ports.unix;
const TLS: Port = |ports| ports.tls;

const GET: Wrk = Wrk {
    connections: 64,
    path: "/",
    body: 0,
    close: false,
    secure: false,
};

/// The kinds of load.
#[derive(Debug, Clone, Copy)]
enum Load {
    Wrk(Wrk),
    H2load(H2load),
    Handshakes { resumed: bool },
    Echo,
    Moderate,
}

/// The length of a round of every other load. It is short, because the other work of the machine
/// changes from second to second and should concern all proxies of a round.
const ROUND_SECONDS: u64 = 1;
const ROUND: Duration = Duration::from_secs(ROUND_SECONDS);

impl Load {
    /// Returns the number of rounds that count; one more goes before them as warm-up.
    fn rounds(self) -> usize {
        match self {
            Load::Moderate => 9,
            Load::Wrk(_) | Load::H2load(_) | Load::Handshakes { .. } | Load::Echo => 13,
        }
    }

    fn run(self, peers: &Peers, port: u16) -> anyhow::Result<(Outcome, Option<Own>)> {
        let cores = peers.cores.others;
        let outcome = match self {
            Load::Wrk(wrk) => wrk.run(cores, port, ROUND_SECONDS)?,
            Load::H2load(h2load) => h2load.run(cores, port, ROUND_SECONDS)?,
            Load::Handshakes { resumed } => {
                handshakes::run(cores, port, ROUND, &peers.certificate(), resumed)?
            }
            Load::Echo => clients::echo(cores, port, GET.connections, ROUND)?,
            Load::Moderate => {
                let load = Moderate::start(cores, port, THOUGHTFUL);
                thread::sleep(MODERATE_TIME);
                let (outcome, own) = load.stop()?;
                return Ok((outcome, Some(own)));
            }
        };
        Ok((outcome, None))
    }
}

/// Measures the first row alone.
pub fn quick(programs: &Path, report: &mut Report) -> anyhow::Result<()> {
    let peers = Peers::start(APART, programs)?;
    report.works();
    small_get(&peers, report)
}

/// Measures TLS, HTTP/2 and WebSockets alone.
pub fn other_protocols(programs: &Path, report: &mut Report) -> anyhow::Result<()> {
    let peers = Peers::start(APART, programs)?;
    report.works();
    protocols(&peers, report)
}

/// Measures everything that belongs to `make bench`.
pub fn all(programs: &Path, report: &mut Report) -> anyhow::Result<()> {
    let peers = Peers::start(APART, programs)?;
    report
        .note("Each proxy has one worker with a core to itself; the instances and wrk use the other core.");
    report.works();
    small_get(&peers, report)?;
    other_work(&peers, report)?;
    report
        .note("The same, with TLS 1.3 and ECDSA certificates on P-256, and with other protocols.");
    report.works();
    protocols(&peers, report)?;
    report.absolutes();
    system_calls(&peers, report)?;
    drop(peers);
    idle_memory(&Peers::start(APART, programs)?, report)?;
    latency(programs, report)
}

fn small_get(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let rounds = measure(peers, TCP, Load::Wrk(GET))?;
    report.work("GET, 64 connections", &rounds, SMALL_GET);
    Ok(())
}

const SMALL_GET: [Gate; 2] = [Gate::new(0.92, 0.85); 2];

fn other_work(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let get = |path, connections| Wrk {
        connections,
        path,
        ..GET
    };
    let post = Wrk { body: 4096, ..GET };
    let close = Wrk {
        close: true,
        connections: 32,
        ..GET
    };
    let bodies = Gate::new(0.95, 0.85);
    for (name, port, wrk, gates) in [
        ("GET, 256 connections", TCP, get("/", 256), SMALL_GET),
        ("GET, 100 KiB", TCP, get("/102400", 32), [bodies; 2]),
        ("GET, 10 MiB", TCP, get("/10485760", 8), [bodies; 2]),
        ("POST, 4 KiB", TCP, post, [bodies; 2]),
        (
            "GET, one connection per request",
            TCP,
            close,
            [Gate::new(0.9, 0.8); 2],
        ),
        (
            "the same, TCP_DEFER_ACCEPT everywhere",
            DEFERRED,
            close,
            [Gate::new(1.0, 0.8); 2],
        ),
        ("GET, unix sockets", UNIX, GET, [Gate::new(0.88, 0.8); 2]),
    ] {
        report.work(name, &measure(peers, port, Load::Wrk(wrk))?, gates);
    }
    Ok(())
}

fn protocols(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let get = |path, connections| {
        Load::Wrk(Wrk {
            connections,
            path,
            secure: true,
            ..GET
        })
    };
    let h2load = |connections, streams| {
        Load::H2load(H2load {
            connections,
            streams,
        })
    };
    let full = Load::Handshakes { resumed: false };
    let resumed = Load::Handshakes { resumed: true };
    for (name, port, load, must) in [
        ("TLS: one handshake per GET", TLS, full, 0.55),
        ("TLS: one resumed handshake per GET", TLS, resumed, 0.55),
        ("TLS: GET, 64 connections", TLS, get("/", 64), 0.8),
        ("TLS: GET, 100 KiB", TLS, get("/102400", 32), 0.6),
        ("TLS: GET, 10 MiB", TLS, get("/10485760", 8), 0.6),
        (
            "HTTP/2: GET, 64 connections, one stream",
            TLS,
            h2load(64, 1),
            0.9,
        ),
        (
            "HTTP/2: GET, 8 connections, 32 streams",
            TLS,
            h2load(8, 32),
            0.9,
        ),
        (
            "WebSocket: an echo of 64 bytes, 64 connections",
            TCP,
            Load::Echo,
            1.0,
        ),
    ] {
        let rounds = measure(peers, port, load).context(name)?;
        report.work(name, &rounds, [Gate::new(must, must); 2]);
    }
    Ok(())
}

fn measure(peers: &Peers, port: Port, load: Load) -> anyhow::Result<Rounds> {
    if let Load::Wrk(wrk) = load
        && !wrk.secure
    {
        for peer in &peers.peers {
            ask_once(port(peer.ports), HOST, wrk.path, wrk.body).context(peer.name)?;
        }
    }
    let mut rounds = Vec::new();
    for round in 0..=load.rounds() {
        let mut measured = [None; 3];
        for turn in 0..measured.len() {
            let index = (turn + round) % measured.len();
            let peer = &peers.peers[index];
            let others = others_share()?;
            let before = cpu_time(&peer.pids)?;
            let (outcome, own) = load.run(peers, port(peer.ports))?;
            let used = cpu_time(&peer.pids)? - before;
            ensure!(outcome.requests > 0, "{} answered no request", peer.name);
            measured[index] = Some(Measured {
                cpu: used.as_secs_f64() * 1e6 / outcome.requests as f64,
                outcome,
                own,
                others,
            });
        }
        if round > 0 {
            let [Some(own), Some(nginx), Some(haproxy)] = measured else {
                unreachable!("every proxy was measured");
            };
            rounds.push([own, nginx, haproxy]);
        }
    }
    Ok(rounds)
}

/// Returns one figure of each proxy.
fn each(peers: &Peers, figure: impl Fn(&Peer) -> anyhow::Result<f64>) -> anyhow::Result<[f64; 3]> {
    let mut figures = [0.0; 3];
    for (result, peer) in figures.iter_mut().zip(&peers.peers) {
        *result = figure(peer).context(peer.name)?;
    }
    Ok(figures)
}

/// Counts the system calls of a request on an open connection, while other requests wait.
fn system_calls(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let count = |peer: &Peer, port: Port| {
        let mut clients = Clients::connect(port(peer.ports), GET.connections, Talk::Http)?;
        let mut ask = |count| clients.ask(AT_ONCE, |asked| asked >= count);
        // The first requests open all connections, those to the instances included.
        ask(TRACED / 10)?;
        let calls = trace::system_calls(peer.worker(), || {
            let (outcome, _) = ask(TRACED)?;
            ensure!(
                outcome.requests == TRACED,
                "expected no errors, got {}",
                outcome.errors
            );
            Ok(())
        })?;
        Ok(calls as f64 / TRACED as f64)
    };
    let figures = each(peers, |peer| count(peer, TCP))?;
    report.count("system calls per GET", figures, Some(Gate::new(4.1, 4.0)));
    let figures = each(peers, |peer| count(peer, UNIX))?;
    report.count("system calls per GET, unix sockets", figures, None);
    Ok(())
}

/// Measures the memory that idle connections cost.
fn idle_memory(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let Count { connections, why } = idle::count()?;
    let mut measured = Vec::new();
    for peer in &peers.peers {
        measured.push(idle::measure(peer, connections).context(peer.name)?);
    }
    let [own, nginx, haproxy] = measured[..] else {
        unreachable!("there are three proxies");
    };
    let all = [own, nginx, haproxy];
    report.note(&format!(
        "Memory (Pss) with {connections} idle connections, each of which has received one response ({why})."
    ));
    report.comparisons();
    report.single(
        "total, MiB",
        all.map(|memory| memory.with as f64 / 1024.0),
        [Some(Gate::new(1.1, 1.0)), None],
    );
    report.single(
        "without connections, MiB",
        all.map(|memory| memory.without as f64 / 1024.0),
        [None, None],
    );
    report.single(
        "bytes per connection",
        all.map(|memory| {
            memory.with.saturating_sub(memory.without) as f64 * 1024.0 / connections as f64
        }),
        [None, None],
    );
    Ok(())
}

/// Measures what clients notice under moderate load.
pub fn latency(programs: &Path, report: &mut Report) -> anyhow::Result<()> {
    let peers = Peers::start(TOGETHER, programs)?;
    report.note(&format!(
        "Moderate load: each of {THOUGHTFUL} clients sends a request every 2 to 6 ms. Each proxy has two workers; proxies, \
         instances and clients run on any core."
    ));
    let rounds = measure(&peers, TCP, Load::Moderate)?;
    report.comparisons();
    let cpu = [Gate::new(1.0, 0.85), Gate::new(0.9, 0.85)];
    report.comparison("CPU per request, µs", &rounds, |one| one.cpu, cpu.map(Some));
    report.comparison("p50, µs", &rounds, |one| one.outcome.p50, [None, None]);
    let p99 = [Some(Gate::new(1.05, 0.8)), None];
    report.comparison("p99, µs", &rounds, |one| one.outcome.p99, p99);
    report.circumstances(&rounds);
    // The rotations come last: they leave nginx and HAProxy without the instances that they know.
    rotations(&peers, report)
}

/// Measures what clients notice of restarts alone.
pub fn rotations_alone(programs: &Path, report: &mut Report) -> anyhow::Result<()> {
    rotations(&Peers::start(TOGETHER, programs)?, report)
}

/// Restarts a service again and again under load, and compares the latency with that of a steady
/// service.
fn rotations(peers: &Peers, report: &mut Report) -> anyhow::Result<()> {
    let [smoothserve, ..] = &peers.peers[..] else {
        unreachable!("there are three proxies");
    };
    let (cores, port) = (peers.cores.others, smoothserve.ports.tcp);
    let mut rounds = Vec::new();
    let (mut errors, mut restarts) = (0, 0);
    for _ in 0..Load::Moderate.rounds() {
        let (steady, _) = Load::Moderate.run(peers, port)?;
        let load = Moderate::start(cores, port, THOUGHTFUL);
        let begin = Instant::now();
        let mut count = 0;
        while begin.elapsed() < MODERATE_TIME {
            peers.smoothctl(&["restart", "tcp"])?;
            count += 1;
        }
        let (rotating, _) = load.stop()?;
        let load = Moderate::start(cores, port, THOUGHTFUL);
        start_and_end(peers, count)?;
        let (control, _) = load.stop()?;
        rounds.push([steady, rotating, control].map(|outcome| outcome.p99));
        errors += rotating.errors + steady.errors + control.errors;
        restarts += count;
    }
    let ratio = |which: usize, to: usize| {
        median(
            rounds
                .iter()
                .map(|round| round[which] / round[to])
                .collect(),
        )
    };
    let p99 = |which: usize| median(rounds.iter().map(|round| round[which]).collect());
    report.absolutes();
    let gate = Gate::new(1.3, 1.1);
    report.ratio("p99 during rotations / steady p99", ratio(1, 0), Some(gate));
    report.ratio("p99 with bare processes / steady p99", ratio(2, 0), None);
    report.ratio(
        "p99 during rotations / p99 with bare processes",
        ratio(1, 2),
        None,
    );
    report.note(&format!(
        "{restarts} restarts of all {INSTANCES} instances, one after the other, under the moderate load: {errors} errors. Bare \
         processes show the cost of starting processes alone on a machine of two cores: while nothing restarts, as many \
         processes start and end, which get no requests. p99 was {:.0} µs in the steady state, {:.0} µs during rotations, and \
         {:.0} µs with bare processes.",
        p99(0),
        p99(1),
        p99(2)
    ));
    Ok(())
}

/// Starts and ends as many processes as this number of restarts, evenly over the time of a round,
/// without smoothserve.
fn start_and_end(peers: &Peers, restarts: u32) -> anyhow::Result<()> {
    let begin = Instant::now();
    let count = restarts * u32::try_from(INSTANCES)?;
    let mut before = None;
    for number in 0..count {
        // One process runs while the next one starts, as in a rotation.
        let next = peers.start_stranger(number)?;
        drop(before.replace(next));
        thread::sleep((MODERATE_TIME * number / count).saturating_sub(begin.elapsed()));
    }
    Ok(())
}
