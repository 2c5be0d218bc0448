//! Server-sent events and long polls: each event reaches the client before the instance writes the
//! next one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::peers::{Peer, Stage};

const ASKED: &str = "GET /events HTTP/1.1\r\nHost: a.example\r\n\r\n";

async fn begin_events(stage: &mut Stage, head: &str) -> Peer {
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{head}\r\n");
    instance.send(head).await;
    instance
}

#[tokio::test]
async fn an_event_arrives_before_the_next_one_is_written() {
    let mut stage = Stage::new(1).await;
    for (head, one, end) in [
        (
            "Transfer-Encoding: chunked\r\n",
            "b\r\ndata: event\r\n",
            "0\r\n\r\n",
        ),
        ("Connection: close\r\n", "data: event", ""),
    ] {
        let mut client = stage.send(ASKED).await;
        let mut instance = begin_events(&mut stage, head).await;
        // The head arrives before the first event.
        client.receive_head().await;
        for _ in 0..10 {
            instance.send(one).await;
            client.receive_until("data: event").await;
        }
        instance.send(end).await;
        drop(instance);
        let rest = client.receive_until("0\r\n\r\n").await;
        assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
    }
}

#[tokio::test]
async fn curl_sees_each_event_at_once() {
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut stage = Stage::new(1).await;
        let url = format!("http://{}/events", stage.address);
        let arguments = [
            "-sSN",
            version,
            "--noproxy",
            "*",
            "-H",
            "Host: a.example",
            &url,
        ];
        let mut curl = Command::new("curl")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
        let mut instance = begin_events(&mut stage, "Transfer-Encoding: chunked\r\n").await;
        for number in 0..5 {
            instance.send(format!("8\r\ndata: {number}\n\r\n")).await;
            // curl has printed this line and no other.
            let line = tokio::task::spawn_blocking(move || (lines.next(), lines)).await;
            let (line, rest) = line.unwrap();
            lines = rest;
            assert_eq!(line.unwrap().unwrap(), format!("data: {number}"));
        }
        instance.send("0\r\n\r\n").await;
        drop(instance);
        assert!(curl.wait().unwrap().success(), "{version}");
    }
}

#[tokio::test]
async fn an_event_stream_ends_when_its_client_leaves() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send(ASKED).await;
    let mut instance = begin_events(&mut stage, "Transfer-Encoding: chunked\r\n").await;
    client.receive_head().await;
    client.reset();
    // The instance sees the end of the connection without sending another event.
    instance.receive_all().await;
}
