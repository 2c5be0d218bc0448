//! Asks endpoints whether they are ready, and later whether they are healthy.
//!
//! # Theory of operation
//! The control thread runs one task for each endpoint that is probing or active. A probing endpoint
//! is asked until it answers once. An active endpoint is asked regularly, and [`Health`] decides
//! from the answers whether it is in or out. If a rollout depends on that, the endpoint is asked
//! more often. Another [`HealthCheck`] begins with a new task, which asks at once if it is to
//! report. A draining endpoint is never asked: when a table marks it draining, its task and the
//! connection of its task end before the data threads see that table. So a probe can neither make
//! the endpoint ready again nor keep it from becoming idle.
//!
//! Probes have descriptors of their own, which bound how many run at a time. A probe that has to
//! wait for its turn is late, but has not failed. If the system itself has no descriptor or memory
//! for a probe, that says nothing about the health of an endpoint.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::ipc::{EndpointId, EndpointState, HealthCheck, Probe, Protocol};
use crate::proxy::net::h2c_stream::InstanceConnection;
use crate::proxy::net::socket::{Socket, is_own_lack};
use crate::proxy::net::stream::Stream;
use crate::proxy::shared::spec::EndpointSpec;
use crate::proxy::shared::table::Table;

/// The pause before the first probe of a new endpoint. The pause doubles after each probe.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two probes of a new endpoint.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How often an active endpoint is asked.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// How often an active endpoint is asked while a rollout depends on its health.
const CLOSE_INTERVAL: Duration = Duration::from_millis(500);

/// How many failures in a row take an endpoint out.
const FAILURES_OUT: u32 = 3;

/// How many successes in a row put an endpoint back in.
const SUCCESSES_IN: u32 = 2;

/// How many bytes of a response are read to find its status line.
const LONGEST_STATUS_LINE: usize = 4096;

/// How many bytes of the rest of a response are read, so that the instance does not see its
/// connection reset.
const MOST_DRAINED: usize = 64 << 10;

/// How long the rest of a response is read.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// What probing found out about an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A probing endpoint has answered.
    Ready,
    /// A probing endpoint has not answered; the text tells a person why.
    NotReady(String),
    /// An active endpoint has failed too often in a row; the text tells a person how it failed
    /// last.
    Out(String),
    /// An endpoint that was out has answered often enough in a row, or the first decision about an
    /// endpoint is that it is in, and was to be reported.
    In,
}

impl Finding {
    /// Returns the state that the endpoint must still be in; otherwise the finding is outdated.
    pub(crate) fn concerns(&self) -> EndpointState {
        match self {
            Finding::Ready | Finding::NotReady(_) => EndpointState::Probing,
            Finding::Out(_) | Finding::In => EndpointState::Active,
        }
    }
}

/// The running probes.
pub(crate) struct Probers {
    tasks: HashMap<EndpointId, Prober>,
    findings: mpsc::UnboundedSender<(EndpointId, Finding)>,
    /// A permit for each probe that may run at the same time.
    turns: Rc<Semaphore>,
}

struct Prober {
    state: EndpointState,
    check: HealthCheck,
    task: JoinHandle<()>,
}

impl Probers {
    /// Makes a set without probes, of which `most` may run at the same time. Each probe sends what
    /// it finds to `findings`, and runs on the caller's `LocalRuntime`.
    pub(crate) fn new(
        findings: mpsc::UnboundedSender<(EndpointId, Finding)>,
        most: u32,
    ) -> Probers {
        Probers {
            tasks: HashMap::new(),
            findings,
            turns: Rc::new(Semaphore::new(most as usize)),
        }
    }

