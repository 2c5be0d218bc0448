//! The report: verdicts on the figures, and the tables for people to read.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::clients::Own;
use crate::load::Outcome;

/// The factor by which a median of ratios may exceed its limit.
const TOLERANCE: f64 = 1.05;

const EXPLANATION: &str = "`make bench` writes this page; benches/src/rows.rs defines what it measures. Each ratio is the \
                           median of the ratios of all rounds of one run: smoothserve to nginx / smoothserve to HAProxy. \
                           Smaller is better, except for requests per second. Lists have the order smoothserve, nginx, \
                           HAProxy. ✓✓ marks a figure that reaches its goal, ✓ a figure that keeps its limit (ratios \
                           within 5 %), ✗ a figure that exceeds its limit.";

/// The columns of prose in the file of results.
const COLUMNS: usize = 100;

/// The limits of a figure.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    pub limit: f64,
    pub goal: f64,
}

impl Gate {
    /// Makes a gate of both limits.
    pub const fn new(limit: f64, goal: f64) -> Gate {
        Gate { limit, goal }
    }

    /// Judges a counted figure, which is exact.
    fn on_count(self, figure: f64) -> &'static str {
        match figure {
            figure if figure <= self.goal => " ✓✓",
            figure if figure <= self.limit => " ✓",
            _ => " ✗",
        }
    }

    fn on_ratio(self, figure: f64) -> &'static str {
        match figure <= self.limit * TOLERANCE {
            true => self.on_count(figure.min(self.limit)),
            false => " ✗",
        }
    }
}

/// What was measured for one proxy in one round.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// The CPU time of a request, in microseconds.
    pub cpu: f64,
    pub outcome: Outcome,
    /// What the clients themselves cost, if that was measured.
    pub own: Option<Own>,
    /// The share of the machine that other programs used just before.
    pub others: f64,
}

/// The rounds, each with smoothserve, nginx and HAProxy.
pub type Rounds = Vec<[Measured; 3]>;

/// The ratios of smoothserve to nginx and to HAProxy, and the figures of all three.
#[derive(Debug, PartialEq)]
struct Comparison {
    ratios: [f64; 2],
    figures: [f64; 3],
}

impl Comparison {
    fn of(rounds: &[[Measured; 3]], figure: impl Fn(&Measured) -> f64) -> Comparison {
        let of = |which: &dyn Fn(&[Measured; 3]) -> f64| median(rounds.iter().map(which).collect());
        Comparison {
            ratios: [1, 2].map(|peer| of(&|round| figure(&round[0]) / figure(&round[peer]))),
            figures: [0, 1, 2].map(|peer| of(&|round| figure(&round[peer]))),
        }
    }

    /// Returns the cells of a table: the ratios with the verdicts, the gates, the figures.
    fn judged(&self, gates: [Option<Gate>; 2]) -> String {
        let mut cells = String::new();
        for (ratio, gate) in self.ratios.iter().zip(gates) {
            let verdict = gate.map_or("", |gate| gate.on_ratio(*ratio));
            let _ = write!(cells, " {ratio:.2}{verdict} |");
        }
        for of in [|gate: Gate| gate.limit, |gate: Gate| gate.goal] {
            let limits =
                gates.map(|gate| gate.map_or("–".to_owned(), |gate| format!("{:.2}", of(gate))));
            let _ = write!(cells, " {} |", limits.join(" / "));
        }
        let figures = self.figures.map(|figure| format!("{figure:.1}"));
        let _ = write!(cells, " {} |", figures.join(", "));
        cells
    }

    /// Returns the cell of the ratios, or a dash for a figure that this load does not have.
    fn ratios(&self) -> String {
        match self.ratios {
            [nginx, haproxy] if nginx.is_nan() || haproxy.is_nan() => " – |".to_owned(),
            [nginx, haproxy] => format!(" {nginx:.2} / {haproxy:.2} |"),
        }
    }
}

