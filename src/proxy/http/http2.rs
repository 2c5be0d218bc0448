//! The translation between one stream of HTTP/2 and the bytes of HTTP/1.1: [`head`] translates
//! heads, [`incoming`] reads from a stream, [`outgoing`] writes to a stream, [`websocket_key`]
//! checks that an instance has opened a WebSocket. The h2 crate implements the protocol itself.

pub(crate) mod head;
pub(crate) mod incoming;
pub(crate) mod outgoing;
pub(crate) mod websocket_key;
