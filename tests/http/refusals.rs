//! What the worker lets neither instances nor clients see.

use crate::peers::{Peer, Stage, undated};

async fn assert_refused(stage: &mut Stage, request: &[u8], status: &str) {
    let name = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
    let mut client = stage.send(request).await;
    let response = client.receive_head().await;
    assert!(
        response.starts_with(&format!("HTTP/1.1 {status} ")),
        "{name}: {response}"
    );
    assert!(
        response.contains("\r\nConnection: close\r\n"),
        "{name}: {response}"
    );
    assert!(!response.to_lowercase().contains("smoothserve"));
    client.receive_rest().await;
}

/// Checks that the next request that the instance sees is this one.
async fn assert_nothing_came_before(stage: &mut Stage) {
    let mut client = stage
        .send("GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    let mut instance = stage.accept().await;
    let head = instance.receive_head().await;
    assert!(head.starts_with("GET /next "), "{head}");
    instance
        .send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await;
    client.receive_head().await;
}

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let mut stage = Stage::new(1).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length:\r\n",
        "Content-Length : 5\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\r\n",
        "Host: a.example\r\n",
        "X: a\r\n folded\r\n",
        "X: a\rb\r\n",
        "X: a\0b\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n{smuggled}");
        let refused = if fields.ends_with("identity\r\n") {
            "501"
        } else {
            "400"
        };
        assert_refused(&mut stage, request.as_bytes(), refused).await;
    }
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a.example, b\r\n\r\n", "400"),
        ("GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n", "400"),
        (
            "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "400",
        ),
        ("hello\r\n\r\n", "400"),
        ("\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n", "400"),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "505"),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
            "501",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "501",
        ),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
    ] {
        assert_refused(&mut stage, request.as_bytes(), status).await;
    }
    assert_nothing_came_before(&mut stage).await;
}

#[tokio::test]
async fn a_client_that_sends_only_empty_lines_is_closed() {
    let mut stage = Stage::new(1).await;
    let mut few = stage.send("\r\n".repeat(20)).await;
    few.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    stage.accept().await.receive_head().await;
    let mut many = stage.send("\r\n".repeat(1 << 10)).await;
    assert_eq!(many.receive_all().await.0, "");
}

#[tokio::test]
async fn heads_above_the_limits_are_refused() {
    let mut stage = Stage::new(1).await;
    let long = |length: usize| "x".repeat(length);
    let target = format!("GET /{}", long(40 << 10));
    assert_refused(&mut stage, target.as_bytes(), "414").await;
    let target = format!(
        "GET /{} HTTP/1.1\r\nHost: a.example\r\n\r\n",
        long(33 << 10)
    );
    assert_refused(&mut stage, target.as_bytes(), "414").await;
    let field = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {}", long(40 << 10));
    assert_refused(&mut stage, field.as_bytes(), "431").await;
    let fields = "X: y\r\n".repeat(100);
    let fields = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n");
    assert_refused(&mut stage, fields.as_bytes(), "431").await;
    let whole = format!(
        "GET / HTTP/1.1\r\nHost: a.example\r\nX: {}\r\n\r\n",
        long(33 << 10)
    );
    assert_refused(&mut stage, whole.as_bytes(), "431").await;
    assert_nothing_came_before(&mut stage).await;

    let (count, size) = (99, 300);
    let fields = format!("X: {}\r\n", long(size)).repeat(count);
    let _client = stage
        .send(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n"))
        .await;
    let received = stage.instances[0].accept().await.receive_head().await;
    assert!(
        received.len() > count * size,
        "expected a head just below the limits to be passed on"
    );
}

#[tokio::test]
async fn a_body_with_broken_framing_never_becomes_a_complete_request() {
    let mut stage = Stage::new(1).await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    for rest in [
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "x\r\n",
        "-5\r\n",
        "0\r\nX : y\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        // When the fault comes together with the head, nothing is sent to the instance.
        assert_refused(&mut stage, format!("{head}{rest}").as_bytes(), "400").await;
        // When it comes later, the connection to the instance is closed before the request is
        // complete.
        let mut client = stage.send(format!("{head}3\r\nabc\r\n")).await;
        let mut instance = stage.accept().await;
        instance.receive_until("3\r\nabc\r\n").await;
        client.send(rest).await;
        let response = client.receive_rest().await;
        assert!(
            response.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{response}"
        );
        let (received, _) = instance.receive_all().await;
        assert!(!received.contains("0\r\n"), "{rest}: {received}");
    }
    // The same holds for a client that ends its request early.
    let mut client = stage
        .send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    let mut instance = stage.accept().await;
    instance.receive_until("abc").await;
    client.send_last("def").await;
    assert!(client.receive_rest().await.starts_with("HTTP/1.1 400 "));
    let (received, _) = instance.receive_all().await;
    assert!(received.len() <= 3, "{received}");
}

/// Sends a request, and lets the instance answer it with these bytes.
async fn answer(stage: &mut Stage, request: &str, response: &str) -> (Peer, Peer) {
    let client = stage.send(request).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance.send(response).await;
    (client, instance)
}

#[tokio::test]
async fn malformed_responses_become_502_and_close_the_connection_to_the_instance() {
    let mut stage = Stage::new(1).await;
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70 << 10));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(201));
    let endless = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40);
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n",
        long.as_str(),
        many.as_str(),
        endless.as_str(),
    ] {
        let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let (mut client, mut instance) = answer(&mut stage, request, response).await;
        let head = client.receive_until("502 Bad Gateway\r\n").await;
        assert!(
            head.ends_with("HTTP/1.1 502 Bad Gateway\r\n"),
            "{response}: {head}"
        );
        instance.receive_all().await;
    }
}

#[tokio::test]
async fn a_connection_with_unread_bytes_is_not_used_again() {
    let mut stage = Stage::new(1).await;
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    let surplus = format!("{response}okHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    let (mut client, mut instance) = answer(&mut stage, request, &surplus).await;
    client.receive_until("\r\n\r\nok").await;
    instance.receive_all().await;
    client.send(request).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance.send(format!("{response}ok")).await;
    assert_eq!(
        undated(&client.receive_until("\r\n\r\nok").await),
        format!("{response}ok")
    );
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_look_complete() {
    let mut stage = Stage::new(1).await;
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for (sent, received) in [
        (
            "Content-Length: 5\r\n\r\nhel",
            "Content-Length: 5\r\n\r\nhel",
        ),
        (
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ),
        (
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
        ),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{sent}");
        let (mut client, instance) = answer(&mut stage, request, &response).await;
        let expected = format!("HTTP/1.1 200 OK\r\n{received}");
        let seen = client.receive_until(received).await;
        assert_eq!(undated(&seen), expected);
        drop(instance);
        let (rest, _) = client.receive_all().await;
        assert_eq!(rest, "");
    }
    // The second chunk of this response is invalid.
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let (mut client, mut instance) = answer(&mut stage, request, response).await;
    let seen = client.receive_until("\r\n1\r\na\r\n").await;
    assert_eq!(undated(&seen), response);
    instance.send("zzz").await;
    assert_eq!(client.receive_all().await.0, "");
    // Where the end of the connection is the end of the response, only a reset shows that it is
    // incomplete.
    let request = "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let (mut client, instance) = answer(&mut stage, request, response).await;
    client.receive_until("\r\n\r\na").await;
    drop(instance);
    let (rest, in_order) = client.receive_all().await;
    assert_eq!((rest.as_str(), in_order), ("", false));
}
