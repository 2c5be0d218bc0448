//! What must hold of the heads and bodies that are passed on, whatever bytes come and however they are cut: the
//! properties that the fuzz targets look for counterexamples to, and that a test holds the kept corpus against.
//!
//! They live here and not in the fuzzer's crate, because only here they can reach what they are about without making it
//! public, and because so they are run by `cargo test`, too. What was written is read again by [`reader`], which shares
//! no code with the proxy.
//!
//! An input is one byte of flags, three bytes that say how the rest is cut into pieces (see [`Pieces`]), and the bytes
//! that the other side sends.

mod proxy_header;
mod reader;
mod request;
mod response;

use crate::proxy::http::http1::{Decoder, Encoding, Framing, FramingError, Spans};
use reader::Message;

pub use proxy_header::check as proxy_header;
pub use request::check as request;
pub use response::check as response;

/// The flags, what is sent, and how it is cut; `None` for an input that is too short to have all that.
fn parts(input: &[u8]) -> Option<(u8, &[u8], Pieces)> {
    let (&[flags, cuts @ ..], sent) = input.split_first_chunk::<4>()?;
    Some((flags, sent, Pieces(cuts)))
}

/// The lengths of the pieces, in turn, less one; so that one byte at a time is possible, and nothing less.
#[derive(Clone, Copy)]
struct Pieces([u8; 3]);

impl Pieces {
    /// One piece that is all.
    const WHOLE: Pieces = Pieces([0; 3]);

    /// Where the pieces of so many bytes end.
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

/// What is received of a connection, piece by piece.
struct Receiver<'a> {
    bytes: &'a [u8],
    ends: std::vec::IntoIter<usize>,
    start: usize,
    end: usize,
}

impl<'a> Receiver<'a> {
    fn new(bytes: &'a [u8], pieces: Pieces) -> Receiver<'a> {
        Receiver {
            bytes,
            ends: pieces.ends(bytes.len()).into_iter(),
            start: 0,
            end: 0,
        }
    }

    fn unread(&self) -> &'a [u8] {
        &self.bytes[self.start..self.end]
    }

    /// False at the end of the connection.
    fn receive(&mut self) -> bool {
        let next = self.ends.next();
        self.end = next.unwrap_or(self.end);
        next.is_some()
    }

    /// Passes a body on, as it comes.
    fn pass_body(&mut self, framing: Framing, encoding: Encoding, out: &mut Vec<u8>) -> Body {
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
        Body {
            data,
            trailers,
            end,
        }
    }
}

/// Bytes of a trailer section that may be kept. A field gains at most the white space behind its colon.
const MOST_KEPT: usize = 10 << 10;

/// What the framing of one piece of a body takes: the size of a chunk, its line ends, and the last chunk.
const MOST_FRAMING: usize = 32;

/// A body that was passed on.
#[derive(Debug, PartialEq, Eq)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<u8>,
    end: Result<(), FramingError>,
}

/// Fields that concern one connection (RFC 9110, section 7.6.1), except those that frame a body.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "te" | "upgrade"
    )
}

/// A body is framed in one way, and no field is there that concerns the other connection.
fn assert_passed_on(message: &Message<'_>) {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Pieces, parts};

    /// Calls `check` with every file of the corpus, with all flags, in its own pieces, in one, and byte by
    /// byte. For the corpus is as small as it can be to reach all code, and not all that can go wrong there.
    fn replay(target: &str, check: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut count = 0;
        for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            count += 1;
            let Some((_, sent, Pieces(cuts))) = parts(&input) else {
                continue;
            };
            for flags in 0..8 {
                for cuts in [cuts, [0, 0, 0], [1, 0, 0]] {
                    let input = [&[flags], &cuts[..], sent].concat();
                    if std::panic::catch_unwind(|| check(&input)).is_err() {
                        panic!("{} with flags {flags} and cuts {cuts:?}", path.display());
                    }
                }
            }
        }
        assert!(count > 0, "no corpus");
    }

    #[test]
    fn the_corpus_of_proxy_headers_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proxy_header");
        for entry in std::fs::read_dir(corpus).unwrap() {
            super::proxy_header(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn the_corpus_of_requests_holds() {
        replay("request", super::request);
    }

    #[test]
    fn the_corpus_of_responses_holds() {
        replay("response", super::response);
    }
}
