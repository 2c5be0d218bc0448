//! The limits of an instance, with the values that systemd.resource-control(5) and systemd.exec(5)
//! give them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::fault::shorten;
use super::fields::{At, Report};
use super::raw::Node;
use super::reader::Reader;
use super::value;

/// One hundred percent, in hundredths of a percent.
const WHOLE: u32 = 10_000;

/// The least memory, in bytes, that a file may set: whoever writes less has forgotten the unit.
const LEAST_MEMORY: u64 = 1 << 20;

/// The fewest descriptors a program runs with: standard input, output and error, and those it needs
/// to be loaded.
const LEAST_DESCRIPTORS: u64 = 16;

/// What an instance may use. A limit that is `None` stays as systemd, or smoothserve's own process,
/// has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The limits of all processes of the instance together.
    pub scope: ScopeLimits,
    /// The limits of each of its processes.
    pub process: ProcessLimits,
}

/// What the processes in the scope of an instance may use together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeLimits {
    /// Memory in bytes, above which the kernel kills processes.
    pub memory_max: Option<Amount>,
    /// Memory in bytes, above which the kernel takes memory back and slows the processes down.
    pub memory_high: Option<Amount>,
    /// CPU time, in hundredths of a percent of one CPU.
    pub cpu_quota: Option<u32>,
    /// The number of threads; each process is one at least.
    pub tasks_max: Option<Amount>,
}

/// How much of a resource of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// This much.
    Absolute(u64),
    /// A share of what the machine has, in hundredths of a percent.
    Share(u32),
    /// As much as the machine has.
    Infinity,
}

/// The limits that each process of an instance begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// The number of open descriptors.
    pub nofile: Option<Nofile>,
    /// The priority, -20 to 19; the lowest number runs first.
    pub nice: Option<i32>,
    /// How likely the kernel kills the process when the machine is out of memory, -1000 to 1000;
    /// the highest number is killed first.
    pub oom_score_adjust: Option<i32>,
}

/// A limit of open descriptors. `None`: as many as the kernel allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nofile {
    /// The soft limit, which is in force until the process raises it itself.
    pub soft: Option<u64>,
    /// The hard limit, up to which a process may raise the soft one.
    pub hard: Option<u64>,
}

impl ScopeLimits {
    /// Lists the keys that are given.
    pub fn keys(&self) -> Vec<&'static str> {
        let all = [
            ("memory_max", self.memory_max.is_some()),
            ("memory_high", self.memory_high.is_some()),
            ("cpu_quota", self.cpu_quota.is_some()),
            ("tasks_max", self.tasks_max.is_some()),
        ];
        let given = all.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(key, _)| key).collect()
    }
}

impl fmt::Display for Nofile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |number: Option<u64>| {
            number.map_or_else(|| "infinity".to_owned(), |number| number.to_string())
        };
        match self.soft == self.hard {
            true => f.write_str(&shown(self.hard)),
            false => write!(f, "{}:{}", shown(self.soft), shown(self.hard)),
        }
    }
}

impl Limits {
    /// Reads the keys of a service's file that limit what an instance may use.
    pub(super) fn read(reader: &mut Reader<'_>) -> Limits {
        let memory_max = reader.get("memory_max", memory);
        let memory_high = reader.get_at("memory_high", memory);
        if let (Some(max), Some(At { at, value: high })) = (memory_max, &memory_high)
            && max.is_less_than(*high)
        {
            reader.report.at(
                *at,
                "`memory_high` is above `memory_max` and would never be reached; give less, or leave it out",
            );
        }
        Limits {
            scope: ScopeLimits {
                memory_max,
                memory_high: memory_high.map(|high| high.value),
                cpu_quota: reader.get("cpu_quota", cpu_quota),
                tasks_max: reader.get("tasks_max", tasks),
            },
            process: ProcessLimits {
                nofile: reader.get("limit_nofile", nofile),
                nice: reader.get("nice", |node, key, report| {
                    let text = value::text(node, key, report)?;
                    value::number(node.at, &text, key, -20..=19, report)
                }),
                oom_score_adjust: reader.get("oom_score_adjust", |node, key, report| {
                    let text = value::text(node, key, report)?;
                    value::number(node.at, &text, key, -1000..=1000, report)
                }),
            },
        }
    }
}

impl Amount {
    /// Parses `infinity`, a percentage, or else what `absolute` understands. `None`: it is none of
    /// these.
    fn parse(text: &str, absolute: fn(&str) -> Option<u64>) -> Option<Amount> {
        if text == "infinity" {
            return Some(Amount::Infinity);
        }
        match parse_percent(text) {
            Some(share) => Some(Amount::Share(share)),
            None => absolute(text).map(Amount::Absolute),
        }
    }

    /// Returns true if this amount is less than `other`, as far as can be told without the machine.
    fn is_less_than(self, other: Amount) -> bool {
        match (self, other) {
            (Amount::Absolute(one), Amount::Absolute(other)) => one < other,
            (Amount::Share(one), Amount::Share(other)) => one < other,
            _ => false,
        }
    }
}

