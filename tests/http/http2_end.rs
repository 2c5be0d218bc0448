//! How HTTP/2 connections end when the worker drains: RFC 9113, section 6.8.

use std::time::Duration;

use smoothserve::ipc::ToWorker;

use crate::frames::{
    ACK, Client, DATA, END_STREAM, Frame, GOAWAY, HEADERS, PING, SETTINGS, WHOLE, frame, get,
};
use crate::scene::Scene;

const NO_ERROR: u32 = 0;

/// Returns the last stream id of a GOAWAY.
fn last_stream(frame: &Frame) -> u32 {
    u32::from_be_bytes(frame.payload[..4].try_into().unwrap())
}

async fn next_of(client: &mut Client, kind: u8) -> Frame {
    loop {
        let next = client.next().await.expect("the connection stays open");
        if next.kind == kind {
            return next;
        }
    }
}

/// The first GOAWAY only announces the end and is followed by a PING. A request that the client
/// sends before it knows of it is served like those before, and the second GOAWAY includes it.
#[tokio::test]
async fn a_graceful_end_with_two_goaways_loses_no_request() {
    let mut scene = Scene::new().await;
    let mut client = Client::connect(&scene.stage, &[]).await;
    next_of(&mut client, SETTINGS).await;
    client.send(&frame(SETTINGS, ACK, 0, b"")).await;
    client
        .send(&frame(HEADERS, WHOLE, 1, &get("/before")))
        .await;
    next_of(&mut client, DATA).await;
    let limit = Duration::from_secs(30);
    let drain = ToWorker::Drain {
        idle: limit,
        limit,
        tunnels: limit,
    };
    scene.stage.manager.send(drain).await;
    let first = next_of(&mut client, GOAWAY).await;
    assert_eq!(
        (last_stream(&first), first.code()),
        ((1 << 31) - 1, NO_ERROR)
    );
    let ping = next_of(&mut client, PING).await;
    client.send(&frame(HEADERS, WHOLE, 3, &get("/late"))).await;
    client.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let (mut body, mut second) = (Vec::new(), None);
    while let Some(next) = client.next().await {
        match next.kind {
            GOAWAY => second = Some((last_stream(&next), next.code())),
            DATA => {
                assert_eq!((next.stream, next.flags & END_STREAM), (3, END_STREAM));
                body = next.payload;
            }
            _ => {}
        }
    }
    assert_eq!(second, Some((3, NO_ERROR)));
    assert_eq!(String::from_utf8(body).unwrap(), "GET a.example/late");
    let seen = ["GET a.example/before", "GET a.example/late"];
    assert_eq!(scene.recorder.take().await, seen);
}
