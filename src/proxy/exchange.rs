//! The floor `exchange`: one request of a [`client`], from its head to the end of its response.
//!
//! The head makes a [`request`]: routed, judged by the policy of its service, and written for an
//! instance ([`outgoing`]). To [`forward`] it is to find an instance, and another one where that
//! loses nothing. On the connection to that takes place the [`exchange`]: the [`upload`] of the
//! request and at the same time the [`download`] of the response, which share a [`flow`] and
//! deliver what the [`reply`] says; a [`tunnel`] may follow. Whatever goes wrong becomes a response
//! in [`error`].
//!
//! This floor knows `view`, `policy`, `net` and `http`, and nothing of how a request came here.

pub(crate) mod client;
pub(crate) mod download;
pub(crate) mod error;
pub(crate) mod exchange;
pub(crate) mod flow;
pub(crate) mod forward;
pub(crate) mod outgoing;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod tunnel;
pub(crate) mod upload;
