//! Values of keys and what they mean: text, numbers, durations, addresses, and lists of them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::environment_file::is_own_variable;
use super::fault::{Position, shorten};
use super::fields::{At, Report, nearest};
use super::raw::{Node, Value};

/// The longest time that a timeout or a delay may be.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest duration of a key that is meant in days, such as `hsts`.
const MAX_LONG_DURATION: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The most bytes of a single value: no name, path or argument is longer.
const MAX_TEXT: usize = 32 * 1024;

/// The most elements of a list of hosts, ports or addresses.
const MAX_WORDS: usize = 1000;

/// Reads a single value that is not empty.
pub(super) fn text(node: &Node, key: &str, report: &mut Report<'_>) -> Option<String> {
    let text = anything(node, key, report)?;
    if text.is_empty() {
        report.at(node.at, format!("`{key}` is empty; give it a value"));
        return None;
    }
    Some(text.to_owned())
}

/// Reads a path. Nothing of what a shell would replace in it is replaced.
pub(super) fn path(node: &Node, key: &str, report: &mut Report<'_>) -> Option<String> {
    let path = At {
        at: node.at,
        value: text(node, key, report)?,
    };
    literal(path, key, report).map(|path| path.value)
}

/// Reads a list of paths. A single value is a list of one.
pub(super) fn paths(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Vec<At<String>>> {
    let paths = strings(node, key, report)?.into_iter();
    let paths: Vec<_> = paths.map(|path| literal(path, key, report)).collect();
    paths.into_iter().collect()
}

/// Reports a path in which a shell would replace something.
fn literal(path: At<String>, key: &str, report: &mut Report<'_>) -> Option<At<String>> {
    // A `-` before the path says that the file may be missing.
    let bare = path.value.strip_prefix('-').unwrap_or(&path.value);
    let advice = if bare == "~" || bare.starts_with("~/") {
        "nothing replaces `~` here; write the home folder itself, as in `/home/anna/shop`"
    } else if bare.starts_with('~') {
        "nothing replaces `~` here; write the whole path, or put `./` before it"
    } else if bare.starts_with('$') || bare.contains("${") || bare.contains("/$") {
        "nothing replaces variables here; write the whole path itself"
    } else {
        return Some(path);
    };
    let shown = shorten(&path.value);
    report.at(path.at, format!("`{key}` is `{shown}`; {advice}"));
    None
}

/// Reads a single value, which may be an empty string.
fn anything<'n>(node: &'n Node, key: &str, report: &mut Report<'_>) -> Option<&'n str> {
    let Value::Scalar { text, .. } = &node.value else {
        let kind = node.kind();
        let advice = match in_braces(node) {
            Some(word) => format!("put it into quotes: `\"{{{word}}}\"`"),
            None => "a single value is needed".to_owned(),
        };
        report.at(node.at, format!("`{key}` is {kind}; {advice}"));
        return None;
    };
    if text.contains('\0') {
        report.at(
            node.at,
            format!("`{key}` contains a NUL character; remove it"),
        );
        return None;
    }
    if text.len() > MAX_TEXT {
        report.at(node.at, format!("`{key}` is longer than {MAX_TEXT} bytes"));
        return None;
    }
    Some(text)
}

/// Returns the word in `{word}`, which is a mapping to YAML if it stands without quotes.
fn in_braces(node: &Node) -> Option<String> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    match &entries[..] {
        [
            (
                Node {
                    value: Value::Scalar { text, .. },
                    ..
                },
                value,
            ),
        ] if value.is_null() => Some(shorten(text)),
        _ => None,
    }
}

/// Reads `true` or `false`, or the other words that older YAML has for them.
pub(super) fn boolean(node: &Node, key: &str, report: &mut Report<'_>) -> Option<bool> {
    let text = text(node, key, report)?;
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => {
            let shown = shorten(&text);
            report.at(
                node.at,
                format!("`{key}` is `{shown}`; give `true` or `false`"),
            );
            None
        }
    }
}

