//! The floor `shared`: what all threads of a worker share, by `Arc`.
//!
//! The control thread compiles each [`table`] of the manager once, with a [`router`] for each
//! listener, a [`spec`] for each endpoint and what TLS needs of the [`certificates`]; every data
//! thread takes a view of it. [`threads`] is what the threads know and say of one another.
//!
//! This floor knows the messages of the manager (`ipc`) and the `policy` that a table compiles for
//! each service, and nothing else of the proxy.

pub(crate) mod certificates;
pub(crate) mod router;
pub(crate) mod spec;
pub(crate) mod table;
pub(crate) mod threads;
