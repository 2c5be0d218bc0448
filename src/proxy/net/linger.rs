//! The end of a client's connection that may have sent more than was read.

use std::time::Duration;

use super::buffer::Buffer;
use super::timer::Timer;
use super::transport::Transport;

/// How long a client that has got its last response is read from, and how long one may take to
/// end its requests that was told that no more are wanted.
pub(crate) const LINGER_LIMIT: Duration = Duration::from_secs(5);

/// Bytes that are read from a client that has got its last response.
const MOST_LINGERED: usize = 256 << 10;

/// Closes our side of the connection, and reads on until the client has closed its own, or long
/// enough: a close with unread bytes is a reset, which can destroy what the client has not read yet
/// (RFC 9112, section 9.6).
pub(crate) async fn linger(transport: &Transport, buffer: &mut Buffer, timer: &mut Timer) {
    if transport.finish().is_err() {
        return;
    }
    timer.set(LINGER_LIMIT);
    let mut lingered = 0;
    while lingered < MOST_LINGERED {
        let unread = buffer.unread().len();
        buffer.consume(unread);
        match timer.limit(buffer.fill(transport)).await {
            Some(Ok(count)) if count > 0 => lingered += count,
            _ => return,
        }
    }
}