/// Reads a list of strings. A single value is a list of one.
pub(super) fn strings(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Vec<At<String>>> {
    let Value::List(list) = &node.value else {
        return text(node, key, report).map(|value| vec![At { at: node.at, value }]);
    };
    let items: Vec<Option<At<String>>> = list
        .iter()
        .map(|item| text(item, key, report).map(|value| At { at: item.at, value }))
        .collect();
    items.into_iter().collect()
}

/// Reads `"a, b"` or a list, whose elements may again be `"a, b"`.
pub(super) fn words(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Vec<At<String>>> {
    let mut words = Vec::new();
    for string in strings(node, key, report)? {
        for part in string.value.split(',').map(str::trim) {
            if part.is_empty() {
                continue;
            }
            if words.len() == MAX_WORDS {
                report.at(node.at, format!("`{key}` has more than {MAX_WORDS} values"));
                return None;
            }
            let at = report.source.find(string.at, part);
            words.push(At {
                at,
                value: part.to_owned(),
            });
        }
    }
    if words.is_empty() {
        report.at(
            node.at,
            format!("`{key}` is an empty list; give at least one value"),
        );
        return None;
    }
    Some(words)
}

/// Reads the arguments of a program. They are never split as a shell would, so a single string is
/// taken only if there is nothing to split.
pub(super) fn arguments(
    node: &Node,
    key: &str,
    report: &mut Report<'_>,
) -> Option<Vec<At<String>>> {
    match &node.value {
        Value::List(list) => {
            let items: Vec<Option<At<String>>> = list
                .iter()
                .map(|item| {
                    let text = anything(item, key, report)?.to_owned();
                    Some(At {
                        at: item.at,
                        value: text,
                    })
                })
                .collect();
            items.into_iter().collect()
        }
        Value::Scalar { text, .. } if text.contains(char::is_whitespace) => {
            let parts: Vec<String> = text.split_whitespace().map(|p| format!("{p:?}")).collect();
            let list = shorten(&parts.join(", ")).replace("\\\"", "\"");
            report.at(
                node.at,
                format!("`{key}` is one string; write a list: [{list}]"),
            );
            None
        }
        _ => strings(node, key, report),
    }
}

/// Parses a whole number, and reports one outside the range.
pub(super) fn number<N: FromStr + PartialOrd + Display>(
    at: Position,
    text: &str,
    key: &str,
    range: RangeInclusive<N>,
    report: &mut Report<'_>,
) -> Option<N> {
    match text.parse() {
        Ok(number) if range.contains(&number) => Some(number),
        _ => {
            let (shown, least, most) = (shorten(text), range.start(), range.end());
            let message =
                format!("`{key}` is `{shown}`; give a whole number from {least} to {most}");
            report.at(at, message);
            None
        }
    }
}

/// Reads a number of instances.
pub(super) fn count(node: &Node, key: &str, report: &mut Report<'_>) -> Option<u16> {
    let text = text(node, key, report)?;
    number(node.at, &text, key, 1..=1000, report)
}

/// Reads one port.
pub(super) fn port(node: &Node, key: &str, report: &mut Report<'_>) -> Option<u16> {
    let text = text(node, key, report)?;
    number(node.at, &text, key, 1..=u16::MAX, report)
}

/// Reads ports: one, `"80, 8080"` or a list.
pub(super) fn ports(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Vec<At<u16>>> {
    let ports: Vec<Option<At<u16>>> = words(node, key, report)?
        .into_iter()
        .map(|At { at, value }| {
            if let Some(advice) = meant_port(&value, key) {
                let shown = shorten(&value);
                report.at(at, format!("`{key}` is `{shown}`; {advice}"));
                return None;
            }
            let value = number(at, &value, key, 1..=u16::MAX, report)?;
            Some(At { at, value })
        })
        .collect();
    ports.into_iter().collect()
}

/// Says what to write instead of a port that is written as in other programs: `:80`,
/// `127.0.0.1:80`, `8080:80`, `80/tcp`, `http`.
fn meant_port(text: &str, key: &str) -> Option<String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let usual = [("http", 80), ("https", 443)];
    if let Some((_, number)) = usual.iter().find(|(name, _)| *name == text) {
        return Some(format!("write the number: `{key}: {number}`"));
    }
    if let Some(number) = text.strip_suffix("/tcp").and_then(port) {
        return Some(format!("write the number alone: `{key}: {number}`"));
    }
    let (before, number) = text.rsplit_once(':')?;
    let number = port(number)?;
    match before.trim_start_matches('[').trim_end_matches(']') {
        "" | "*" | "0.0.0.0" | "::" => Some(format!("write the number alone: `{key}: {number}`")),
        address if address.parse::<IpAddr>().is_ok() => Some(format!(
            "write `{key}: {number}` and `listen_address: \"{address}\"`"
        )),
        first if port(first).is_some() => Some(format!(
            "write the port for clients alone: `{key}: {first}`; instances get ports of their own"
        )),
        _ => None,
    }
}

/// Reads a duration: `30s`, `500ms`, `1m30s`, or plain seconds, `2.5`.
pub(super) fn duration(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Duration> {
    let text = text(node, key, report)?;
    let Some(duration) = parse_duration(&text) else {
        let shown = shorten(&text);
        let advice = match meant_duration(&text) {
            Some(meant) => format!("write `{meant}`"),
            None => "give a time such as 30s, 500ms, 2m or plain seconds".to_owned(),
        };
        report.at(node.at, format!("`{key}` is `{shown}`; {advice}"));
        return None;
    };
    if duration > MAX_DURATION {
        let advice = match text.bytes().all(|b| b.is_ascii_digit()) {
            true => format!(
                ": a number without a unit means seconds; for milliseconds write `{text}ms`"
            ),
            false => String::new(),
        };
        report.at(node.at, format!("`{key}` is longer than a day{advice}"));
        return None;
    }
    Some(duration)
}

/// Reads a duration of days rather than of seconds, `365d`.
pub(super) fn long_duration(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Duration> {
    let text = text(node, key, report)?;
    let duration = parse_duration(&text).filter(|duration| *duration <= MAX_LONG_DURATION);
    if duration.is_none() {
        let shown = shorten(&text);
        let message = format!(
            "`{key}` is `{shown}`; give a time such as 365d or 12h, or plain seconds, up to 3650d"
        );
        report.at(node.at, message);
    }
    duration
}

fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(seconds) = parse_decimal(text) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(parse_decimal(amount)? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after.trim_start();
    }
    Some(total)
}

/// Returns how a time is written here that is written otherwise: `5 min`, `30 seconds`, `2M`.
fn meant_duration(text: &str) -> Option<String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (amount, unit) = text.split_at(digits);
    parse_decimal(amount)?;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "ms" | "msec" | "msecs" | "millis" | "millisecond" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        _ => return None,
    };
    Some(format!("{amount}{unit}"))
}

/// Parses digits with at most one dot: no sign, no exponent, no `inf`.
fn parse_decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if plain { text.parse().ok() } else { None }
}

