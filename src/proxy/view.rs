//! The floor `view`: what belongs to one data thread, in `Rc` and `Cell`.
//!
//! A [`view`] is the table as the thread uses it: its listeners ([`listener`]), which find the
//! service of a request ([`service`]), which chooses an [`endpoint`], which lends a connection to
//! the instance ([`upstream`]). Beside it stands the [`drain`] of the worker.
//!
//! This floor knows `net`, `shared`, and the compiled `policy` of a service, which it only keeps.

pub(crate) mod drain;
pub(crate) mod endpoint;
pub(crate) mod listener;
pub(crate) mod service;
pub(crate) mod throttle;
pub(crate) mod upstream;
pub(crate) mod view;
