//! Request smuggling and desynchronization: what a client may send, what becomes of it, and that no
//! other client notices.
//!
//! Each row of a table is one request, followed by [`NEXT`] in the same bytes. A status means that
//! the worker has answered by itself and closed the connection. Anything else is what the instance
//! has seen, as `METHOD HOST/TARGET BODY`; it has then seen [`NEXT`] as well, unless this was the
//! [`LAST`] request that the worker takes. The instance is a
//! [`Recorder`](crate::recorder::Recorder), so its strict parser has accepted every byte, and it
//! has seen these requests and no other. A request of another client, which follows, gets its own
//! answer.

use crate::recorder::answers;
use crate::scene::Scene;

/// The request that follows each tested one.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n";
const NEXT_SEEN: &str = "GET a.example/next";

/// A prefix of what the instance has seen, if the worker closes the connection after it.
const LAST: &str = "last: ";

/// A request that no client has made, as the body of another one.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";

impl Scene {
    /// Sends a request at once and then in small pieces, and checks what becomes of it.
    async fn expect(&mut self, sent: &[u8], expected: &str) {
        let sent = [sent, NEXT.as_bytes()].concat();
        let is_seen = expected.contains(' ');
        let answers: &[&str] = match expected.strip_prefix(LAST) {
            Some(expected) => &[expected],
            None if is_seen => &[expected, NEXT_SEEN],
            None => &[expected],
        };
        for piece in [sent.len(), sent.len().div_ceil(100)] {
            self.expect_of_pieces(&sent, piece, answers, is_seen).await;
        }
    }

