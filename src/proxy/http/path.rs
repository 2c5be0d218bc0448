//! The path of a request as an instance may read it.
//!
//! # Theory of operation
//! A path can be written in many ways, and programs differ in how they read it: some decode `%61`,
//! some resolve `/x/../`, some merge `//`. A route must be chosen by what the instance will see, or
//! a request for one service could reach another, past rules that belong to the path.
//!
//! So a path that is not plain is read in each of these ways (RFC 3986, section 6.2.2): decoded,
//! with its dot segments resolved, and with or without merging empty segments. All these readings
//! must lead to the same route. A path that has no such readings is refused: nobody knows whether
//! an instance takes `%2f` for a slash, `\` for `/`, or `%2e%2e` for `..`.
//!
//! What no proxy can know: whether an instance ignores case, decodes twice, or drops what follows
//! a `;`.

use super::http1::Refusal;

/// Returns true if there is only one way to read the path: nothing in it has to be decoded,
/// resolved or merged. Every request for a host with several paths pays for this, and most bytes of
/// a path mean nothing.
pub(crate) fn is_plain(path: &[u8]) -> bool {
    let mut marks = path.iter().enumerate();
    marks.all(|(at, &byte)| {
        !IS_MARK[usize::from(byte)]
            || (byte == b'/' && !matches!(path.get(at + 1), Some(b'/' | b'.')))
    })
}

/// The bytes with which a part of a path begins that may be read in several ways.
static IS_MARK: [bool; 256] = {
    let mut marks = [false; 256];
    marks[b'%' as usize] = true;
    marks[b'\\' as usize] = true;
    marks[b'/' as usize] = true;
    marks
};

/// Returns the bytes that a text with `%XX` stands for. What is no such code stays as it is.
pub(crate) fn decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, length)) = first(rest) {
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes
}

/// Returns how many bytes at the beginning of `text` stand for `count` bytes.
pub(crate) fn encoded_length(text: &[u8], count: usize) -> usize {
    let mut length = 0;
    for _ in 0..count {
        length += first(&text[length..]).map_or(0, |(_, length)| length);
    }
    length
}

/// The ways to read a path that is not plain.
pub(crate) struct Readings<'a> {
    segments: Vec<Segment<'a>>,
}

/// What stands between two slashes.
#[derive(Clone)]
struct Segment<'a> {
    /// As it was sent.
    text: &'a [u8],
    decoded: Vec<u8>,
}

impl Readings<'_> {
    /// Reads a path that begins with a slash.
    pub(crate) fn of(path: &[u8]) -> Result<Readings<'_>, Refusal> {
        let path = path.strip_prefix(b"/").ok_or(AMBIGUOUS)?;
        let segments = path.split(|&byte| byte == b'/').map(Segment::read);
        let segments = segments.collect::<Result<_, _>>()?;
        Ok(Readings { segments })
    }

    /// Returns the decoded path, with its dot segments resolved (RFC 3986, section 5.2.4).
    pub(crate) fn resolved(&self) -> Vec<u8> {
        decoded_path(&resolve(&self.segments))
    }

    /// Returns what a reader sees that merges empty segments, before it resolves dot segments and
    /// afterwards. `None` if there are no empty segments, so that all readers see the same.
    pub(crate) fn merged(&self) -> Option<[Vec<u8>; 2]> {
        let last = self.segments.len() - 1;
        let is_empty = |segment: &Segment<'_>| segment.text.is_empty();
        self.segments[..last].iter().any(is_empty).then(|| {
            let before = resolve(&merge(&self.segments));
            let after = merge(&resolve(&self.segments));
            [before, after].map(|segments| decoded_path(&segments))
        })
    }

    /// Returns the path as it was sent, but with its dot segments resolved; `None` if it has none.
    pub(crate) fn without_dots(&self) -> Option<Vec<u8>> {
        let has_dots = self.segments.iter().any(|segment| segment.dots().is_some());
        has_dots.then(|| join(resolve(&self.segments).iter().map(|segment| segment.text)))
    }
}

