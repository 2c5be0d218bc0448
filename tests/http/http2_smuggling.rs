//! The attacks of [`crate::smuggling`] over HTTP/2, where a translator writes the lines and lengths
//! of HTTP/1.1: h2.CL, h2.TE, and line breaks in pseudo-fields.

use crate::frames::{
    Client, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, SETTINGS, WHOLE, block, frame, get,
};
use crate::scene::Scene;
use tokio::net::TcpStream;

const PROTOCOL_ERROR: u32 = 1;

/// A request that no client has made, as the body of another one.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// Returns the four pseudo-fields of a request, one of them changed.
fn pseudo<'a>(name: &str, value: &'a str) -> Vec<(&'static str, &'a str)> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a.example"),
    ];
    let changed = usual.map(|(own, usual)| (own, if own == name { value } else { usual }));
    changed.to_vec()
}

fn usual(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&pseudo("", "")[..], more].concat()
}

/// Sends a request and checks what becomes of it. `expected` is the status of the worker's own
/// answer, `refused` if the worker refuses the stream or the connection, or what the instance has
/// seen. Unless the connection was refused, another request on it is served.
async fn expect(scene: &mut Scene, fields: &[(&str, &str)], body: &str, expected: &str) {
    let context = format!("{fields:?} {body:?}");
    let mut client = Client::connect(&scene.stage, &[]).await;
    let block = block(fields);
    let request = match body {
        "" => frame(HEADERS, WHOLE, 1, &block),
        _ => {
            let head = frame(HEADERS, END_HEADERS, 1, &block);
            [head, frame(DATA, END_STREAM, 1, body.as_bytes())].concat()
        }
    };
    client.send(&request).await;
    let outcome = match client.outcome(1).await {
        Outcome::Answer(200, seen) => seen,
        Outcome::Answer(status, _) => status.to_string(),
        Outcome::Reset(PROTOCOL_ERROR) => "refused".to_owned(),
        Outcome::GoAway(PROTOCOL_ERROR) => {
            assert_eq!(expected, "refused", "{context}");
            return scene.saw(&[], &context).await;
        }
        other => panic!("{context}: {other:?}"),
    };
    assert_eq!(outcome, expected, "{context}");
    client.send(&frame(HEADERS, WHOLE, 3, &get("/next"))).await;
    let next = "GET a.example/next";
    let answer = Outcome::Answer(200, next.to_owned());
    assert_eq!(client.outcome(3).await, answer, "{context}");
    match expected.contains(' ') {
        true => scene.saw(&[expected, next], &context).await,
        false => scene.saw(&[next], &context).await,
    }
}

/// h2.CL: `content-length` must equal the length of the DATA frames.
/// The first bytes of the preface could begin a request of HTTP/1 as well.
#[tokio::test]
async fn the_preface_may_come_in_single_bytes() {
    let mut scene = Scene::new().await;
    let stream = TcpStream::connect(scene.stage.address).await.unwrap();
    let mut client = Client::new(stream);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for byte in [&preface[..], &frame(SETTINGS, 0, 0, &[])].concat() {
        assert!(client.send(&[byte]).await);
        // Meanwhile the worker can take the byte.
        scene.serves_others("between").await;
    }
    client.send(&frame(HEADERS, WHOLE, 1, &get("/next"))).await;
    let answer = Outcome::Answer(200, "GET a.example/next".to_owned());
    assert_eq!(client.outcome(1).await, answer);
}

#[tokio::test]
async fn a_content_length_must_equal_the_length_of_the_data() {
    let mut scene = Scene::new().await;
    for (length, body, expected) in [
        ("3", "abc", "POST a.example/ abc"),
        ("0", "", "POST a.example/"),
        ("1", "abc", "refused"),
        ("5", "abc", "refused"),
        ("3", "", "refused"),
        ("+3", "abc", "refused"),
        ("3,3", "abc", "refused"),
        ("0x3", "abc", "refused"),
        ("", "abc", "refused"),
        ("99999999999999999999", "abc", "refused"),
    ] {
        let fields = [&usual(&[])[..], &[("content-length", length)]].concat();
        expect(&mut scene, &fields, body, expected).await;
    }
    // The bytes after this body belong to no request.
    let mut client = Client::connect(&scene.stage, &[]).await;
    let none = block(&usual(&[("content-length", "0")]));
    client.send(&frame(HEADERS, END_HEADERS, 1, &none)).await;
    scene.recorder.saw_at_least(1).await;
    let hidden = frame(DATA, END_STREAM, 1, HIDDEN.as_bytes());
    client.send(&hidden).await;
    let seen = "POST a.example/";
    match client.outcome(1).await {
        Outcome::Answer(200, answer) => assert_eq!(answer, seen),
        Outcome::Reset(PROTOCOL_ERROR) => {}
        other => panic!("{other:?}"),
    }
    scene.saw(&[seen], "a body that was not announced").await;
    let twice = usual(&[("content-length", "3"), ("content-length", "0")]);
    expect(&mut scene, &twice, "abc", "refused").await;
}

/// h2.TE, and all other fields that only HTTP/1.1 connections have.
#[tokio::test]
async fn fields_of_http1_connections_are_refused() {
    let mut scene = Scene::new().await;
    let hidden: &'static str = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for field in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("connection", "keep-alive"),
        ("connection", "transfer-encoding"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
    ] {
        expect(&mut scene, &usual(&[field]), hidden, "refused").await;
    }
    let allowed = usual(&[("te", "trailers")]);
    expect(&mut scene, &allowed, "abc", "POST a.example/ abc").await;
}

