//! The floor `connection`: what is spoken on a client's connection, from its first byte to its end.
//!
//! A new [`connection`] begins with what its listener requires: a header of the PROXY protocol
//! ([`proxy_protocol`]), a TLS handshake. Then the client speaks HTTP/1, and its [`requests`] are
//! served one after the other, or HTTP/2 ([`http2`]), where each stream is served like a connection
//! with one request.
//!
//! This floor uses `exchange`, `view`, `net` and `http`. It knows nothing of threads: it returns an
//! idle connection to its caller, who parks it.

pub(crate) mod connection;
pub(crate) mod http2;
pub(crate) mod proxy_protocol;
pub(crate) mod requests;

mod crc32c;