/// Reads an amount of memory: `512M`, `1.5G`, `25%` or `infinity`.
fn memory(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Amount> {
    let text = value::text(node, key, report)?;
    let wrong = match Amount::parse(&text, parse_size) {
        Some(Amount::Absolute(bytes)) if bytes < LEAST_MEMORY => {
            "no program runs in less than 1M; a number without K, M or G is in bytes"
        }
        Some(Amount::Share(share)) if !is_part(share) => "give more than 0% and at most 100%",
        Some(amount) => return Some(amount),
        None => "give a size such as 512M or 1.5G, a share of the memory such as 25%, or infinity",
    };
    let shown = shorten(&text);
    report.at(node.at, format!("`{key}` is `{shown}`; {wrong}"));
    None
}

/// Reads a number of tasks: `100`, `25%` or `infinity`.
fn tasks(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Amount> {
    let text = value::text(node, key, report)?;
    let wrong = match Amount::parse(&text, |text| text.parse().ok()) {
        Some(Amount::Absolute(0)) => "a program needs one task at least",
        Some(Amount::Share(share)) if !is_part(share) => "give more than 0% and at most 100%",
        Some(amount) => return Some(amount),
        None => {
            "give a whole number, a share of the machine's greatest number such as 10%, or infinity"
        }
    };
    let shown = shorten(&text);
    report.at(node.at, format!("`{key}` is `{shown}`; {wrong}"));
    None
}

/// Reads a share of one CPU, `150%`, in hundredths of a percent.
fn cpu_quota(node: &Node, key: &str, report: &mut Report<'_>) -> Option<u32> {
    let text = value::text(node, key, report)?;
    match parse_percent(&text) {
        Some(share) if share > 0 => Some(share),
        _ => {
            let shown = shorten(&text);
            let message = format!(
                "`{key}` is `{shown}`; give a share of one CPU, such as 50%, or 200% for two of them"
            );
            report.at(node.at, message);
            None
        }
    }
}

/// Reads a limit of descriptors: `4096`, `1024:4096` or `infinity`.
fn nofile(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Nofile> {
    let text = value::text(node, key, report)?;
    let wrong = match parse_nofile(&text) {
        Some(Nofile {
            soft: Some(soft), ..
        }) if soft < LEAST_DESCRIPTORS => {
            format!("no program runs with less than {LEAST_DESCRIPTORS}")
        }
        Some(Nofile {
            soft,
            hard: Some(hard),
        }) if soft.is_none_or(|soft| soft > hard) => {
            "the first number, the soft limit, cannot be above the second, the hard one".to_owned()
        }
        Some(nofile) => return Some(nofile),
        None => {
            "give a number such as 4096, two such as 1024:4096 (soft:hard), or infinity".to_owned()
        }
    };
    let shown = shorten(&text);
    report.at(node.at, format!("`{key}` is `{shown}`; {wrong}"));
    None
}

fn parse_nofile(text: &str) -> Option<Nofile> {
    let number = |text: &str| match text {
        "infinity" => Some(None),
        _ => text.parse().ok().map(Some),
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    Some(Nofile {
        soft: number(soft)?,
        hard: number(hard)?,
    })
}

/// Returns true for a share of the machine that is more than nothing and not more than all.
fn is_part(share: u32) -> bool {
    (1..=WHOLE).contains(&share)
}

/// Parses a percentage with two decimals at most, in hundredths of a percent.
fn parse_percent(text: &str) -> Option<u32> {
    let number = text.strip_suffix('%')?.trim_end();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if !is_digits(whole) || !is_digits(decimals) || decimals.len() > 2 {
        return None;
    }
    let hundredths: u32 = format!("{decimals:0<2}").parse().ok()?;
    let whole: u32 = whole.parse().ok()?;
    whole.checked_mul(100)?.checked_add(hundredths)
}

/// Parses a number of bytes. A letter behind the number (K, M, G, T) multiplies it by a power of
/// 1024.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[number.len()..] {
        "" | "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    let number = number.trim_end();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if !is_digits(whole) || !is_digits(decimals) {
        return None;
    }
    let part: f64 = format!("0.{decimals}").parse().ok()?;
    let part = (part * unit as f64) as u64;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)?
        .checked_add(part)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_those_of_systemd() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("1048576B", 1 << 20),
            ("1024K", 1 << 20),
            ("512M", 512 << 20),
            ("1.5G", 1536 << 20),
            ("0.25G", 256 << 20),
            ("2 T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "-1M",
            "+1M",
            "1MB",
            "1m",
            "1Mi",
            "1.M",
            ".5G",
            "1e3",
            "1,5G",
            "99999999999T",
            "1G5",
            "inf",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn percentages_have_two_decimals_at_most() {
        for (text, hundredths) in [
            ("0%", 0),
            ("25%", 2500),
            ("12.5%", 1250),
            ("0.01%", 1),
            ("150 %", 15000),
        ] {
            assert_eq!(parse_percent(text), Some(hundredths), "{text}");
        }
        for text in [
            "%",
            "25",
            "-1%",
            "1.234%",
            "1.%",
            ".5%",
            "1e1%",
            "99999999%",
        ] {
            assert_eq!(parse_percent(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_not_less() {
        let (bytes, share) = (Amount::Absolute(1), Amount::Share(1));
        assert!(bytes.is_less_than(Amount::Absolute(2)));
        assert!(share.is_less_than(Amount::Share(2)));
        for (one, other) in [
            (bytes, bytes),
            (bytes, share),
            (share, bytes),
            (bytes, Amount::Infinity),
            (Amount::Infinity, bytes),
        ] {
            assert!(!one.is_less_than(other), "{one:?} {other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".*") {
            parse_percent(&text);
            parse_size(&text);
            parse_nofile(&text);
        }

        #[test]
        fn a_number_of_bytes_is_itself(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Some(bytes));
        }

        #[test]
        fn a_percentage_is_its_hundredths(share in 0..10_000_000u32) {
            let text = format!("{}.{:02}%", share / 100, share % 100);
            prop_assert_eq!(parse_percent(&text), Some(share));
        }

        #[test]
        fn descriptors_come_back_as_they_are_shown(soft: Option<u64>, hard: Option<u64>) {
            let nofile = Nofile { soft, hard };
            prop_assert_eq!(parse_nofile(&nofile.to_string()), Some(nofile));
        }
    }
}