#[tokio::test]
async fn no_field_can_add_a_line() {
    let mut scene = Scene::new().await;
    for (name, value) in [
        ("x", "y\r\nTransfer-Encoding: chunked"),
        ("x", "y\nz: z"),
        ("x", "y\rz"),
        ("x", "y\0"),
        ("x\r\ny", "z"),
        ("x: y\r\nz", "z"),
        ("x y", "z"),
        ("x:", "y"),
        ("X", "y"),
        ("Transfer-Encoding", "chunked"),
        ("", "y"),
        ("x\0", "y"),
        (":foo", "y"),
    ] {
        let fields = [&usual(&[])[..], &[(name, value)]].concat();
        expect(&mut scene, &fields, "", "refused").await;
    }
    // The HTTP/1.1 parser decides about all other fields.
    for (name, value, expected) in [
        ("x", " y ", "POST a.example/"),
        ("transfer_encoding", "chunked", "POST a.example/"),
        ("content_length", "5", "POST a.example/"),
        ("x", "\u{e4}", "POST a.example/"),
        ("host", "a.example", "POST a.example/"),
        ("host", "b.example", "400"),
    ] {
        let fields = [&usual(&[])[..], &[(name, value)]].concat();
        expect(&mut scene, &fields, "", expected).await;
    }
}

#[tokio::test]
async fn no_pseudo_field_can_add_a_line() {
    let mut scene = Scene::new().await;
    let smuggled = "/ HTTP/1.1\r\nHost: a.example\r\n\r\nGET /hidden";
    for (name, value, expected) in [
        (":path", smuggled, "refused"),
        (":path", "/a b", "refused"),
        (":path", "/\t", "refused"),
        (":path", "/\0", "refused"),
        (":path", "", "refused"),
        (":path", "x", "refused"),
        (":path", "http://b.example/", "refused"),
        (":path", "/x?y=%0d%0a", "POST a.example/x?y=%0d%0a"),
        (":path", "//b.example/", "POST a.example//b.example/"),
        (":path", "*", "400"),
        (":method", "GET / HTTP/1.1\r\nX:", "refused"),
        (":method", "GET /hidden", "refused"),
        (":method", "", "refused"),
        (":method", "CONNECT", "refused"),
        (":method", "G\u{e4}T", "refused"),
        (":authority", "a.example\r\nX: y", "refused"),
        (":authority", "a.example b", "refused"),
        (":authority", "a.example/x", "refused"),
        (":authority", "u@a.example", "400"),
        (":authority", "", "refused"),
        (":scheme", "http\r\nX: y", "refused"),
        (":scheme", "https", "POST a.example/"),
        (":scheme", "", "POST a.example/"),
    ] {
        expect(&mut scene, &pseudo(name, value), "", expected).await;
    }
}

#[tokio::test]
async fn each_pseudo_field_must_come_once_and_before_all_fields() {
    let mut scene = Scene::new().await;
    let usual = usual(&[]);
    let without = |name: &str| -> Vec<(&str, &str)> {
        let kept = usual.iter().filter(|(own, _)| *own != name);
        kept.copied().collect()
    };
    for name in [":method", ":scheme", ":path"] {
        expect(&mut scene, &without(name), "", "refused").await;
    }
    expect(&mut scene, &without(":authority"), "", "400").await;
    for &(name, _) in &usual {
        let twice = [&usual[..], &[(name, "x")]].concat();
        expect(&mut scene, &twice, "", "refused").await;
    }
    let late = [&without(":path")[..], &[("x", "y"), (":path", "/")]].concat();
    expect(&mut scene, &late, "", "refused").await;
    let of_response = [&usual[..], &[(":status", "200")]].concat();
    expect(&mut scene, &of_response, "", "refused").await;
    let host = [&without(":authority")[..], &[("host", "a.example")]].concat();
    expect(&mut scene, &host, "", "POST a.example/").await;
    let hosts = [&host[..], &[("host", "a.example")]].concat();
    expect(&mut scene, &hosts, "", "400").await;
}

/// Trailers cannot change anything about the body or the request.
#[tokio::test]
async fn trailers_cannot_change_the_request() {
    let mut scene = Scene::new().await;
    for (fields, expected) in [
        (&[("x", "y")][..], "POST a.example/ abc"),
        (
            &[("content-length", "7"), ("host", "b.example")],
            "POST a.example/ abc",
        ),
        (&[(":path", "/hidden")], "POST a.example/ abc"),
        (&[("x", "y\r\n\r\nGET /hidden HTTP/1.1")], "refused"),
        (&[("transfer-encoding", "chunked")], "refused"),
    ] {
        let mut client = Client::connect(&scene.stage, &[]).await;
        let head = frame(HEADERS, END_HEADERS, 1, &block(&usual(&[])));
        let body = frame(DATA, 0, 1, b"abc");
        let trailers = frame(HEADERS, WHOLE, 1, &block(fields));
        client.send(&[head, body, trailers].concat()).await;
        match (client.outcome(1).await, expected) {
            (Outcome::Reset(PROTOCOL_ERROR) | Outcome::GoAway(PROTOCOL_ERROR), "refused") => {}
            (Outcome::Answer(200, seen), _) => assert_eq!(seen, expected, "{fields:?}"),
            other => panic!("{fields:?}: {other:?}"),
        }
        match expected {
            "refused" => scene.saw(&[], "no whole request").await,
            _ => scene.saw(&[expected], "").await,
        }
    }
}
