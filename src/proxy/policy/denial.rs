//! The response that a rule gives a client in the place of an instance.

/// A short response, and why it is given.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Denial {
    /// The status code.
    pub(crate) status: u16,
    /// The reason phrase.
    pub(crate) reason: &'static str,
    /// A field of its own, by its name.
    pub(crate) field: Option<(&'static str, String)>,
    /// The body: what a stranger may know.
    pub(crate) text: &'static str,
    /// The message in the log.
    pub(crate) why: &'static str,
}
