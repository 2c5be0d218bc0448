//! The framing of bodies: where a body ends, and which of its bytes are data.

use std::io::Write;

use super::chunked::Chunked;
use super::spans::{FramingError, Spans};

/// How a message says where its body ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    None,
    /// The body has as many bytes as were announced.
    Length(u64),
    /// The body comes in chunks, the last of which is empty.
    Chunked,
    /// Only for responses: the body ends with the connection.
    UntilClose,
}

/// Decodes a body: finds its data and its end.
#[derive(Debug)]
pub(crate) struct Decoder {
    framing: State,
}

#[derive(Debug)]
enum State {
    Length { left: u64 },
    Chunked(Chunked),
    UntilClose { end: bool },
}

impl Decoder {
    /// Makes a decoder for a body with this framing, of which nothing was read yet.
    pub(crate) fn new(framing: Framing) -> Decoder {
        let framing = match framing {
            Framing::None => State::Length { left: 0 },
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::Chunked(Chunked::default()),
            Framing::UntilClose => State::UntilClose { end: false },
        };
        Decoder { framing }
    }

    /// Makes a decoder for the body of an instance's response.
    pub(crate) fn of_response(framing: Framing) -> Decoder {
        match framing {
            Framing::Chunked => Decoder {
                framing: State::Chunked(Chunked::of_response()),
            },
            framing => Decoder::new(framing),
        }
    }

    /// Returns true if the body has ended.
    pub(crate) fn is_end(&self) -> bool {
        match &self.framing {
            State::Length { left } => *left == 0,
            State::Chunked(chunked) => chunked.is_end(),
            State::UntilClose { end } => *end,
        }
    }

    /// Decodes as much of `input` as belongs to the body and as `spans` has room for. Returns the
    /// number of decoded bytes.
    pub(crate) fn decode(
        &mut self,
        input: &[u8],
        spans: &mut Spans,
    ) -> Result<usize, FramingError> {
        match &mut self.framing {
            State::Length { left } => {
                let length =
                    usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                if !spans.push(0, length) {
                    return Ok(0);
                }
                *left -= length as u64;
                Ok(length)
            }
            State::Chunked(chunked) => chunked.decode(input, spans),
            State::UntilClose { .. } => {
                spans.push(0, input.len());
                Ok(input.len())
            }
        }
    }

    /// Tells the decoder that the sender has closed its side. This is an error unless the body has
    /// ended.
    pub(crate) fn close(&mut self) -> Result<(), FramingError> {
        if let State::UntilClose { end } = &mut self.framing {
            *end = true;
        }
        match self.is_end() {
            true => Ok(()),
            false => Err(FramingError::Incomplete),
        }
    }

    /// Returns the lines of the trailer section, each with its CRLF, once the body has ended.
    pub(crate) fn trailers(&self) -> &[u8] {
        match &self.framing {
            State::Chunked(chunked) => chunked.trailers(),
            _ => b"",
        }
    }
}

/// How a body is put into framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The data without framing: its length was announced, or it ends with the connection.
    Plain,
    /// The data in chunks.
    Chunked,
}

impl Encoding {
    /// Writes the framing that comes before `length` bytes of data.
    pub(crate) fn before(self, length: usize, out: &mut Vec<u8>) {
        if self == Encoding::Chunked && length > 0 {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{length:x}\r\n");
        }
    }

    /// Writes the framing that comes after `length` bytes of data. The data is the last of the body
    /// if there are `trailers`, even if no field is in them.
    pub(crate) fn after(self, length: usize, trailers: Option<&[u8]>, out: &mut Vec<u8>) {
        if self == Encoding::Plain {
            return;
        }
        if length > 0 {
            out.extend_from_slice(b"\r\n");
        }
        if let Some(trailers) = trailers {
            out.extend_from_slice(b"0\r\n");
            out.extend_from_slice(trailers);
            out.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_is_counted_exactly() {
        let mut decoder = Decoder::new(Framing::Length(5));
        let mut spans = Spans::default();
        assert_eq!(decoder.decode(b"abc", &mut spans), Ok(3));
        assert_eq!(decoder.close(), Err(FramingError::Incomplete));
        let mut spans = Spans::default();
        assert_eq!(decoder.decode(b"deGET", &mut spans), Ok(2));
        assert_eq!(spans.of(b"deGET").collect::<Vec<_>>(), [b"de"]);
        assert!(decoder.is_end());
        assert_eq!(decoder.close(), Ok(()));
    }

    #[test]
    fn a_body_until_close_ends_with_the_connection_only() {
        let mut decoder = Decoder::new(Framing::UntilClose);
        assert_eq!(decoder.decode(b"abc", &mut Spans::default()), Ok(3));
        assert!(!decoder.is_end());
        assert_eq!(decoder.close(), Ok(()));
        assert!(decoder.is_end());
    }

    #[test]
    fn no_body_is_at_its_end() {
        assert!(Decoder::new(Framing::None).is_end());
        assert!(Decoder::new(Framing::Length(0)).is_end());
        assert!(!Decoder::new(Framing::Chunked).is_end());
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..10),
        ) {
            let mut wire = Vec::new();
            for piece in &pieces {
                Encoding::Chunked.before(piece.len(), &mut wire);
                wire.extend_from_slice(piece);
                Encoding::Chunked.after(piece.len(), None, &mut wire);
            }
            Encoding::Chunked.after(0, Some(b"x-sum: 7\r\n"), &mut wire);
            let mut decoder = Decoder::new(Framing::Chunked);
            let mut data = Vec::new();
            let mut rest = &wire[..];
            while !decoder.is_end() {
                let mut spans = Spans::default();
                let consumed = decoder.decode(rest, &mut spans).unwrap();
                spans.of(rest).for_each(|span| data.extend_from_slice(span));
                rest = &rest[consumed..];
            }
            prop_assert_eq!(data, pieces.concat());
            prop_assert_eq!(decoder.trailers(), b"x-sum: 7\r\n");
            prop_assert!(rest.is_empty());
        }
    }
}
