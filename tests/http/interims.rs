//! Interim responses (RFC 9110, section 15.2) of instances that speak HTTP/2.

use smoothserve::ipc::{Protocol, WireEndpoint};
use tokio::io::AsyncReadExt;

use crate::frames::{
    ACK, Client, DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, WHOLE, block, frame, get,
};
use crate::kit::first;
use crate::peers::{Stage, undated};

/// Returns a worker whose only instance speaks HTTP/2.
async fn stage() -> Stage {
    let mut stage = Stage::new(1).await;
    stage.table.number = 2;
    first(&mut stage.table).endpoints = vec![WireEndpoint {
        protocol: Protocol::H2c,
        ..stage.instances[0].endpoint(2)
    }];
    stage.manager.apply(&stage.table).await;
    stage
}

/// Accepts the connection of the worker, and waits for the head of its first request.
async fn accept(stage: &mut Stage) -> Client {
    let mut stream = stage.accept().await.stream;
    stream.read_exact(&mut [0; 24]).await.unwrap();
    let mut instance = Client::new(stream);
    instance.send(&frame(SETTINGS, 0, 0, b"")).await;
    loop {
        let next = instance.next().await.expect("the connection stays open");
        match next.kind {
            SETTINGS if next.flags & ACK == 0 => {
                instance.send(&frame(SETTINGS, ACK, 0, b"")).await;
            }
            HEADERS => return instance,
            _ => {}
        }
    }
}

async fn respond(instance: &mut Client, flags: u8, fields: &[(&str, &str)]) {
    let head = frame(HEADERS, END_HEADERS | flags, 1, &block(fields));
    assert!(instance.send(&head).await);
}

#[tokio::test]
async fn interim_responses_of_http2_reach_a_client_of_http_1() {
    let mut stage = stage().await;
    let request =
        "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut client = stage.send(request).await;
    let mut instance = accept(&mut stage).await;
    let hints = [(":status", "103"), ("link", "</a>")];
    respond(&mut instance, 0, &hints).await;
    let head = client.receive_head().await;
    assert_eq!(head, "HTTP/1.1 103 \r\nlink: </a>\r\n\r\n");
    respond(&mut instance, 0, &[(":status", "100")]).await;
    assert_eq!(client.receive_head().await, "HTTP/1.1 100 \r\n\r\n");
    client.send("body").await;
    loop {
        let next = instance.next().await.expect("the connection stays open");
        if next.kind == DATA {
            assert_eq!(next.payload, b"body");
            break;
        }
    }
    // Two at once, and the response with them.
    respond(&mut instance, 0, &hints).await;
    respond(&mut instance, 0, &[(":status", "102")]).await;
    respond(&mut instance, END_STREAM, &[(":status", "200"), ("x", "y")]).await;
    let end = "Content-Length: 0\r\n\r\n";
    assert_eq!(
        undated(&client.receive_until(end).await),
        format!(
            "HTTP/1.1 103 \r\nlink: </a>\r\n\r\nHTTP/1.1 102 \r\n\r\nHTTP/1.1 200 \r\nx: y\r\n{end}"
        )
    );
}

#[tokio::test]
async fn interim_responses_of_http2_reach_a_client_of_http2() {
    let mut stage = stage().await;
    let mut client = Client::connect(&stage, &[]).await;
    client.send(&frame(SETTINGS, ACK, 0, b"")).await;
    client.send(&frame(HEADERS, WHOLE, 1, &get("/"))).await;
    let mut instance = accept(&mut stage).await;
    respond(&mut instance, 0, &[(":status", "103"), ("link", "</a>")]).await;
    respond(&mut instance, 0, &[(":status", "103")]).await;
    respond(&mut instance, END_STREAM, &[(":status", "204")]).await;
    let mut heads = Vec::new();
    while heads.len() < 3 {
        let next = client.next().await.expect("the connection stays open");
        if next.kind == HEADERS {
            // HPACK has a byte of its own for 204, and none for 103.
            heads.push((next.payload[0] == 0x89, next.flags & END_STREAM));
        }
    }
    assert_eq!(heads, [(false, 0), (false, 0), (true, END_STREAM)]);
}

/// HTTP/2 has no 101, and a response that never ends is none.
#[tokio::test]
async fn interim_responses_of_http2_are_limited() {
    for (status, count) in [("101", 1), ("103", 33)] {
        let mut stage = stage().await;
        let mut client = stage
            .send("GET / HTTP/1.0\r\nHost: a.example\r\n\r\n")
            .await;
        let mut instance = accept(&mut stage).await;
        for _ in 0..count {
            respond(&mut instance, 0, &[(":status", status)]).await;
        }
        let head = client.receive_head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{status}: {head}");
    }
}
