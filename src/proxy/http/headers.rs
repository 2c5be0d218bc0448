//! Heads as they are passed on: written anew, field by field, without the fields that concern only
//! one connection (RFC 9110, section 7.6.1), and with facts about the client that an instance
//! needs.
//!
//! `X-Forwarded-For`, `-Proto` and `-Host` are always set, `Forwarded` (RFC 7239) where the
//! configuration wants it, and `X-Forwarded-Prefix` where the instance does not get the beginning
//! of the path. What a client sends in these fields, or in other fields that programs read for the
//! same purpose, is believed only from trusted peers. From all others it is dropped. The same holds
//! for `X-Request-Id`, which every request has.

use super::date::put_date;
use super::http1::{
    Field, FieldKind, Framing, RequestHead, ResponseHead, Version, is_end_to_end, tokens,
};
use super::request_id::RequestId;

/// Who has sent a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestSender<'a> {
    /// The IP address, in text.
    pub(crate) address: &'a str,
    /// True if the request came over TLS.
    pub(crate) secure: bool,
    /// True if the sender is a trusted proxy, which may say who its own client is.
    pub(crate) trusted: bool,
    /// True if the instance learns about the sender by `Forwarded`, too.
    pub(crate) forwarded: bool,
}

impl RequestSender<'_> {
    fn scheme(&self) -> &'static [u8] {
        if self.secure { b"https" } else { b"http" }
    }
}

/// Returns true if the client used TLS, also if a trusted proxy in front has ended the TLS
/// connection.
pub(crate) fn is_secure(head: &RequestHead<'_>, sender: RequestSender<'_>) -> bool {
    let mut fields = head.fields.iter();
    let said =
        fields.find(|field| field.kind == FieldKind::ForwardedProto && !field.value.is_empty());
    match said.filter(|_| sender.trusted) {
        Some(field) => field.value.eq_ignore_ascii_case(b"https"),
        None => sender.secure,
    }
}

/// What a response tells the client about the future of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// Another request may follow.
    KeepAlive,
    /// The connection ends with this response.
    Close,
}

/// Returns the id of a request: the one that a trusted proxy has sent, or a new one.
pub(crate) fn request_id(head: &RequestHead<'_>, sender: RequestSender<'_>) -> RequestId {
    let fields = head.fields.iter().filter(|_| sender.trusted);
    let mut sent = fields.filter(|field| field.kind == FieldKind::RequestId);
    let kept = sent.next().and_then(|field| RequestId::keep(field.value));
    kept.unwrap_or_else(RequestId::new)
}

/// Writes the head of a request for an instance.
pub(crate) fn write_request(
    head: &RequestHead<'_>,
    sender: RequestSender<'_>,
    id: &RequestId,
    out: &mut Vec<u8>,
) {
    put(
        out,
        &[
            head.method.as_bytes(),
            match head.prefix.is_empty() || head.target.starts_with('/') {
                true => b" ",
                // The rest of the path after stripping is empty, or is only a query.
                false => b" /",
            },
            head.target.as_bytes(),
            b" HTTP/1.1\r\n",
        ],
    );
    put(out, &[b"Host: ", head.host, b"\r\n"]);
    for field in &head.fields {
        let keep = match field.kind {
            FieldKind::Other | FieldKind::Date | FieldKind::Challenge => {
                !head.nominates || !is_nominated(field.name, &head.fields)
            }
            FieldKind::Trailer => head.framing == Framing::Chunked,
            FieldKind::Expect => head.expects_continue,
            FieldKind::FromProxy | FieldKind::Internal => sender.trusted,
            FieldKind::MethodOverride | FieldKind::Authorization => true,
            FieldKind::Forwarded => sender.trusted && !sender.forwarded,
            FieldKind::ForwardedPrefix => sender.trusted && head.prefix.is_empty(),
            _ => false,
        };
        if keep {
            put_field(out, field);
        }
    }
    put_forwarded(head, sender, out);
    put(out, &[b"X-Request-Id: ", id.as_bytes(), b"\r\n"]);
    if head.takes_trailers {
        put(out, &[b"TE: trailers\r\n"]);
    }
    match (head.upgrade, head.takes_trailers) {
        (Some(protocol), true) => put_upgrade(b"TE, Upgrade", protocol, out),
        (Some(protocol), false) => put_upgrade(b"Upgrade", protocol, out),
        (None, true) => put(out, &[b"Connection: TE\r\n"]),
        (None, false) => {}
    }
    put_framing(head.framing, out);
    put(out, &[b"\r\n"]);
}