/// The dot segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dots {
    Same,
    Parent,
}

const AMBIGUOUS: Refusal = Refusal::Bad("the path could be read in two ways");

const EMPTY: Segment<'static> = Segment {
    text: b"",
    decoded: Vec::new(),
};

impl Segment<'_> {
    fn read(text: &[u8]) -> Result<Segment<'_>, Refusal> {
        let mut codes = text.iter().enumerate().filter(|(_, byte)| **byte == b'%');
        if !codes.all(|(at, _)| code(&text[at..]).is_some()) {
            return Err(AMBIGUOUS);
        }
        let decoded = decoded(text);
        let is_separator = |byte: &u8| matches!(byte, b'/' | b'\\') || byte.is_ascii_control();
        // A slash or a dot in a form of UTF-8 that is not allowed, which old decoders accept.
        let is_overlong = |pair: &[u8]| {
            matches!(
                pair,
                [0xc0 | 0xc1, 0x80..=0xbf]
                    | [0xe0, 0x80..=0x9f]
                    | [0xf0, 0x80..=0x8f]
                    | [0xf8, 0x80..=0x87]
                    | [0xfc, 0x80..=0x83]
            )
        };
        // Some servers take `..;x` for `..`.
        let name = decoded
            .split(|&byte| byte == b';')
            .next()
            .unwrap_or_default();
        let is_dots = matches!(name, b"." | b"..");
        if decoded.iter().any(is_separator)
            || decoded.windows(2).any(is_overlong)
            || (is_dots && name != text)
        {
            return Err(AMBIGUOUS);
        }
        Ok(Segment { text, decoded })
    }

    fn dots(&self) -> Option<Dots> {
        match self.text {
            b"." => Some(Dots::Same),
            b".." => Some(Dots::Parent),
            _ => None,
        }
    }
}

fn resolve<'a>(segments: &[Segment<'a>]) -> Vec<Segment<'a>> {
    let mut resolved = Vec::with_capacity(segments.len());
    for (number, segment) in segments.iter().enumerate() {
        match segment.dots() {
            None => {
                resolved.push(segment.clone());
                continue;
            }
            Some(Dots::Same) => {}
            Some(Dots::Parent) => drop(resolved.pop()),
        }
        if number + 1 == segments.len() {
            resolved.push(EMPTY);
        }
    }
    resolved
}

/// Leaves the empty segments out, except an empty one at the end: the path ends with a slash there.
fn merge<'a>(segments: &[Segment<'a>]) -> Vec<Segment<'a>> {
    let Some((last, others)) = segments.split_last() else {
        return Vec::new();
    };
    let kept = others.iter().filter(|segment| !segment.text.is_empty());
    kept.chain([last]).cloned().collect()
}

