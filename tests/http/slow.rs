//! Clients that are slow, or many, or both: the worker's memory stays within bounds, and other clients are served.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::peers::Peer;
use crate::recorder::{BIG, BIG_LENGTH};
use crate::scene::Scene;

/// KiB that the worker may need for each of these connections. Of a response that is not read it holds one buffer of 128 KiB;
/// all else are a few KiB.
const IDLE: u64 = 8;
const BEGUN: u64 = 16;
const UNREAD: u64 = 160;

/// KiB that may come and go whatever is done.
const SLACK: u64 = 8 << 10;

/// The descriptors that a test and a worker may have allow that on any machine.
const MANY: usize = 1500;

/// Another client is served while the worker has these connections and after that, and they need no more than so much each.
async fn bounded<T>(each: u64, connect: impl AsyncFnOnce(&mut Scene) -> Vec<T>) {
    let mut scene = Scene::new().await;
    scene.serves_others("before").await;
    let before = scene.stage.worker_memory();
    let connections = connect(&mut scene).await;
    scene.serves_others("meanwhile").await;
    let growth = scene.stage.worker_memory().saturating_sub(before);
    let most = SLACK + each * connections.len() as u64;
    assert!(
        growth <= most,
        "{growth} KiB for {} connections",
        connections.len()
    );
    drop(connections);
    scene.serves_others("afterwards").await;
}

#[tokio::test]
async fn idle_connections() {
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

/// Slowloris. The limits of time are shown with the clock of the tests in `src/proxy/client/tests.rs`.
#[tokio::test]
async fn heads_that_drip() {
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

/// The first of these clients are told that they were too slow, and the connections are closed.
#[tokio::test]
async fn heads_that_drip_for_too_long() {
    let mut scene = Scene::new().await;
    let begun = "GET / HTTP/1.1\r\nHost: a.example\r\n";
    let mut client = scene.stage.send(begun).await;
    let answer = client.receive_rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    scene.serves_others("afterwards").await;
}

#[tokio::test]
async fn bodies_that_drip() {
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
async fn large_responses_that_nobody_reads() {
    let request = format!("GET {BIG} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    bounded(UNREAD, async |scene| {
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut client = connect_with_little_room(scene.stage.address).await;
            client.send(&request).await;
            slow.push(client);
        }
        scene.recorder.saw_at_least(slow.len()).await;
        // They take a little now and then.
        for client in &mut slow {
            client.receive_head().await;
        }
        slow
    })
    .await;
    // However slow it was, what one of them gets in the end is all.
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

/// The kernel takes little on this connection that nobody has read.
async fn connect_with_little_room(address: SocketAddr) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    Peer::new(socket.connect(address).await.unwrap())
}

#[tokio::test]
async fn floods_of_connections() {
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

/// Whoever asks for much and goes away at once costs no more than what was under way.
#[tokio::test]
async fn requests_whose_clients_go_away() {
    bounded(0, async |scene| {
        let request = format!("GET {BIG} HTTP/1.1\r\nHost: a.example\r\n\r\n");
        for _ in 0..500 {
            scene.stage.send(&request).await.reset();
        }
        tokio::time::timeout(Duration::from_secs(20), scene.serves_others("meanwhile"))
            .await
            .expect("it is served");
        Vec::<TcpStream>::new()
    })
    .await;
}
