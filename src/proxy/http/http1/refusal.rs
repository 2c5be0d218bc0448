//! Why a request is refused.

/// Why a request is refused. Nothing of the request reaches an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The head breaks the grammar, or could be read in two ways.
    #[error("bad request: {0}")]
    Bad(&'static str),
    /// The request line alone is longer than a head may be.
    #[error("the request line is too long")]
    TargetTooLong,
    /// The head is longer, or has more fields, than it may.
    #[error("the head is too large")]
    HeadTooLarge,
    /// The request asks for an optional feature that smoothserve does not have.
    #[error("not implemented: {0}")]
    NotImplemented(&'static str),
    /// The version is not one of HTTP/1.
    #[error("unknown HTTP version")]
    Version,
    /// The request came without TLS to a port with TLS.
    #[error("a request without TLS on a port with TLS")]
    NoTls,
}

impl Refusal {
    /// Returns the reason for which the parser has refused a head that begins with `bytes`.
    pub(super) fn of(error: httparse::Error, bytes: &[u8]) -> Refusal {
        match error {
            httparse::Error::TooManyHeaders => Refusal::HeadTooLarge,
            httparse::Error::Version => {
                let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or(bytes);
                let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or(line);
                match version.trim_ascii_end().strip_prefix(b"HTTP/") {
                    // The version is a known one, but something else on the request line was wrong.
                    Some(b"1.0" | b"1.1") => Refusal::Bad("request line"),
                    Some([b'0'..=b'9', b'.', b'0'..=b'9']) => Refusal::Version,
                    _ => Refusal::Bad("request line"),
                }
            }
            httparse::Error::HeaderName => Refusal::Bad("field name"),
            httparse::Error::HeaderValue => Refusal::Bad("field value"),
            httparse::Error::NewLine => Refusal::Bad("line end"),
            httparse::Error::Status | httparse::Error::Token => Refusal::Bad("request line"),
        }
    }
}
