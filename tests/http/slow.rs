//! Clients that are slow, or many, or both: the worker's memory stays bounded, and other clients
//! are served.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::peers::Peer;
use crate::recorder::{BIG, BIG_LENGTH};
use crate::scene::Scene;

/// The KiB that the worker may need for a connection that is idle, that has sent part of a request,
/// or that does not read its response. For an unread response the worker holds one buffer of 128
/// KiB; everything else is a few KiB.
const IDLE: u64 = 8;
const BEGUN: u64 = 16;
const UNREAD: u64 = 160;

/// The KiB by which the worker's memory may vary in any case.
const SLACK: u64 = 8 << 10;

/// A number of connections for which a test and a worker have enough descriptors on any machine.
const MANY: usize = 1500;

/// Checks that other clients are served while the worker has these connections and afterwards, and
/// that each connection needs at most `each` KiB.
async fn bounded<T>(each: u64, connect: impl AsyncFnOnce(&mut Scene) -> Vec<T>) {
    let mut scene = Scene::new().await;
    let (_shop, mut bystander) = scene.stage.besiege().await;
    scene.serves_others("before").await;
    let before = scene.stage.worker_memory();
    let connections = connect(&mut scene).await;
    scene.serves_others("meanwhile").await;
    bystander.is_served().await;
    let growth = scene.stage.worker_memory().saturating_sub(before);
    let most = SLACK + each * connections.len() as u64;
    assert!(
        growth <= most,
        "{growth} KiB for {} connections",
        connections.len()
    );
    drop(connections);
    scene.serves_others("afterwards").await;
    bystander.end();
}

#[tokio::test]
async fn idle_connections_use_bounded_memory() {
    bounded(IDLE, async |scene| {
        let mut idle = Vec::new();
        for _ in 0..MANY {
            let mut client = scene
                .stage
                .send("GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n")
                .await;
            client.receive_until("GET a.example/x").await;
            client.receive_until("GET a.example/x").await;
            idle.push(client);
        }
        idle
    })
    .await;
}

/// Slowloris. The time limits are tested with a paused clock, in `src/proxy/thread/tests.rs`.
#[tokio::test]
async fn dripping_heads_use_bounded_memory() {
    bounded(BEGUN, async |scene| {
        let mut slow = Vec::new();
        for _ in 0..MANY {
            slow.push(
                scene
                    .stage
                    .send("GET / HTTP/1.1\r\nHost: a.example\r\n")
                    .await,
            );
        }
        for round in 0..5 {
            for client in &mut slow {
                client.send(format!("X-{round}: y\r\n")).await;
            }
            scene.serves_others("while heads drip").await;
        }
        slow
    })
    .await;
}

/// The worker answers such a client with a 408 and closes the connection.
#[tokio::test]
async fn a_head_that_drips_for_too_long_gets_408() {
    let mut scene = Scene::new().await;
    let begun = "GET / HTTP/1.1\r\nHost: a.example\r\n";
    let mut client = scene.stage.send(begun).await;
    let answer = client.receive_rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    scene.serves_others("afterwards").await;
}

#[tokio::test]
async fn dripping_bodies_use_bounded_memory() {
    bounded(BEGUN, async |scene| {
        let mut slow = Vec::new();
        let begun = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n";
        for _ in 0..MANY / 3 {
            slow.push(scene.stage.send(begun).await);
        }
        scene.recorder.saw_begun(slow.len()).await;
        for _ in 0..5 {
            for client in &mut slow {
                client.send("x").await;
            }
            scene.serves_others("while bodies drip").await;
        }
        slow
    })
    .await;
}

#[tokio::test]
async fn unread_large_responses_use_bounded_memory() {
    let request = format!("GET {BIG} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    bounded(UNREAD, async |scene| {
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut client = connect_with_little_room(scene.stage.address).await;
            client.send(&request).await;
            slow.push(client);
        }
        scene.recorder.saw_at_least(slow.len()).await;
        // The clients read a little now and then.
        for client in &mut slow {
            client.receive_head().await;
        }
        slow
    })
    .await;
    // A slow client gets its whole response in the end.
    let scene = Scene::new().await;
    let mut client = connect_with_little_room(scene.stage.address).await;
    client
        .send(request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
        .await;
    scene.recorder.saw_at_least(1).await;
    client.receive_head().await;
    let body = client.receive_rest().await;
    assert!(body.len() == BIG_LENGTH && body.bytes().all(|byte| byte == b'x'));
}

/// Connects with a small receive buffer, so that the kernel takes little of an unread response.
async fn connect_with_little_room(address: SocketAddr) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    Peer::new(socket.connect(address).await.unwrap())
}

#[tokio::test]
async fn floods_of_connections_use_bounded_memory() {
    let begins: [(&str, bool); 4] = [
        ("", false),
        ("", true),
        ("GET / HTTP/1.1\r\nHost: a.exa", true),
        ("\x16\x03\x01\x02\x00\x01", false),
    ];
    for (begin, resets) in begins {
        bounded(0, async |scene| {
            for _ in 0..3 * MANY {
                let mut client = scene.stage.connect().await;
                let _ = client.try_send(begin.as_bytes()).await;
                if resets {
                    client.reset();
                }
            }
            Vec::<TcpStream>::new()
        })
        .await;
    }
}

/// Clients that request much and reset at once cost no more than what was in flight.
#[tokio::test]
async fn requests_of_clients_that_reset_use_bounded_memory() {
    bounded(0, async |scene| {
        let request = format!("GET {BIG} HTTP/1.1\r\nHost: a.example\r\n\r\n");
        for _ in 0..500 {
            scene.stage.send(&request).await.reset();
        }
        tokio::time::timeout(Duration::from_secs(20), scene.serves_others("meanwhile"))
            .await
            .expect("the other client is served in time");
        Vec::<TcpStream>::new()
    })
    .await;
}
