//! Clients that have nothing to do with an attack, and have to be served meanwhile.
//!
//! A bystander sends one small request after the other at a fixed pace, from threads of its own, so
//! that the attackers, which are tasks of the test, do not hold it up. A request waits from the
//! moment at which it was due: if the server stands still, this counts for every request that was
//! due meanwhile. Each answer has to be the right one, byte for byte; otherwise the test fails.
//!
//! What the bystanders of a test have waited is printed at its end. How long that may be depends on
//! the machine, so a test fails because of it only if [`MOST`] says how long.

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::PATIENCE;
use crate::bus::Bus;
use crate::client::{Connection, Request};

/// The time from one request of a client to the proxy to its next one.
const PACE_OF_SHOP: Duration = Duration::from_millis(20);

/// The time from one call of the manager to the next: more calls than anybody needs would be a
/// flood of their own.
const PACE_OF_MANAGER: Duration = Duration::from_millis(50);

/// The address of the bystanders, which no attacker has.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 1, 0, 1));

/// How many answers show that a client is served.
const SOME: u64 = 10;

/// The environment variable with the longest wait that 99 of 100 requests may have, in
/// milliseconds.
const MOST: &str = "SMOOTHSERVE_ATTACK_P99_MS";

/// The environment variable that names a file to which the waits of all bystanders are added.
const REPORT: &str = "SMOOTHSERVE_ATTACK_REPORT";

/// Clients beside an attack, of one kind.
#[derive(Debug)]
pub struct Bystander {
    what: &'static str,
    stop: Arc<AtomicBool>,
    askers: Vec<Asker>,
}

/// One of the clients.
#[derive(Debug)]
struct Asker {
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Histogram<u64>>,
}

impl Bystander {
    /// Begins to ask the example service through the proxy at this address: one client over a
    /// connection that it keeps, another one over a new connection for each request.
    pub fn of_shop(address: SocketAddr, host: &str) -> Bystander {
        let asked = [Some(None), None].map(|kept| Asked::Shop {
            address,
            host: host.to_owned(),
            kept,
        });
        Bystander::start("proxy", PACE_OF_SHOP, asked)
    }

    /// Begins to ask a manager with a service named `shop`, over its control socket at this path.
    pub fn of_manager(socket: &Path) -> Bystander {
        let socket = socket.to_owned();
        Bystander::start(
            "manager",
            PACE_OF_MANAGER,
            [Asked::Manager { socket, bus: None }],
        )
    }

    fn start(
        what: &'static str,
        pace: Duration,
        asked: impl IntoIterator<Item = Asked>,
    ) -> Bystander {
        let stop = Arc::<AtomicBool>::default();
        let asker = |asked| Asker::start(pace, asked, stop.clone());
        Bystander {
            what,
            askers: asked.into_iter().map(asker).collect(),
            stop,
        }
    }

    /// Waits until each client has got some more answers.
    pub async fn is_served(&mut self) {
        let count = |asker: &Asker| asker.answered.load(Ordering::Relaxed);
        let goals: Vec<u64> = self
            .askers
            .iter()
            .map(|asker| count(asker) + SOME)
            .collect();
        while self
            .askers
            .iter()
            .zip(&goals)
            .any(|(asker, goal)| count(asker) < *goal)
        {
            if self.askers.iter().any(|asker| asker.thread.is_finished()) {
                self.join();
                panic!("a bystander does not end by itself");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the clients, and prints what they have waited. Panics if any request got another answer
    /// than the right one, or if the requests have waited longer than they may.
    #[track_caller]
    pub fn end(mut self) {
        let waits = Waits {
            test: thread::current().name().unwrap_or_default().to_owned(),
            what: self.what,
            micros: self.join(),
        };
        waits.report();
    }

    /// Ends all of these after each has got some more answers.
    pub async fn end_served<const N: usize>(mut all: [Bystander; N]) {
        for bystander in &mut all {
            bystander.is_served().await;
        }
        all.into_iter().for_each(Bystander::end);
    }

    fn join(&mut self) -> Histogram<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut micros = no_waits();
        for asker in self.askers.drain(..) {
            let waits = asker.thread.join();
            let waits = waits.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            micros.add(waits).expect("both have the same bounds");
        }
        micros
    }
}

impl Asker {
    fn start(pace: Duration, asked: Asked, stop: Arc<AtomicBool>) -> Asker {
        let answered = Arc::<AtomicU64>::default();
        let count = answered.clone();
        let thread = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built")
                .block_on(ask_at_pace(pace, asked, &stop, &count))
        });
        Asker { answered, thread }
    }
}

