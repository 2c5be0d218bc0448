//! Load by wrk and h2load, which send as fast as they get answers.

use std::fs;
use std::io::{Read, Write};

use anyhow::{Context, bail, ensure};

use crate::configs::HOST;
use crate::process::on_cores;

/// The outcome of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    /// The latency percentiles, in microseconds.
    pub p50: f64,
    pub p99: f64,
    pub errors: u64,
}

/// The options of a wrk run.
#[derive(Debug, Clone, Copy)]
pub struct Wrk {
    pub connections: usize,
    pub path: &'static str,
    /// The length of the body of a POST; 0 for a GET.
    pub body: usize,
    pub close: bool,
    pub secure: bool,
}

/// A wrk script that prints the figures, times in microseconds.
const FIGURES: &str = "done = function(summary, latency)
    local errors = 0
    for _, count in pairs(summary.errors) do errors = errors + count end
    print('figures', summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors)
end
";

impl Wrk {
    /// Runs wrk on these cores against a port.
    pub fn run(&self, cores: &[usize], port: u16, seconds: u64) -> anyhow::Result<Outcome> {
        let script = tempfile::NamedTempFile::new()?;
        let post = match self.body {
            0 => String::new(),
            body => format!("wrk.method = 'POST'; wrk.body = string.rep('x', {body})\n"),
        };
        fs::write(script.path(), post + FIGURES)?;
        let mut command = on_cores(cores, "wrk");
        command.args(["-t1", &format!("-c{}", self.connections)]);
        command.arg(format!("-d{seconds}s"));
        command.args(["-H", &format!("Host: {HOST}")]);
        if self.close {
            command.args(["-H", "Connection: close"]);
        }
        let scheme = if self.secure { "https" } else { "http" };
        let output = command
            .arg("-s")
            .arg(script.path())
            .arg(format!("{scheme}://127.0.0.1:{port}{}", self.path))
            .output()
            .context("cannot run taskset and wrk, which `make bench` installs")?;
        ensure!(output.status.success(), "{output:?}");
        understand(&String::from_utf8_lossy(&output.stdout))
    }
}

/// Parses what the script prints.
fn understand(text: &str) -> anyhow::Result<Outcome> {
    let line = text.lines().find_map(|line| line.strip_prefix("figures"));
    let figures = line
        .context("wrk printed no figures")?
        .split_ascii_whitespace();
    let figures: Vec<f64> = figures.map(str::parse).collect::<Result<_, _>>()?;
    let &[requests, duration, p50, p99, errors] = figures.as_slice() else {
        bail!("unexpected figures of wrk: {figures:?}");
    };
    Ok(Outcome {
        requests: requests as u64,
        seconds: duration / 1e6,
        p50,
        p99,
        errors: errors as u64,
    })
}

/// The options of an h2load run: HTTP/2 over TLS.
#[derive(Debug, Clone, Copy)]
pub struct H2load {
    pub connections: usize,
    /// Concurrent requests on each connection.
    pub streams: usize,
}

impl H2load {
    /// Runs h2load on these cores against a port.
    pub fn run(&self, cores: &[usize], port: u16, seconds: u64) -> anyhow::Result<Outcome> {
        let output = on_cores(cores, "h2load")
            .arg(format!("-c{}", self.connections))
            .arg(format!("-m{}", self.streams))
            .arg(format!("-D{seconds}"))
            .args(["-H", &format!(":authority: {HOST}")])
            .arg(format!("https://127.0.0.1:{port}/"))
            .output()
            .context("cannot run h2load, which `make bench` installs")?;
        ensure!(output.status.success(), "{output:?}");
        understand_h2load(&String::from_utf8_lossy(&output.stdout), seconds)
    }
}

/// Parses what h2load prints, which has no percentiles.
fn understand_h2load(text: &str, seconds: u64) -> anyhow::Result<Outcome> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "));
    let line = line.context("h2load printed no figures")?;
    let figure = |of: &str| -> anyhow::Result<u64> {
        let mut figures = line.split(", ").filter_map(|figure| figure.split_once(' '));
        let figure = figures.find_map(|(figure, what)| (what == of).then_some(figure));
        Ok(figure.context("unexpected figures of h2load")?.parse()?)
    };
    Ok(Outcome {
        requests: figure("succeeded")?,
        seconds: seconds as f64,
        p50: f64::NAN,
        p99: f64::NAN,
        errors: figure("failed")? + figure("errored")? + figure("timeout")?,
    })
}

/// Sends one GET, or one POST with a body of this length, and checks the answer: a proxy that is
/// fast because it answers wrongly must not be measured.
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
    let (head, body) = answer.split_at(end.context("the answer has no head")? + 4);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_wrk_and_h2load_is_parsed() {
        let text = "Running 2s test @ http://127.0.0.1:18400/\n  1884 requests in 2.00s, 255.74KB read\n\
                    figures\t1884\t2000123\t5360\t1200000\t13\n";
        let outcome = Outcome {
            requests: 1884,
            seconds: 2.000_123,
            p50: 5360.0,
            p99: 1_200_000.0,
            errors: 13,
        };
        assert_eq!(understand(text).unwrap(), outcome);
        let text = "finished in 2.00s, 9 req/s, 1KB/s\n\
                    requests: 21 total, 20 started, 19 done, 18 succeeded, 1 failed, 2 errored, 3 timeout\n";
        let outcome = understand_h2load(text, 2).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (18, 6));
        assert!(understand_h2load("", 2).is_err());
        assert!(understand("unable to connect").is_err());
        assert!(understand("figures\t1").is_err());
    }
}