/// Reads one of several words and returns what it stands for.
pub(super) fn choice<T: Copy>(
    node: &Node,
    key: &str,
    report: &mut Report<'_>,
    choices: &[(&str, T)],
) -> Option<T> {
    let text = text(node, key, report)?;
    if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
        return Some(*choice);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    report.at(node.at, not_a_choice(key, &text, &words));
    None
}

/// Words the fault of a value that is none of the possible words.
pub(super) fn not_a_choice(key: &str, text: &str, words: &[&str]) -> String {
    let shown = shorten(text);
    match nearest(text, words) {
        Some(near) => format!("`{key}` is `{shown}`; did you mean `{near}`?"),
        None => format!("`{key}` is `{shown}`; give one of {}", words.join(", ")),
    }
}

/// Reads one IP address.
pub(super) fn address(node: &Node, key: &str, report: &mut Report<'_>) -> Option<IpAddr> {
    let text = text(node, key, report)?;
    parse_address(node.at, &text, key, report)
}

/// Reads IP addresses: one, `"a, b"` or a list.
pub(super) fn addresses(
    node: &Node,
    key: &str,
    report: &mut Report<'_>,
) -> Option<Vec<At<IpAddr>>> {
    let addresses: Vec<Option<At<IpAddr>>> = words(node, key, report)?
        .into_iter()
        .map(|At { at, value }| {
            let value = parse_address(at, &value, key, report)?;
            Some(At { at, value })
        })
        .collect();
    addresses.into_iter().collect()
}

fn parse_address(at: Position, text: &str, key: &str, report: &mut Report<'_>) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            let shown = shorten(text);
            let message =
                format!("`{key}` is `{shown}`; give an IP address such as 127.0.0.1 or ::1");
            report.at(at, message);
            None
        }
    }
}

