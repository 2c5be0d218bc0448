//! The journal: whether it is behind a descriptor, streams into it for other processes, and the
//! last lines that a process has written.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Where journald takes streams; there is one socket for the system and all users.
const STREAMS: &str = "/run/systemd/journal/stdout";

/// The size of the buffer that sd_journal_stream_fd(3) asks for, so that a program can go on
/// writing while journald is restarted. The kernel gives less to those who are not root.
const STREAM_BUFFER: usize = 8 << 20;

/// The priority of lines without a prefix like `<3>`: LOG_INFO.
const PRIORITY: u8 = 6;

/// The most lines of an instance that are quoted.
const TAIL: usize = 20;

/// The most characters of a line that are quoted.
const TAIL_LINE: usize = 512;

/// The most bytes that are read of all lines. journald cuts lines at 48 KiB by default.
const TAIL_BYTES: u64 = 1 << 20;

/// How long to wait for journalctl in all.
const TAIL_LIMIT: Duration = Duration::from_secs(2);

/// The name of the environment variable by which a program finds that it writes to the journal, see
/// systemd.exec(5).
pub const STREAM_VARIABLE: &str = "JOURNAL_STREAM";

/// Returns the value of [`STREAM_VARIABLE`] for a program that has this descriptor as its stdout or
/// stderr.
pub fn variable_for(descriptor: impl AsFd) -> io::Result<String> {
    let stat = rustix::fs::fstat(descriptor)?;
    Ok(format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Returns true if journald reads what is written to this descriptor.
pub fn is_behind(descriptor: impl AsFd) -> bool {
    std::env::var(STREAM_VARIABLE)
        .is_ok_and(|told| variable_for(descriptor).is_ok_and(|own| own == told))
}

/// Opens a stream into the journal, to be a process's stdout and stderr. Its lines get `identifier`
/// as `SYSLOG_IDENTIFIER` and the priority that a prefix like `<3>` says, else 6.
///
/// The other fields are those of the process that writes, whoever opened the stream. journald looks
/// them up when it reads the line; if the process has ended by then, the line gets `unit` as
/// `_SYSTEMD_UNIT`, but only if root opened the stream.
///
/// The protocol is that of sd_journal_stream_fd(3), which only libsystemd's source describes.
/// journald keeps its end in systemd's file descriptor store, so that a stream outlives a restart
/// of journald. Never waits.
pub fn stream(identifier: &str, unit: &str) -> io::Result<OwnedFd> {
    if identifier.contains('\n') || unit.contains('\n') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(STREAMS)?)?;
    rustix::net::shutdown(&socket, Shutdown::Read)?;
    // With a smaller buffer it works, too.
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, STREAM_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, STREAM_BUFFER));
    let mut socket = UnixStream::from(socket);
    // The lines say: identifier, unit, priority, whether prefixes count, and three times that
    // journald is not to pass the stream on (to syslog, to the kernel's log, to the console).
    socket.write_all(format!("{identifier}\n{unit}\n{PRIORITY}\n1\n0\n0\n0\n").as_bytes())?;
    // Programs expect that writing to stdout blocks.
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// Returns the last lines that a process, or any other in its unit, has written since a time.
/// `unit` is a unit of the systemd that has started smoothserve itself, and `slice` is the unit of
/// the stream that the process writes to. The result is empty if
/// journalctl does not answer within two seconds.
///
/// What a process has written may still be on its way when it has ended. journald waits for that
/// when it is asked to, which only root may do; for others what came just before the end may be
/// missing.
pub async fn last_lines(unit: &str, slice: &str, pid: u32, since: SystemTime) -> Vec<String> {
    let text = tokio::time::timeout(TAIL_LIMIT, read(unit, slice, pid, since)).await;
    let text = text.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    tail(&text.unwrap_or_default())
}

async fn read(unit: &str, slice: &str, pid: u32, since: SystemTime) -> io::Result<Vec<u8>> {
    let field = match rustix::process::geteuid().is_root() {
        true => {
            journalctl().arg("--sync").status().await?;
            "_SYSTEMD_UNIT"
        }
        false => "_SYSTEMD_USER_UNIT",
    };
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut journalctl = journalctl()
        // From a given time on, journalctl counts the oldest lines unless the order is reversed.
        .args(["--quiet", "--no-pager", "--output=cat", "--reverse"])
        .arg(format!("--lines={TAIL}"))
        .arg(format!("--since=@{:.6}", since.as_secs_f64()))
        .arg(format!("{field}={unit}"))
        // A line of a process that had ended when journald read it may have nothing but the
        // process's number and the unit of the stream.
        .args(["+", &format!("_PID={pid}")])
        .args(["+", &format!("_SYSTEMD_UNIT={slice}")])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut text = Vec::new();
    if let Some(stdout) = journalctl.stdout.take() {
        stdout.take(TAIL_BYTES).read_to_end(&mut text).await?;
    }
    Ok(text)
}

/// Prepares a command that ends if nobody waits for it any more.
fn journalctl() -> Command {
    let mut command = Command::new("journalctl");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Returns the lines of a text whose newest line comes first, in the order of time.
fn tail(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let newest = text.lines().take(TAIL);
    let mut lines: Vec<String> = newest
        .map(|line| line.chars().take(TAIL_LINE).collect())
        .collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_short_and_text() {
        assert!(tail(b"").is_empty());
        assert_eq!(tail(b"one\r\n\xff two\n"), ["\u{fffd} two", "one"]);
        let many: String = (1..=30).map(|number| format!("line {number}\n")).collect();
        let lines = tail(many.as_bytes());
        assert_eq!((lines.len(), &*lines[0]), (20, "line 20"));
        assert_eq!(tail("ü".repeat(600).as_bytes()), ["ü".repeat(512)]);
    }

    #[test]
    fn a_stream_has_one_identifier() {
        let error = stream("shop\nsshd", "shop.scope").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn nothing_here_is_the_journal() {
        assert!(!is_behind(std::io::stderr()) || std::env::var_os(STREAM_VARIABLE).is_some());
        let (one, other) = UnixStream::pair().unwrap();
        assert_ne!(variable_for(one).unwrap(), variable_for(other).unwrap());
    }
}
