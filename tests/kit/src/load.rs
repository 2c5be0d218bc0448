//! Load that proves that nothing was lost.
//!
//! Every connection is a task that sends one request after the other, picked at random from a [`Mix`], with a random
//! pause between them, and checks every byte of what comes back: the status, the length, the body, the name of the
//! request (so a response that belongs to another request is noticed), and the end of the connection where the request
//! asked for it.
//!
//! What counts as lost is anything but the right response: a refused or broken connection, a response that was cut off,
//! another status, a wrong byte, no end within the limit. There are only two things that a client has to bear: a
//! response with `Connection: close`, after which it opens a new connection, and the same between two pipelined
//! requests, where it has to send the second again (RFC 9112, section 9.6). A connection that is closed under an idle
//! client is not among them: the client may just be sending the next request.

mod report;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{Connection, Fault, Head, Request, Sink};
use crate::{Comparison, Pattern};

pub use report::{Lost, Phase, Report, Seen};

/// What is sent, to whom and how much of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: SocketAddr,
    /// The `Host` of all requests.
    pub host: String,
    /// How many connections are kept.
    pub connections: usize,
    /// The pause between two requests of a connection, on average. It is what bounds the rate.
    pub pause: Duration,
    /// Which requests.
    pub mix: Mix,
    /// The length of a download.
    pub download: u64,
    /// The length of an upload.
    pub upload: u64,
    /// How many milliseconds a slow response takes.
    pub slow: Range<u64>,
    /// After this time without an end a request is lost.
    pub limit: Duration,
}

impl Options {
    /// 32 connections with the mix of [`Mix::default`], 20 MiB a download and 5 MiB an upload.
    pub fn new(address: SocketAddr) -> Options {
        Options {
            address,
            host: "shop.example".to_owned(),
            connections: 32,
            pause: Duration::from_millis(80),
            mix: Mix::default(),
            download: 20 << 20,
            upload: 5 << 20,
            slow: 10..400,
            limit: Duration::from_secs(60),
        }
    }
}

/// The share of each kind of request.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// `GET` of a few bytes.
    pub small: u32,
    /// `GET` whose response takes its time.
    pub slow: u32,
    /// `GET` of many bytes.
    pub download: u32,
    /// `POST` of many bytes, answered with their checksum.
    pub upload: u32,
    /// A small `GET` on a connection of its own.
    pub fresh: u32,
    /// Two `GET`s in one packet.
    pub pipelined: u32,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix {
            small: 700,
            slow: 100,
            download: 6,
            upload: 14,
            fresh: 100,
            pipelined: 80,
        }
    }
}

impl Mix {
    /// Small `GET`s alone.
    pub fn small() -> Mix {
        Mix {
            small: 1,
            slow: 0,
            download: 0,
            upload: 0,
            fresh: 0,
            pipelined: 0,
        }
    }

    fn weights(self) -> [(Kind, u32); 6] {
        [
            (Kind::Small, self.small),
            (Kind::Slow, self.slow),
            (Kind::Download, self.download),
            (Kind::Upload, self.upload),
            (Kind::Fresh, self.fresh),
            (Kind::Pipelined, self.pipelined),
        ]
    }

    fn pick(self, random: &mut fastrand::Rng) -> Kind {
        let weights = self.weights();
        let sum = weights.iter().map(|(_, weight)| weight).sum();
        let mut draw = random.u32(0..sum);
        for (kind, weight) in weights {
            if draw < weight {
                return kind;
            }
            draw -= weight;
        }
        unreachable!("the draw is less than the sum of the weights")
    }
}

/// A kind of request, see [`Mix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `GET` of a few bytes.
    Small,
    /// `GET` whose response takes its time.
    Slow,
    /// `GET` of many bytes.
    Download,
    /// `POST` of many bytes.
    Upload,
    /// A small `GET` on a connection of its own.
    Fresh,
    /// One of two `GET`s in one packet.
    Pipelined,
}

impl Kind {
    /// Whether a proxy may send such a request a second time.
    pub fn idempotent(self) -> bool {
        self != Kind::Upload
    }
}

/// How the load stands at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Requests that have ended, well or not.
    pub requests: u64,
    /// Of those, the lost ones.
    pub lost: u64,
    /// Requests that were sent and have not ended.
    pub in_flight: u64,
}

