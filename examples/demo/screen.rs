//! What the demo shows: on a terminal one picture that is drawn again and again, elsewhere a line
//! for each change.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use smoothserve_kit::load::{Counts, Report};
use smoothserve_kit::{Instance, Status};

pub(crate) struct Screen {
    started: Instant,
    terminal: bool,
    color: bool,
    /// The number of lines of the last picture that are on the terminal.
    drawn: usize,
    /// The last known states of the instances.
    states: BTreeMap<u64, Instance>,
    /// The number of requests at each of the last moments.
    recent: VecDeque<(Instant, u64)>,
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
    pub(crate) fn draw(&mut self, status: &Status, counts: Counts) {
        if self.terminal {
            let picture = self.picture(status, counts);
            self.put(&picture);
            self.drawn = picture.lines().count();
        } else {
            self.changes(status, counts);
        }
    }

    fn picture(&mut self, status: &Status, counts: Counts) -> String {
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
        let rate = self.rate(counts);
        let lost = format!("{} lost", counts.lost);
        let lost = self.paint(if counts.lost == 0 { "32" } else { "31;1" }, &lost);
        let _ = writeln!(
            text,
            "\n  {} requests, {rate:.0} a second, {} in flight, {lost}",
            grouped(counts.requests),
            counts.in_flight,
        );
        text
    }

    /// Prints a line for each instance whose state has changed.
    fn changes(&mut self, status: &Status, counts: Counts) {
        let mut now = BTreeMap::new();
        for (name, service) in &status.services {
            for instance in &service.instances {
                let was = self.states.get(&instance.id).map(|was| was.state.as_str());
                if was != Some(instance.state.as_str()) {
                    self.put(&format!(
                        "{} {name}/{} (generation {}, process {}): {}, {} in flight; {} requests, {} lost",
                        self.clock(),
                        instance.slot,
                        instance.generation,
                        instance.pid,
                        instance.state,
                        instance.in_flight,
                        counts.requests,
                        counts.lost,
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

    /// Returns the requests per second over the last seconds.
    fn rate(&mut self, counts: Counts) -> f64 {
        let now = Instant::now();
        self.recent.push_back((now, counts.requests));
        let (then, before) = self.recent[0];
        let passed = now - then;
        if passed > Duration::from_secs(3) {
            self.recent.pop_front();
        }
        if passed.is_zero() {
            return 0.0;
        }
        (counts.requests - before) as f64 / passed.as_secs_f64()
    }

    /// Prints the table of what happened to the requests.
    pub(crate) fn table(&mut self, report: &Report) {
        let mut text = format!(
            "\n  {:<22}{:>10}{:>8}{:>12}{:>12}\n",
            "", "requests", "lost", "p50", "p99"
        );
        for (name, words) in [
            ("before", "before the rollouts"),
            ("during", "during the rollouts"),
            ("after", "after the rollouts"),
        ] {
            let phase = report.phase_named(name);
            let _ = writeln!(
                text,
                "  {words:<22}{:>10}{:>8}{:>12}{:>12}",
                grouped(phase.requests + phase.lost),
                phase.lost,
                milliseconds(phase.latency(0.5)),
                milliseconds(phase.latency(0.99)),
            );
        }
        text.push_str(
            "\n  Small and slow GETs, downloads, uploads, pipelined pairs and new connections, every byte\n  \
             verified; the times are those of the small GETs.\n",
        );
        for lost in report.lost.iter().take(10) {
            let _ = writeln!(
                text,
                "  lost: {:?} {}: {}",
                lost.kind, lost.name, lost.fault
            );
        }
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

/// Formats `1234567` as `1 234 567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
