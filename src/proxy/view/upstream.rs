//! A connection to an instance.

use std::io;

use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::socket::Socket;
use crate::proxy::net::stream::Stream;

/// A connection to an instance, with the bytes that the instance has sent and nobody has read yet.
pub(crate) struct Upstream {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
}

impl Upstream {
    /// Makes an upstream of a connection on which nothing was received yet.
    pub(crate) fn new(stream: Stream) -> Upstream {
        Upstream {
            stream,
            buffer: Buffer::default(),
        }
    }

    /// Returns true if the connection can take another request: nothing is unread, and as far as
    /// the reactor knows, the instance has not closed it. A system call is made only if the reactor
    /// has news.
    pub(crate) fn is_reusable(&mut self) -> bool {
        let would_block = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let is_silent = |socket: &Socket| socket.try_read(&mut [0; 1]).is_err_and(would_block);
        self.buffer.is_empty() && self.stream.as_socket().is_some_and(is_silent)
    }

    /// Returns true if the connection can take another request. Always asks the kernel, by a system
    /// call.
    pub(crate) fn is_surely_reusable(&mut self) -> bool {
        self.buffer.is_empty() && self.stream.is_quiet()
    }
}
