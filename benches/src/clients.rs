//! Clients of a moderate load: each sends a request every 2 to 6 ms, no matter how fast the proxy
//! answers.
//!
//! Other clients of this module send the next request as soon as they have an answer, or messages
//! through a tunnel.
//!
//! All proxies get the same load, drawn from the same seed. When an answer comes after the time of
//! its client's next request, that request is sent late, and the delay counts as part of its
//! latency. One thread serves all clients. It measures its own CPU time and how late it sends,
//! which shows how much of a figure is due to the clients.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::setpriority_process;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::configs::HOST;
use crate::load::Outcome;
use crate::process::stay_on;

/// The time between two requests of a client of the moderate load, in microseconds.
const EVERY: Range<u64> = 2000..6000;

/// The time between two requests of a client that sends at once, in microseconds.
pub const AT_ONCE: Range<u64> = 0..1;

/// The longest time to wait for an answer.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// The number of the timer among the events; connections are numbered from 0.
const TIMER: u64 = u64::MAX;

/// What the clients themselves cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Own {
    /// The clients' CPU time, as a share of one core.
    pub busy: f64,
    /// The 99th percentile of how late requests were sent, in microseconds.
    pub late: f64,
}

/// A moderate load, in a thread of its own.
#[derive(Debug)]
pub struct Moderate {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<(Outcome, Own)>>,
}

impl Moderate {
    /// Starts the load on these cores.
    pub fn start(cores: &'static [usize], port: u16, connections: usize) -> Moderate {
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let thread = thread::spawn(move || {
            stay_on(cores)?;
            // Real clients do not compete with the proxy for its cores. Only root may raise the
            // priority.
            let _ = setpriority_process(None, -20);
            Clients::connect(port, connections, Talk::Http)?
                .ask(EVERY, |_| stop.load(Ordering::Relaxed))
        });
        Moderate { enough, thread }
    }

    /// Ends the load, and returns its outcome.
    pub fn stop(self) -> anyhow::Result<(Outcome, Own)> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load does not panic")
    }
}

/// What the clients send on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// HTTP requests.
    Http,
    /// Messages of 64 bytes, masked as those of WebSocket clients are, which come back unchanged.
    Echo,
}

impl Talk {
    fn request(self) -> Vec<u8> {
        match self {
            Talk::Http => format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes(),
            Talk::Echo => [&[0x82, 0x80 | 64, 0, 0, 0, 0][..], &[b'x'; 64]].concat(),
        }
    }

    fn is_answer(self, answer: &[u8]) -> bool {
        match self {
            Talk::Http => {
                answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\nxxxxxx")
            }
            Talk::Echo => answer == self.request(),
        }
    }
}

/// Sends messages through tunnels for this time, on these cores.
pub fn echo(
    cores: &'static [usize],
    port: u16,
    connections: usize,
    time: Duration,
) -> anyhow::Result<Outcome> {
    let clients = thread::spawn(move || {
        stay_on(cores)?;
        let begin = Instant::now();
        Clients::connect(port, connections, Talk::Echo)?.ask(AT_ONCE, |_| begin.elapsed() > time)
    });
    let (outcome, _) = clients.join().expect("the clients do not panic")?;
    Ok(outcome)
}

/// Clients on connections that stay open.
#[derive(Debug)]
pub struct Clients {
    port: u16,
    talk: Talk,
    request: Vec<u8>,
    epoll: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// When the request was due.
    due: Instant,
    /// When the latency of the request begins.
    begin: Instant,
    /// When the last answer came; `None` while one is awaited.
    answered: Option<Instant>,
}

