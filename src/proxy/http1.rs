//! HTTP/1 as bytes: heads are parsed and checked, bodies are taken out of their framing and put into it. Nothing here
//! does input or output.
//!
//! # What is let through
//! What RFC 9112 lets a recipient tolerate in a head (a bare LF at the end of a line, an empty line before the request
//! line) is tolerated, but never passed on: heads are written anew from their parsed fields, and bodies are framed anew
//! from their data. Whatever could make two readers see different messages (section 11.2) is refused: lengths that are
//! repeated or are no plain numbers, a length beside `Transfer-Encoding`, a coding other than `chunked`, white space
//! before a colon, folded lines, and anything unusual between chunks.

mod body;
mod chunked;
mod fields;
mod request;
mod response;

pub(crate) use body::{Decoder, Encoding, Framing, FramingError, Spans};
pub(crate) use fields::{Field, Kind, is_end_to_end, tokens};
pub(crate) use request::{Refusal, RequestHead, Version};
pub(crate) use response::{Malformed, ResponseHead};

use std::mem::MaybeUninit;

/// Room for the fields of a head while it is parsed.
pub(crate) type Slots<'b, const N: usize> = [MaybeUninit<httparse::Header<'b>>; N];

/// Room for the fields of a head.
pub(crate) fn slots<'b, const N: usize>() -> Slots<'b, N> {
    [const { MaybeUninit::uninit() }; N]
}

/// The one plain number of a `Content-Length`.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}
