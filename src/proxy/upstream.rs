//! Placeholder of the worker's shell for the HTTP part.

use super::stream::Stream;

/// A connection to an instance.
pub(crate) struct Upstream {
    #[allow(dead_code)]
    pub(crate) stream: Stream,
}

impl Upstream {
    pub(crate) fn is_reusable(&mut self) -> bool {
        true
    }
}
