//! What is known to have brought down servers of HTTP/2, by the names it is known by.
//!
//! After each, and while its connection is still there, another client is served, and the worker has not grown by more than
//! [`MOST_GROWTH`].

use crate::frames::{
    ACK, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE,
    Outcome, PING, PRIORITY, RST_STREAM, SETTINGS, WHOLE, WINDOW_UPDATE, block, frame, get,
};
use crate::recorder::BIG;
use crate::scene::Scene;

/// In KiB: far less than what an attack sends or asks for, and more than what the allocator keeps.
const MOST_GROWTH: u64 = 24 << 10;

/// Streams that the worker allows at a time.
const MOST_STREAMS: u32 = 128;

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The ids of a client's streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 1 + 2 * number)
}

async fn attack(settings: &[(u16, u32)], act: impl AsyncFnOnce(&Scene, &mut Client)) {
    let mut scene = Scene::new().await;
    scene.serves_others("before").await;
    let before = scene.stage.worker_memory();
    let mut client = Client::connect(&scene.stage, settings).await;
    act(&scene, &mut client).await;
    scene.serves_others("meanwhile").await;
    let growth = scene.stage.worker_memory().saturating_sub(before);
    assert!(growth < MOST_GROWTH, "{growth} KiB");
    drop(client);
    scene.serves_others("afterwards").await;
}

/// The worker has said why it ends the connection.
async fn assert_ended(client: &mut Client, name: &str) {
    let outcome = client.outcome(u32::MAX).await;
    assert!(matches!(outcome, Outcome::GoAway(_)), "{name}: {outcome:?}");
}

async fn assert_calmed(client: &mut Client) {
    let outcome = client.outcome(u32::MAX).await;
    assert_eq!(outcome, Outcome::GoAway(ENHANCE_YOUR_CALM));
}

/// CVE-2023-44487
#[tokio::test]
async fn rapid_reset() {
    attack(&[], async |_, client| {
        for stream in streams(20_000) {
            let request = frame(HEADERS, WHOLE, stream, &get("/"));
            let reset = frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
            if !client.send(&[request, reset].concat()).await {
                break;
            }
        }
        assert_calmed(client).await;
    })
    .await;
}

/// CVE-2025-8671, "MadeYouReset": the client has the server reset the streams.
#[tokio::test]
async fn made_you_reset() {
    attack(&[], async |_, client| {
        for stream in streams(20_000) {
            let request = frame(HEADERS, WHOLE, stream, &get("/"));
            let nothing = frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes());
            if !client.send(&[request, nothing].concat()).await {
                break;
            }
        }
        assert_ended(client, "reset").await;
    })
    .await;
}

/// CVE-2024-27316 of httpd, CVE-2023-45288 of Go, CVE-2024-27983 of Node and others of the same kind.
#[tokio::test]
async fn continuation_flood() {
    attack(&[], async |_, client| {
        let some = block(&[("x", &"y".repeat(16_000))]);
        client.send(&frame(HEADERS, END_STREAM, 1, &get("/"))).await;
        client
            .flood(&frame(CONTINUATION, 0, 1, &some), 200 << 20)
            .await;
        assert_calmed(client).await;
    })
    .await;
}

/// CVE-2019-9518: frames with nothing in them, which never end anything.
#[tokio::test]
async fn empty_frames_flood() {
    for (kind, first) in [(CONTINUATION, END_STREAM), (DATA, END_HEADERS)] {
        attack(&[], async |_, client| {
            client.send(&frame(HEADERS, first, 1, &get("/"))).await;
            let some = frame(kind, 0, 1, b"").repeat(1000);
            client.flood(&some, 20 << 20).await;
        })
        .await;
    }
}

