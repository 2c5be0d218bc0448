//! The results of a load: answered and lost requests, latencies, versions.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;

use super::Kind;

/// The requests of a load, counted.
#[derive(Debug, Clone)]
pub struct Report {
    /// The phases of the load, in their order.
    pub phases: Vec<Phase>,
    /// The number of requests of each kind that got the right answer.
    pub kinds: BTreeMap<Kind, u64>,
    /// The longest time that a request of each kind took to get the right answer.
    pub longest: BTreeMap<Kind, Duration>,
    /// The requests that did not get the right answer.
    pub lost: Vec<Lost>,
    /// How often a client reconnected because a response said `Connection: close`.
    pub reopened: u64,
    /// The responses of each version of the service.
    pub versions: BTreeMap<String, Seen>,
}

/// The requests that began during one phase of a load.
#[derive(Debug, Clone)]
pub struct Phase {
    /// The name of the phase.
    pub name: String,
    /// The number of requests that got the right answer.
    pub requests: u64,
    /// The number of requests that did not.
    pub lost: u64,
    /// The latencies of the small requests on kept connections, in microseconds.
    latencies: Histogram<u64>,
}

/// The responses of one version of the service.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The number of responses.
    pub responses: u64,
    /// The time of the first response.
    pub first: Instant,
    /// The time of the last response.
    pub last: Instant,
}

/// A request without the right answer.
#[derive(Debug, Clone)]
pub struct Lost {
    /// The time at which the client gave the request up.
    pub at: SystemTime,
    /// The kind of the request.
    pub kind: Kind,
    /// The `X-Load-Name` of the request.
    pub name: String,
    /// The time between sending the request and giving it up.
    pub after: Duration,
    /// True if the connection had carried other requests before.
    pub reused: bool,
    /// True if a part of the response had arrived.
    pub answered: bool,
    /// The reason, in words.
    pub fault: String,
}

impl Report {
    pub(super) fn new() -> Report {
        Report {
            phases: vec![Phase::new("start")],
            kinds: BTreeMap::new(),
            longest: BTreeMap::new(),
            lost: Vec::new(),
            reopened: 0,
            versions: BTreeMap::new(),
        }
    }

    pub(super) fn begin(&mut self, name: &str) {
        self.phases.push(Phase::new(name));
    }

    pub(super) fn phase(&self) -> usize {
        self.phases.len() - 1
    }

    pub(super) fn count(&mut self, phase: usize, kind: Kind, took: Duration, version: &str) {
        let now = Instant::now();
        *self.kinds.entry(kind).or_default() += 1;
        let longest = self.longest.entry(kind).or_default();
        *longest = took.max(*longest);
        let phase = &mut self.phases[phase];
        phase.requests += 1;
        if kind == Kind::Small {
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            phase.latencies.saturating_record(took);
        }
        let seen = self.versions.entry(version.to_owned()).or_insert(Seen {
            responses: 0,
            first: now,
            last: now,
        });
        seen.responses += 1;
        seen.last = now;
    }

    pub(super) fn lose(&mut self, phase: usize, lost: Lost) {
        self.phases[phase].lost += 1;
        self.lost.push(lost);
    }

    /// Returns the number of requests that have ended, right or not.
    pub fn requests(&self) -> u64 {
        self.kinds.values().sum::<u64>() + self.lost.len() as u64
    }

    /// Returns all phases of this name, merged into one.
    pub fn phase_named(&self, name: &str) -> Phase {
        let mut all = Phase::new(name);
        for phase in self.phases.iter().filter(|phase| phase.name == name) {
            all.requests += phase.requests;
            all.lost += phase.lost;
            all.latencies += &phase.latencies;
        }
        all
    }

    /// Returns the version whose response arrived last.
    pub fn last_version(&self) -> Option<&str> {
        let last = self.versions.iter().max_by_key(|(_, seen)| seen.last);
        last.map(|(version, _)| version.as_str())
    }

    /// Panics with the whole report if a request was lost.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.lost.is_empty(), "requests were lost\n{self}");
    }

    /// Panics with the whole report unless at least `least` requests of each of these kinds got the
    /// right answer.
    #[track_caller]
    pub fn assert_seen(&self, kinds: &[Kind], least: u64) {
        for kind in kinds {
            let count = self.kinds.get(kind).copied().unwrap_or_default();
            assert!(count >= least, "only {count} {kind:?} requests\n{self}");
        }
    }
}

impl Phase {
    fn new(name: &str) -> Phase {
        Phase {
            name: name.to_owned(),
            requests: 0,
            lost: 0,
            latencies: Histogram::new_with_bounds(1, 120_000_000, 3)
                .expect("the bounds are in order"),
        }
    }

    /// Returns the latency that this share of the small requests did not exceed; 0.5 is the median.
    pub fn latency(&self, share: f64) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(share))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests, {} lost, {} connections reopened",
            self.requests(),
            self.lost.len(),
            self.reopened
        )?;
        for phase in &self.phases {
            writeln!(
                f,
                "  phase {}: {} requests, {} lost, p50 {:?}, p99 {:?}",
                phase.name,
                phase.requests,
                phase.lost,
                phase.latency(0.5),
                phase.latency(0.99)
            )?;
        }
        for (kind, count) in &self.kinds {
            writeln!(f, "  {kind:?}: {count}")?;
        }
        for (version, seen) in &self.versions {
            writeln!(f, "  version {version:?}: {} responses", seen.responses)?;
        }
        for lost in self.lost.iter().take(30) {
            let since = lost.at.duration_since(SystemTime::UNIX_EPOCH);
            writeln!(
                f,
                "  lost: {:?} {} at {:.3} after {:?} on a {} connection: {}",
                lost.kind,
                lost.name,
                since.unwrap_or_default().as_secs_f64(),
                lost.after,
                if lost.reused { "kept" } else { "new" },
                lost.fault
            )?;
        }
        Ok(())
    }
}
