//! HTTP/1 as bytes: heads are parsed and checked, bodies are taken out of their framing and put
//! into it. Nothing here does input or output.
//!
//! # What is let through
//! What RFC 9112 lets a recipient tolerate in a head (a bare LF at the end of a line, an empty line
//! before the request line) is tolerated, but never passed on: heads are written anew from their
//! parsed fields, and bodies are framed anew from their data. Whatever could make two readers see
//! different messages (section 11.2) is refused: lengths that are repeated or are no plain numbers,
//! a length beside `Transfer-Encoding`, a coding other than `chunked`, white space before a colon,
//! folded lines, and anything unusual between chunks.

mod body;
mod chunked;
mod fields;
mod refusal;
mod request;
mod response;
mod spans;
mod target;

pub(crate) use body::{Decoder, Encoding, Framing};
pub(crate) use fields::{Field, FieldKind, is_end_to_end, slots, tokens};
pub(crate) use refusal::Refusal;
pub(crate) use request::{LONGEST_REQUEST_HEAD, RequestHead, Version, too_long};
pub(crate) use response::{LONGEST_RESPONSE_HEAD, Malformed, ResponseHead};
pub(crate) use spans::{FramingError, Spans};