fn decoded_path(segments: &[Segment<'_>]) -> Vec<u8> {
    join(segments.iter().map(|segment| &*segment.decoded))
}

fn join<'s>(segments: impl Iterator<Item = &'s [u8]>) -> Vec<u8> {
    let mut path = Vec::new();
    for segment in segments {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    path
}

/// Returns the byte that stands first in a text, and how many bytes of the text it takes.
fn first(text: &[u8]) -> Option<(u8, usize)> {
    match code(text) {
        Some(byte) => Some((byte, 3)),
        None => text.first().map(|&byte| (byte, 1)),
    }
}

/// Returns the byte that a `%XX` at the beginning of a text stands for.
fn code(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else {
        return None;
    };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes a path and removes its dot segments, exactly as RFC 3986, section 5.2.4, says it.
    pub(crate) fn seen(path: &str) -> String {
        let bytes = decoded(path.as_bytes());
        let mut input = String::from_utf8_lossy(&bytes).into_owned();
        let mut output = String::new();
        while !input.is_empty() {
            if input.starts_with("/./") {
                input.drain(..2);
            } else if input == "/." {
                input = "/".to_owned();
            } else if input.starts_with("/../") || input == "/.." {
                let slash = if input == "/.." { "/" } else { "" };
                input = format!("{slash}{}", &input[3..]);
                output.truncate(output.rfind('/').unwrap_or(0));
            } else {
                let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
                output.extend(input.drain(..end));
            }
        }
        output
    }

    /// A path of pieces that readers differ about.
    pub(crate) fn any_path() -> impl Strategy<Value = String> {
        let piece = "/|//|x|y|%78|%79|%7E|\\.|\\.\\.|/\\./|/\\.\\./|%2e|%2E|%2f|%5c|%00|%2|%zz|;|%3b|\\\\|%c0%af|\u{e4}|%25";
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    #[test]
    fn plain_paths_have_one_reading() {
        for (path, plain) in [
            ("/", true),
            ("*", true),
            ("/a.b/c..d/e;f=g", true),
            ("/a/%62", false),
            ("/a//b", false),
            ("//", false),
            ("/a/./b", false),
            ("/.well-known", false),
            ("/a\\b", false),
        ] {
            assert_eq!(is_plain(path.as_bytes()), plain, "{path}");
        }
    }

    #[test]
    fn paths_are_read_as_instances_read_them() {
        for (path, resolved, merged) in [
            ("/%61pi/%7euser", "/api/~user", None),
            ("/a/./b/../c/.", "/a/c/", None),
            ("/../../a", "/a", None),
            ("/a/..", "/", None),
            ("/.well-known/x", "/.well-known/x", None),
            ("/%c3%a4/100%25", "/\u{e4}/100%", None),
            ("//a", "//a", Some("/a")),
            ("/a//", "/a//", Some("/a/")),
            ("/a;x/b;y=..", "/a;x/b;y=..", None),
            ("/a%3ab", "/a:b", None),
        ] {
            let readings = Readings::of(path.as_bytes()).unwrap();
            assert_eq!(readings.resolved(), resolved.as_bytes(), "{path}");
            let expected = merged.map(|merged: &str| [merged.into(), merged.into()]);
            assert_eq!(readings.merged(), expected, "{path}");
        }
        // Here it matters what a reader does first.
        let readings = Readings::of(b"/a//../b").unwrap();
        assert_eq!(readings.resolved(), b"/a/b");
        assert_eq!(readings.merged(), Some([b"/b".to_vec(), b"/a/b".to_vec()]));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for path in [
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/%2e%2e/a",
            "/a/.%2e",
            "/a/%2e",
            "/a%00",
            "/a%0a",
            "/a%7f",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%u0061",
            "/..;/a",
            "/.;x/a",
            "/..%3b/a",
            "/%2e%2e;/a",
            "/%c0%af",
            "/%e0%80%af",
            "/%e0%81%9c",
            "/%f0%80%80%ae",
            "/%f8%80%80%80%af",
            "/%fc%80%80%80%80%af",
            "/%c0%ae%c0%ae/a",
            "/%C1%9c",
            "",
        ] {
            assert!(Readings::of(path.as_bytes()).is_err(), "{path}");
        }
    }

    #[test]
    fn codes_count_as_one_byte() {
        assert_eq!(encoded_length(b"/%61pi/x", 4), 6);
        assert_eq!(encoded_length(b"/%zz", 2), 2);
        assert_eq!(encoded_length(b"/a", 9), 2);
        assert_eq!(decoded(b"%61%2%"), b"a%2%");
    }

    proptest! {
        #[test]
        fn readings_are_those_of_rfc_3986(path in any_path()) {
            if let Ok(readings) = Readings::of(path.as_bytes()) {
                let resolved = readings.resolved();
                prop_assert_eq!(String::from_utf8_lossy(&resolved), seen(&path));
                if let Some(text) = readings.without_dots() {
                    prop_assert_eq!(decoded(&text), resolved);
                }
            }
            if is_plain(path.as_bytes()) {
                prop_assert_eq!(seen(&path), path);
            }
        }
    }
}