    /// Starts the probes that `table` needs, and stops all others; `before` is the table that was
    /// followed last. When this returns, the stopped probes have ended.
    pub(crate) async fn follow(&mut self, before: &Table, table: &Table) {
        let difference = table.difference_from(before);
        let mut unwanted = Vec::new();
        let before = difference.before.iter();
        for (spec, _) in before.flat_map(|service| &service.endpoints) {
            if let Entry::Occupied(known) = self.tasks.entry(spec.id)
                && (table.state(spec.id), table.check(spec.id))
                    != (Some(known.get().state), known.get().check)
            {
                let prober = known.remove();
                prober.task.abort();
                unwanted.push(prober);
            }
        }
        for prober in unwanted {
            // The task was aborted, or had ended already.
            let _ = prober.task.await;
        }
        let now = difference.now.iter();
        let now = now.flat_map(|(_, service)| &service.endpoints);
        for (spec, state) in now.filter(|(_, state)| *state < EndpointState::Draining) {
            let check = table.check(spec.id);
            let (findings, turns) = (&self.findings, &self.turns);
            self.tasks.entry(spec.id).or_insert_with(|| Prober {
                state: *state,
                check,
                task: spawn(
                    spec.clone(),
                    (*state, check),
                    findings.clone(),
                    turns.clone(),
                ),
            });
        }
    }
}

fn spawn(
    spec: Arc<EndpointSpec>,
    (state, check): (EndpointState, HealthCheck),
    findings: mpsc::UnboundedSender<(EndpointId, Finding)>,
    turns: Rc<Semaphore>,
) -> JoinHandle<()> {
    match state {
        EndpointState::Probing => tokio::task::spawn_local(await_readiness(spec, findings, turns)),
        EndpointState::Active | EndpointState::Draining | EndpointState::Cut => {
            tokio::task::spawn_local(watch_health(spec, check, findings, turns))
        }
    }
}

async fn await_readiness(
    spec: Arc<EndpointSpec>,
    findings: mpsc::UnboundedSender<(EndpointId, Finding)>,
    turns: Rc<Semaphore>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
        let (finding, last) = match probe_in_turn(&spec, &turns).await {
            Ok(()) => (Finding::Ready, true),
            Err(fault) => (Finding::NotReady(fault.text), false),
        };
        if findings.send((spec.id, finding)).is_err() || last {
            return;
        }
    }
}

async fn watch_health(
    spec: Arc<EndpointSpec>,
    check: HealthCheck,
    findings: mpsc::UnboundedSender<(EndpointId, Finding)>,
    turns: Rc<Semaphore>,
) {
    let (first, interval) = match check {
        HealthCheck::Steady => (spread(spec.id), HEALTH_INTERVAL),
        HealthCheck::Close | HealthCheck::Report => (Duration::ZERO, CLOSE_INTERVAL),
    };
    let mut ticks = interval_at(Instant::now() + first, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut health = Health::new(spec.is_out(), check);
    loop {
        ticks.tick().await;
        let answer = match probe_in_turn(&spec, &turns).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_own => continue,
            Err(fault) => Err(fault.text),
        };
        if let Some(finding) = health.observe(answer) {
            spec.set_out(health.out);
            if findings.send((spec.id, finding)).is_err() {
                return;
            }
        }
    }
}

/// Returns a moment within the interval, so that many endpoints are not all probed at the same
/// time.
fn spread(id: EndpointId) -> Duration {
    let part = (id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32;
    HEALTH_INTERVAL.mul_f64(f64::from(part) / f64::from(u32::MAX))
}

/// Counts the answers of an active endpoint, and decides whether the endpoint is in or out.
#[derive(Debug)]
struct Health {
    out: bool,
    /// How many answers in a row have contradicted the present decision.
    contrary: u32,
    /// Whether the next decision is to be reported even if it confirms the present one.
    reports: bool,
}

impl Health {
    /// Begins with the decision of an earlier check.
    fn new(out: bool, check: HealthCheck) -> Health {
        Health {
            out,
            contrary: 0,
            reports: check == HealthCheck::Report,
        }
    }

    /// Counts an answer. Returns a finding if there is a decision to report.
    fn observe(&mut self, answer: Result<(), String>) -> Option<Finding> {
        if answer.is_err() == self.out {
            self.contrary = 0;
            if !self.reports {
                return None;
            }
        } else {
            self.contrary += 1;
            let enough = if self.out { SUCCESSES_IN } else { FAILURES_OUT };
            if self.contrary < enough {
                return None;
            }
            self.contrary = 0;
            self.out = !self.out;
        }
        self.reports = false;
        Some(match answer {
            Ok(()) => Finding::In,
            Err(fault) => Finding::Out(fault),
        })
    }
}

/// Why a probe has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProbeFault {
    /// What is wrong, for a person.
    text: String,
    /// True if this machine or process lacks something, which says nothing about the endpoint.
    is_own: bool,
}

