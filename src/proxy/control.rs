//! The floor `control`: the control thread of the worker, which serves no client.
//!
//! [`control`] owns its state and speaks with the manager ([`manager_link`]); it keeps the
//! listening [`sockets`], asks endpoints whether they answer ([`probe`]), and proves that draining
//! ones are idle ([`quiescence`]). How far the drain of the worker itself is stands in
//! [`worker_drain`]; [`drain_signals`] can begin it, too.
//!
//! This floor knows `net` and `shared`, and nothing of the data threads but the messages that go to
//! and fro.

pub(crate) mod control;
pub(crate) mod drain_signals;
pub(crate) mod manager_link;
pub(crate) mod probe;
pub(crate) mod quiescence;
pub(crate) mod sockets;
pub(crate) mod worker_drain;