    async fn expect_of_pieces(
        &mut self,
        sent: &[u8],
        piece: usize,
        expected: &[&str],
        is_seen: bool,
    ) {
        let mut client = self.stage.connect().await;
        client.stream.set_nodelay(true).unwrap();
        for piece in sent.chunks(piece) {
            // The worker need not listen to a client that it has refused.
            if client.try_send(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        client.finish().await;
        let (received, _) = client.receive_all().await;
        let context = format!(
            "in pieces of {piece}: {}\nreceived: {received}",
            sent[..sent.len().min(300)].escape_ascii()
        );
        assert_eq!(answers(&received), expected, "{context}");
        let seen: &[&str] = if is_seen { expected } else { &[] };
        self.saw(seen, &context).await;
    }
}

/// Checks requests with these fields, each followed by its body or by whatever the row has there.
async fn expect_fields(cases: &[(&str, &str, &str)]) {
    let mut scene = Scene::new().await;
    for (fields, rest, expected) in cases {
        let request = format!("POST / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n{rest}");
        scene.expect(request.as_bytes(), expected).await;
    }
}

const CHUNKED_A: &str = "1\r\na\r\n0\r\n\r\n";

/// CL.TE, TE.CL, CL.0, 0.CL.
#[tokio::test]
async fn a_request_with_two_framings_is_refused() {
    let te = "Transfer-Encoding: chunked\r\n";
    let both = |first: &str, second: &str| format!("{first}{second}");
    let length = |length: usize| format!("Content-Length: {length}\r\n");
    let hidden = format!("0\r\n\r\n{HIDDEN}");
    let cases = [
        (both(&length(6), te), hidden.clone(), "400"),
        (both(te, &length(6)), hidden.clone(), "400"),
        (both(te, &length(hidden.len())), hidden.clone(), "400"),
        (both(te, &length(0)), hidden.clone(), "400"),
        (both(te, &te.to_lowercase()), CHUNKED_A.to_owned(), "400"),
        (both(&length(1), &length(1)), "a".to_owned(), "400"),
        (both(&length(1), &length(0)), "a".to_owned(), "400"),
        (both(&length(0), &length(1)), "a".to_owned(), "400"),
        // A body that looks like a request is still only a body.
        (
            length(HIDDEN.len()),
            HIDDEN.to_owned(),
            "POST a.example/ GET /hidden HTTP/1.1\\r\\nHost: a.example\\r\\n\\r\\n",
        ),
    ];
    let cases: Vec<(&str, &str, &str)> = cases
        .iter()
        .map(|(fields, rest, expected)| (&**fields, &**rest, *expected))
        .collect();
    expect_fields(&cases).await;
}

#[tokio::test]
async fn a_content_length_is_one_number_of_digits() {
    expect_fields(&[
        ("Content-Length: 1\r\n", "a", "POST a.example/ a"),
        ("Content-Length: 0001\r\n", "a", "POST a.example/ a"),
        ("Content-Length:1\r\n", "a", "POST a.example/ a"),
        ("Content-Length: \t 1 \t\r\n", "a", "POST a.example/ a"),
        ("content-length: 1\r\n", "a", "POST a.example/ a"),
        ("Content-Length: 1, 1\r\n", "a", "400"),
        ("Content-Length: 1,\r\n", "a", "400"),
        ("Content-Length: +1\r\n", "a", "400"),
        ("Content-Length: -1\r\n", "a", "400"),
        ("Content-Length: 0x1\r\n", "a", "400"),
        ("Content-Length: 1.0\r\n", "a", "400"),
        ("Content-Length: 1e0\r\n", "a", "400"),
        ("Content-Length: 1 1\r\n", "a", "400"),
        ("Content-Length: \"1\"\r\n", "a", "400"),
        ("Content-Length: \u{661}\r\n", "a", "400"),
        ("Content-Length: 1;a\r\n", "a", "400"),
        ("Content-Length: \x0b1\r\n", "a", "400"),
        ("Content-Length: 1\x0c\r\n", "a", "400"),
        ("Content-Length:\r\n", "a", "400"),
        ("Content-Length: 18446744073709551617\r\n", "a", "400"),
        ("Content-Length: 99999999999999999999999\r\n", "a", "400"),
        ("Content-Length\t: 1\r\n", "a", "400"),
        (" Content-Length: 1\r\n", "a", "400"),
        ("Content-Length\x00: 1\r\n", "a", "400"),
        ("X: y\r\n Content-Length: 1\r\n", "", "400"),
        // Other names that some programs take for `Content-Length` have no effect and are not
        // passed on.
        ("Content_Length: 1\r\n", "", "POST a.example/"),
        ("Content-Length-: 1\r\n", "", "POST a.example/"),
        (
            "Connection: content-length\r\nContent-Length: 1\r\n",
            "a",
            "POST a.example/ a",
        ),
    ])
    .await;
}

/// TE.TE: a coding that not all programs recognize as chunked.
#[tokio::test]
async fn the_only_transfer_coding_is_chunked() {
    let accepted = "POST a.example/ a";
    expect_fields(&[
        ("Transfer-Encoding: chunked\r\n", CHUNKED_A, accepted),
        ("Transfer-Encoding: CHUNKED\r\n", CHUNKED_A, accepted),
        ("Transfer-Encoding:\tchunked \t\r\n", CHUNKED_A, accepted),
        ("transfer-encoding:chunked\r\n", CHUNKED_A, accepted),
        (
            "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED_A,
            accepted,
        ),
        ("Transfer-Encoding: xchunked\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: chunke\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: identity\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: gzip, chunked\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: chunked, gzip\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chunked, identity\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: identity, chunked\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: chunked;q=1\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: \"chunked\"\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding: chunked, chunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: ,chunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chunked,\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding:\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: \x0bchunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chunked\x0c\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chunked\x00\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chunked\x7f\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: ch\u{fc}nked\r\n", CHUNKED_A, "501"),
        ("Transfer-Encoding : chunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding\t: chunked\r\n", CHUNKED_A, "400"),
        (" Transfer-Encoding: chunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding\n : chunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chun\r\n ked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding:\r\n chunked\r\n", CHUNKED_A, "400"),
        ("Transfer-Encoding: chunked\rX: y\r\n", CHUNKED_A, "400"),
        ("X: y\rTransfer-Encoding: chunked\r\n", CHUNKED_A, "400"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            CHUNKED_A,
            "501",
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED_A,
            "501",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED_A,
            "400",
        ),
        // Other names than `Transfer-Encoding` have no effect on the framing.
        ("Transfer_Encoding: chunked\r\n", "", "POST a.example/"),
        ("Content-Encoding: chunked\r\n", "", "POST a.example/"),
        (
            "Content-Encoding: gzip\r\nContent-Length: 1\r\n",
            "a",
            accepted,
        ),
    ])
    .await;
}

#[tokio::test]
async fn chunks_have_one_accepted_form() {
    let accepted = "POST a.example/ a";
    let long = |length: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(length));
    let zeros = |count: usize| format!("{}1\r\na\r\n0\r\n\r\n", "0".repeat(count));
    let trailers = |field: &str| format!("1\r\na\r\n0\r\n{field}\r\n\r\n");
    let many = format!("1\r\na\r\n0\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    let cases = [
        (CHUNKED_A.to_owned(), accepted),
        ("1;a=b\r\na\r\n0;c\r\n\r\n".to_owned(), accepted),
        ("1;a=\"b\"\r\na\r\n0\r\n\r\n".to_owned(), accepted),
        (zeros(3), accepted),
        (long(100), accepted),
        (trailers("x: y"), accepted),
        // These trailers are not passed on.
        (trailers("Content-Length: 5"), accepted),
        (trailers("Transfer-Encoding: chunked"), accepted),
        (trailers("Host: b.example"), accepted),
        (zeros(100), "400"),
        (long(100_000), "400"),
        (many, "400"),
        ("1\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1\r\na\n0\r\n\r\n".to_owned(), "400"),
        ("1\ra\r\n0\r\n\r\n".to_owned(), "400"),
        ("1\r\na0\r\n\r\n".to_owned(), "400"),
        ("1\r\nab\r\n0\r\n\r\n".to_owned(), "400"),
        ("2\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1;a\nb\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1;a\rb\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1;\0\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1 ;a\r\na\r\n0\r\n\r\n".to_owned(), accepted),
        (" 1\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1 \r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("+1\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("-1\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("0x1\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1_\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("g\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        (";a\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("10000000000000001\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("ffffffffffffffff\r\na\r\n0\r\n\r\n".to_owned(), "400"),
        ("1\r\na\r\n0\n\n".to_owned(), "400"),
        (trailers("x : y"), "400"),
        (trailers("x"), "400"),
        (trailers("x: a\rb"), "400"),
        (trailers("x: a\0b"), "400"),
        (trailers("x: a\r\n b"), "400"),
    ];
    let te = "Transfer-Encoding: chunked\r\n";
    let cases: Vec<(&str, &str, &str)> = cases
        .iter()
        .map(|(rest, expected)| (te, &**rest, *expected))
        .collect();
    expect_fields(&cases).await;
}

#[tokio::test]
async fn a_host_is_one_valid_name() {
    let mut scene = Scene::new().await;
    for (request, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET a.example/",
        ),
        (
            "GET / HTTP/1.1\r\nHost: A.Example:80\r\n\r\n",
            "GET A.Example:80/",
        ),
        // The host of the target counts, not the `Host` field.
        (
            "GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n",
            "GET a.example/x",
        ),
        (
            "GET http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET a.example/",
        ),
        (
            "GET http://a.example?x HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "400",
        ),
        (
            "GET HTTP://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET a.example/",
        ),
        (
            "GET http://u@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "400",
        ),
        ("GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"),
        (
            "GET http://a.example@b/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "400",
        ),
        (
            "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "400",
        ),
        (
            "GET https://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n",
            "GET a.example/x",
        ),
        ("GET a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\nHost: \r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
            "400",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nhost: b.example\r\n\r\n",
            "400",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\r\nHost: a.example b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: u@a.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a.example/x\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a.example?x\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a.example#x\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a.example:8o\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a.example:80:80\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: \u{e4}.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\\.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Host: b.example\r\n\r\n",
            "GET a.example/",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-Original-URL: /x\r\n\r\n",
            "GET a.example/",
        ),
    ] {
        scene.expect(request.as_bytes(), expected).await;
    }
}

#[tokio::test]
async fn a_request_line_has_one_accepted_form() {
    let mut scene = Scene::new().await;
    let rest = "\r\nHost: a.example\r\n\r\n";
    for (line, expected) in [
        ("GET / HTTP/1.1", "GET a.example/"),
        ("GET /?a=/../%00%0d%0a#x HTTP/1.1", "400"),
        ("GET /a%20b/../c//d?e=%0d%0aHost: HTTP/1.1 HTTP/1.1", "400"),
        (
            "GET /a%20b/../c//d?e=%0d%0a HTTP/1.1",
            "GET a.example/a%20b/../c//d?e=%0d%0a",
        ),
        ("OPTIONS * HTTP/1.1", "OPTIONS a.example*"),
        ("GET * HTTP/1.1", "400"),
        ("get / HTTP/1.1", "get a.example/"),
        ("FOO-BAR / HTTP/1.1", "FOO-BAR a.example/"),
        ("TRACE / HTTP/1.1", "TRACE a.example/"),
        ("CONNECT a.example:443 HTTP/1.1", "501"),
        ("CONNECT / HTTP/1.1", "501"),
        ("GET  / HTTP/1.1", "400"),
        ("GET /  HTTP/1.1", "400"),
        ("GET\t/ HTTP/1.1", "400"),
        ("GET /\tHTTP/1.1", "400"),
        (" GET / HTTP/1.1", "400"),
        ("GET / HTTP/1.1 ", "400"),
        ("GET /\x0b HTTP/1.1", "400"),
        ("GET /\0 HTTP/1.1", "400"),
        ("GET /a\rb HTTP/1.1", "400"),
        ("GET / \rHTTP/1.1", "400"),
        ("GET /\u{e4} HTTP/1.1", "GET a.example/\u{e4}"),
        ("G(T / HTTP/1.1", "400"),
        ("GET / http/1.1", "400"),
        ("GET / HTTP/1.2", "GET a.example/"),
        ("GET / HTTP/1.9", "GET a.example/"),
        ("GET /HTTP/1.2 HTTP/1.1", "GET a.example/HTTP/1.2"),
        ("GET / HTTP/1.10", "400"),
        ("GET / HTTP/01.1", "400"),
        ("GET / HTTP/1", "400"),
        ("GET / HTTP/2.0", "505"),
        ("GET / HTTP/0.9", "505"),
        ("GET / XTTP/1.1", "400"),
        ("GET /", "400"),
        ("GET", "400"),
        ("/ HTTP/1.1", "400"),
    ] {
        scene
            .expect(format!("{line}{rest}").as_bytes(), expected)
            .await;
    }
}

#[tokio::test]
async fn fields_have_one_accepted_form() {
    let mut scene = Scene::new().await;
    for (field, expected) in [
        ("X: y", "GET a.example/"),
        ("X:", "GET a.example/"),
        ("X:y:z", "GET a.example/"),
        ("X: \u{e4}", "GET a.example/"),
        ("!#$%&'*+-.^_`|~: y", "GET a.example/"),
        (": y", "400"),
        ("X", "400"),
        ("X Y: z", "400"),
        ("X : y", "400"),
        ("X\t: y", "400"),
        ("X(): y", "400"),
        ("X\u{e4}: y", "400"),
        ("X: y\0", "400"),
        ("X\0: y", "400"),
        ("X: y\rz", "400"),
        ("X: y\r\rz", "400"),
        ("X: y\x1b", "400"),
        ("X: y\r\n folded", "400"),
        ("X: y\r\n\tfolded", "400"),
        ("X: y\r\n \r\nZ: z", "400"),
        // Fields for the next hop are not passed on.
        ("Connection: close, host", "last: GET a.example/"),
        (
            "Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
            "GET a.example/",
        ),
        ("Expect: 100-continue", "GET a.example/"),
        ("Expect: y 100-continue", "GET a.example/"),
        ("Expect: 200-ok", "GET a.example/"),
        ("Max-Forwards: 0", "GET a.example/"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{field}\r\n\r\n");
        scene.expect(request.as_bytes(), expected).await;
    }
    for field in ["http2-settings", "upgrade", "connection", "expect"] {
        assert!(
            !scene
                .recorder
                .all()
                .to_lowercase()
                .contains(&format!("\\n{field}: ")),
            "{field}"
        );
    }
}

/// HTTP/1.0 has no chunked coding. Its clients may end a body by closing the connection, so nothing
/// follows it.
#[tokio::test]
async fn http_1_0_has_no_transfer_coding() {
    let mut scene = Scene::new().await;
    for (request, expected) in [
        (
            "POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
            "POST a.example/ a",
        ),
        (
            "GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
            "GET a.example/",
        ),
    ] {
        scene.expect(request.as_bytes(), expected).await;
    }
}