/// Load that is running.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    stop: AtomicBool,
    in_flight: AtomicU64,
    report: Mutex<Report>,
}

impl Load {
    /// Starts the load on the current runtime, in a phase of the name `start`.
    pub fn start(options: Options) -> Load {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            report: Mutex::new(Report::new()),
            options,
        });
        let mut tasks = JoinSet::new();
        for number in 0..shared.options.connections {
            tasks.spawn(Client::new(number, shared.clone()).run());
        }
        Load { shared, tasks }
    }

    /// Counts what is sent from now on under another name.
    pub fn phase(&self, name: &str) {
        self.shared.report().begin(name);
    }

    /// How it stands.
    pub fn counts(&self) -> Counts {
        let report = self.shared.report();
        Counts {
            requests: report.requests(),
            lost: report.lost.len() as u64,
            in_flight: self.shared.in_flight.load(Ordering::Relaxed),
        }
    }

    /// What happened so far.
    pub fn so_far(&self) -> Report {
        self.shared.report().clone()
    }

    /// Waits until this many more requests have ended.
    pub async fn go_on(&self, requests: u64) {
        let goal = self.counts().requests + requests;
        while self.counts().requests < goal {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a response of this version has come.
    pub async fn see(&self, version: &str, limit: Duration) -> Result<(), String> {
        let seen = async {
            while !self.shared.report().versions.contains_key(version) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(limit, seen)
            .await
            .map_err(|_| format!("no response of version {version} within {limit:?}"))
    }

    /// Ends every request that was begun, and begins no more.
    pub async fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a connection of the load does not panic");
        }
        self.shared.report().clone()
    }
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report
            .lock()
            .expect("nothing panics while it holds the report")
    }
}

/// One connection of the load, and the requests on it.
struct Client {
    number: usize,
    shared: Arc<Shared>,
    random: fastrand::Rng,
    connection: Option<Connection>,
    sent: u64,
}