/// Reads IP addresses and networks, such as `10.0.0.0/8`.
pub(super) fn networks(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Vec<IpNet>> {
    // An empty list says something here: trust nobody.
    if matches!(&node.value, Value::List(list) if list.is_empty()) {
        return Some(Vec::new());
    }
    let networks: Vec<Option<IpNet>> = words(node, key, report)?
        .into_iter()
        .map(|At { at, value }| {
            let address = value.parse::<IpAddr>().map(IpNet::from);
            match address.or_else(|_| value.parse::<IpNet>()) {
                Ok(network) => Some(network.trunc()),
                Err(_) => {
                    let shown = shorten(&value);
                    let message = format!(
                        "`{key}` has `{shown}`; give IP addresses or networks such as 10.0.0.0/8"
                    );
                    report.at(at, message);
                    None
                }
            }
        })
        .collect();
    networks.into_iter().collect()
}

/// Reads environment variables: a mapping, or a list of `KEY=value`.
pub(super) fn environment(
    node: &Node,
    key: &str,
    report: &mut Report<'_>,
) -> Option<BTreeMap<String, String>> {
    let mut pairs: Vec<(Position, String, String)> = Vec::new();
    let mut good = true;
    match &node.value {
        Value::Map(entries) => {
            for (name, value) in entries {
                let value = if value.is_null() {
                    Some("")
                } else {
                    anything(value, key, report)
                };
                match (text(name, key, report), value) {
                    (Some(text), Some(value)) => pairs.push((name.at, text, value.to_owned())),
                    _ => good = false,
                }
            }
        }
        Value::List(items) => {
            for item in items {
                match text(item, key, report) {
                    Some(line) => match line.split_once('=') {
                        Some((name, value)) => {
                            pairs.push((item.at, name.to_owned(), value.to_owned()));
                        }
                        None => {
                            let shown = shorten(&line);
                            report.at(item.at, format!("`{shown}` is no `KEY=value`"));
                            good = false;
                        }
                    },
                    None => good = false,
                }
            }
        }
        Value::Scalar { .. } => {
            let message = format!("`{key}` is a single value; give lines of `KEY: value` below it");
            report.at(node.at, message);
            return None;
        }
    }
    let mut environment = BTreeMap::new();
    for (at, name, value) in pairs {
        if let Err(why) = check_variable(&name) {
            report.at(at, why);
            good = false;
        } else if environment.insert(name.clone(), value).is_some() {
            report.at(at, format!("`{name}` stands there twice; keep one"));
            good = false;
        }
    }
    good.then_some(environment)
}

/// Checks that a service may set this environment variable.
fn check_variable(name: &str) -> Result<(), String> {
    let shown = shorten(name);
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.chars().all(|c| c.is_ascii_graphic() && c != '=');
    if !begins || !rest {
        return Err(format!(
            "`{shown}` is no name of a variable; use letters, digits and `_`"
        ));
    }
    if is_own_variable(name) {
        return Err(format!("`{shown}` is set by smoothserve itself; remove it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, millis) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("1.5s", 1500),
            ("0", 0),
            ("3", 3000),
            ("0.25", 250),
            (".5", 500),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "s", "1x", "-1", "1e3", "inf", "nan", "1..5", ".", "1s2", "s1", "1 s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn says_how_a_time_or_a_port_is_written_here() {
        for (text, meant) in [
            ("5 min", Some("5m")),
            ("30 seconds", Some("30s")),
            ("1.5 Hours", Some("1.5h")),
            ("2M", Some("2m")),
            ("5 parsecs", None),
            ("min", None),
            ("-5 s", None),
        ] {
            assert_eq!(meant_duration(text).as_deref(), meant, "{text}");
        }
        for (text, advice) in [
            (":80", "`port: 80`"),
            ("0.0.0.0:80", "`port: 80`"),
            ("[::]:80", "`port: 80`"),
            (
                "127.0.0.1:80",
                "`port: 80` and `listen_address: \"127.0.0.1\"`",
            ),
            ("[::1]:80", "`port: 80` and `listen_address: \"::1\"`"),
            ("8080:80", "`port: 8080`"),
            ("80/tcp", "`port: 80`"),
            ("https", "`port: 443`"),
        ] {
            let found = meant_port(text, "port").unwrap();
            assert!(found.contains(advice), "{text}: {found}");
        }
        for text in ["80", "0", "a:b", "a:80", ":0", ":99999"] {
            assert_eq!(meant_port(text, "port"), None, "{text}");
        }
    }

    #[test]
    fn keeps_its_own_variables_to_itself() {
        for name in [
            "PORT",
            "SOCKET",
            "LISTEN_FDS",
            "SMOOTHSERVE_X",
            "",
            "1A",
            "A B",
            "A=B",
            "ä",
        ] {
            assert!(check_variable(name).is_err(), "{name}");
        }
        for name in ["RUST_LOG", "_x", "PORTS", "npm_config.x"] {
            assert!(check_variable(name).is_ok(), "{name}");
        }
    }
}