impl From<String> for ProbeFault {
    fn from(text: String) -> ProbeFault {
        ProbeFault {
            text,
            is_own: false,
        }
    }
}

/// Probes an endpoint once, as soon as few enough others are probed.
async fn probe_in_turn(spec: &EndpointSpec, turns: &Semaphore) -> Result<(), ProbeFault> {
    // The semaphore is never closed.
    let _turn = turns.acquire().await;
    probe(spec).await
}

/// Probes an endpoint once.
async fn probe(spec: &EndpointSpec) -> Result<(), ProbeFault> {
    let EndpointSpec { address, probe, .. } = spec;
    match timeout(PROBE_LIMIT, ask(spec)).await {
        Ok(answer) => answer,
        Err(_) => Err(ProbeFault::from(match probe {
            Probe::Connect => format!("connect to {address}: no answer within {PROBE_LIMIT:?}"),
            Probe::Http(path) => {
                let path = without_query(path);
                format!("GET {path}: no answer within {PROBE_LIMIT:?}")
            }
        })),
    }
}

async fn ask(spec: &EndpointSpec) -> Result<(), ProbeFault> {
    let address = &spec.address;
    let socket = Socket::connect(address).await.map_err(|error| ProbeFault {
        text: format!("connect to {address}: {}", in_words(&error)),
        is_own: is_own_lack(&error),
    })?;
    match &spec.probe {
        Probe::Connect => Ok(()),
        Probe::Http(path) => get(socket, spec.protocol, path)
            .await
            .map_err(|fault| format!("GET {}: {fault}", without_query(path)).into()),
    }
}

/// Returns the path of a probe as findings show it. Everybody may read findings, and a query may
/// contain a secret.
fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

async fn get(socket: Socket, protocol: Protocol, path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("not a path".to_owned());
    }
    let mut stream = match protocol {
        Protocol::Http1 => Stream::from(socket),
        Protocol::H2c => {
            let connection = InstanceConnection::open(socket).await;
            let connection = connection.map_err(|error| in_words(&error))?;
            connection.request().into()
        }
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: smoothserve-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| in_words(&error))?;
    let status = read_status(&mut stream).await?;
    let _ = timeout(DRAIN_LIMIT, drain(&mut stream)).await;
    match status {
        200..=399 => Ok(()),
        _ => Err(format!("status {status}")),
    }
}

async fn read_status(stream: &mut Stream) -> Result<u16, String> {
    let mut answer = Vec::new();
    loop {
        if stream
            .read_buf(&mut answer)
            .await
            .map_err(|error| in_words(&error))?
            == 0
        {
            return Err("the connection was closed without an answer".to_owned());
        }
        let mut response = httparse::Response::new(&mut []);
        let parsed = response.parse(&answer);
        if let Some(status) = response.code {
            return Ok(status);
        }
        if parsed.is_err() || answer.len() >= LONGEST_STATUS_LINE {
            return Err("the answer is not HTTP".to_owned());
        }
    }
}

async fn drain(stream: &mut Stream) {
    let mut scratch = vec![0; 8 << 10];
    let mut drained = 0;
    while drained < MOST_DRAINED {
        match stream.read(&mut scratch).await {
            Ok(count) if count > 0 => drained += count,
            _ => return,
        }
    }
}

