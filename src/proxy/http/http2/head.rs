//! Translates heads between the types of the h2 crate and the bytes of HTTP/1.1. Pure.

use bytes::BytesMut;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::response;
use http::uri::{Scheme, Uri};
use http::{Method, Request, Response, StatusCode};

use super::websocket_key::WebSocketKey;
use crate::proxy::http::http1::{Encoding, Field, FieldKind, RequestHead, ResponseHead};

/// The one protocol that an extended CONNECT may ask for.
const WEBSOCKET: &str = "websocket";

/// Returns true if the request is an extended CONNECT for a WebSocket (RFC 8441).
pub(crate) fn asks_for_websocket(parts: &Parts) -> bool {
    let protocol = parts.extensions.get::<Protocol>();
    parts.method == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case(WEBSOCKET))
}

/// Writes the head of a client's request as a client of HTTP/1.1 would write it, and returns how
/// its body must be framed. `key` is there if the request asks for a WebSocket.
///
/// Nothing is checked here, because this head is parsed like any other afterwards. The h2 crate
/// lets no byte into a method, a path, an authority or a field that could end a line. It lets any
/// byte into `:protocol`, so that is never written: an extended CONNECT for another protocol
/// becomes an ordinary CONNECT, which the parser refuses.
pub(crate) fn write_request(
    parts: &Parts,
    has_body: bool,
    key: Option<&WebSocketKey>,
    out: &mut Vec<u8>,
) -> Encoding {
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    let (method, target) = match parts.uri.path_and_query() {
        Some(target) if key.is_some() => ("GET", target.as_str()),
        _ if parts.method == Method::CONNECT => ("CONNECT", authority.unwrap_or("*")),
        Some(target) => (parts.method.as_str(), target.as_str()),
        None => (parts.method.as_str(), ""),
    };
    put(
        out,
        &[method.as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"],
    );
    let hosts = parts.headers.get_all(header::HOST);
    if let Some(authority) = authority {
        put_field(out, b"Host", authority.as_bytes());
    }
    // A `Host` field that differs from the authority is written, too, so that the parser refuses
    // it.
    for host in hosts {
        if authority.is_none_or(|authority| authority.as_bytes() != host.as_bytes()) {
            put_field(out, b"Host", host.as_bytes());
        }
    }
    for (name, value) in &parts.headers {
        // The key of a client with HTTP/2 has no meaning (RFC 8441, section 5).
        let is_key = key.is_some() && name == header::SEC_WEBSOCKET_KEY;
        if name != header::HOST && name != header::COOKIE && !is_key {
            put_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    put_cookies(&parts.headers, out);
    let body = match key {
        Some(WebSocketKey(key)) => {
            put_field(out, b"Connection", b"Upgrade");
            put_field(out, b"Upgrade", WEBSOCKET.as_bytes());
            put_field(out, b"Sec-WebSocket-Key", key.as_bytes());
            Encoding::Plain
        }
        _ if has_body && !parts.headers.contains_key(header::CONTENT_LENGTH) => {
            put_field(out, b"Transfer-Encoding", b"chunked");
            Encoding::Chunked
        }
        _ => Encoding::Plain,
    };
    put(out, &[b"\r\n"]);
    body
}

/// Writes all cookies as one field. HTTP/2 lets a client send them in several fields (RFC 9113,
/// section 8.2.3).
fn put_cookies(fields: &HeaderMap, out: &mut Vec<u8>) {
    let mut cookies = fields.get_all(header::COOKIE).iter();
    let Some(first) = cookies.next() else {
        return;
    };
    put(out, &[b"Cookie: ", first.as_bytes()]);
    for cookie in cookies {
        put(out, &[b"; ", cookie.as_bytes()]);
    }
    put(out, &[b"\r\n"]);
}

/// Makes the HTTP/2 request for an instance from the head that an instance of HTTP/1.1 would get;
/// `None` if HTTP/2 cannot express the head.
pub(crate) fn instance_request(head: &RequestHead<'_>) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = Uri::builder()
        .scheme(Scheme::HTTP)
        // A request of HTTP/1.0 may have no host.
        .authority(if head.host.is_empty() {
            b"localhost"
        } else {
            head.host
        })
        .path_and_query(head.target)
        .build()
        .ok()?;
    put_fields(request.headers_mut(), &head.fields, |kind| {
        kind != FieldKind::Host && (kind == FieldKind::Te || !is_of_connection(kind))
    })?;
    Some(request)
}

/// Writes the head of an instance's response as an instance of HTTP/1.1 would write it, and returns
/// how its body must be framed.
pub(crate) fn write_response(
    parts: &response::Parts,
    is_end: bool,
    to_head: bool,
    out: &mut Vec<u8>,
) -> Encoding {
    put_response(parts, out);
    let has_no_body = to_head || matches!(parts.status.as_u16(), 204 | 304);
    let form = match parts.headers.contains_key(header::CONTENT_LENGTH) || has_no_body {
        true => Encoding::Plain,
        false if is_end => {
            put_field(out, b"Content-Length", b"0");
            Encoding::Plain
        }
        false => {
            put_field(out, b"Transfer-Encoding", b"chunked");
            Encoding::Chunked
        }
    };
    put(out, &[b"\r\n"]);
    form
}

/// Writes the head of an interim response of an instance as one of HTTP/1.1.
pub(crate) fn write_interim(parts: &response::Parts, out: &mut Vec<u8>) {
    put_response(parts, out);
    put(out, &[b"\r\n"]);
}

fn put_response(parts: &response::Parts, out: &mut Vec<u8>) {
    put(
        out,
        &[b"HTTP/1.1 ", parts.status.as_str().as_bytes(), b" \r\n"],
    );
    for (name, value) in &parts.headers {
        put_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Adds to a map those fields that `is_kept` accepts. Their values share one piece of memory.
fn put_fields(
    to: &mut HeaderMap,
    fields: &[Field<'_>],
    is_kept: impl Fn(FieldKind) -> bool,
) -> Option<()> {
    let kept = || fields.iter().filter(|field| is_kept(field.kind));
    let mut values = BytesMut::with_capacity(kept().map(|field| field.value.len()).sum());
    kept().for_each(|field| values.extend_from_slice(field.value));
    let mut values = values.freeze();
    to.reserve(fields.len());
    for field in kept() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = values.split_to(field.value.len());
        to.append(name, HeaderValue::from_maybe_shared(value).ok()?);
    }
    Some(())
}

/// Returns true for fields that concern one connection; HTTP/2 has other means for these.
fn is_of_connection(kind: FieldKind) -> bool {
    matches!(
        kind,
        FieldKind::Connection
            | FieldKind::KeepAlive
            | FieldKind::ProxyConnection
            | FieldKind::Te
            | FieldKind::Upgrade
            | FieldKind::TransferEncoding
    )
}

/// Makes the HTTP/2 response from the head that a client of HTTP/1.1 would get; `None` if HTTP/2
/// cannot express the head.
pub(crate) fn client_response(head: &ResponseHead<'_>) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    put_fields(response.headers_mut(), &head.fields, |kind| {
        !is_of_connection(kind)
    })?;
    Some(response)
}

/// Makes the HTTP/2 response that opens a tunnel, from the 101 that a client of HTTP/1.1 would get.
pub(crate) fn tunnel_response(head: &ResponseHead<'_>) -> Option<Response<()>> {
    let mut response = client_response(head)?;
    *response.status_mut() = StatusCode::OK;
    // This field answers the nonce that the proxy made, which the client does not know.
    response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    Some(response)
}

/// Parses trailers from lines that each end with CRLF.
pub(crate) fn trailers(lines: &[u8]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        fields.append(name, value);
    }
    Some(fields)
}

/// Writes trailers as lines that each end with CRLF.
pub(crate) fn write_trailers(fields: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in fields {
        put_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, &[name, b": ", value, b"\r\n"]);
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::http::http1::{Framing, RequestHead, ResponseHead, slots};

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for &(name, value) in fields {
            request = request.header(name, value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn written(parts: &Parts, has_body: bool) -> String {
        let mut out = Vec::new();
        let key = asks_for_websocket(parts).then(WebSocketKey::new);
        write_request(parts, has_body, key.as_ref(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn requests_as_a_client_of_http_1_would_have_written_them() {
        for (method, fields, has_body, expected) in [
            (
                "GET",
                &[][..],
                false,
                "GET /a?b HTTP/1.1\r\nHost: h:1\r\n\r\n",
            ),
            (
                "POST",
                &[("content-length", "3")],
                true,
                "POST /a?b HTTP/1.1\r\nHost: h:1\r\ncontent-length: 3\r\n\r\n",
            ),
            (
                "POST",
                &[("te", "trailers")],
                true,
                "POST /a?b HTTP/1.1\r\nHost: h:1\r\nte: trailers\r\nTransfer-Encoding: chunked\r\n\r\n",
            ),
            (
                "GET",
                &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")],
                false,
                "GET /a?b HTTP/1.1\r\nHost: h:1\r\nx: y\r\nCookie: a=1; b=2\r\n\r\n",
            ),
            (
                "GET",
                &[("host", "h:1")],
                false,
                "GET /a?b HTTP/1.1\r\nHost: h:1\r\n\r\n",
            ),
        ] {
            let parts = parts(method, "https://h:1/a?b", fields);
            assert_eq!(written(&parts, has_body), expected);
        }
    }

    #[test]
    fn another_host_than_the_authority_is_refused_by_the_parser() {
        let parts = parts("GET", "https://a/", &[("host", "b")]);
        let text = written(&parts, false);
        assert!(RequestHead::parse(text.as_bytes(), &mut slots()).is_err());
    }

    #[test]
    fn a_websocket_is_asked_for_in_the_way_of_http_1() {
        let mut parts = parts(
            "CONNECT",
            "https://h/chat",
            &[("sec-websocket-version", "13")],
        );
        parts.extensions.insert(Protocol::from_static("websocket"));
        let text = written(&parts, true);
        assert!(
            text.starts_with("GET /chat HTTP/1.1\r\nHost: h\r\n"),
            "{text}"
        );
        let mut slots = slots();
        let head = RequestHead::parse(text.as_bytes(), &mut slots)
            .unwrap()
            .unwrap();
        assert_eq!(head.upgrade, Some(&b"websocket"[..]));
        assert_eq!(head.framing, Framing::None);
    }

    #[test]
    fn another_protocol_is_never_written() {
        for protocol in ["chat", "websocket\r\nX: y", "websocket ", "", "h2c", "a b"] {
            let mut parts = parts("CONNECT", "https://h/chat", &[]);
            parts.extensions.insert(Protocol::from(protocol));
            assert_eq!(
                written(&parts, true).lines().next(),
                Some("CONNECT h HTTP/1.1")
            );
        }
    }

    #[test]
    fn responses_lose_what_concerns_a_connection_of_http_1() {
        let text =
            "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n";
        let mut slots = slots();
        let head = ResponseHead::parse(text.as_bytes(), false, &mut slots)
            .unwrap()
            .unwrap();
        let response = client_response(&head).unwrap();
        let fields: Vec<_> = response.headers().iter().collect();
        assert_eq!(
            fields,
            [(
                &HeaderName::from_static("x"),
                &HeaderValue::from_static("y")
            )]
        );
    }

    #[test]
    fn responses_of_instances_are_framed_by_what_they_announce() {
        for (status, length, is_end, to_head, expected) in [
            (200, Some("5"), false, false, Framing::Length(5)),
            (200, None, false, false, Framing::Chunked),
            (200, None, true, false, Framing::Length(0)),
            (200, Some("5"), true, true, Framing::None),
            (200, None, true, true, Framing::None),
            (204, None, true, false, Framing::None),
            (304, None, true, false, Framing::None),
        ] {
            let mut response = Response::builder().status(status);
            if let Some(length) = length {
                response = response.header("content-length", length);
            }
            let (parts, ()) = response.body(()).unwrap().into_parts();
            let mut out = Vec::new();
            write_response(&parts, is_end, to_head, &mut out);
            let mut slots = slots();
            let head = ResponseHead::parse(&out, to_head, &mut slots)
                .unwrap()
                .unwrap();
            assert_eq!((head.status, head.framing), (status, expected));
            assert_eq!(head.size, out.len());
        }
    }

    #[test]
    fn trailers_of_both_forms() {
        let fields = trailers(b"grpc-status: 0\r\nx: a b\r\n").unwrap();
        assert_eq!(fields["grpc-status"], "0");
        assert_eq!(fields["x"], "a b");
        let mut out = Vec::new();
        write_trailers(&fields, &mut out);
        assert_eq!(out, b"grpc-status: 0\r\nx: a b\r\n");
        assert_eq!(trailers(b""), Some(HeaderMap::new()));
        assert_eq!(trailers(b"no colon\r\n"), None);
    }

    proptest! {
        /// Whatever a client puts into a head, the parser sees either exactly one request, which
        /// ends where the text ends, or none.
        #[test]
        fn a_request_is_one_request(
            method in "[A-Z!#$%&'*+.^_`|~-]{1,8}",
            target in "/[!-~]{0,12}",
            fields in prop::collection::vec(("[!#$%&'*+.^_`|~0-9a-z-]{1,12}", "[ -~\t\u{80}-\u{ff}]{0,12}"), 0..8),
            has_body: bool,
        ) {
            let Ok(uri) = Uri::builder().scheme("https").authority("h").path_and_query(target).build() else {
                return Ok(());
            };
            let mut request = Request::builder().method(&*method).uri(uri);
            for (name, value) in &fields {
                request = request.header(name, value);
            }
            let Ok(request) = request.body(()) else {
                return Ok(());
            };
            let mut out = Vec::new();
            write_request(&request.into_parts().0, has_body, None, &mut out);
            let mut slots = slots();
            if let Ok(head) = RequestHead::parse(&out, &mut slots) {
                prop_assert_eq!(head.map(|head| head.length), Some(out.len()));
            }
        }
    }
}
