//! Requests for another protocol, and the tunnels that follow.

use smoothserve::ipc::{EndpointId, EndpointState, FromWorker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::kit::PATIENCE;
use crate::peers::{Peer, Stage, forwarded, undated};

const ASKED: &str =
    "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nX-Key: 7\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";

/// Opens a tunnel, and returns both ends.
async fn open(stage: &mut Stage) -> (Peer, Peer) {
    let mut client = stage.send(ASKED).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance.send(SWITCHED).await;
    assert_eq!(client.receive_head().await, SWITCHED);
    (client, instance)
}

#[tokio::test]
async fn bytes_sent_before_the_tunnel_is_open_are_not_lost() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send(format!("{ASKED}early")).await;
    let mut instance = stage.accept().await;
    let forwarded = forwarded("a.example");
    assert_eq!(
        instance.receive_head().await,
        format!(
            "GET /chat HTTP/1.1\r\nHost: a.example\r\n{forwarded}Connection: Upgrade\r\nUpgrade: chat\r\n\r\n"
        )
    );
    // These bytes come together with the head of the response, whose field names may be written in
    // any case.
    let switched = SWITCHED
        .replace("Connection", "connection")
        .replace("Upgrade: ", "upgrade: ");
    instance.send(format!("{switched}welcome")).await;
    assert_eq!(
        client.receive_until("welcome").await,
        format!("{SWITCHED}welcome")
    );
    assert_eq!(instance.receive_until("early").await, "early");
    client.send("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(instance.receive_head().await, "GET / HTTP/1.1\r\n\r\n");
}

#[tokio::test]
async fn closing_one_direction_leaves_the_other_open() {
    let mut stage = Stage::new(1).await;
    let (mut client, mut instance) = open(&mut stage).await;
    client.send_last("bye").await;
    assert_eq!(instance.receive_rest().await, "bye");
    instance.send("and").await;
    assert_eq!(client.receive_until("and").await, "and");
    instance.send_last("bye").await;
    assert_eq!(client.receive_rest().await, "bye");

    let (mut client, mut instance) = open(&mut stage).await;
    instance.send_last("bye").await;
    assert_eq!(client.receive_rest().await, "bye");
    client.send_last("bye").await;
    assert_eq!(instance.receive_rest().await, "bye");
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    let mut stage = Stage::new(1).await;
    let (client, mut instance) = open(&mut stage).await;
    client.reset();
    assert!(!instance.receive_all().await.1);
    let (mut client, instance) = open(&mut stage).await;
    instance.reset();
    assert!(!client.receive_all().await.1);
}

#[tokio::test]
async fn an_answer_other_than_101_is_an_ordinary_response() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send(ASKED).await;
    let mut instance = stage.accept().await;
    for status in ["200 OK", "426 Upgrade Required"] {
        instance.receive_head().await;
        let response = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        instance.send(&response).await;
        assert_eq!(undated(&client.receive_until("no").await), response);
        client.send(ASKED).await;
    }
    // Both connections stay open.
    assert!(instance.receive_head().await.starts_with("GET /chat "));
}

#[tokio::test]
async fn a_101_for_a_protocol_that_was_not_requested_is_an_error() {
    let mut stage = Stage::new(1).await;
    for response in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat, x\r\n\r\n",
    ] {
        let mut client = stage.send(ASKED).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        instance.send(response).await;
        let head = client.receive_head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{response}: {head}");
        assert_eq!(instance.receive_rest().await, "");
    }
}

/// Some servers leave `Connection` out of the 101, which the client gets anyway.
#[tokio::test]
async fn a_101_without_connection_opens_the_tunnel() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send(ASKED).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance
        .send(SWITCHED.replace("Connection: Upgrade\r\n", ""))
        .await;
    assert_eq!(client.receive_head().await, SWITCHED);
    client.send("ping").await;
    assert_eq!(instance.receive_until("ping").await, "ping");
}

#[tokio::test]
async fn a_426_says_which_protocols_there_are() {
    let mut stage = Stage::new(1).await;
    let mut client = stage
        .send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    let head = "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: chat, h2c\r\nContent-Length: 0\r\n\r\n";
    instance.send(head).await;
    assert_eq!(undated(&client.receive_head().await), head);
}

/// A sender gets rid of no more bytes than fit between it and an end that does not read.
#[tokio::test]
async fn an_end_that_does_not_read_holds_the_other_back() {
    const MUCH: usize = 64 << 20;
    let mut stage = Stage::new(1).await;
    let (client, instance) = open(&mut stage).await;
    for (from, to) in [(&client, &instance), (&instance, &client)] {
        let piece = vec![b'x'; 64 << 10];
        let mut sent = 0;
        // The other end reads nothing, so at some point this end can write no more.
        while from.stream.writable().await.is_ok() {
            match from.stream.try_write(&piece) {
                Ok(count) => sent += count,
                Err(_) => match timeout(
                    std::time::Duration::from_millis(300),
                    from.stream.writable(),
                )
                .await
                {
                    Ok(_) => {}
                    Err(_) => break,
                },
            }
            assert!(sent < MUCH, "{sent} bytes were taken");
        }
        let mut received = 0;
        let mut buffer = vec![0; 64 << 10];
        while received < sent {
            timeout(PATIENCE, to.stream.readable())
                .await
                .expect("the bytes come in time")
                .unwrap();
            if let Ok(count) = to.stream.try_read(&mut buffer) {
                assert!(count > 0);
                received += count;
            }
        }
        assert_eq!(received, sent);
    }
}

#[tokio::test]
async fn megabytes_pass_in_both_directions_at_once() {
    let mut stage = Stage::new(1).await;
    let (client, instance) = open(&mut stage).await;
    let pattern =
        |seed: usize| -> Vec<u8> { (0..4 << 20).map(|at| (at * 31 / 7 + seed) as u8).collect() };
    let side = |stream: tokio::net::TcpStream, out: Vec<u8>, expected: Vec<u8>| async move {
        let (mut reader, mut writer) = stream.into_split();
        let writing = tokio::spawn(async move {
            writer.write_all(&out).await.unwrap();
            writer.shutdown().await.unwrap();
            writer
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        writing.await.unwrap();
    };
    let both = async {
        tokio::join!(
            side(client.stream, pattern(1), pattern(2)),
            side(instance.stream, pattern(2), pattern(1))
        )
    };
    timeout(PATIENCE, both)
        .await
        .expect("all bytes come in time");
}

#[tokio::test]
async fn a_tunnel_outlives_the_quiescence_of_its_instance_until_it_is_cut() {
    let mut stage = Stage::new(1).await;
    let (mut client, mut instance) = open(&mut stage).await;
    let one = EndpointId(1);
    stage.set_state(EndpointState::Draining).await;
    stage.manager.wait_for_message(&FromWorker::Idle(one)).await;
    client.send("still").await;
    assert_eq!(instance.receive_until("still").await, "still");
    instance.send("here").await;
    assert_eq!(client.receive_until("here").await, "here");
    stage.set_state(EndpointState::Cut).await;
    assert!(!client.receive_all().await.1);
    assert!(!instance.receive_all().await.1);
}
