//! The translation between one stream of HTTP/2 and the bytes of HTTP/1.1: [`head`] translates
//! heads, [`incoming`] what a stream brings, [`outgoing`] what goes into it. The protocol itself is
//! the h2 crate's.

pub(crate) mod head;
pub(crate) mod incoming;
pub(crate) mod outgoing;
