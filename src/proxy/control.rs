//! The floor `control`: the control thread of the worker, which serves no client.
//!
//! [`control`] owns the state of the control thread and speaks with the manager ([`manager_link`]).
//! The control thread keeps the listening [`sockets`], asks endpoints whether they answer
//! ([`probe`]), proves that draining endpoints are idle ([`quiescence`]), and sees to it that the
//! worker does not use too much memory ([`overload`]). [`worker_drain`]
//! knows how far the drain of the worker is; [`drain_signals`] can begin a drain, too.
//!
//! This floor uses `net` and `shared`. It knows the data threads only by the messages that it
//! exchanges with them.

pub(crate) mod control;
pub(crate) mod drain_signals;
pub(crate) mod manager_link;
pub(crate) mod overload;
pub(crate) mod probe;
pub(crate) mod quiescence;
pub(crate) mod sockets;
pub(crate) mod worker_drain;
