//! The floor `shared`: what all threads of a worker share, by `Arc`.
//!
//! The control thread compiles each [`table`] of the manager once: a [`router`] for each listener,
//! a [`spec`] for each endpoint, and the [`certificates`] in the form that TLS needs. Every data
//! thread makes a view of the table. [`threads`] has the loads of the threads and the messages
//! between them.
//!
//! What strangers can use up is bounded: the [`budget`] divides the descriptors, a [`client_key`]
//! is one client, a [`fair_queue`] lets clients wait by turns, and [`in_flight`] is the limit of a
//! service. [`heap`] counts the memory that is in use, and [`memory`] says how much may be.
//!
//! This floor uses the messages of the manager (`ipc`) and the `policy` that a table compiles for
//! each service, and no other part of the proxy.

pub(crate) mod bound_counters;
pub(crate) mod budget;
pub(crate) mod certificates;
pub(crate) mod client_key;
pub(crate) mod fair_queue;
pub(crate) mod heap;
pub(crate) mod in_flight;
pub(crate) mod memory;
pub(crate) mod router;
pub(crate) mod spec;
pub(crate) mod table;
pub(crate) mod threads;