/// CVE-2016-6581, "HPACK bomb": a large field is put into the table once and asked for again and again by one byte.
#[tokio::test]
async fn header_bomb() {
    attack(&[], async |_, client| {
        let large = block(&[("x", &"y".repeat(3000))]);
        // Indexed from now on.
        let bomb = [&get("/")[..], &[0x40], &large[1..], &[0xbe; 12_000]].concat();
        for stream in streams(50) {
            if !client.send(&frame(HEADERS, WHOLE, stream, &bomb)).await {
                break;
            }
        }
        match client.outcome(1).await {
            // 431 has no number in HPACK's table.
            Outcome::Answer(0, _) | Outcome::Reset(_) | Outcome::GoAway(_) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

/// Numbers and strings that are longer than they may be, or refer to nothing.
#[tokio::test]
async fn broken_compression() {
    for block in [
        &[0xff; 20][..],
        &[0x80],
        &[0xfe],
        &[0, 0x7f, 0xff],
        &[0x3f, 0xff, 0xff, 0x7f],
    ] {
        attack(&[], async |_, client| {
            client.send(&frame(HEADERS, WHOLE, 1, block)).await;
            assert_ended(client, "broken").await;
        })
        .await;
    }
}

/// CVE-2019-9516: fields without names.
#[tokio::test]
async fn nameless_fields() {
    attack(&[], async |_, client| {
        let fields = [&get("/")[..], &[0, 0, 0].repeat(5000)].concat();
        for stream in streams(1000) {
            if !client.send(&frame(HEADERS, WHOLE, stream, &fields)).await {
                break;
            }
        }
        let outcome = client.outcome(1).await;
        assert!(
            matches!(outcome, Outcome::Reset(_) | Outcome::GoAway(_)),
            "{outcome:?}"
        );
    })
    .await;
}

/// CVE-2019-9512, CVE-2019-9515: what has to be answered, by a client that does not read the answers.
#[tokio::test]
async fn ping_and_settings_floods() {
    for one in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, b"")] {
        attack(&[], async |_, client| {
            client.flood(&one.repeat(1000), 100 << 20).await;
        })
        .await;
    }
}

/// CVE-2019-9513: the order of the streams is turned around all the time.
#[tokio::test]
async fn priority_flood() {
    attack(&[], async |_, client| {
        for round in 0..200_u32 {
            let mut bytes = Vec::new();
            for stream in streams(100) {
                let parent = 1 + 2 * ((stream + round) % 300);
                let parent = if parent == stream { 0 } else { parent };
                let payload = [&parent.to_be_bytes()[..], &[(round % 256) as u8]].concat();
                bytes.extend(frame(PRIORITY, 0, stream, &payload));
            }
            assert!(client.send(&bytes).await);
        }
        client.send(&frame(HEADERS, WHOLE, 1001, &get("/x"))).await;
        let seen = "GET a.example/x".to_owned();
        assert_eq!(client.outcome(1001).await, Outcome::Answer(200, seen));
    })
    .await;
}

/// Asks for as much as it may, for large answers.
async fn ask_for_much(client: &mut Client) {
    for stream in streams(MOST_STREAMS) {
        client.send(&frame(HEADERS, WHOLE, stream, &get(BIG))).await;
    }
}

/// CVE-2019-9511: a window that lets a byte through now and then.
#[tokio::test]
async fn window_stall() {
    attack(&[(INITIAL_WINDOW_SIZE, 0)], async |scene, client| {
        ask_for_much(client).await;
        scene.recorder.saw_at_least(MOST_STREAMS as usize).await;
        for _ in 0..20 {
            for stream in streams(MOST_STREAMS) {
                client
                    .send(&frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes()))
                    .await;
            }
        }
    })
    .await;
}

/// CVE-2019-9517: the windows are wide open, but what comes is not read.
#[tokio::test]
async fn unread_answers() {
    let most = (1 << 31) - 1;
    attack(&[(INITIAL_WINDOW_SIZE, most)], async |scene, client| {
        let update = (most - 65_535).to_be_bytes();
        client.send(&frame(WINDOW_UPDATE, 0, 0, &update)).await;
        ask_for_much(client).await;
        scene.recorder.saw_at_least(MOST_STREAMS as usize).await;
    })
    .await;
}

#[tokio::test]
async fn more_streams_than_allowed() {
    attack(&[], async |scene, client| {
        for stream in streams(MOST_STREAMS) {
            client
                .send(&frame(HEADERS, END_HEADERS, stream, &get("/")))
                .await;
        }
        scene.recorder.saw_begun(MOST_STREAMS as usize).await;
        let one_more = 1 + 2 * MOST_STREAMS;
        client
            .send(&frame(HEADERS, WHOLE, one_more, &get("/")))
            .await;
        assert_eq!(
            client.outcome(one_more).await,
            Outcome::Reset(REFUSED_STREAM)
        );
    })
    .await;
}

/// Requests whose bodies never come, on as many streams and as many connections.
#[tokio::test]
async fn slow_bodies() {
    attack(&[], async |scene, client| {
        let mut others = Vec::new();
        for _ in 0..8 {
            let mut other = Client::connect(&scene.stage, &[]).await;
            for stream in streams(MOST_STREAMS) {
                let head = frame(HEADERS, END_HEADERS, stream, &get("/"));
                other
                    .send(&[head, frame(DATA, 0, stream, b"x")].concat())
                    .await;
            }
            others.push(other);
        }
        client.send(&frame(HEADERS, WHOLE, 1, &get("/x"))).await;
        let seen = "GET a.example/x".to_owned();
        assert_eq!(client.outcome(1).await, Outcome::Answer(200, seen));
    })
    .await;
}

/// RFC 9113: what ends a connection.
#[tokio::test]
async fn frames_that_may_not_be() {
    let head = frame(HEADERS, END_HEADERS, 1, &get("/"));
    let update = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    for (name, bytes) in [
        ("DATA without HEADERS", frame(DATA, 0, 1, b"x")),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("HEADERS on stream 0", frame(HEADERS, WHOLE, 0, &get("/"))),
        (
            "HEADERS on an even stream",
            frame(HEADERS, WHOLE, 2, &get("/")),
        ),
        (
            "CONTINUATION without HEADERS",
            frame(CONTINUATION, END_HEADERS, 1, b""),
        ),
        (
            "something between HEADERS and CONTINUATION",
            [
                frame(HEADERS, 0, 1, &get("/")),
                frame(PING, 0, 0, b"12345678"),
            ]
            .concat(),
        ),
        (
            "a window too large",
            [update(0, 1 << 30), update(0, 1 << 30)].concat(),
        ),
        ("an update by nothing", update(0, 0)),
        ("a PING of 7 bytes", frame(PING, 0, 0, b"1234567")),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, b"12345")),
        (
            "SETTINGS with ACK and more",
            frame(SETTINGS, ACK, 0, b"123456"),
        ),
        (
            "a window by SETTINGS",
            frame(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]),
        ),
        ("a frame that is too long", frame(DATA, 0, 1, &[0; 16_385])),
        ("a push", frame(5, END_HEADERS, 1, &[0, 0, 0, 2])),
        (
            "padding that is longer",
            [head, frame(DATA, 8, 1, &[5, 0])].concat(),
        ),
        ("more data than the window", {
            let head = frame(HEADERS, END_HEADERS, 1, &get("/"));
            let data = frame(DATA, 0, 1, &[0; 16_384]);
            [head, data.repeat(100)].concat()
        }),
    ] {
        let mut scene = Scene::new().await;
        let mut client = Client::connect(&scene.stage, &[]).await;
        client.send(&bytes).await;
        assert_ended(&mut client, name).await;
        scene.serves_others(name).await;
    }
    // It may be sent by a client, who has nothing that the worker could begin.
    let mut scene = Scene::new().await;
    let mut client = Client::connect(&scene.stage, &[]).await;
    client.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    assert_eq!(client.outcome(u32::MAX).await, Outcome::Closed);
    scene.serves_others("GOAWAY").await;
}
