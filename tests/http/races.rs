//! The races between a request and its response, with the numbers that they have in the list of
//! races.

use std::time::Instant;

use smoothserve::ipc::EndpointId;

use crate::peers::{Stage, undated};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

const ONE: EndpointId = EndpointId(1);

fn upload(method: &str, length: usize, fields: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n{fields}\r\n")
}

#[tokio::test]
async fn race_10_an_upload_that_its_response_ends_uses_no_instance() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send(upload("POST", 10, "")).await;
    client.send("12345").await;
    let mut instance = stage.accept().await;
    instance.receive_until("12345").await;
    stage.manager.wait_for_in_flight(ONE, 1).await;
    instance.send(OK).await;
    assert_eq!(undated(&client.receive_until("\r\n\r\nok").await), OK);
    // The response is complete, but the request is not.
    assert_eq!(instance.receive_rest().await, "");
    stage.manager.wait_for_in_flight(ONE, 0).await;
    client.send("67890").await;
    // The connection of the client stays open.
    client
        .send("GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    let mut instance = stage.accept().await;
    assert!(instance.receive_head().await.starts_with("GET /next "));
}

#[tokio::test]
async fn race_10_a_half_sent_body_is_replayed_only_from_the_buffer() {
    let mut stage = Stage::new(1).await;
    // This body is small enough to be kept: the second instance receives both halves.
    let mut client = stage.send(upload("PUT", 10, "")).await;
    client.send("12345").await;
    let mut instance = stage.accept().await;
    instance.receive_until("12345").await;
    instance.reset();
    let mut instance = stage.accept().await;
    instance.receive_until("\r\n\r\n12345").await;
    client.send("67890").await;
    instance.receive_until("67890").await;
    drop(instance);
    assert!(
        client.receive_head().await.starts_with("HTTP/1.1 502 "),
        "a request is sent again only once"
    );
    // A body that is too large to be kept, and a method that must not be repeated.
    let sent = "x".repeat(100_000);
    for (method, sent) in [("PUT", sent.as_str()), ("POST", "x")] {
        let mut client = stage.send(upload(method, 200_000, "")).await;
        client.send(sent).await;
        let mut instance = stage.accept().await;
        instance.receive_until(sent).await;
        instance.reset();
        let head = client.receive_head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{method}: {head}");
        assert!(head.contains("\r\nConnection: close\r\n"));
    }
}

#[tokio::test]
async fn race_11_the_instance_decides_whether_the_client_sends_its_body() {
    let mut stage = Stage::new(1).await;
    let expecting = upload("POST", 5, "Expect: 100-continue\r\n");
    let mut client = stage.send(&expecting).await;
    let mut instance = stage.accept().await;
    assert!(
        instance
            .receive_head()
            .await
            .contains("\r\nExpect: 100-continue\r\n")
    );
    instance.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.receive_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello").await;
    assert_eq!(instance.receive_until("hello").await, "hello");
    instance.send(OK).await;
    assert_eq!(undated(&client.receive_until("\r\n\r\nok").await), OK);

    // The instance does not want the body: the client is told so, and the request ends unfinished.
    client.send(&expecting).await;
    instance.receive_head().await;
    instance
        .send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!(
        undated(&client.receive_rest().await),
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(instance.receive_all().await.0, "");
}

#[tokio::test]
async fn race_11_a_client_does_not_wait_forever_for_100_continue() {
    let mut stage = Stage::new(1).await;
    let mut client = stage
        .send(upload("POST", 5, "Expect: 100-continue\r\n"))
        .await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    let begin = Instant::now();
    assert_eq!(client.receive_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(
        begin.elapsed().as_millis() > 500,
        "the instance was asked first"
    );
    client.send("hello").await;
    assert_eq!(instance.receive_until("hello").await, "hello");
    // The instance's own permission comes too late, and is dropped.
    instance
        .send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"))
        .await;
    assert_eq!(undated(&client.receive_until("\r\n\r\nok").await), OK);
}

#[tokio::test]
async fn race_11_a_body_sent_without_waiting_is_passed_on_at_once() {
    let mut stage = Stage::new(1).await;
    let request = upload("POST", 5, "Expect: 100-continue\r\n") + "hello";
    let mut client = stage.send(request).await;
    let mut instance = stage.accept().await;
    instance.receive_until("hello").await;
    instance.send(OK).await;
    assert_eq!(undated(&client.receive_until("\r\n\r\nok").await), OK);
}

#[tokio::test]
async fn race_12_an_early_response_survives_an_unread_body() {
    let mut stage = Stage::new(1).await;
    let length = 100 << 20;
    let mut client = stage.send(upload("POST", length, "")).await;
    client.send("x".repeat(1000)).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance
        .send(
            "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nmuch",
        )
        .await;
    // The instance closes with most of the request unread, so its kernel resets the connection.
    drop(instance);
    // The client writes for as long as it can, and only then reads.
    let (mut reading, mut writing) = client.stream.into_split();
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let block = vec![b'x'; 64 << 10];
        let mut written = 0;
        while written < length && writing.write_all(&block).await.is_ok() {
            written += block.len();
        }
        written
    });
    let mut response = Vec::new();
    while !response.ends_with(b"much") {
        use tokio::io::AsyncReadExt;
        let read = tokio::time::timeout(crate::kit::PATIENCE, reading.read_buf(&mut response));
        assert_ne!(
            read.await.unwrap().expect("the response is not destroyed"),
            0
        );
    }
    assert_eq!(
        undated(&String::from_utf8(response).unwrap()),
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch"
    );
    let written = writer.await.unwrap();
    assert!(
        written < length,
        "the rest was read within bounds, not to its end"
    );
}