fn no_waits() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are in order")
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a client asks.
enum Asked {
    Shop {
        address: SocketAddr,
        host: String,
        /// `None` if each request has a connection of its own, otherwise the connection that is
        /// kept, if there is one.
        kept: Option<Option<Connection>>,
    },
    Manager {
        socket: PathBuf,
        bus: Option<Bus>,
    },
}

impl Asked {
    async fn ask(&mut self, number: u64) -> Result<(), String> {
        match self {
            Asked::Shop {
                address,
                host,
                kept,
            } => {
                let open = async || {
                    let opened = Connection::open_from(ADDRESS, *address, host).await;
                    opened.map_err(|fault| fault.to_string())
                };
                let mut connection = match kept.as_mut().and_then(Option::take) {
                    Some(kept) => kept,
                    None => open().await?,
                };
                let closes = ask_shop(&mut connection, number).await?;
                if let Some(kept) = kept {
                    *kept = (!closes).then_some(connection);
                }
            }
            Asked::Manager { socket, bus } => {
                let asked = async {
                    let bus = match bus {
                        Some(bus) => bus,
                        None => bus.insert(Bus::open(socket).await?),
                    };
                    bus.services().await
                };
                let services = asked.await.map_err(|error| error.to_string())?;
                if !services.iter().any(|name| name == "shop") {
                    return Err(format!("the services are {services:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Sends a request with this number, and returns true if the connection ends with its answer.
async fn ask_shop(connection: &mut Connection, number: u64) -> Result<bool, String> {
    let name = number.to_string();
    let request = Request::get("/hello").header("x-load-name", &name);
    let response = connection.exchange(&request).await;
    let response = response.map_err(|fault| fault.to_string())?;
    let is_right = response.head.status == 200
        && response.head.header("x-load-name") == Some(&name)
        && response.body == b"hello\n";
    match is_right {
        true => Ok(response.head.closes()),
        false => Err(format!("{response:?}")),
    }
}

async fn ask_at_pace(
    pace: Duration,
    mut asked: Asked,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Histogram<u64> {
    let mut waits = no_waits();
    let mut pace = interval(pace);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let due: Instant = pace.tick().await;
        number += 1;
        match timeout(PATIENCE, asked.ask(number)).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => panic!("request {number} of a bystander is lost: {fault}"),
            Err(_) => panic!("request {number} of a bystander has no answer within {PATIENCE:?}"),
        }
        let wait = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        waits.saturating_record(wait);
        answered.fetch_add(1, Ordering::Relaxed);
    }
    waits
}

/// What the requests of a bystander have waited.
struct Waits {
    test: String,
    what: &'static str,
    micros: Histogram<u64>,
}

impl Waits {
    #[track_caller]
    fn report(&self) {
        println!("{self}");
        if let Some(file) = std::env::var_os(REPORT) {
            let file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(file);
            writeln!(file.expect("the report can be opened"), "{self}").expect("it can be written");
        }
        if let Ok(most) = std::env::var(MOST) {
            let most = Duration::from_millis(most.parse().expect("a number of milliseconds"));
            assert!(self.quantile(0.99) <= most, "more than {most:?}: {self}");
        }
    }

    fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.micros.value_at_quantile(share))
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |share| self.quantile(share).as_secs_f64() * 1000.0;
        write!(
            f,
            "{}: bystander of the {}: {} answers, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.test,
            self.what,
            self.micros.len(),
            milliseconds(0.5),
            milliseconds(0.99),
            milliseconds(1.0),
        )
    }
}
