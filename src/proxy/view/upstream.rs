//! A connection to an instance.

use std::io;

use crate::proxy::net::buffer::Buffer;
use crate::proxy::net::socket::Socket;
use crate::proxy::net::stream::Stream;

/// A connection to an instance, with the bytes that the instance has sent and nobody has read yet.
pub(crate) struct Upstream {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    /// True if the instance may still send a body that does not belong to its last response.
    pub(crate) is_suspect: bool,
}

impl Upstream {
    /// Makes an upstream of a connection on which nothing was received yet.
    pub(crate) fn new(stream: Stream) -> Upstream {
        Upstream {
            stream,
            buffer: Buffer::default(),
            is_suspect: false,
        }
    }

    /// Returns true if the connection can take another request: nothing is unread, and as far as
    /// the reactor knows, the instance has not closed it. A system call is made only if the reactor
    /// has news, or if the instance is suspect.
    pub(crate) fn is_reusable(&mut self) -> bool {
        if self.is_suspect {
            return self.is_surely_reusable();
        }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The reactor of this thread does not run while the test does, so it knows nothing.
    #[tokio::test]
    async fn the_kernel_is_asked_about_a_suspect_instance() {
        let (mut instance, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = tokio::net::UnixStream::from_std(ours).unwrap();
        let mut upstream = Upstream::new(Socket::opened(ours).into());
        upstream.is_suspect = true;
        assert!(upstream.is_reusable());
        instance.write_all(b"late").unwrap();
        assert!(!upstream.is_reusable());
        upstream.is_suspect = false;
        assert!(upstream.is_reusable(), "no system call is made");
    }
}
