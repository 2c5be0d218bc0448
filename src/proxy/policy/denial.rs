//! The response that a client gets from a rule instead of from an instance.

/// A short response to a request that a rule has denied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Denial {
    /// The status code.
    pub(crate) status: u16,
    /// The reason phrase.
    pub(crate) reason: &'static str,
    /// An additional field of the response: name and value.
    pub(crate) field: Option<(&'static str, String)>,
    /// The body. It says only what strangers may know.
    pub(crate) text: &'static str,
    /// The reason for the log.
    pub(crate) why: &'static str,
}
