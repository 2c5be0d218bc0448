//! Load: wrk, as fast as it gets answers, and clients that think before they ask again.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::configs::HOST;
use crate::peers::LOAD_CORE;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    /// In microseconds.
    pub p50: f64,
    pub p99: f64,
    pub errors: u64,
}

/// As wrk is told it.
#[derive(Debug, Clone, Copy)]
pub struct Wrk {
    pub connections: usize,
    pub path: &'static str,
    /// Bytes of a POST.
    pub body: usize,
    pub close: bool,
}

impl Wrk {
    /// Runs it against a port.
    pub fn run(&self, port: u16, seconds: u64) -> anyhow::Result<Outcome> {
        let script = tempfile::NamedTempFile::new()?;
        let post = match self.body {
            0 => String::new(),
            body => format!("wrk.method = 'POST'; wrk.body = string.rep('x', {body})\n"),
        };
        std::fs::write(script.path(), post)?;
        let mut command = Command::new("taskset");
        command.args(["-c", &LOAD_CORE.to_string(), "wrk", "--latency", "-t1"]);
        command.arg(format!("-c{}", self.connections));
        command.arg(format!("-d{seconds}s"));
        command.args(["-H", &format!("Host: {HOST}")]);
        if self.close {
            command.args(["-H", "Connection: close"]);
        }
        let output = command
            .arg("-s")
            .arg(script.path())
            .arg(format!("http://127.0.0.1:{port}{}", self.path))
            .output()
            .context("wrk, and taskset of util-linux, are installed by `make bench`")?;
        ensure!(output.status.success(), "{output:?}");
        understand(&String::from_utf8_lossy(&output.stdout))
    }
}

/// Reads what wrk prints.
fn understand(text: &str) -> anyhow::Result<Outcome> {
    let find = |word: &str| text.lines().find(|line| line.contains(word));
    let percentile = |word: &str| {
        let mut lines = text.lines().map(str::split_ascii_whitespace);
        let figure = lines.find_map(|mut words| (words.next()? == word).then(|| words.next())?);
        microseconds(figure.with_context(|| format!("wrk says nothing of {word}"))?)
    };
    let line = find("requests in").context("wrk counts no requests")?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let seconds = words[3].trim_end_matches(',');
    let numbers = |word: &str| -> u64 {
        let line = find(word).unwrap_or_default();
        let digits = line.split(|c: char| !c.is_ascii_digit());
        // `Non-2xx` has a digit of its own.
        let mut numbers = digits.filter_map(|number| number.parse::<u64>().ok());
        match word.starts_with("Non") {
            true => numbers.next_back().unwrap_or_default(),
            false => numbers.sum(),
        }
    };
    Ok(Outcome {
        requests: words[0].parse()?,
        seconds: microseconds(seconds)? / 1e6,
        p50: percentile("50%")?,
        p99: percentile("99%")?,
        errors: numbers("Non-2xx") + numbers("Socket errors"),
    })
}

/// `1.50ms`
fn microseconds(text: &str) -> anyhow::Result<f64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        unit => anyhow::bail!("wrk has a unit {unit:?}"),
    };
    Ok(digits.parse::<f64>()? * factor)
}

/// One request by hand, for a GET, or for a POST with a body of so many bytes. A proxy that is fast because it gives wrong
/// answers is not to be measured.
pub fn ask_once(port: u16, host: &str, path: &str, body: usize) -> anyhow::Result<()> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    let method = if body == 0 { "GET" } else { "POST" };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {body}\r\n\r\n"
    )?;
    stream.write_all(&vec![b'x'; body])?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.context("no head")? + 4);
    let wanted = path.trim_start_matches('/').parse().unwrap_or(6);
    ensure!(
        head.starts_with(b"HTTP/1.1 200 ")
            && body.len() == wanted
            && body.iter().all(|&x| x == b'x'),
        "a wrong answer of {} bytes",
        body.len()
    );
    Ok(())
}

/// Clients that each wait 2 to 6 ms after an answer, on connections that stay open.
#[derive(Debug)]
pub struct Moderate {
    enough: Arc<AtomicBool>,
    clients: JoinHandle<anyhow::Result<Outcome>>,
}

impl Moderate {
    /// Begins to ask.
    pub fn start(port: u16, connections: usize) -> Moderate {
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let clients = thread::spawn(move || ask(port, connections, &stop));
        Moderate { enough, clients }
    }

    /// What was heard until now.
    pub fn stop(self) -> anyhow::Result<Outcome> {
        self.enough.store(true, Ordering::Relaxed);
        self.clients.join().expect("it does not panic")
    }
}

fn ask(port: u16, connections: usize, enough: &Arc<AtomicBool>) -> anyhow::Result<Outcome> {
    let mut core = rustix::thread::CpuSet::new();
    core.set(LOAD_CORE);
    rustix::thread::sched_setaffinity(None, &core)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let begin = Instant::now();
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut errors = 0;
    LocalSet::new().block_on(&runtime, async {
        let mut clients = JoinSet::new();
        for _ in 0..connections {
            clients.spawn_local(client(port, enough.clone()));
        }
        while let Some(client) = clients.join_next().await {
            let (heard, failed) = client?;
            latencies.add(heard)?;
            errors += failed;
        }
        anyhow::Ok(())
    })?;
    Ok(Outcome {
        requests: latencies.len(),
        seconds: begin.elapsed().as_secs_f64(),
        p50: latencies.value_at_quantile(0.5) as f64,
        p99: latencies.value_at_quantile(0.99) as f64,
        errors,
    })
}

/// One client. A connection that breaks is an error, and is followed by another.
async fn client(port: u16, enough: Arc<AtomicBool>) -> (Histogram<u64>, u64) {
    let mut latencies = Histogram::new(3).expect("3 digits are allowed");
    let mut errors = 0;
    while !enough.load(Ordering::Relaxed) {
        if let Err(error) = talk(port, &enough, &mut latencies).await {
            eprintln!("{error:#}");
            errors += 1;
        }
    }
    (latencies, errors)
}

async fn talk(
    port: u16,
    enough: &AtomicBool,
    latencies: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut answer = [0; 4096];
    while !enough.load(Ordering::Relaxed) {
        let begin = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        // It is so small that it comes in one piece.
        let count = stream.read(&mut answer).await?;
        let answer = &answer[..count];
        ensure!(
            answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\nxxxxxx"),
            "a strange answer: {:?}",
            String::from_utf8_lossy(answer)
        );
        latencies.record(u64::try_from(begin.elapsed().as_micros())?)?;
        let thought = Duration::from_micros(fastrand::u64(2000..6000));
        tokio::time::sleep(thought).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "Running 2s test @ http://127.0.0.1:18400/hello\n  1 threads and 32 connections\n  \
             Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     5.28ms   12.36ms 246.68ms   98.02%\n    \
             Req/Sec     0.96k   141.42     1.06k    62.50%\n  Latency Distribution\n     50%    5.36ms\n     75%    5.98ms\n     \
             90%  957.00us\n     99%    1.20s \n  1884 requests in 2.00s, 255.74KB read\n  \
             Socket errors: connect 0, read 3, write 1, timeout 2\n  Non-2xx or 3xx responses: 7\n\
             Requests/sec:    941.05\nTransfer/sec:    127.75KB\n";
        let outcome = Outcome {
            requests: 1884,
            seconds: 2.0,
            p50: 5360.0,
            p99: 1_200_000.0,
            errors: 13,
        };
        assert_eq!(understand(text).unwrap(), outcome);
        assert!(understand("unable to connect").is_err());
    }
}
