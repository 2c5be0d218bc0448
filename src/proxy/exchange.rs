//! The floor `exchange`: one request of a [`client`], from its head to the end of its response.
//!
//! The head of a request becomes a [`request`]: routed, checked against the policy of its service,
//! and written for an instance ([`outgoing`]). [`forward`] finds an instance for it, and another
//! one where no request can be lost by that. On the connection to the instance the [`exchange`]
//! takes place: the [`upload`] of the request and at the same time the [`download`] of the
//! response. Both share a [`flow`]; [`reply`] says how the response is delivered. A [`tunnel`] may
//! follow. Whatever goes wrong becomes a response in [`error`].
//!
//! This floor uses `view`, `policy`, `net` and `http`. How a request came here does not matter to
//! it.

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
