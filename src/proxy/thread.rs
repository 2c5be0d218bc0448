//! The floor `thread`: one core's worth of the worker.
//!
//! A data thread ([`thread`]) has a runtime of its own. It accepts connections ([`accept`]), gives
//! each a task, and keeps those that stay idle without one ([`parking`]).
//!
//! This floor knows `connection` and all below it.

pub(crate) mod accept;
pub(crate) mod parking;
pub(crate) mod thread;

#[cfg(test)]
mod tests;