impl Client {
    fn new(number: usize, shared: Arc<Shared>) -> Client {
        Client {
            number,
            shared,
            random: fastrand::Rng::with_seed(number as u64),
            connection: None,
            sent: 0,
        }
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let options = &self.shared.options;
            let pause = options.pause.mul_f64(2.0 * self.random.f64());
            let kind = options.mix.pick(&mut self.random);
            sleep(pause).await;
            self.turn(kind).await;
        }
    }

    async fn turn(&mut self, kind: Kind) {
        let orders = match kind {
            Kind::Pipelined => vec![self.order(kind), self.order(kind)],
            _ => vec![self.order(kind)],
        };
        let kept = match kind {
            Kind::Fresh => None,
            _ => self.connection.take(),
        };
        let count = orders.len() as u64;
        self.shared.in_flight.fetch_add(count, Ordering::Relaxed);
        let kept = self.answered(orders, kept).await;
        self.shared.in_flight.fetch_sub(count, Ordering::Relaxed);
        if kind != Kind::Fresh {
            self.connection = kept;
        }
    }

    /// Sends requests on a connection, and gives back the connection if another request may follow.
    async fn answered(
        &self,
        orders: Vec<Order>,
        mut connection: Option<Connection>,
    ) -> Option<Connection> {
        let mut unsent = orders.as_slice();
        while !unsent.is_empty() {
            let phase = self.shared.report().phase();
            let started = Instant::now();
            let reused = connection.is_some();
            let mut open = match self.open(connection.take()).await {
                Ok(open) => open,
                Err(fault) => {
                    for order in unsent {
                        self.lose(phase, order, started, false, &fault);
                    }
                    return None;
                }
            };
            let mut answered = 0;
            let limit = self.shared.options.limit;
            let result = timeout(limit, async {
                if unsent.len() > 1 {
                    let requests: Vec<Request> =
                        unsent.iter().map(|order| order.request.clone()).collect();
                    open.pipeline(&requests).await?;
                }
                for order in unsent {
                    let head = match unsent.len() {
                        1 => open.send(&order.request).await?,
                        _ => open.head("GET").await?,
                    };
                    order.check(&mut open, &head).await?;
                    let took = started.elapsed();
                    if head.closes() {
                        open.closed().await?;
                    }
                    answered += 1;
                    let version = head.header("x-shop-version").unwrap_or_default();
                    self.shared.report().count(phase, order.kind, took, version);
                    if head.closes() {
                        return Ok(false);
                    }
                }
                Ok(true)
            })
            .await
            .unwrap_or(Err(Fault::TimedOut(limit, open.at)));
            match result {
                Ok(true) => return Some(open),
                Ok(false) => {
                    unsent = &unsent[answered..];
                    self.shared.report().reopened += u64::from(!orders[0].closes());
                }
                Err(fault) => {
                    for order in &unsent[answered..] {
                        self.lose(phase, order, started, reused, &fault);
                    }
                    return None;
                }
            }
        }
        None
    }

    async fn open(&self, kept: Option<Connection>) -> Result<Connection, Fault> {
        let options = &self.shared.options;
        match kept {
            Some(connection) => Ok(connection),
            None => timeout(
                options.limit,
                Connection::open(options.address, &options.host),
            )
            .await
            .unwrap_or(Err(Fault::TimedOut(options.limit, "connection"))),
        }
    }

    fn lose(&self, phase: usize, order: &Order, started: Instant, reused: bool, fault: &Fault) {
        let lost = Lost {
            at: SystemTime::now(),
            kind: order.kind,
            name: order.name.clone(),
            after: started.elapsed(),
            reused,
            answered: fault.answered(),
            fault: fault.to_string(),
        };
        self.shared.report().lose(phase, lost);
    }

    fn order(&mut self, kind: Kind) -> Order {
        self.sent += 1;
        let name = format!("{}.{}", self.number, self.sent);
        let seed = self.random.u64(..);
        let options = &self.shared.options;
        let (request, answer) = match kind {
            Kind::Small => (Request::get("/hello"), Right::Text("hello\n".to_owned())),
            Kind::Fresh => (
                Request::get("/hello").header("connection", "close"),
                Right::Text("hello\n".to_owned()),
            ),
            Kind::Slow => {
                let time = self.random.u64(options.slow.clone());
                let request = Request::get(format!("/slow?ms={time}"));
                (request, Right::Text("slow\n".to_owned()))
            }
            // One of a pair that is a little slow is overtaken by the other if a proxy mixes them up.
            Kind::Pipelined if self.random.bool() => {
                (Request::get("/slow?ms=5"), Right::Text("slow\n".to_owned()))
            }
            Kind::Pipelined => {
                let target = format!("/download?bytes=2000&seed={seed}");
                (
                    Request::get(target),
                    Right::Pattern(Pattern::new(seed), 2000),
                )
            }
            Kind::Download => {
                let length = options.download;
                let target = format!("/download?bytes={length}&seed={seed}");
                (
                    Request::get(target),
                    Right::Pattern(Pattern::new(seed), length),
                )
            }
            Kind::Upload => {
                let pattern = Pattern::new(seed);
                let checksum = pattern.checksum(options.upload);
                let request = Request::post("/upload", pattern, options.upload);
                (request, Right::Text(format!("{checksum}\n")))
            }
        };
        Order {
            kind,
            request: request.header("x-request-id", &name),
            name,
            right: answer,
        }
    }
}

/// A request and its right answer.
struct Order {
    kind: Kind,
    name: String,
    request: Request,
    right: Right,
}

enum Right {
    Text(String),
    Pattern(Pattern, u64),
}

impl Order {
    fn closes(&self) -> bool {
        self.kind == Kind::Fresh
    }

    async fn check(&self, connection: &mut Connection, head: &Head) -> Result<(), Fault> {
        if head.status != 200 {
            let mut sink = Sink::keep();
            connection.body(head, &mut sink).await?;
            return Err(Fault::Status {
                status: head.status,
                body: sink.text(),
            });
        }
        let name = head.header("x-request-id").unwrap_or_default();
        if name != self.name {
            return Err(Fault::Wrong(format!(
                "the response to request {name}, not to {}",
                self.name
            )));
        }
        match &self.right {
            Right::Text(text) => {
                let mut sink = Sink::keep();
                connection.body(head, &mut sink).await?;
                if sink.text() != *text {
                    return Err(Fault::Wrong(format!("{:?}, not {text:?}", sink.text())));
                }
            }
            Right::Pattern(pattern, length) => {
                let mut sink = Sink::Compare(Comparison::new(*pattern));
                connection.body(head, &mut sink).await?;
                if sink.length() != *length {
                    return Err(Fault::Wrong(format!("{} of {length} bytes", sink.length())));
                }
            }
        }
        Ok(())
    }
}
