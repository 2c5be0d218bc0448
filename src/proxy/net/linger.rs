//! Closes the connection of a client that may have sent more than was read.

use std::time::Duration;

use super::buffer::{Buffer, Receive};
use super::timer::Timer;
use super::transport::Transport;

/// How long smoothserve reads from a client after its last response, and how long a client that was
/// told to send no more requests may take to finish those in flight.
pub(crate) const LINGER_LIMIT: Duration = Duration::from_secs(5);

/// How many bytes are read from a client after its last response.
const MOST_LINGERED: usize = 256 << 10;

/// Closes our side of the connection, and reads on until the client has closed its side or a limit
/// is reached. Closing a socket with unread bytes would send a reset, which can destroy a response
/// that the client has not read yet (RFC 9112, section 9.6).
pub(crate) async fn linger(transport: &Transport, buffer: &mut Buffer, timer: &mut Timer) {
    if transport.finish().is_ok() {
        read_rest(transport, buffer, timer).await;
    }
}

/// Reads and drops what a client still sends, until its end or until a limit is reached.
pub(crate) async fn read_rest(source: &impl Receive, buffer: &mut Buffer, timer: &mut Timer) {
    timer.set(LINGER_LIMIT);
    let mut lingered = 0;
    while lingered < MOST_LINGERED {
        let unread = buffer.unread().len();
        buffer.consume(unread);
        match timer.limit(buffer.fill(source)).await {
            Some(Ok(count)) if count > 0 => lingered += count,
            _ => return,
        }
    }
}
