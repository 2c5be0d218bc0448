//! What can go wrong with a request, and the response that the client gets for each fault.

use std::io::{self, Write};

use crate::proxy::http::date::put_date;
use crate::proxy::http::headers::{Persistence, put_persistence};
use crate::proxy::http::http1::{FramingError, Malformed, Refusal, Version};
use crate::proxy::http::request_id::RequestId;
use crate::proxy::policy::body_room::BodyTooLarge;
use crate::proxy::policy::denial::Denial;
use crate::proxy::view::service::NoEndpoint;

/// Why the proxy answers a request itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The head is malformed or not supported.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The body does not follow the framing that the head announced.
    #[error("request body: {0}")]
    Body(#[from] FramingError),
    /// The body is longer than the service allows.
    #[error("the request body is larger than max_request_body")]
    BodyTooLarge,
    /// The client did not send its request in time.
    #[error("the client did not send its request in time")]
    RequestTimeout,
    /// A rule of the service denies the request.
    #[error(transparent)]
    Denied(#[from] Box<Denial>),
    /// No service on this listener has this host and path.
    #[error("no service for this host and path")]
    UnknownHost,
    /// The service had no endpoint for the request.
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    /// No instance could be connected to in time; the error is the last failure.
    #[error("connecting to an instance: {0}")]
    Connect(io::Error),
    /// The instance closed the connection without a response.
    #[error("the instance closed the connection without a response")]
    NoResponse,
    /// The instance closed the connection within the head of its response.
    #[error("the instance closed the connection within the head of its response")]
    Incomplete,
    /// The instance sent something that is not a response.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The instance drains, and the client sends nothing more.
    #[error("the instance drains, and the client seems to be gone")]
    ClientGone,
    /// The instance did not respond in time.
    #[error("the instance did not respond in time")]
    ResponseTimeout,
}

impl From<BodyTooLarge> for ProxyError {
    fn from(_: BodyTooLarge) -> ProxyError {
        ProxyError::BodyTooLarge
    }
}

impl ProxyError {
    /// Returns the status, the reason phrase and the body of the response. The body says only what
    /// strangers may know.
    fn status(&self) -> (u16, &'static str, &'static str) {
        match self {
            ProxyError::Refused(Refusal::Bad(_)) | ProxyError::Body(_) => {
                (400, "Bad Request", "The request is malformed.\n")
            }
            ProxyError::Refused(Refusal::NoTls) => (
                400,
                "Bad Request",
                "This port is for HTTPS. Use https:// in the address.\n",
            ),
            ProxyError::BodyTooLarge => (413, "Content Too Large", "The request is too large.\n"),
            ProxyError::Refused(Refusal::TargetTooLong) => {
                (414, "URI Too Long", "The address is too long.\n")
            }
            ProxyError::Refused(Refusal::HeadTooLarge) => (
                431,
                "Request Header Fields Too Large",
                "The request header is too large.\n",
            ),
            ProxyError::Refused(Refusal::NotImplemented(_)) => {
                (501, "Not Implemented", "This is not implemented.\n")
            }
            ProxyError::Refused(Refusal::Version) => (
                505,
                "HTTP Version Not Supported",
                "This version of HTTP is not supported.\n",
            ),
            ProxyError::RequestTimeout => (
                408,
                "Request Timeout",
                "The request did not arrive in time.\n",
            ),
            ProxyError::Denied(denial) => (denial.status, denial.reason, denial.text),
            ProxyError::UnknownHost => (404, "Not Found", "There is nothing at this address.\n"),
            ProxyError::NoEndpoint(_) | ProxyError::ClientGone => (
                503,
                "Service Unavailable",
                "The service is not available at the moment.\n",
            ),
            ProxyError::Connect(_)
            | ProxyError::NoResponse
            | ProxyError::Incomplete
            | ProxyError::Malformed(_) => {
                (502, "Bad Gateway", "The service did not answer properly.\n")
            }
            ProxyError::ResponseTimeout => (
                504,
                "Gateway Timeout",
                "The service did not answer in time.\n",
            ),
        }
    }

    /// Returns true if the error means that the service has failed: neither the client has caused
    /// it, nor was it intended.
    pub(crate) fn is_failure(&self) -> bool {
        let meant = matches!(
            self,
            ProxyError::Refused(_)
                | ProxyError::Denied(_)
                | ProxyError::ClientGone
                | ProxyError::NoEndpoint(NoEndpoint::Stopped)
        );
        self.status().0 >= 500 && !meant
    }
}

/// Writes the response to a request that has failed with `error`, with its `id` if it has got one.
pub(crate) fn write_error(
    error: &ProxyError,
    id: Option<&RequestId>,
    to_head: bool,
    version: Version,
    persistence: Persistence,
    out: &mut Vec<u8>,
) {
    let (status, reason, text) = error.status();
    let id = id.map_or_else(String::new, |id| format!("Request id: {id}\n"));
    let length = text.len() + id.len();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {reason}\r\n");
    put_date(out);
    let _ = write!(
        out,
        "Content-Type: text/plain\r\nContent-Length: {length}\r\n"
    );
    if status == 503 {
        out.extend_from_slice(b"Retry-After: 1\r\n");
    }
    if let ProxyError::Denied(denial) = error
        && let Some((name, value)) = &denial.field
    {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    put_persistence(persistence, version, out);
    out.extend_from_slice(b"\r\n");
    if !to_head {
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(id.as_bytes());
    }
}

/// Returns the response for a client that has too many connections, whatever it asks for. The
/// connection must be closed afterwards.
pub(crate) fn too_many_connections() -> Vec<u8> {
    let error = ProxyError::NoEndpoint(NoEndpoint::Busy);
    let mut out = Vec::new();
    let version = Version::Http11;
    write_error(&error, None, false, version, Persistence::Close, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(error: ProxyError, to_head: bool, persistence: Persistence) -> String {
        let mut out = Vec::new();
        let version = Version::Http11;
        write_error(&error, None, to_head, version, persistence, &mut out);
        let text = String::from_utf8(out).unwrap();
        let lines = text
            .split("\r\n")
            .filter(|line| !line.starts_with("Date: "));
        lines.collect::<Vec<_>>().join("|")
    }

    #[test]
    fn errors_are_short_and_plain() {
        let stopped = ProxyError::NoEndpoint(NoEndpoint::Stopped);
        assert_eq!(
            response(stopped, false, Persistence::KeepAlive),
            "HTTP/1.1 503 Service Unavailable|Content-Type: text/plain|Content-Length: 44|Retry-After: 1||\
             The service is not available at the moment.\n"
        );
        let refused = ProxyError::Refused(Refusal::Bad("several Host fields"));
        assert_eq!(
            response(refused, false, Persistence::Close),
            "HTTP/1.1 400 Bad Request|Content-Type: text/plain|Content-Length: 26|Connection: close||\
             The request is malformed.\n"
        );
    }

    #[test]
    fn head_gets_no_body() {
        assert!(
            response(ProxyError::UnknownHost, true, Persistence::KeepAlive)
                .ends_with("Content-Length: 34||")
        );
    }
}
