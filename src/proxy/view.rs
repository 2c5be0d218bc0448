//! The floor `view`: what belongs to one data thread, in `Rc` and `Cell`.
//!
//! A [`view`] is the table as the thread uses it. Its listeners ([`listener`]) find the service of
//! a request ([`service`]). The service chooses an [`endpoint`], and the endpoint lends a
//! connection to the instance ([`upstream`]). The [`drain`] of the worker stands beside the view.
//! The [`room`] of the thread bounds how many requests are in flight, for each service and client;
//! [`idle_tasks`] finds connections to end when there are too many.
//!
//! This floor uses `net`, `shared`, and the compiled `policy` of a service, which it only keeps.

pub(crate) mod bound_log;
pub(crate) mod drain;
pub(crate) mod endpoint;
pub(crate) mod idle_tasks;
pub(crate) mod listener;
pub(crate) mod room;
pub(crate) mod service;
pub(crate) mod throttle;
pub(crate) mod upstream;
pub(crate) mod view;

mod pins;
