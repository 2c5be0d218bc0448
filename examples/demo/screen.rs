//! What the demo shows: on a terminal one picture that is drawn again and again, elsewhere a line
//! for each change.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use smoothserve_kit::load::{Counts, Report};
use smoothserve_kit::{Instance, Status};

/// How the requests of both shops fared.
pub(crate) struct Results {
    pub(crate) smooth: Report,
    pub(crate) plain: Report,
}

/// The words for both shops.
const SHOPS: [&str; 2] = ["smoothserve", "plain restart"];

pub(crate) struct Screen {
    started: Instant,
    terminal: bool,
    color: bool,
    /// The number of lines of the last picture that are on the terminal.
    drawn: usize,
    /// The last known states of the instances.
    states: BTreeMap<u64, Instance>,
    /// The numbers of requests of both shops at each of the last moments.
    recent: VecDeque<(Instant, [u64; 2])>,
    step: String,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        let terminal = io::stdout().is_terminal();
        Screen {
            started: Instant::now(),
            terminal,
            color: terminal && std::env::var_os("NO_COLOR").is_none(),
            drawn: 0,
            states: BTreeMap::new(),
            recent: VecDeque::new(),
            step: String::new(),
        }
    }

    /// Prints lines that stay on the terminal.
    pub(crate) fn say(&mut self, text: &str) {
        self.put(text);
        self.drawn = 0;
    }

    /// Begins a new step of the demo.
    pub(crate) fn begin(&mut self, words: &str) {
        self.step = words.to_owned();
        if !self.terminal {
            let line = format!("{} {words}", self.clock());
            self.say(&line);
        }
    }

    /// Ends the step: its line stays, and the picture disappears.
    pub(crate) fn end(&mut self) {
        if self.terminal {
            let line = format!("{} {} {}", self.paint("32", "✓"), self.clock(), self.step);
            self.say(&line);
        }
    }

    /// Shows the current state.
    pub(crate) fn draw(&mut self, status: &Status, counts: [Counts; 2]) {
        if self.terminal {
            let picture = self.picture(status, counts);
            self.put(&picture);
            self.drawn = picture.lines().count();
        } else {
            self.changes(status, counts);
        }
    }

    fn picture(&mut self, status: &Status, counts: [Counts; 2]) -> String {
        let mut text = format!("{} {} {}\n", self.paint("33", "▶"), self.clock(), self.step);
        for (name, service) in &status.services {
            let _ = writeln!(
                text,
                "\n  {name}  {}, {} of {} instances ready",
                service.state,
                service.ready(),
                service.wanted,
            );
            for instance in &service.instances {
                // The word is padded first, because color codes have no width on the terminal.
                let state =
                    self.paint(color_of(&instance.state), &format!("{:<9}", instance.state));
                let _ = writeln!(
                    text,
                    "    {name}/{}  generation {}  process {:<7}  {:<16} {state} {:>4} in flight",
                    instance.slot,
                    instance.generation,
                    instance.pid,
                    instance.address,
                    instance.in_flight,
                );
            }
        }
        let rates = self.rates(counts);
        text.push('\n');
        for ((name, counts), rate) in SHOPS.iter().zip(counts).zip(rates) {
            let lost = format!("{} lost", grouped(counts.lost));
            let lost = self.paint(if counts.lost == 0 { "32" } else { "31;1" }, &lost);
            let _ = writeln!(
                text,
                "  {name:<14} {:>7} requests, {rate:>4.0} a second, {:>2} in flight, {lost}",
                grouped(counts.requests),
                counts.in_flight,
            );
        }
        text
    }

    /// Prints a line for each instance whose state has changed.
    fn changes(&mut self, status: &Status, [smooth, plain]: [Counts; 2]) {
        let mut now = BTreeMap::new();
        for (name, service) in &status.services {
            for instance in &service.instances {
                let was = self.states.get(&instance.id).map(|was| was.state.as_str());
                if was != Some(instance.state.as_str()) {
                    self.put(&format!(
                        "{} {name}/{} (generation {}, process {}): {}, {} in flight; \
                         {} requests, {} lost; plain: {} requests, {} lost",
                        self.clock(),
                        instance.slot,
                        instance.generation,
                        instance.pid,
                        instance.state,
                        instance.in_flight,
                        smooth.requests,
                        smooth.lost,
                        plain.requests,
                        plain.lost,
                    ));
                }
                now.insert(instance.id, instance.clone());
            }
            for (id, was) in &self.states {
                if !now.contains_key(id) {
                    self.put(&format!(
                        "{} {name}/{} (generation {}, process {}): gone",
                        self.clock(),
                        was.slot,
                        was.generation,
                        was.pid
                    ));
                }
            }
        }
        self.states = now;
    }

    /// Returns the requests per second over the last seconds, of both shops.
    fn rates(&mut self, counts: [Counts; 2]) -> [f64; 2] {
        let now = Instant::now();
        let requests = counts.map(|counts| counts.requests);
        self.recent.push_back((now, requests));
        let (then, before) = self.recent[0];
        let passed = now - then;
        if passed > Duration::from_secs(3) {
            self.recent.pop_front();
        }
        if passed.is_zero() {
            return [0.0; 2];
        }
        let rate = |shop: usize| (requests[shop] - before[shop]) as f64 / passed.as_secs_f64();
        [rate(0), rate(1)]
    }

    /// Prints the table of what happened to the requests, and at last a sentence.
    pub(crate) fn table(&mut self, results: &Results) {
        let reports = [&results.smooth, &results.plain];
        let mut text = format!(
            "\n  {:<37}{:>10}{:>8}{:>12}{:>12}\n",
            "", "requests", "lost", "p50", "p99"
        );
        for (shop, report) in SHOPS.iter().zip(reports) {
            for name in ["before", "during", "after"] {
                let phase = report.phase_named(name);
                let _ = writeln!(
                    text,
                    "  {shop:<15}{:<22}{:>10}{:>8}{:>12}{:>12}",
                    format!("{name} the rollouts"),
                    grouped(phase.requests + phase.lost),
                    grouped(phase.lost),
                    milliseconds(phase.latency(0.5)),
                    milliseconds(phase.latency(0.99)),
                );
            }
        }
        text.push_str(
            "\n  Small and slow GETs, downloads, uploads, pipelined pairs and new connections, every byte\n  \
             verified; the times are those of the small GETs that were answered.\n\n",
        );
        for lost in results.smooth.lost.iter().take(10) {
            let _ = writeln!(
                text,
                "  lost: {:?} {}: {}",
                lost.kind, lost.name, lost.fault
            );
        }
        let outcomes = SHOPS.iter().zip(reports).map(|(shop, report)| {
            let lost = grouped(report.lost.len() as u64);
            format!(
                "{shop}: {lost} of {} requests lost",
                grouped(report.requests())
            )
        });
        text += &outcomes.collect::<Vec<_>>().join("; ");
        text.push('.');
        self.say(&text);
    }

    fn clock(&self) -> String {
        format!("{:>5.1} s ", self.started.elapsed().as_secs_f64())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Writes lines over the last picture.
    fn put(&self, text: &str) {
        let mut out = String::new();
        if self.drawn > 0 {
            // Moves up to the first line of the picture and clears from there. Line wrapping is off
            // meanwhile, so that each line stays one line.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
        }
        if self.terminal {
            let _ = write!(out, "\x1b[?7l{}\n\x1b[?7h", text.trim_end_matches('\n'));
        } else {
            let _ = writeln!(out, "{text}");
        }
        // The demo goes on even if nobody reads its output any more.
        let _ = io::stdout().write_all(out.as_bytes());
        let _ = io::stdout().flush();
    }
}

fn color_of(state: &str) -> &'static str {
    match state {
        "ready" => "32",
        "starting" => "33",
        "draining" => "36",
        "backoff" => "31",
        _ => "2",
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// Formats `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
