//! A strict decoder for the chunked transfer coding (RFC 9112, section 7.1).
//!
//! # Theory of operation
//! The decoder is a state machine over single bytes outside the data, so it does not matter how the
//! input is cut into pieces. Only data leaves the decoder; sizes, extensions and line ends are
//! checked and dropped. The trailer section is collected and, once it is whole, checked and kept as
//! lines that can be written as they are.

use super::fields::is_trailer;
use super::spans::{FramingError, Spans};

/// How many bytes of extensions may follow one chunk size.
const LONGEST_EXTENSION: usize = 1024;

/// How many bytes the trailer section may have.
const LONGEST_TRAILERS: usize = 8 << 10;

/// How many fields the trailer section may have.
const MOST_TRAILERS: usize = 50;

/// How many hexadecimal digits a chunk size may have, with leading zeros.
const MOST_DIGITS: u32 = 16;

/// Decodes a body in chunks: finds its data, its trailers and its end.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    trailers: Vec<u8>,
    /// True if white space may stand between a chunk size and the end of its line.
    takes_spaces: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        digits: u32,
        value: u64,
    },
    /// In the white space after a chunk size.
    BeforeExtension {
        value: u64,
        length: usize,
    },
    Extension {
        value: u64,
        length: usize,
    },
    SizeEnd {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// In the trailer section: how many bytes of the present line have come (2 stands for 2 or
    /// more), and whether the last byte was a CR.
    Trailers {
        line: u8,
        cr: bool,
    },
    End,
}

impl Default for State {
    fn default() -> State {
        State::Size {
            digits: 0,
            value: 0,
        }
    }
}

impl Chunked {
    /// Makes the decoder for the body of a response. Some servers write white space behind a chunk
    /// size. The client gets chunks that are written anew, so there is only one reader of it.
    pub(super) fn of_response() -> Chunked {
        Chunked {
            takes_spaces: true,
            ..Chunked::default()
        }
    }

