//! The head of a response of an instance: parses and checks it.

use std::time::Duration;

use super::body::Framing;
use super::fields::{Field, FieldKind, Slots, binds, content_length, one_upgrade, tokens};
use super::request::Version;

/// How many bytes the head of a response may have.
pub(crate) const LONGEST_RESPONSE_HEAD: usize = 64 << 10;

/// Fields that the head of a response may have.
pub(super) const MOST_RESPONSE_FIELDS: usize = 200;

/// Why a response is not passed on: the instance did not send HTTP, or sent a head that two readers
/// could understand differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed response: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The head of a response, parsed and checked.
pub(crate) struct ResponseHead<'b> {
    /// The status code, 100 or more.
    pub(crate) status: u16,
    /// The reason phrase, which may be empty.
    pub(crate) reason: &'b str,
    /// How the body is framed, and so where it ends.
    pub(crate) framing: Framing,
    /// The length in `Content-Length`, even if no body follows.
    pub(crate) length: Option<u64>,
    /// True if the instance keeps the connection open after the response.
    pub(crate) keep_alive: bool,
    /// How long the instance keeps an idle connection open, if it says so.
    pub(crate) keep_alive_timeout: Option<Duration>,
    /// True if `Connection` names other fields.
    pub(crate) nominates: bool,
    /// True if the instance asks for an identity that then belongs to the connection.
    pub(crate) binds_connection: bool,
    /// True if the response says when it was made.
    pub(crate) has_date: bool,
    /// All fields, in the order in which they were sent.
    pub(crate) fields: Vec<Field<'b>>,
    /// Length of the head in bytes.
    pub(crate) size: usize,
}

impl<'b> ResponseHead<'b> {
    /// Parses the head at the start of `bytes`; `None` if the head is not complete yet. `to_head`
    /// is true if the request was `HEAD`.
    pub(crate) fn parse<'h>(
        bytes: &'b [u8],
        to_head: bool,
        slots: &'h mut Slots<'b, MOST_RESPONSE_FIELDS>,
    ) -> Result<Option<ResponseHead<'b>>, Malformed>
    where
        'b: 'h,
    {
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let size = match config.parse_response_with_uninit_headers(&mut parsed, bytes, slots) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(malformed(error)),
        };
        let (Some(status), Some(reason), Some(version)) =
            (parsed.code, parsed.reason, parsed.version)
        else {
            return Err(Malformed("status line"));
        };
        if status < 100 {
            return Err(Malformed("status"));
        }
        let version = match version {
            0 => Version::Http10,
            _ => Version::Http11,
        };
        let mut head = ResponseHead {
            status,
            reason,
            framing: Framing::UntilClose,
            length: None,
            keep_alive: false,
            keep_alive_timeout: None,
            nominates: false,
            binds_connection: false,
            has_date: false,
            fields: Vec::with_capacity(parsed.headers.len()),
            size,
        };
        head.check(parsed.headers, version, to_head)?;
        Ok(Some(head))
    }

    /// Returns the value of the first field of this name, in any case.
    pub(crate) fn get(&self, name: &str) -> Option<&'b [u8]> {
        let mut fields = self.fields.iter();
        let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(field.value)
    }

    /// Returns true if another response to the same request follows.
    pub(crate) fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Returns the protocol that a 101 switches to, if the head names exactly one. Some servers
    /// leave out `Connection: Upgrade`, which says nothing that the status does not say.
    pub(crate) fn upgrade(&self) -> Option<&'b [u8]> {
        one_upgrade(&self.fields)
    }

    fn check(
        &mut self,
        headers: &[httparse::Header<'b>],
        version: Version,
        to_head: bool,
    ) -> Result<(), Malformed> {
        let mut chunked = false;
        let mut close = false;
        let mut keep_alive = version == Version::Http11;
        for &httparse::Header { name, value } in headers {
            let kind = FieldKind::of(name);
            match kind {
                FieldKind::ContentLength => {
                    let value = content_length(value).ok_or(Malformed("Content-Length"))?;
                    if self.length.replace(value).is_some() {
                        return Err(Malformed("several Content-Length fields"));
                    }
                }
                FieldKind::TransferEncoding => {
                    let is_chunked = value.eq_ignore_ascii_case(b"chunked");
                    if !is_chunked || std::mem::replace(&mut chunked, true) {
                        return Err(Malformed("Transfer-Encoding"));
                    }
                }
                FieldKind::Connection => {
                    for token in tokens(value) {
                        if token.eq_ignore_ascii_case(b"close") {
                            close = true;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            keep_alive = true;
                        } else {
                            self.nominates = true;
                        }
                    }
                }
                FieldKind::Challenge => self.binds_connection |= binds(value),
                FieldKind::Date => self.has_date = true,
                FieldKind::KeepAlive => self.keep_alive_timeout = keep_alive_timeout(value),
                _ => {}
            }
            self.fields.push(Field { name, value, kind });
        }
        if chunked && (self.length.is_some() || version == Version::Http10) {
            return Err(Malformed("Transfer-Encoding"));
        }
        self.framing = if to_head || self.status < 200 || matches!(self.status, 204 | 304) {
            Framing::None
        } else if chunked {
            Framing::Chunked
        } else if let Some(length) = self.length {
            Framing::Length(length)
        } else {
            Framing::UntilClose
        };
        self.keep_alive = keep_alive && !close && self.framing != Framing::UntilClose;
        Ok(())
    }
}

