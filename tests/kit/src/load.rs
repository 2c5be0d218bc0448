//! Load that proves that no request was lost.
//!
//! Each connection is a task that sends one request after the other, picked at random from a
//! [`Mix`], with random pauses, and checks every byte of the response: the status, the length, the
//! body, the name of the request (so that a response to another request is noticed), and the end of
//! the connection where the request asked for it.
//!
//! A request is lost if anything but the right response comes: a refused or broken connection, a
//! truncated response, another status, a wrong byte, no end within the limit. The client tolerates
//! two things: a response with `Connection: close`, after which the client reconnects, and the same
//! between two pipelined requests, after which the client sends the second again (RFC 9112, section
//! 9.6). It does not tolerate that the server closes an idle connection, because the client may be
//! sending the next request at that moment.

mod http2;
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

use http2::Http2Client;
pub use report::{Lost, Phase, Report, Seen};

/// The server and the requests of a load.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address of the server.
    pub address: SocketAddr,
    /// The `Host` of all requests.
    pub host: String,
    /// True: the connections speak HTTP/2, and each carries several requests at a time. A
    /// pipelined request is one of these.
    pub http2: bool,
    /// The number of connections.
    pub connections: usize,
    /// The average pause between two requests of a connection, which bounds the rate.
    pub pause: Duration,
    /// The share of each kind of request.
    pub mix: Mix,
    /// The length of a download, in bytes.
    pub download: u64,
    /// The length of an upload, in bytes.
    pub upload: u64,
    /// The time that a slow response takes, in milliseconds.
    pub slow: Range<u64>,
    /// The time after which a request without an end is lost.
    pub limit: Duration,
}

impl Options {
    /// Returns options for 32 connections with the mix of [`Mix::default`], downloads of 20 MiB and
    /// uploads of 5 MiB.
    pub fn new(address: SocketAddr) -> Options {
        Options {
            address,
            host: "shop.example".to_owned(),
            http2: false,
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

/// The relative frequency of each kind of request.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// `GET` of a few bytes.
    pub small: u32,
    /// `GET` whose response comes after a while, see [`Options::slow`].
    pub slow: u32,
    /// `GET` of many bytes.
    pub download: u32,
    /// `POST` of many bytes, whose response is their checksum.
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
    /// Returns a mix of small `GET`s alone.
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
    /// `GET` whose response comes after a while, see [`Options::slow`].
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
    /// Returns true if a proxy may send such a request a second time.
    pub fn idempotent(self) -> bool {
        self != Kind::Upload
    }
}

/// The counters of a running load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The number of requests that have ended, lost ones included.
    pub requests: u64,
    /// The number of lost requests.
    pub lost: u64,
    /// The number of requests that were sent and have not ended.
    pub in_flight: u64,
}

/// A running load.
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
    /// Starts a load on the current runtime, in a phase named `start`.
    pub fn start(options: Options) -> Load {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            report: Mutex::new(Report::new()),
            options,
        });
        let mut tasks = JoinSet::new();
        for number in 0..shared.options.connections {
            let shared = shared.clone();
            match shared.options.http2 {
                true => tasks.spawn(Http2Client::new(number, shared).run()),
                false => tasks.spawn(Client::new(number, shared).run()),
            };
        }
        Load { shared, tasks }
    }

    /// Begins a new phase, which counts the requests that are sent from now on.
    pub fn phase(&self, name: &str) {
        self.shared.report().begin(name);
    }

    /// Returns the counters of the load.
    pub fn counts(&self) -> Counts {
        let report = self.shared.report();
        Counts {
            requests: report.requests(),
            lost: report.lost.len() as u64,
            in_flight: self.shared.in_flight.load(Ordering::Relaxed),
        }
    }

    /// Returns the report up to now.
    pub fn so_far(&self) -> Report {
        self.shared.report().clone()
    }

    /// Waits until this many more requests have ended, lost ones included.
    pub async fn go_on(&self, requests: u64) {
        let goal = self.counts().requests + requests;
        while self.counts().requests < goal {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a response of this version has arrived.
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

    /// Begins no more requests, waits for the open ones, and returns the report.
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
        self.report().lose(phase, lost);
    }
}

/// The task of one connection of the load.
struct Client {
    shared: Arc<Shared>,
    maker: Maker,
    connection: Option<Connection>,
}

impl Client {
    fn new(number: usize, shared: Arc<Shared>) -> Client {
        Client {
            shared,
            maker: Maker::new(number),
            connection: None,
        }
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let options = &self.shared.options;
            sleep(self.maker.pause(options)).await;
            let kind = self.maker.pick(options);
            self.turn(kind).await;
        }
    }

    async fn turn(&mut self, kind: Kind) {
        let options = &self.shared.options;
        let count = if kind == Kind::Pipelined { 2 } else { 1 };
        let orders = (0..count).map(|_| self.maker.order(options, kind));
        let orders: Vec<Order> = orders.collect();
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

    /// Sends requests on a connection, and returns the connection if another request may follow.
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
                        self.shared.lose(phase, order, started, false, &fault);
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
                        self.shared.lose(phase, order, started, reused, &fault);
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
}

/// Makes the requests of one connection, at random.
struct Maker {
    number: usize,
    random: fastrand::Rng,
    made: u64,
}

impl Maker {
    fn new(number: usize) -> Maker {
        Maker {
            number,
            random: fastrand::Rng::with_seed(number as u64),
            made: 0,
        }
    }

    fn pause(&mut self, options: &Options) -> Duration {
        options.pause.mul_f64(2.0 * self.random.f64())
    }

    fn pick(&mut self, options: &Options) -> Kind {
        options.mix.pick(&mut self.random)
    }

    fn order(&mut self, options: &Options, kind: Kind) -> Order {
        self.made += 1;
        let name = format!("{}.{}", self.number, self.made);
        let seed = self.random.u64(..);
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
            // A slow first response is overtaken by the second if a proxy mixes up the two of a
            // pair.
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
            request: request.header("x-load-name", &name),
            name,
            right: answer,
        }
    }
}

/// A request and the right response to it.
struct Order {
    kind: Kind,
    name: String,
    request: Request,
    right: Right,
}

/// The body of the right response.
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
        let name = head.header("x-load-name").unwrap_or_default();
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
