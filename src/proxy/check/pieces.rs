//! What the fuzz targets for requests and responses share: a connection on which bytes are received
//! in pieces, and a body that is passed on piece by piece.
//!
//! An input is one byte of flags, three bytes that say how the rest is cut into pieces (see
//! [`Pieces`]), and the bytes that the other side sends.

use super::reader::Message;
use crate::proxy::http::http1::{Decoder, Encoding, Framing, FramingError, Spans};

/// Splits an input into the flags, the bytes that are sent, and the way in which these are cut.
/// `None` for an input that is too short.
pub(super) fn parts(input: &[u8]) -> Option<(u8, &[u8], Pieces)> {
    let (&[flags, cuts @ ..], sent) = input.split_first_chunk::<4>()?;
    Some((flags, sent, Pieces(cuts)))
}

/// How the bytes of a connection are cut into pieces. The three numbers are the lengths of the
/// pieces, in turn, each less one: so a piece has at least one byte. Three zeros mean one single
/// piece.
#[derive(Clone, Copy)]
pub(super) struct Pieces(pub(super) [u8; 3]);

impl Pieces {
    /// A single piece with all bytes.
    pub(super) const WHOLE: Pieces = Pieces([0; 3]);

    /// Returns where the pieces of a connection of `length` bytes end.
    fn ends(self, length: usize) -> Vec<usize> {
        if self.0 == Pieces::WHOLE.0 {
            return vec![length];
        }
        let lengths = self.0.iter().cycle().map(|&less| usize::from(less) + 1);
        let ends = lengths.scan(0, |end, piece| {
            let begin = *end;
            *end += piece;
            (begin < length).then_some(length.min(*end))
        });
        ends.collect()
    }
}

/// A connection that is received piece by piece.
pub(super) struct PieceReceiver<'a> {
    bytes: &'a [u8],
    ends: std::vec::IntoIter<usize>,
    /// How many bytes were taken from the connection.
    pub(super) start: usize,
    /// How many bytes were received on the connection.
    end: usize,
}

impl<'a> PieceReceiver<'a> {
    /// Makes a connection on which these bytes are sent, cut into these pieces.
    pub(super) fn new(bytes: &'a [u8], pieces: Pieces) -> PieceReceiver<'a> {
        PieceReceiver {
            bytes,
            ends: pieces.ends(bytes.len()).into_iter(),
            start: 0,
            end: 0,
        }
    }

    /// Returns the bytes that were received and not yet taken.
    pub(super) fn unread(&self) -> &'a [u8] {
        &self.bytes[self.start..self.end]
    }

    /// Receives the next piece. Returns false at the end of the connection.
    pub(super) fn receive(&mut self) -> bool {
        let next = self.ends.next();
        self.end = next.unwrap_or(self.end);
        next.is_some()
    }

    /// Decodes a body as it comes, and encodes it again as the proxy does.
    pub(super) fn pass_body(
        &mut self,
        framing: Framing,
        encoding: Encoding,
        out: &mut Vec<u8>,
    ) -> PassedBody {
        let mut decoder = Decoder::new(framing);
        let mut data = Vec::new();
        let end = loop {
            let input = self.unread();
            let mut spans = Spans::default();
            let consumed = match decoder.is_end() {
                true => 0,
                false => match decoder.decode(input, &mut spans) {
                    Ok(consumed) => consumed,
                    Err(error) => break Err(error),
                },
            };
            assert!(consumed > 0 || input.is_empty() || decoder.is_end());
            let trailers = decoder.is_end().then(|| decoder.trailers());
            let before = out.len();
            encoding.before(spans.len(), out);
            spans.of(input).for_each(|span| out.extend_from_slice(span));
            encoding.after(spans.len(), trailers, out);
            let kept = trailers.map_or(0, <[u8]>::len);
            assert!(kept <= MOST_KEPT, "{kept} bytes of trailers");
            assert!(out.len() - before <= spans.len() + kept + MOST_FRAMING);
            spans
                .of(input)
                .for_each(|span| data.extend_from_slice(span));
            self.start += consumed;
            if decoder.is_end() {
                break Ok(());
            }
            if self.unread().is_empty()
                && !self.receive()
                && let Err(error) = decoder.close()
            {
                break Err(error);
            }
        };
        let trailers = decoder.trailers().to_vec();
        PassedBody {
            data,
            trailers,
            end,
        }
    }
}

/// How many bytes a trailer section may have when it is passed on. Each field gains at most the
/// white space after its colon.
const MOST_KEPT: usize = 10 << 10;

/// How many bytes the framing of one piece of a body may have: the size of a chunk, its line ends,
/// and the last chunk.
const MOST_FRAMING: usize = 32;

/// A body that was passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PassedBody {
    /// The data without framing.
    pub(super) data: Vec<u8>,
    /// The lines of the trailer section.
    pub(super) trailers: Vec<u8>,
    /// `Ok` if the body was complete; otherwise what was wrong with it.
    pub(super) end: Result<(), FramingError>,
}

/// Returns true for fields that concern one connection (RFC 9110, section 7.6.1), except for fields
/// that frame a body.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "te" | "upgrade"
    )
}

/// Panics unless the message has exactly one framing, and no field that concerns the connection on
/// which the proxy has received it.
pub(super) fn assert_passed_on(message: &Message<'_>) {
    let count = |name| message.values(name).count();
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + codings <= 1, "two framings: {message:?}");
    let trailers = message.trailers.iter().flatten();
    for (name, _) in trailers {
        let name = name.to_ascii_lowercase();
        let framing = ["content-length", "transfer-encoding", "host"].contains(&&*name);
        assert!(!framing && !is_hop_by_hop(&name), "trailer {name}");
    }
}