fn put_forwarded(head: &RequestHead<'_>, sender: RequestSender<'_>, out: &mut Vec<u8>) {
    let incoming = |kind: FieldKind| {
        let fields = head.fields.iter();
        fields.filter(move |field| sender.trusted && field.kind == kind && !field.value.is_empty())
    };
    put(out, &[b"X-Forwarded-For: "]);
    for field in incoming(FieldKind::ForwardedFor) {
        put(out, &[field.value, b", "]);
    }
    put(
        out,
        &[sender.address.as_bytes(), b"\r\nX-Forwarded-Proto: "],
    );
    let proto = incoming(FieldKind::ForwardedProto).next();
    let own = sender.scheme();
    put(out, &[proto.map_or(own, |field| field.value), b"\r\n"]);
    let host = incoming(FieldKind::ForwardedHost).next();
    put(
        out,
        &[
            b"X-Forwarded-Host: ",
            host.map_or(head.host, |field| field.value),
            b"\r\n",
        ],
    );
    if sender.forwarded {
        put(out, &[b"Forwarded: "]);
        for field in incoming(FieldKind::Forwarded) {
            put(out, &[field.value, b", "]);
        }
        put_element(head.host, sender, out);
    }
    if !head.prefix.is_empty() {
        put(out, &[b"X-Forwarded-Prefix: "]);
        // The prefix that a proxy in front has stripped stood before ours.
        for field in incoming(FieldKind::ForwardedPrefix) {
            put(
                out,
                &[field.value.strip_suffix(b"/").unwrap_or(field.value)],
            );
        }
        put(out, &[head.prefix.as_bytes(), b"\r\n"]);
    }
}

/// Writes the element of `Forwarded` for one hop (RFC 7239, section 4). Only values that may not be
/// tokens are quoted; none of them can contain a quotation mark.
fn put_element(host: &[u8], sender: RequestSender<'_>, out: &mut Vec<u8>) {
    let address = sender.address;
    match address.contains(':') {
        true => put(out, &[b"for=\"[", address.as_bytes(), b"]\""]),
        false => put(out, &[b"for=", address.as_bytes()]),
    }
    if !host.is_empty() {
        put(out, &[b";host=\"", host, b"\""]);
    }
    put(out, &[b";proto=", sender.scheme(), b"\r\n"]);
}

/// Writes the head of a response for a client, which gets the body in `framing`. A trusted proxy
/// also gets the fields that only a proxy in front understands. A response that lacks `Date` gets
/// one (RFC 9110, section 6.6.1).
pub(crate) fn write_response(
    head: &ResponseHead<'_>,
    trusted: bool,
    version: Version,
    framing: Framing,
    persistence: Persistence,
    out: &mut Vec<u8>,
) {
    put_status(head, out);
    for field in &head.fields {
        let keep = match field.kind {
            FieldKind::Connection
            | FieldKind::KeepAlive
            | FieldKind::ProxyConnection
            | FieldKind::Te
            | FieldKind::TransferEncoding => false,
            // Names the protocols of which one has to be used (RFC 9110, section 15.5.22).
            FieldKind::Upgrade if head.status == 426 => {
                put(out, &[b"Connection: Upgrade\r\n"]);
                true
            }
            FieldKind::Upgrade => false,
            // A response without a body may have `Content-Length`: the length that the body would
            // have. A 204 must not have it (RFC 9110, section 8.6).
            FieldKind::ContentLength => framing == Framing::None && head.status != 204,
            FieldKind::Trailer => framing == Framing::Chunked,
            FieldKind::Internal => trusted,
            _ => !head.nominates || !is_nominated(field.name, &head.fields),
        };
        if keep {
            put_field(out, field);
        }
    }
    if !head.has_date {
        put_date(out);
    }
    put_framing(framing, out);
    put_persistence(persistence, version, out);
    put(out, &[b"\r\n"]);
}

/// Writes the head of an interim response, which another one follows.
pub(crate) fn write_interim(head: &ResponseHead<'_>, out: &mut Vec<u8>) {
    put_interim_fields(head, out);
    put(out, &[b"\r\n"]);
}

