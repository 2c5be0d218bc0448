//! The floor `net`: connections as bytes.
//!
//! A [`socket`] is registered with the reactor; [`tls`] runs on a socket; a [`transport`] is a
//! socket with or without TLS. Below HTTP/2, a [`cork`] collects the bytes to send, and each stream
//! of HTTP/2 ([`h2_stream`], [`h2c_stream`]) is translated to HTTP/1.1. A [`stream`] is any of
//! these: the floors above read and write bytes of HTTP/1.1 on it. Received bytes go into a
//! [`buffer`]; bytes go out by [`send`]. What a client's connection holds of them is counted in
//! [`held`].
//!
//! This floor uses `http` and the form in which the manager names addresses (`ipc`). It knows
//! nothing of tables, services or threads.

pub(crate) mod buffer;
pub(crate) mod cork;
pub(crate) mod descriptor;
pub(crate) mod h2_stream;
pub(crate) mod h2c_stream;
pub(crate) mod held;
pub(crate) mod linger;
pub(crate) mod send;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod timer;
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod turn;