/// The report so far: Markdown that is readable on a terminal, too.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// Adds a line, and prints it at once to show the progress.
    fn say(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Adds the title and the versions of everything involved.
    pub fn title(&mut self) -> anyhow::Result<()> {
        let versions = [
            said("uname", &["-sr"])?,
            said("nginx", &["-v"])?,
            said("haproxy", &["-v"])?,
            said("wrk", &["-v"])?,
            said("rustc", &["-V"])?,
            format!(
                "{}, {} cores",
                said(
                    "sh",
                    &["-c", "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2"]
                )?,
                said("nproc", &["--all"])?
            ),
        ];
        let date = said("date", &["-u", "+%Y-%m-%d"])?;
        let commit = said("git", &["describe", "--always", "--dirty"])?;
        self.say(&format!("# Results\n\n{}\n", wrap(EXPLANATION)));
        self.say(&wrap(&format!(
            "Measured on {date}, commit {commit}, with {}.",
            versions.join("; ")
        )));
        Ok(())
    }

    /// Adds a paragraph.
    pub fn note(&mut self, text: &str) {
        self.say(&format!("\n{}", wrap(text)));
    }

    /// Begins a table of [`Report::work`].
    pub fn works(&mut self) {
        self.say(
            "\n| work | CPU per request / nginx | / HAProxy | limit | goal | µs | requests per second | p50 | p99 | errors \
             | CPU of others |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        );
    }

    /// Adds a row about the most work that a proxy can do.
    pub fn work(&mut self, name: &str, rounds: &Rounds, gates: [Gate; 2]) {
        let compare = |figure: fn(&Measured) -> f64| Comparison::of(rounds, figure);
        self.say(&format!(
            "| {name} |{}{}{}{} {} | {} |",
            compare(|one| one.cpu).judged(gates.map(Some)),
            compare(|one| one.outcome.requests as f64 / one.outcome.seconds).ratios(),
            compare(|one| one.outcome.p50).ratios(),
            compare(|one| one.outcome.p99).ratios(),
            errors(rounds),
            others(rounds),
        ));
    }

    /// Begins a table of [`Report::comparison`].
    pub fn comparisons(&mut self) {
        self.say(
            "\n| figure | / nginx | / HAProxy | limit | goal | figures |\n| --- | --- | --- | --- | --- | --- |",
        );
    }

    /// Adds a row about one figure of all three proxies.
    pub fn comparison(
        &mut self,
        name: &str,
        rounds: &Rounds,
        figure: fn(&Measured) -> f64,
        gates: [Option<Gate>; 2],
    ) {
        let cells = Comparison::of(rounds, figure).judged(gates);
        self.say(&format!("| {name} |{cells}"));
    }

    /// Adds a row about one figure that was measured once.
    pub fn single(&mut self, name: &str, figures: [f64; 3], gates: [Option<Gate>; 2]) {
        let [own, nginx, haproxy] = figures;
        let comparison = Comparison {
            ratios: [own / nginx, own / haproxy],
            figures,
        };
        self.say(&format!("| {name} |{}", comparison.judged(gates)));
    }

    /// Adds a paragraph about the clients and the machine during the rounds of a latency.
    pub fn circumstances(&mut self, rounds: &Rounds) {
        let owns: Vec<Own> = rounds.iter().flatten().filter_map(|one| one.own).collect();
        self.note(&format!(
            "The clients used {:.0} % of a core, and sent 1 % of their requests more than {:.0} µs late. \
             Errors: {}. CPU of others: {}.",
            100.0 * median(owns.iter().map(|own| own.busy).collect()),
            median(owns.iter().map(|own| own.late).collect()),
            errors(rounds),
            others(rounds),
        ));
    }

    /// Begins a table of [`Report::count`] and [`Report::ratio`].
    pub fn absolutes(&mut self) {
        self.say(
            "\n| figure | smoothserve | limit | goal | nginx | HAProxy |\n| --- | --- | --- | --- | --- | --- |",
        );
    }

    /// Adds a row about a counted figure.
    pub fn count(&mut self, name: &str, figures: [f64; 3], gate: Option<Gate>) {
        let [own, nginx, haproxy] = figures;
        let verdict = gate.map_or("", |gate| gate.on_count(own));
        let (limit, goal) = limits(gate);
        self.say(&format!(
            "| {name} | {own:.2}{verdict} | {limit} | {goal} | {nginx:.2} | {haproxy:.2} |"
        ));
    }

    /// Adds a row about a ratio between two figures of smoothserve.
    pub fn ratio(&mut self, name: &str, ratio: f64, gate: Option<Gate>) {
        let verdict = gate.map_or("", |gate| gate.on_ratio(ratio));
        let (limit, goal) = limits(gate);
        self.say(&format!(
            "| {name} | {ratio:.2}{verdict} | {limit} | {goal} | – | – |"
        ));
    }

    /// Writes the report to the file of results, in place of the former report.
    pub fn save(&self, file: &Path) -> anyhow::Result<()> {
        let before = fs::read_to_string(file).unwrap_or_default();
        let text = replace(&before, &self.text);
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Replaces the former report. Everything after the first heading of the second level, or after the
/// first comment, was written by others and stays.
fn replace(before: &str, own: &str) -> String {
    let lines = before.split_inclusive('\n');
    let rest = lines.skip_while(|line| !line.starts_with("## ") && !line.starts_with("<!--"));
    let rest: String = rest.collect();
    match rest.as_str() {
        "" => own.to_owned(),
        rest => format!("{own}\n{rest}"),
    }
}

/// Returns the first line that a program prints.
fn said(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    // nginx prints its version to stderr.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Breaks the lines of a paragraph at [`COLUMNS`].
pub fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always a line");
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= COLUMNS {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

/// A paragraph between empty lines, as [`wrap`] breaks it.
pub fn paragraph(text: &str) -> String {
    format!("\n{}\n\n", wrap(text))
}

fn limits(gate: Option<Gate>) -> (String, String) {
    let none = || "–".to_owned();
    match gate {
        Some(gate) => (format!("{:.2}", gate.limit), format!("{:.2}", gate.goal)),
        None => (none(), none()),
    }
}

fn errors(rounds: &Rounds) -> String {
    let sum = |peer: usize| rounds.iter().map(|round| round[peer].outcome.errors).sum();
    let [own, nginx, haproxy]: [u64; 3] = [0, 1, 2].map(sum);
    format!("{own}, {nginx}, {haproxy}")
}

fn others(rounds: &Rounds) -> String {
    let all = rounds.iter().flatten().map(|one| one.others);
    let mean = all.sum::<f64>() / (3 * rounds.len()) as f64;
    format!("{:.0} %", 100.0 * mean)
}

/// Returns the median of an odd number of figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: Gate = Gate::new(1.0, 0.8);

    fn measured(cpu: f64) -> Measured {
        Measured {
            cpu,
            outcome: Outcome {
                requests: 100,
                seconds: 1.0,
                p50: 1.0,
                p99: 2.0,
                errors: 1,
            },
            own: None,
            others: 0.5,
        }
    }

    #[test]
    fn only_the_upper_limit_of_ratios_has_a_tolerance() {
        let verdicts = [0.8, 0.81, 1.0, 1.05, 1.06];
        assert_eq!(
            verdicts.map(|ratio| GATE.on_ratio(ratio)),
            [" ✓✓", " ✓", " ✓", " ✓", " ✗"]
        );
        assert_eq!(
            verdicts.map(|count| GATE.on_count(count)),
            [" ✓✓", " ✓", " ✓", " ✗", " ✗"]
        );
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_of_the_rounds() {
        // The machine is ten times slower in one round, and another round disturbs one proxy alone.
        let rounds = [[1.0, 2.0, 4.0], [10.0, 20.0, 40.0], [3.0, 2.0, 4.0]];
        let rounds: Rounds = rounds.map(|round| round.map(measured)).into();
        let comparison = Comparison::of(&rounds, |one| one.cpu);
        assert_eq!(
            comparison,
            Comparison {
                ratios: [0.5, 0.25],
                figures: [3.0, 2.0, 4.0]
            }
        );
        assert_eq!(
            comparison.judged([Some(GATE), None]),
            " 0.50 ✓✓ | 0.25 | 1.00 / – | 0.80 / – | 3.0, 2.0, 4.0 |"
        );
        assert_eq!(errors(&rounds), "3, 3, 3");
        assert_eq!(others(&rounds), "50 %");
    }

    #[test]
    fn a_paragraph_has_lines_of_100_columns() {
        assert_eq!(wrap(""), "");
        let text = "µ ".repeat(51);
        assert_eq!(wrap(&text), format!("{}\nµ", ["µ"; 50].join(" ")));
        let word = "x".repeat(120);
        assert_eq!(wrap(&format!("a {word} b")), format!("a\n{word}\nb"));
    }

    #[test]
    fn text_written_by_people_stays() {
        let own = "# Results\n\nnew\n";
        assert_eq!(replace("", own), own);
        assert_eq!(replace("# Results\n\nold\n", own), own);
        for kept in ["## Profile\n\ntext\n", "<!-- growth -->\n## Growth\n"] {
            let before = format!("# Results\n\nold\n\n{kept}");
            let after = replace(&before, own);
            assert_eq!(after, format!("{own}\n{kept}"));
            assert_eq!(replace(&after, own), after);
        }
    }
}