/// Writes the head of the 101 that ends HTTP on this connection.
pub(crate) fn write_switch(head: &ResponseHead<'_>, protocol: &[u8], out: &mut Vec<u8>) {
    put_interim_fields(head, out);
    put_upgrade(b"Upgrade", protocol, out);
    put(out, &[b"\r\n"]);
}

fn put_interim_fields(head: &ResponseHead<'_>, out: &mut Vec<u8>) {
    put_status(head, out);
    for field in &head.fields {
        let nominated = head.nominates && is_nominated(field.name, &head.fields);
        if matches!(field.kind, FieldKind::Other | FieldKind::Date) && !nominated {
            put_field(out, field);
        }
    }
}

fn put_upgrade(connection: &[u8], protocol: &[u8], out: &mut Vec<u8>) {
    put(
        out,
        &[
            b"Connection: ",
            connection,
            b"\r\nUpgrade: ",
            protocol,
            b"\r\n",
        ],
    );
}

/// Returns how a body is framed for a client: as the instance frames it, if the version of the
/// client has that framing.
pub(crate) fn delivery(framing: Framing, version: Version) -> Framing {
    match (framing, version) {
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
        (framing, _) => framing,
    }
}

/// Writes the `Connection` field, except where the version of the client keeps the connection open
/// by default.
pub(crate) fn put_persistence(persistence: Persistence, version: Version, out: &mut Vec<u8>) {
    match (persistence, version) {
        (Persistence::Close, _) => put(out, &[b"Connection: close\r\n"]),
        (Persistence::KeepAlive, Version::Http10) => put(out, &[b"Connection: keep-alive\r\n"]),
        (Persistence::KeepAlive, Version::Http11) => {}
    }
}

/// Returns true if `Connection` names this field, and if this field may be named there.
fn is_nominated(name: &str, fields: &[Field<'_>]) -> bool {
    let mut connection = fields
        .iter()
        .filter(|field| field.kind == FieldKind::Connection);
    connection
        .any(|field| tokens(field.value).any(|token| token.eq_ignore_ascii_case(name.as_bytes())))
        && !is_end_to_end(name)
}

fn put_status(head: &ResponseHead<'_>, out: &mut Vec<u8>) {
    put(out, &[b"HTTP/1.1 "]);
    put_decimal(head.status.into(), out);
    put(out, &[b" ", head.reason.as_bytes(), b"\r\n"]);
}

fn put_framing(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => {
            put(out, &[b"Content-Length: "]);
            put_decimal(length, out);
            put(out, &[b"\r\n"]);
        }
        Framing::Chunked => put(out, &[b"Transfer-Encoding: chunked\r\n"]),
        Framing::None | Framing::UntilClose => {}
    }
}

