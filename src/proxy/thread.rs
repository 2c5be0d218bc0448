//! The floor `thread`: one core's worth of the worker.
//!
//! A data thread ([`thread`]) has a runtime of its own. It accepts connections ([`accept`]) and
//! gives each a task. A connection that stays idle is parked without a task ([`parking`]). The
//! others are known by what they hold ([`active`]).
//!
//! This floor uses `connection` and all floors below it.

pub(crate) mod accept;
mod active;
pub(crate) mod parking;
pub(crate) mod thread;

#[cfg(test)]
mod tests;
