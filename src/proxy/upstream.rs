//! Placeholder of the worker's shell for the HTTP part.

use super::stream::Stream;

/// A connection to an instance.
pub(crate) struct Upstream {
    stream: Stream,
}

impl Upstream {
    pub(crate) fn new(stream: Stream) -> Upstream {
        Upstream { stream }
    }

    pub(crate) fn is_reusable(&mut self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