/// Writes a decimal number. The standard formatting would be a noticeable part of the cost of a
/// small request.
fn put_decimal(mut number: u64, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        out.push(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out[start..].reverse();
}

fn put_field(out: &mut Vec<u8>, field: &Field<'_>) {
    put(out, &[field.name.as_bytes(), b": ", field.value, b"\r\n"]);
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::super::http1::slots;
    use super::*;

    fn request(head: &str, trusted: bool) -> String {
        let mut slots = slots();
        let head = RequestHead::parse(head.as_bytes(), &mut slots)
            .unwrap()
            .unwrap();
        let mut out = Vec::new();
        let address = "192.0.2.1";
        let sender = RequestSender {
            address,
            secure: false,
            trusted,
            forwarded: false,
        };
        let id = RequestId::keep(b"7").unwrap();
        write_request(&head, sender, &id, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\r\nX-Request-Id: 7\r\n").count(), 1);
        text.replace("X-Request-Id: 7\r\n", "")
    }

    fn forwarded(fields: &str, address: &str, trusted: bool) -> String {
        let head = format!("GET / HTTP/1.0\r\n{fields}\r\n");
        let mut slots = slots();
        let head = RequestHead::parse(head.as_bytes(), &mut slots)
            .unwrap()
            .unwrap();
        let mut out = Vec::new();
        let sender = RequestSender {
            address,
            secure: false,
            trusted,
            forwarded: true,
        };
        write_request(&head, sender, &RequestId::new(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.split("\r\n");
        let mut found = lines
            .by_ref()
            .filter(|line| line.to_lowercase().starts_with("forwarded:"));
        let field = found.next().unwrap().to_owned();
        assert_eq!(found.next(), None);
        field
    }

    #[test]
    fn forwarded_has_an_element_for_each_hop() {
        let theirs = "Forwarded: for=1.1.1.1;proto=https\r\nforwarded: for=unknown, for=_x\r\n";
        for (fields, address, trusted, field) in [
            (
                "",
                "192.0.2.1",
                false,
                "Forwarded: for=192.0.2.1;proto=http",
            ),
            (
                "Host: a.example:8080\r\n",
                "2001:db8::1",
                false,
                "Forwarded: for=\"[2001:db8::1]\";host=\"a.example:8080\";proto=http",
            ),
            (
                theirs,
                "192.0.2.1",
                false,
                "Forwarded: for=192.0.2.1;proto=http",
            ),
            (
                theirs,
                "192.0.2.1",
                true,
                "Forwarded: for=1.1.1.1;proto=https, for=unknown, for=_x, for=192.0.2.1;proto=http",
            ),
        ] {
            assert_eq!(forwarded(fields, address, trusted), field);
        }
    }

    /// Returns what a client gets for this head, without the `Date` that the proxy adds.
    fn response(head: &str, version: Version, persistence: Persistence) -> String {
        let text = dated_response(head, version, persistence);
        let lines = text.split_inclusive("\r\n");
        let is_added = |line: &&str| line.starts_with("Date: ") && line.ends_with(" GMT\r\n");
        lines.filter(|line| !is_added(line)).collect()
    }

    fn dated_response(head: &str, version: Version, persistence: Persistence) -> String {
        let mut slots = slots();
        let head = ResponseHead::parse(head.as_bytes(), false, &mut slots)
            .unwrap()
            .unwrap();
        let mut out = Vec::new();
        let framing = delivery(head.framing, version);
        write_response(&head, false, version, framing, persistence, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_request_loses_what_concerns_the_connection() {
        let head = "POST /x HTTP/1.1\nAccept: a\nhost: h\nConnection: Keep-Alive, x-hop, TE\nX-Hop: 1\n\
            Keep-Alive: 5\nProxy-Connection: x\nUpgrade: h2c\nTE: trailers, gzip\nTrailer: x\n\
            Transfer-Encoding: chunked\nCookie: a\nContent_Length: 7\n\n";
        assert_eq!(
            request(head, false),
            "POST /x HTTP/1.1\r\nHost: h\r\nAccept: a\r\nTrailer: x\r\nCookie: a\r\n\
             X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\n\
             TE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
    }

    #[test]
    fn only_the_wish_for_one_other_protocol_is_passed_on() {
        for (fields, expected) in [
            (
                "Connection: keep-alive, upgrade\nUpgrade: websocket\n",
                "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            ),
            (
                "Connection: TE, Upgrade\nTE: trailers\nUpgrade: a/1\n",
                "TE: trailers\r\nConnection: TE, Upgrade\r\nUpgrade: a/1\r\n",
            ),
            ("Connection: Upgrade\n", ""),
            ("Upgrade: websocket\n", ""),
            (
                "Connection: Upgrade, HTTP2-Settings\nUpgrade: H2C\nHTTP2-Settings: x\n",
                "",
            ),
            ("Connection: Upgrade\nUpgrade: websocket, h2c\n", ""),
            ("Connection: Upgrade\nUpgrade: websocket\nUpgrade: a\n", ""),
            ("Connection: Upgrade, close\nUpgrade: websocket\n", ""),
        ] {
            let request = request(&format!("GET / HTTP/1.1\nHost: h\n{fields}\n"), false);
            let added = request.split_once("X-Forwarded-Host: h\r\n").unwrap().1;
            assert_eq!(added, format!("{expected}\r\n"), "{fields}");
        }
        let with_body =
            "POST / HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: a\nContent-Length: 1\n\n";
        assert!(!request(with_body, false).contains("Upgrade"));
        let old = "GET / HTTP/1.0\nHost: h\nConnection: Upgrade\nUpgrade: a\n\n";
        assert!(!request(old, false).contains("Upgrade"));
    }

    #[test]
    fn the_connection_field_cannot_take_away_what_is_for_the_instance() {
        let head = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, Host, authorization, X-Forwarded-For, \
            Content-Length, content-type, x-own\r\nAuthorization: a\r\nContent-Type: t\r\nX-Own: o\r\n\
            Content-Length: 3\r\n\r\n";
        assert_eq!(
            request(head, false),
            "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: a\r\nContent-Type: t\r\n\
             X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\n\
             Content-Length: 3\r\n\r\n"
        );
    }

    #[test]
    fn who_is_forwarded_is_believed_only_from_trusted_peers() {
        let head = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n\
            X-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\nX-Forwarded-Port: 443\r\nX-Real-IP: 1.1.1.1\r\n\
            Forwarded: for=1.1.1.1\r\nX_Forwarded_For: 3.3.3.3\r\n\r\n";
        assert_eq!(
            request(head, false),
            "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: h\r\n\r\n"
        );
        assert_eq!(
            request(head, true),
            "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Port: 443\r\nX-Real-IP: 1.1.1.1\r\n\
             Forwarded: for=1.1.1.1\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 192.0.2.1\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n\r\n"
        );
    }

    #[test]
    fn an_id_is_believed_only_from_trusted_peers() {
        let id = |fields: &str, trusted| {
            let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
            let mut slots = slots();
            let head = RequestHead::parse(head.as_bytes(), &mut slots)
                .unwrap()
                .unwrap();
            let sender = RequestSender {
                address: "192.0.2.1",
                secure: false,
                trusted,
                forwarded: false,
            };
            request_id(&head, sender)
        };
        let is_own = |id: &RequestId| matches!(id, RequestId::Own(_));
        assert_eq!(id("X-Request-Id: a-1\r\n", true).as_bytes(), b"a-1");
        assert_eq!(
            id("x-request-id: a\r\nX-Request-ID: b\r\n", true).as_bytes(),
            b"a"
        );
        assert!(is_own(&id("X-Request-Id: a-1\r\n", false)));
        assert!(is_own(&id("X-Request-Id: a b\r\n", true)));
        assert!(is_own(&id("X_Request_Id: a-1\r\n", true)));
        assert!(is_own(&id("", true)));
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        assert_eq!(
            request(
                "GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n",
                false
            ),
            "GET /x HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: a.example\r\n\r\n"
        );
    }

    #[test]
    fn a_response_loses_what_concerns_the_connection() {
        let head = "HTTP/1.1 200 OK\nDate: d\nServer: s\nConnection: keep-alive, x-hop\nX-Hop: 1\n\
            Keep-Alive: timeout=5\nUpgrade: h2c\nTrailer: x\nTransfer-Encoding: chunked\n\n";
        assert_eq!(
            response(head, Version::Http11, Persistence::KeepAlive),
            "HTTP/1.1 200 OK\r\nDate: d\r\nServer: s\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        assert_eq!(
            response(head, Version::Http10, Persistence::Close),
            "HTTP/1.1 200 OK\r\nDate: d\r\nServer: s\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_response_without_a_date_gets_one() {
        let written = |fields: &str| {
            let head = format!("HTTP/1.1 204 No\r\n{fields}\r\n");
            dated_response(&head, Version::Http11, Persistence::KeepAlive)
        };
        let dated = written("");
        let date = dated.split_once("\r\nDate: ").unwrap().1;
        httpdate::parse_http_date(date.trim_end()).unwrap();
        for fields in [
            "Date: d\r\n",
            "dAtE: \r\n",
            "Connection: date\r\nDate: d\r\n",
        ] {
            let text = written(fields).to_ascii_lowercase();
            assert_eq!(text.matches("\r\ndate: ").count(), 1, "{fields}");
            assert!(!text.contains(" gmt"), "{fields}");
        }
    }

    #[test]
    fn an_interim_response_gets_no_date() {
        let mut slots = slots();
        let head = ResponseHead::parse(b"HTTP/1.1 103 \r\nLink: a\r\n\r\n", false, &mut slots)
            .unwrap()
            .unwrap();
        let mut out = Vec::new();
        write_interim(&head, &mut out);
        assert_eq!(out, b"HTTP/1.1 103 \r\nLink: a\r\n\r\n");
    }

    #[test]
    fn numbers() {
        for number in [0, 7, 10, 200, 65_536, u64::MAX] {
            let mut out = b"x".to_vec();
            put_decimal(number, &mut out);
            assert_eq!(out, format!("x{number}").into_bytes());
        }
    }

    #[test]
    fn lengths_without_a_body() {
        assert_eq!(
            response(
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                Version::Http10,
                Persistence::KeepAlive
            ),
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            response(
                "HTTP/1.1 204 \r\nContent-Length: 9\r\n\r\n",
                Version::Http11,
                Persistence::KeepAlive
            ),
            "HTTP/1.1 204 \r\n\r\n"
        );
    }
}
