//! WebSockets over HTTP/2 (RFC 8441): the worker asks the instance for them by HTTP/1.1.

use crate::frames::{Client, DATA, END_HEADERS, HEADERS, Outcome, WHOLE, block, frame, get};
use crate::peers::{Stage, forwarded, without_id};
use crate::scene::Scene;

const NOT_IMPLEMENTED: &str = "This is not implemented.\n";
const MALFORMED: &str = "The request is malformed.\n";
const NO_PROPER_ANSWER: &str = "The service did not answer properly.\n";

/// Returns the fields of an extended CONNECT for this protocol.
fn connect<'a>(protocol: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let usual = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "a.example"),
        ("sec-websocket-version", "13"),
    ];
    block(&[&usual, more].concat())
}

fn is_answer(outcome: &Outcome, text: &str) -> bool {
    matches!(outcome, Outcome::Answer(_, body) if without_id(body) == text)
}

#[tokio::test]
async fn an_extended_connect_for_another_protocol_reaches_no_instance() {
    let mut scene = Scene::new().await;
    let hidden = "websocket\r\nContent-Length: 0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example";
    for protocol in [
        hidden,
        "websocket\r\nX-Forwarded-For: 6.6.6.6",
        "websocket\nX: y",
        "websocket\rX: y",
        "websocket\0",
        "websocket ",
        " websocket",
        "websocket, chat",
        "web socket",
        "\u{e4}",
        "",
        "chat",
        "h2c",
        "connect-udp",
        "websocket/13",
    ] {
        for flags in [WHOLE, END_HEADERS] {
            let mut client = Client::connect(&scene.stage, &[]).await;
            let head = frame(HEADERS, flags, 1, &connect(protocol, &[]));
            client.send(&head).await;
            let outcome = client.outcome(1).await;
            assert!(
                is_answer(&outcome, NOT_IMPLEMENTED),
                "{protocol:?} {outcome:?}"
            );
            client.send(&frame(HEADERS, WHOLE, 3, &get("/next"))).await;
            let next = "GET a.example/next";
            let answer = Outcome::Answer(200, next.to_owned());
            assert_eq!(client.outcome(3).await, answer, "{protocol:?}");
            scene.saw(&[next], protocol).await;
        }
    }
}

/// A length would make a body of what is sent in the tunnel.
#[tokio::test]
async fn a_websocket_with_a_length_reaches_no_instance() {
    let mut scene = Scene::new().await;
    let mut client = Client::connect(&scene.stage, &[]).await;
    let head = connect("websocket", &[("content-length", "5")]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    client.send(&frame(DATA, 0, 1, b"hello")).await;
    let outcome = client.outcome(1).await;
    assert!(is_answer(&outcome, MALFORMED), "{outcome:?}");
    scene.saw(&[], "a length").await;
}

/// The instance is asked as RFC 6455 wants it, with the worker's key and not with the client's.
#[tokio::test]
async fn a_websocket_is_asked_for_with_a_key_of_the_worker() {
    let mut stage = Stage::new(1).await;
    for protocol in ["websocket", "WebSocket"] {
        let mut client = Client::connect(&stage, &[]).await;
        let theirs = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let head = connect(protocol, &[theirs, ("origin", "http://a.example")]);
        client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        let mut instance = stage.accept().await;
        let head = instance.receive_head().await;
        let (begin, rest) = head.split_once("Sec-WebSocket-Key: ").unwrap();
        let (key, rest) = rest.split_once("\r\n").unwrap();
        assert_eq!(
            begin,
            "GET /chat HTTP/1.1\r\nHost: a.example\r\nsec-websocket-version: 13\r\norigin: http://a.example\r\n"
        );
        assert!(key.len() == 24 && key != theirs.1, "{key}");
        let common = forwarded("a.example");
        let asked = "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(rest, format!("{common}{asked}"));
    }
}

/// For a client with HTTP/2, any success means that the tunnel is open. So a response that opens
/// none must not look like one.
#[tokio::test]
async fn only_the_101_that_answers_the_key_opens_a_websocket_over_http2() {
    let mut stage = Stage::new(1).await;
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    let wrong = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    for (response, told) in [
        (format!("{switched}\r\n"), NO_PROPER_ANSWER),
        (format!("{switched}{wrong}\r\n"), NO_PROPER_ANSWER),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".to_owned(),
            NO_PROPER_ANSWER,
        ),
        (
            format!("HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{wrong}\r\n"),
            NO_PROPER_ANSWER,
        ),
        (
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            NO_PROPER_ANSWER,
        ),
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned(),
            "no",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 2\r\n\r\nno".to_owned(),
            "no",
        ),
    ] {
        let mut client = Client::connect(&stage, &[]).await;
        let head = connect("websocket", &[]);
        client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        client.send(&frame(DATA, 0, 1, b"early")).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        instance.send_last(&response).await;
        let outcome = client.outcome(1).await;
        assert!(is_answer(&outcome, told), "{response} {outcome:?}");
        let status = |expected| matches!(outcome, Outcome::Answer(status, _) if status == expected);
        assert!(!status(200) && !status(204), "{response} {outcome:?}");
        assert_eq!(instance.receive_all().await.0, "", "{response}");
    }
}
