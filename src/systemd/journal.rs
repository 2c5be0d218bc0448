//! Streams to journald.

use std::io;
use std::os::fd::OwnedFd;

/// Opens a stream to journald.
pub fn stream(identifier: &str, unit: &str) -> io::Result<OwnedFd> {
    use std::io::Write;
    let mut stream = std::os::unix::net::UnixStream::connect("/run/systemd/journal/stdout")?;
    stream.shutdown(std::net::Shutdown::Read)?;
    write!(stream, "{identifier}\n{unit}\n6\n1\n0\n0\n0\n")?;
    Ok(stream.into())
}

/// The last lines of a unit.
pub async fn last_lines(_unit: &str) -> Vec<String> {
    Vec::new()
}