/// Writes an error for a person: without the number of the error, and in lower case, as in
/// `connection refused`.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::ipc::Address;

    async fn asked(address: &Address, how: &Probe) -> Result<(), String> {
        let spec = EndpointSpec::new(EndpointId(1), address.clone(), how.clone(), 1);
        probe(&spec).await.map_err(|fault| fault.text)
    }

    /// Sends `answer` on every connection, and keeps the connection open if `keep_open` is true.
    async fn serve(listener: TcpListener, answer: &'static str, keep_open: bool) {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).await.unwrap();
            let request = std::str::from_utf8(&request[..count]).unwrap();
            assert!(request.starts_with("GET /health HTTP/1.1\r\nHost: localhost\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
            if keep_open {
                open.push(stream);
            }
        }
    }

    async fn ask_http(answer: &'static str, keep_open: bool) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let wanted = Probe::Http("/health".to_owned());
        tokio::select! {
            () = serve(listener, answer, keep_open) => unreachable!(),
            result = asked(&address, &wanted) => result,
        }
    }

    #[tokio::test]
    async fn a_status_from_200_to_399_is_an_answer() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(ask_http(ok, false).await, Ok(()));
        assert_eq!(ask_http("HTTP/1.0 302 Found\r\n\r\n", false).await, Ok(()));
        assert_eq!(
            ask_http("HTTP/1.1 204 \r\n", true).await,
            Ok(()),
            "whether or not the rest comes"
        );
    }

    #[tokio::test]
    async fn everything_else_is_named() {
        for (answer, fault) in [
            ("HTTP/1.1 503 Busy\r\n\r\n", "GET /health: status 503"),
            ("HTTP/1.1 404 \r\n\r\n", "GET /health: status 404"),
            ("+OK hello\r\n", "GET /health: the answer is not HTTP"),
            (
                "",
                "GET /health: the connection was closed without an answer",
            ),
        ] {
            assert_eq!(ask_http(answer, false).await, Err(fault.to_owned()));
        }
    }

    #[tokio::test]
    async fn nobody_there_is_named() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let result = asked(&Address::Tcp(address), &Probe::Connect).await;
        let fault = format!("connect to {address}: connection refused");
        assert_eq!(result, Err(fault));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let address = Address::Unix(path);
        assert_eq!(asked(&address, &Probe::Connect).await, Ok(()));
        assert_eq!(
            asked(&address, &Probe::Http("/".to_owned())).await,
            Err("GET /: no answer within 2s".to_owned())
        );
    }

    #[tokio::test]
    async fn a_path_cannot_smuggle_a_header() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let smuggled = Probe::Http("/ HTTP/1.1\r\nX: y".to_owned());
        assert!(asked(&Address::Unix(path), &smuggled).await.is_err());
    }

    #[test]
    fn three_failures_out_two_successes_in() {
        let mut health = Health::new(false, HealthCheck::Close);
        let mut observe = |answers: &[bool]| -> Vec<Option<Finding>> {
            let answers = answers.iter();
            answers
                .map(|&ok| health.observe(if ok { Ok(()) } else { Err("why".to_owned()) }))
                .collect()
        };
        assert_eq!(
            observe(&[false, false, true, false, false]),
            [const { None }; 5]
        );
        let out = Finding::Out("why".to_owned());
        assert_eq!(observe(&[false, false, true]), [Some(out), None, None]);
        assert_eq!(observe(&[false, true]), [None, None]);
        assert_eq!(observe(&[true, false]), [Some(Finding::In), None]);
    }

    #[test]
    fn a_check_that_reports_tells_its_first_decision() {
        let observe = |mut health: Health, answers: &[bool]| -> Vec<Option<Finding>> {
            let answers = answers.iter();
            answers
                .map(|&ok| health.observe(if ok { Ok(()) } else { Err("why".to_owned()) }))
                .collect()
        };
        let fresh = || Health::new(false, HealthCheck::Report);
        let out = Some(Finding::Out("why".to_owned()));
        assert_eq!(observe(fresh(), &[true, true]), [Some(Finding::In), None]);
        // One late answer, or two, are no decision.
        let late = [false, false, true];
        assert_eq!(observe(fresh(), &late), [None, None, Some(Finding::In)]);
        assert_eq!(observe(fresh(), &[false; 3]), [None, None, out.clone()]);
        let was_out = Health::new(true, HealthCheck::Report);
        assert_eq!(observe(was_out, &[true, false, false])[..2], [None, out]);
    }

    #[test]
    fn checks_are_spread_over_the_interval() {
        let spreads: Vec<Duration> = (0..100).map(|id| spread(EndpointId(id))).collect();
        assert!(spreads.iter().all(|spread| *spread <= HEALTH_INTERVAL));
        let early = spreads
            .iter()
            .filter(|spread| **spread < HEALTH_INTERVAL / 2);
        assert!((30..70).contains(&early.count()));
    }
}