    /// Returns true if the body has ended, its trailer section included.
    pub(super) fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Returns the lines of the trailer section, each with its CRLF.
    pub(super) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Decodes as much of `input` as belongs to the body, notes in `spans` where the data is, and
    /// returns the number of decoded bytes. Decoding stops early only at the end of the body and
    /// when `spans` is full.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        spans: &mut Spans,
    ) -> Result<usize, FramingError> {
        let mut at = 0;
        while at < input.len() && self.state != State::End {
            if let State::Data { left } = self.state {
                let length = usize::try_from(left)
                    .map_or(input.len() - at, |left| left.min(input.len() - at));
                if !spans.push(at, length) {
                    break;
                }
                at += length;
                self.state = match left - length as u64 {
                    0 => State::DataCr,
                    left => State::Data { left },
                };
                continue;
            }
            self.state = self.step(input[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, FramingError> {
        let malformed = Err(FramingError::Chunk);
        Ok(match (self.state, byte) {
            (State::Size { digits, value }, byte) if byte.is_ascii_hexdigit() => {
                if digits == MOST_DIGITS {
                    return malformed;
                }
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                State::Size {
                    digits: digits + 1,
                    value: value << 4 | digit,
                }
            }
            (State::Size { digits: 0, .. }, _) => return malformed,
            (State::Size { value, .. }, b'\r') => State::SizeEnd { value },
            (State::Size { value, .. }, b';') => State::Extension { value, length: 0 },
            (State::Size { value, .. }, b' ' | b'\t') => {
                State::BeforeExtension { value, length: 1 }
            }
            (State::BeforeExtension { length, .. } | State::Extension { length, .. }, _)
                if length >= LONGEST_EXTENSION =>
            {
                return malformed;
            }
            (State::BeforeExtension { value, length }, b' ' | b'\t') => State::BeforeExtension {
                value,
                length: length + 1,
            },
            (State::BeforeExtension { value, length }, b';') => State::Extension { value, length },
            (State::BeforeExtension { value, .. }, b'\r') if self.takes_spaces => {
                State::SizeEnd { value }
            }
            (State::Extension { value, .. }, b'\r') => State::SizeEnd { value },
            (State::Extension { value, length }, b'\t' | b' '..=0x7e | 0x80..) => {
                State::Extension {
                    value,
                    length: length + 1,
                }
            }
            (State::SizeEnd { value: 0 }, b'\n') => State::Trailers { line: 0, cr: false },
            (State::SizeEnd { value }, b'\n') => State::Data { left: value },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::Trailers { line, cr }, byte) => return self.step_trailers(line, cr, byte),
            _ => return malformed,
        })
    }

    fn step_trailers(&mut self, line: u8, cr: bool, byte: u8) -> Result<State, FramingError> {
        if self.trailers.len() >= LONGEST_TRAILERS {
            return Err(FramingError::Trailers);
        }
        self.trailers.push(byte);
        match (cr, byte) {
            (true, b'\n') if line == 1 => {
                self.check_trailers()?;
                Ok(State::End)
            }
            (true, b'\n') => Ok(State::Trailers { line: 0, cr: false }),
            (true, _) | (false, b'\n') => Err(FramingError::Trailers),
            (false, byte) => Ok(State::Trailers {
                line: 2.min(line + 1),
                cr: byte == b'\r',
            }),
        }
    }

    /// Removes from the trailer section the fields that must not be passed on.
    fn check_trailers(&mut self) -> Result<(), FramingError> {
        let raw = std::mem::take(&mut self.trailers);
        if raw == b"\r\n" {
            return Ok(());
        }
        let mut fields = [httparse::EMPTY_HEADER; MOST_TRAILERS];
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&raw, &mut fields)
        else {
            return Err(FramingError::Trailers);
        };
        for field in fields.iter().filter(|field| is_trailer(field.name)) {
            self.trailers.extend_from_slice(field.name.as_bytes());
            self.trailers.extend_from_slice(b": ");
            self.trailers.extend_from_slice(field.value);
            self.trailers.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes a body that comes in these pieces. Returns its data, its trailers, and whether bytes
    /// are left after its end.
    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, bool), FramingError> {
        let mut decoder = Chunked::default();
        let mut data = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() && !decoder.is_end() {
                let mut spans = Spans::default();
                let consumed = decoder.decode(rest, &mut spans)?;
                assert!(consumed > 0 || decoder.is_end());
                spans.of(rest).for_each(|span| data.extend_from_slice(span));
                rest = &rest[consumed..];
            }
        }
        Ok((data, decoder.trailers().to_vec(), decoder.is_end()))
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        let body = b"5;a=b\r\nhello\r\n006 ; q=\"x;y\"\r\n world\r\n0\r\nX-Sum: 1\r\nContent-Length: 4\r\n\r\n";
        let (data, trailers, end) = decode(&[body]).unwrap();
        assert_eq!(data, b"hello world");
        assert_eq!(trailers, b"X-Sum: 1\r\n");
        assert!(end);
    }

    #[test]
    fn what_two_readers_could_see_differently_is_refused() {
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(2000));
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(60));
        let huge = format!("0\r\na: {}\r\n\r\n", "x".repeat(9000));
        for body in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na\r\n",
            "0x1\r\na\r\n",
            " 1\r\na\r\n",
            "1 \r\na\r\n",
            "1\na\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\nab\r\n",
            "1\r\na0\r\n\r\n",
            "1\r\na\r\r\n",
            "1\ra\r\n",
            "1;\na\r\n",
            "1;x\0\r\na\r\n",
            "1;x\rb\r\na\r\n",
            "11111111111111111\r\n",
            "00000000000000001\r\na\r\n",
            "0\r\n\n",
            "0\r\na: b\n\r\n",
            "0\r\na : b\r\n\r\n",
            "0\r\n a: b\r\n\r\n",
            "0\r\na: b\r\n c\r\n\r\n",
            "0\r\nnothing\r\n\r\n",
            "0\r\n\rx",
            "1,1\r\na\r\n",
            long.as_str(),
            many.as_str(),
            huge.as_str(),
        ] {
            assert!(decode(&[body.as_bytes()]).is_err(), "{body:?}");
        }
    }

    #[test]
    fn only_in_responses_white_space_may_follow_a_size() {
        let body = b"5 \r\nhello\r\n0\t \r\n\r\n";
        let mut decoder = Chunked::of_response();
        let mut spans = Spans::default();
        assert_eq!(decoder.decode(body, &mut spans), Ok(body.len()));
        assert!(decoder.is_end());
        assert!(decode(&[body]).is_err());
    }

    #[test]
    fn it_stops_at_the_end() {
        let mut decoder = Chunked::default();
        let consumed = decoder
            .decode(b"0\r\n\r\nGET /", &mut Spans::default())
            .unwrap();
        assert_eq!(consumed, 5);
        assert!(decoder.is_end());
    }

    proptest! {
        #[test]
        fn any_split_decodes_to_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..40),
            trailer in proptest::option::of("[a-z]{1,8}"),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            let trailer = trailer.map_or(String::new(), |value| format!("x-t: {value}\r\n"));
            body.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&body[from..cut]);
                from = cut;
            }
            pieces.push(&body[from..]);
            let expected = (chunks.concat(), trailer.into_bytes(), true);
            prop_assert_eq!(decode(&pieces).unwrap(), expected);
        }

        #[test]
        fn random_bytes_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = decode(&pieces);
        }

        #[test]
        fn bytes_of_the_grammar_never_panic(body in "[0-9a-f;: \\r\\n]{0,80}") {
            let whole = decode(&[body.as_bytes()]);
            let single: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
            prop_assert_eq!(whole, decode(&single));
        }
    }
}
