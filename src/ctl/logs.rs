//! `smoothctl logs`: hands over to journalctl, with the matches that find what belongs to a
//! service.
//!
//! Any local user can write lines into the journal that claim to be from a service: the fields
//! `SYSLOG_IDENTIFIER` and `SERVICE` are what the writer says. So each match has a field that
//! begins with `_`, which journald itself finds out about the writer.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::error::CtlError;
use super::grammar::LogsArguments;
use crate::cli::exit;
use crate::status::Snapshot;
use crate::systemd::units::{SLICE, service_slice};

/// The number of lines that are shown if nothing else limits them.
const LINES: &str = "100";

/// Becomes journalctl; returns only if that is not possible. The service is known to exist.
pub(super) fn show(logs: &LogsArguments, snapshot: &Snapshot) -> CtlError {
    if !snapshot.journal {
        let message = "smoothserve does not write to the journal; \
                       its messages and its instances' lines are where it was started";
        return CtlError::new(exit::UNAVAILABLE, message);
    }
    let failed =
        |error| CtlError::new(exit::UNAVAILABLE, format!("cannot run journalctl: {error}"));
    let range = match (&logs.since, number_of_lines(logs)) {
        (Some(since), Some(lines)) => match first_of_newest(lines, since, logs, snapshot.uid) {
            Ok(Some(cursor)) => range_from(&cursor, logs.follow),
            Ok(None) => plain_range(logs),
            Err(error) => return failed(error),
        },
        _ => plain_range(logs),
    };
    let error = Command::new("journalctl")
        .args(range)
        .args(which(logs, snapshot.uid))
        .exec();
    failed(error)
}

/// Returns the number of lines to show, if the arguments name one.
fn number_of_lines(logs: &LogsArguments) -> Option<u64> {
    let lines = logs.lines.as_ref()?.parse().ok();
    lines.filter(|lines| *lines > 0)
}

/// Finds the oldest of the newest lines since a time, and returns its place in the journal; `None`
/// if there are no lines. Asked for a number of lines since a time, journalctl 252 shows the oldest
/// ones, unless it shows them in reverse.
fn first_of_newest(
    lines: u64,
    since: &str,
    logs: &LogsArguments,
    uid: u32,
) -> io::Result<Option<String>> {
    let output = Command::new("journalctl")
        .arg(format!("--lines={lines}"))
        .arg(format!("--since={since}"))
        .args(which(logs, uid))
        .args([
            "--quiet",
            "--no-pager",
            "--reverse",
            "--output=cat",
            "--show-cursor",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let cursor = text.lines().next_back();
    let cursor = cursor.and_then(|line| line.strip_prefix("-- cursor: "));
    Ok(cursor.map(str::to_owned))
}

/// The arguments for everything from a place in the journal on.
fn range_from(cursor: &str, follow: bool) -> Vec<String> {
    let mut arguments = vec![format!("--cursor={cursor}")];
    if follow {
        arguments.extend(["--follow", "--no-tail"].map(str::to_owned));
    }
    arguments
}

/// The arguments for the lines that journalctl finds itself.
fn plain_range(logs: &LogsArguments) -> Vec<String> {
    let mut arguments = Vec::new();
    if logs.follow {
        arguments.push("--follow".to_owned());
    }
    let all = logs.since.is_some() || !logs.options.is_empty();
    let lines = logs.lines.as_deref().or((!all).then_some(LINES));
    arguments.extend(lines.map(|lines| format!("--lines={lines}")));
    arguments.extend(logs.since.iter().map(|since| format!("--since={since}")));
    arguments
}

/// The arguments that select the lines of the service. `uid` is that of smoothserve.
fn which(logs: &LogsArguments, uid: u32) -> Vec<String> {
    let mut arguments = logs.options.clone();
    let about = format!("SERVICE={}", logs.name);
    let alternatives = match uid {
        0 => {
            let slice = service_slice(&logs.name);
            vec![
                // The manager and its workers. Only root can put processes into this slice.
                vec![format!("_SYSTEMD_SLICE={SLICE}"), about],
                vec![format!("_SYSTEMD_SLICE={slice}")],
                // journald notes this about a line that it reads after the process has ended. Only
                // root can open a stream for which it does so.
                vec![format!("_SYSTEMD_UNIT={slice}")],
            ]
        }
        // A user's smoothserve and all its instances run as this user, and only this user can
        // write such lines.
        uid => {
            let own = format!("_UID={uid}");
            let manager = "SYSLOG_IDENTIFIER=smoothserve".to_owned();
            vec![
                vec![own.clone(), manager, about],
                vec![own, format!("SYSLOG_IDENTIFIER={}", logs.name)],
            ]
        }
    };
    arguments.extend(alternatives.join(&"+".to_owned()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::grammar::{Smoothctl, Verb};
    use clap::Parser;

    fn for_journalctl(line: &str, uid: u32) -> String {
        let Some(Verb::Logs(logs)) = Smoothctl::parse_from(line.split(' ')).verb else {
            panic!("{line} is not understood");
        };
        [plain_range(&logs), which(&logs, uid)].concat().join(" ")
    }

    #[test]
    fn journalctl_is_asked_for_the_services_lines_and_the_events_about_it() {
        const SHOP: &str = "_SYSTEMD_SLICE=smoothserve.slice SERVICE=shop \
                            + _SYSTEMD_SLICE=smoothserve-shop.slice \
                            + _SYSTEMD_UNIT=smoothserve-shop.slice";
        for (line, options) in [
            ("smoothctl logs shop", "--lines=100"),
            ("smoothctl logs -f shop", "--follow --lines=100"),
            ("smoothctl logs shop -n 5 -f", "--follow --lines=5"),
            ("smoothctl logs shop --since -1h", "--since=-1h"),
            (
                "smoothctl logs shop -S today -n all",
                "--lines=all --since=today",
            ),
            ("smoothctl logs shop -- -p err -o json", "-p err -o json"),
        ] {
            assert_eq!(for_journalctl(line, 0), format!("{options} {SHOP}"));
        }
    }

    #[test]
    fn a_users_smoothserve_is_not_the_systems() {
        assert_eq!(
            for_journalctl("smoothctl logs shop -n 1", 1000),
            "--lines=1 _UID=1000 SYSLOG_IDENTIFIER=smoothserve SERVICE=shop \
             + _UID=1000 SYSLOG_IDENTIFIER=shop"
        );
    }
}
