//! The floor `http`: what HTTP looks like on the wire.
//!
//! [`http1`] parses heads and takes bodies out of their framing and puts them into it; [`http2`]
//! translates between a stream of HTTP/2 and the bytes of HTTP/1.1; [`headers`] writes heads as
//! they are passed on, [`date`] one field of them; [`path`] finds out how an instance may read a
//! path. Nothing here opens, reads from or writes to a socket, and this floor uses no other part of
//! the proxy.

pub(crate) mod date;
pub(crate) mod headers;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod path;
pub(crate) mod request_id;
