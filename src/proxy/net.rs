//! The floor `net`: connections as bytes.
//!
//! A [`socket`] is what the reactor knows; [`tls`] lies on one; a [`transport`] is either. Below
//! HTTP/2 a [`cork`] collects what is sent, and each stream of HTTP/2 ([`h2_stream`],
//! [`h2c_stream`]) is translated to HTTP/1.1. So a [`stream`], whichever of these it is, is what
//! everybody above serves requests on: bytes of HTTP/1.1. They are received into a [`buffer`] and
//! go out by [`send`].
//!
//! This floor knows `http` below it and the form in which the manager names addresses (`ipc`), and
//! nothing of tables, services or threads.

pub(crate) mod buffer;
pub(crate) mod cork;
pub(crate) mod descriptor;
pub(crate) mod h2_stream;
pub(crate) mod h2c_stream;
pub(crate) mod linger;
pub(crate) mod send;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod timer;
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod turn;