fn malformed(error: httparse::Error) -> Malformed {
    Malformed(match error {
        httparse::Error::TooManyHeaders => "too many fields",
        httparse::Error::HeaderName => "field name",
        httparse::Error::HeaderValue => "field value",
        httparse::Error::NewLine => "line end",
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => {
            "status line"
        }
    })
}

fn keep_alive_timeout(value: &[u8]) -> Option<Duration> {
    tokens(value).find_map(|token| {
        let seconds = token.strip_prefix(b"timeout=")?;
        let seconds = std::str::from_utf8(seconds).ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fields::slots;
    use super::*;

    fn parse<R>(
        head: &str,
        to_head: bool,
        check: impl FnOnce(ResponseHead<'_>) -> R,
    ) -> Result<R, Malformed> {
        let mut slots = slots();
        ResponseHead::parse(head.as_bytes(), to_head, &mut slots).map(|head| check(head.unwrap()))
    }

    #[test]
    fn framings_and_connections() {
        for (head, to_head, framing, keep_alive) in [
            (
                "1.1 200 OK\r\nContent-Length: 5\r\n",
                false,
                Framing::Length(5),
                true,
            ),
            (
                "1.1 200 OK\r\nContent-Length: 5\r\n",
                true,
                Framing::None,
                true,
            ),
            (
                "1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
                false,
                Framing::Chunked,
                true,
            ),
            ("1.1 200\r\n", false, Framing::UntilClose, false),
            (
                "1.1 204 No\nContent-Length: 5\n",
                false,
                Framing::None,
                true,
            ),
            (
                "1.1 304 \r\nContent-Length: 5\r\nConnection: close\r\n",
                false,
                Framing::None,
                false,
            ),
            (
                "1.0 200 OK\r\nContent-Length: 5\r\n",
                false,
                Framing::Length(5),
                false,
            ),
            (
                "1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n",
                false,
                Framing::Length(5),
                true,
            ),
            (
                "1.1 103 Early Hints\r\nLink: x\r\n",
                false,
                Framing::None,
                true,
            ),
        ] {
            let head = format!("HTTP/{head}\r\n");
            let found = parse(&head, to_head, |head| (head.framing, head.keep_alive));
            assert_eq!(found, Ok((framing, keep_alive)), "{head}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        for head in [
            "1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
            "1.1 200 OK\r\nContent-Length: 5, 5\r\n",
            "1.1 200 OK\r\nContent-Length: five\r\n",
            "1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
            "1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
            "1.1 099 No\r\n",
            "1.1 20 No\r\n",
            "2.0 200 OK\r\n",
            "1.1 200 OK\r\nA : b\r\n",
            "1.1 200 OK\r\nA: b\r\n c\r\n",
        ] {
            assert!(
                parse(&format!("HTTP/{head}\r\n"), false, |_| ()).is_err(),
                "{head}"
            );
        }
    }

    #[test]
    fn the_announced_idle_time() {
        let head = "HTTP/1.1 200 OK\r\nKeep-Alive: max=7, timeout=5\r\n\r\n";
        let timeout = parse(head, false, |head| head.keep_alive_timeout);
        assert_eq!(timeout, Ok(Some(Duration::from_secs(5))));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            start in "(HTTP/1.1 200 OK\r\n)?",
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut slots = slots();
            let bytes = [start.as_bytes(), &bytes].concat();
            let _ = ResponseHead::parse(&bytes, false, &mut slots);
        }
    }
}
