//! What is made of the figures.

use std::fmt::Write;
use std::process::Command;

use anyhow::Context;

use crate::clients::Own;
use crate::load::Outcome;

/// The gates have this tolerance.
const TOLERANCE: f64 = 1.05;

/// One proxy in one round.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Microseconds of CPU time for a request.
    pub cpu: f64,
    pub outcome: Outcome,
    /// What the clients themselves were, if that was counted.
    pub own: Option<Own>,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    /// The most that the CPU time is to be of that of nginx, and of HAProxy.
    pub most: [f64; 2],
    /// smoothserve, nginx and HAProxy in each.
    pub rounds: Vec<Vec<Measured>>,
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Report {
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

impl Row {
    /// The median of the ratios of smoothserve to nginx (1) or to HAProxy (2).
    fn ratio(&self, peer: usize, figure: impl Fn(&Measured) -> f64) -> f64 {
        let ratio = |round: &Vec<Measured>| figure(&round[0]) / figure(&round[peer]);
        median(self.rounds.iter().map(ratio).collect())
    }

    fn median(&self, peer: usize, figure: impl Fn(&Measured) -> f64) -> f64 {
        median(
            self.rounds
                .iter()
                .map(|round| figure(&round[peer]))
                .collect(),
        )
    }

    /// How much of what was measured is the clients' own.
    pub fn clients(&self) -> Option<String> {
        let owns = self.rounds.iter().flatten().map(|one| one.own);
        let owns: Vec<Own> = owns.collect::<Option<_>>()?;
        let busy = median(owns.iter().map(|own| own.busy).collect());
        let late = median(owns.iter().map(|own| own.late).collect());
        Some(format!(
            "{}: the clients used {:.0} % of a core, and sent one request in a hundred more than {late:.0} µs late.",
            self.name,
            100.0 * busy
        ))
    }

    fn line(&self) -> String {
        let both = |figure: fn(&Measured) -> f64| {
            let [nginx, haproxy] = [1, 2].map(|peer| self.ratio(peer, figure));
            format!("{nginx:.2} / {haproxy:.2}")
        };
        let cpu = |measured: &Measured| measured.cpu;
        let holds = [1, 2]
            .into_iter()
            .all(|peer| self.ratio(peer, cpu) <= self.most[peer - 1] * TOLERANCE);
        let errors: u64 = self
            .rounds
            .iter()
            .flatten()
            .map(|one| one.outcome.errors)
            .sum();
        let [own, nginx, haproxy] = [0, 1, 2].map(|peer| self.median(peer, cpu));
        let [nginx_most, haproxy_most] = self.most;
        format!(
            "| {} | {} | {nginx_most:.2} / {haproxy_most:.2} {} | {own:.1}, {nginx:.1}, {haproxy:.1} | {} | {} | {} | {errors} |\n",
            self.name,
            both(cpu),
            if holds { "✓" } else { "✗" },
            both(|measured| measured.outcome.requests as f64 / measured.outcome.seconds),
            both(|measured| measured.outcome.p50),
            both(|measured| measured.outcome.p99),
        )
    }
}

impl Report {
    /// What a person reads on a terminal, which is Markdown, too.
    pub fn tables(&self) -> String {
        let mut text = "| work | CPU a request / nginx, HAProxy | must be ≤ | µs: smoothserve, nginx, HAProxy | requests a second \
                        | p50 | p99 | errors |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
        text.extend(self.rows.iter().map(Row::line));
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    /// The file of results.
    pub fn markdown(&self) -> anyhow::Result<String> {
        let said = |program: &str, arguments: &[&str]| -> anyhow::Result<String> {
            let output = Command::new(program).args(arguments).output();
            let output = output.with_context(|| format!("cannot run {program}"))?;
            // nginx says it on stderr.
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            Ok(text.lines().next().unwrap_or_default().trim().to_owned())
        };
        Ok(format!(
            "# Results\n\nWritten by `make bench`, which says how. Each figure is the median of the ratios of the rounds of one run, \
             smoothserve to nginx / smoothserve to HAProxy; smaller is better, except for requests a second. A gate is met \
             (✓) within 5 %.\n\nOn {}, of commit {}: {}; {}; {}; {}; {}.\n\n{}",
            said("date", &["-u", "+%Y-%m-%d"])?,
            said("git", &["describe", "--always", "--dirty"])?,
            said("uname", &["-sr"])?,
            said("nginx", &["-v"])?,
            said("haproxy", &["-v"])?,
            said("rustc", &["-V"])?,
            said(
                "sh",
                &[
                    "-c",
                    "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2; nproc"
                ]
            )?,
            self.tables()
        ))
    }
}

/// Of an odd number of figures the one in the middle.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