impl Clients {
    /// Opens the connections.
    pub fn connect(port: u16, connections: usize, talk: Talk) -> anyhow::Result<Clients> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        // The timer is edge-triggered, so it need not be read.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), flags)?;
        let mut clients = Clients {
            port,
            talk,
            request: talk.request(),
            epoll,
            timer,
            connections: Vec::new(),
        };
        let now = Instant::now();
        for index in 0..connections {
            let stream = clients.open(index)?;
            clients.connections.push(Connection {
                stream,
                due: now,
                begin: now,
                answered: Some(now),
            });
        }
        Ok(clients)
    }

    fn open(&self, index: usize) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        if self.talk == Talk::Echo {
            open_tunnel(&mut stream)?;
        }
        stream.set_nonblocking(true)?;
        let data = EventData::new_u64(u64::try_from(index)?);
        epoll::add(&self.epoll, &stream, data, EventFlags::IN)?;
        Ok(stream)
    }

    /// Lets each client send a request this many microseconds after its last one, or as soon as it
    /// has the answer if that comes later. Once enough requests were sent, waits for the last
    /// answers.
    pub fn ask(
        &mut self,
        every: Range<u64>,
        mut enough: impl FnMut(u64) -> bool,
    ) -> anyhow::Result<(Outcome, Own)> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut pause = || Duration::from_micros(random.u64(every.clone()));
        let begin = Instant::now();
        let cpu = own_cpu_time();
        let mut latencies = Histogram::<u64>::new(3)?;
        let mut late = Histogram::<u64>::new(3)?;
        let (mut asked, mut errors) = (0, 0);
        let mut resting: BinaryHeap<_> = (0..self.connections.len())
            .map(|index| Reverse((begin + pause(), index)))
            .collect();
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        let mut alarm = None;
        loop {
            let mut next = None;
            let mut is_enough = enough(asked);
            while !is_enough && let Some(&Reverse((due, index))) = resting.peek() {
                let now = Instant::now();
                if due > now {
                    next = Some(due);
                    break;
                }
                resting.pop();
                if self.connections[index].send(&self.request, due, now) {
                    late.record(micros(now - due)?)?;
                }
                asked += 1;
                is_enough = enough(asked);
            }
            if is_enough && resting.len() == self.connections.len() {
                break;
            }
            if let Some(due) = next.filter(|_| next != alarm) {
                self.wake_at(due)?;
                alarm = next;
            }
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&PATIENCE))?;
            let now = Instant::now();
            ensure!(!events.is_empty(), "no answer came in time");
            for event in events.drain(..).filter(|event| event.data.u64() != TIMER) {
                let index = usize::try_from(event.data.u64())?;
                let connection = &mut self.connections[index];
                let was_resting = connection.answered.replace(now).is_some();
                match connection.receive(self.talk) {
                    Ok(()) => latencies.record(micros(now - connection.begin)?)?,
                    Err(error) => {
                        eprintln!("{error:#}");
                        errors += 1;
                        self.connections[index].stream = self.open(index)?;
                    }
                }
                if !was_resting {
                    resting.push(Reverse((self.connections[index].due + pause(), index)));
                }
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        let outcome = Outcome {
            requests: latencies.len(),
            seconds,
            p50: latencies.value_at_quantile(0.5) as f64,
            p99: latencies.value_at_quantile(0.99) as f64,
            errors,
        };
        let own = Own {
            busy: (own_cpu_time() - cpu).as_secs_f64() / seconds,
            late: late.value_at_quantile(0.99) as f64,
        };
        Ok((outcome, own))
    }

    fn wake_at(&self, due: Instant) -> anyhow::Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        let alarm = Itimerspec {
            it_interval: Timespec::default(),
            // A zero time would disarm the timer.
            it_value: Timespec::try_from(left.max(Duration::from_nanos(1)))?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &alarm)?;
        Ok(())
    }
}

impl Connection {
    /// Sends a request, and returns true if the connection was free when the request was due.
    fn send(&mut self, request: &[u8], due: Instant, now: Instant) -> bool {
        let was_free = self.answered.take().is_none_or(|answered| answered <= due);
        self.due = due;
        self.begin = if was_free { now } else { due };
        // A broken connection becomes readable, and the error is noticed there.
        let _ = self.stream.write_all(request);
        was_free
    }

    fn receive(&mut self, talk: Talk) -> anyhow::Result<()> {
        let mut answer = [0; 4096];
        // The answer is so small that it comes in one piece.
        let count = self.stream.read(&mut answer)?;
        let answer = &answer[..count];
        ensure!(
            talk.is_answer(answer),
            "an unexpected answer: {:?}",
            String::from_utf8_lossy(answer)
        );
        Ok(())
    }
}

/// Switches a connection to WebSocket.
fn open_tunnel(stream: &mut TcpStream) -> anyhow::Result<()> {
    let request = format!(
        "GET /echo HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer)?;
    let answer = &answer[..count];
    ensure!(
        answer.starts_with(b"HTTP/1.1 101 ") && answer.ends_with(b"\r\n\r\n"),
        "no tunnel: {}",
        answer.escape_ascii()
    );
    Ok(())
}

fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("CPU time is not negative")
}

fn micros(duration: Duration) -> anyhow::Result<u64> {
    Ok(u64::try_from(duration.as_micros())?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Starts a server that answers each request on each connection, but closes the first
    /// connection at its first request.
    fn server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).is_ok_and(|count| count > 0) && number > 0 {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nxxxxxx";
                        stream.write_all(answer).unwrap();
                    }
                });
            }
        });
        port
    }

    #[test]
    fn clients_send_the_wanted_number_of_requests_and_count_failed_ones() {
        let mut clients = Clients::connect(server(), 3, Talk::Http).unwrap();
        let (outcome, own) = clients.ask(AT_ONCE, |asked| asked >= 100).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (99, 1));
        assert!(own.busy > 0.0, "{own:?}");
        // The broken connection was replaced.
        let (outcome, _) = clients.ask(AT_ONCE, |asked| asked >= 100).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (100, 0));
    }

    #[test]
    fn a_client_does_not_send_before_its_request_is_due() {
        let mut clients = Clients::connect(server(), 2, Talk::Http).unwrap();
        let (outcome, _) = clients.ask(5000..5001, |asked| asked >= 10).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (9, 1));
        assert!(outcome.seconds >= 0.025, "{outcome:?}");
    }
}