#[tokio::test]
async fn race_12_a_response_may_come_while_the_request_goes_on() {
    let mut stage = Stage::new(1).await;
    let mut client = stage
        .send("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client.receive_head().await;
    for word in ["one", "two", "three"] {
        let chunk = format!("{:x}\r\n{word}\r\n", word.len());
        client.send(&chunk).await;
        assert_eq!(instance.receive_until(&chunk).await, chunk);
        instance.send(&chunk).await;
        assert_eq!(client.receive_until(&chunk).await, chunk);
    }
    client.send("0\r\n\r\n").await;
    instance.receive_until("0\r\n\r\n").await;
    instance.send("0\r\n\r\n").await;
    client.receive_until("0\r\n\r\n").await;
    client
        .send("GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    assert!(instance.receive_head().await.starts_with("GET /next "));
}

/// An instance that has answered without waiting for the body could take the body for another
/// request, whose response another client would get.
#[tokio::test]
async fn what_comes_of_a_request_after_its_response_reaches_no_instance() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\nX-Real-IP: 192.0.2.1\r\n\r\n";
    for (head, begin, rest) in [
        (upload("POST", smuggled.len(), ""), "", smuggled.to_owned()),
        (
            upload("POST", smuggled.len(), ""),
            &smuggled[..9],
            smuggled[9..].to_owned(),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "",
            format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
        ),
    ] {
        let mut stage = Stage::new(1).await;
        let mut client = stage.send(head + begin).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        if !begin.is_empty() {
            instance.receive_until(begin).await;
        }
        instance.send(OK).await;
        assert_eq!(undated(&client.receive_until("\r\n\r\nok").await), OK);
        client.send(rest).await;
        assert_eq!(instance.receive_rest().await, "");
        client
            .send("GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .await;
        let mut instance = stage.accept().await;
        assert!(instance.receive_head().await.starts_with("GET /next "));
    }
}

#[tokio::test]
async fn a_client_that_has_closed_its_sending_side_gets_its_response() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.connect().await;
    client.send_last(upload("POST", 5, "") + "hello").await;
    let mut instance = stage.accept().await;
    instance.receive_until("hello").await;
    // The end of the client's side has arrived long before the instance answers.
    stage.manager.wait_for_in_flight(ONE, 1).await;
    instance.send(OK).await;
    assert_eq!(undated(&client.receive_rest().await), OK);
}

#[tokio::test]
async fn a_reset_by_the_client_ends_its_request_at_the_instance() {
    let mut stage = Stage::new(1).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        upload("POST", 10, "") + "hello",
    ] {
        let client = stage.send(&request).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        client.reset();
        instance.receive_all().await;
        stage.manager.wait_for_in_flight(ONE, 0).await;
    }
}

#[tokio::test]
async fn a_reset_by_a_client_that_waits_for_an_instance_ends_its_request() {
    let mut stage = Stage::new(0).await;
    let client = stage
        .send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    stage.manager.wait_for_connections(1).await;
    client.reset();
    stage.manager.wait_for_connections(0).await;
}
