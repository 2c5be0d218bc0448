//! Attacks that are known to have brought down HTTP/2 servers, by the names under which they are
//! known.
//!
//! During each attack and after it, other clients are served, and the worker does not grow by more
//! than [`MOST_GROWTH`].

use crate::frames::{
    ACK, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE,
    Outcome, PING, PRIORITY, RST_STREAM, SETTINGS, WHOLE, WINDOW_UPDATE, block, frame, get,
};
use crate::recorder::BIG;
use crate::scene::Scene;

/// The most by which the worker may grow, in KiB: far less than an attack sends or asks for, but
/// more than the allocator keeps.
const MOST_GROWTH: u64 = 24 << 10;

/// The number of streams that the worker allows at the same time.
const MOST_STREAMS: u32 = 128;

const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Returns the ids of the first streams of a client.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 1 + 2 * number)
}

async fn attack(settings: &[(u16, u32)], act: impl AsyncFnOnce(&Scene, &mut Client)) {
    let mut scene = Scene::new().await;
    let (_shop, mut bystander) = scene.stage.besiege().await;
    scene.serves_others("before").await;
    let before = scene.stage.worker_memory();
    let mut client = Client::connect(&scene.stage, settings).await;
    act(&scene, &mut client).await;
    scene.serves_others("meanwhile").await;
    bystander.is_served().await;
    let growth = scene.stage.worker_memory().saturating_sub(before);
    assert!(
        growth < MOST_GROWTH,
        "the worker has grown by {growth} KiB, expected less than {MOST_GROWTH} KiB"
    );
    drop(client);
    scene.serves_others("afterwards").await;
    bystander.end();
}

/// Checks that the worker has ended the connection with an error code.
async fn assert_ended(client: &mut Client, name: &str) {
    let outcome = client.outcome(u32::MAX).await;
    assert!(matches!(outcome, Outcome::GoAway(_)), "{name}: {outcome:?}");
}

async fn assert_calmed(client: &mut Client) {
    let outcome = client.outcome(u32::MAX).await;
    assert_eq!(outcome, Outcome::GoAway(ENHANCE_YOUR_CALM));
}

/// CVE-2023-44487, "Rapid Reset": the client opens streams and resets them at once.
#[tokio::test]
async fn rapid_reset_ends_the_connection() {
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

/// CVE-2025-8671, "MadeYouReset": the client makes the server reset the streams.
#[tokio::test]
async fn made_you_reset_ends_the_connection() {
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

/// CVE-2024-27316 of httpd, CVE-2023-45288 of Go, CVE-2024-27983 of Node and others: header blocks
/// that never end.
#[tokio::test]
async fn continuation_flood_ends_the_connection() {
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

/// CVE-2019-9518: empty frames that end neither a header block nor a body.
#[tokio::test]
async fn empty_frames_flood_uses_bounded_memory() {
    for (kind, first) in [(CONTINUATION, END_STREAM), (DATA, END_HEADERS)] {
        attack(&[], async |_, client| {
            client.send(&frame(HEADERS, first, 1, &get("/"))).await;
            let some = frame(kind, 0, 1, b"").repeat(1000);
            client.flood(&some, 20 << 20).await;
        })
        .await;
    }
}

/// CVE-2016-6581, "HPACK bomb": the client puts a large field into the dynamic table and refers to
/// it again and again, with one byte each.
#[tokio::test]
async fn header_bomb_is_refused() {
    attack(&[], async |_, client| {
        let large = block(&[("x", &"y".repeat(3000))]);
        // The field is sent with indexing; 0xbe then refers to it.
        let bomb = [&get("/")[..], &[0x40], &large[1..], &[0xbe; 12_000]].concat();
        for stream in streams(50) {
            if !client.send(&frame(HEADERS, WHOLE, stream, &bomb)).await {
                break;
            }
        }
        match client.outcome(1).await {
            // The response is a 431, which HPACK's static table does not have.
            Outcome::Answer(0, _) | Outcome::Reset(_) | Outcome::GoAway(_) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

/// Numbers and strings that are too long, and references to nothing.
#[tokio::test]
async fn broken_header_compression_ends_the_connection() {
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
async fn fields_without_names_are_refused() {
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

/// CVE-2019-9512, CVE-2019-9515: frames that must be answered, by a client that does not read the
/// answers.
#[tokio::test]
async fn ping_and_settings_floods_use_bounded_memory() {
    for one in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, b"")] {
        attack(&[], async |_, client| {
            client.flood(&one.repeat(1000), 100 << 20).await;
        })
        .await;
    }
}

/// CVE-2019-9513: the client reorders the streams all the time.
#[tokio::test]
async fn priority_flood_has_no_effect() {
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

/// Requests large responses on as many streams as the worker allows.
async fn ask_for_much(client: &mut Client) {
    for stream in streams(MOST_STREAMS) {
        client.send(&frame(HEADERS, WHOLE, stream, &get(BIG))).await;
    }
}

/// CVE-2019-9511: flow-control windows that let a single byte through now and then.
#[tokio::test]
async fn window_stall_uses_bounded_memory() {
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

/// CVE-2019-9517: the windows are wide open, but the client does not read.
#[tokio::test]
async fn unread_responses_use_bounded_memory() {
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
async fn streams_above_the_limit_are_refused() {
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

/// Requests whose bodies never come, on as many streams as allowed and on several connections.
#[tokio::test]
async fn bodies_that_never_come_use_bounded_memory() {
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

/// Frames after which RFC 9113 ends the connection.
#[tokio::test]
async fn frames_that_rfc_9113_forbids_end_the_connection() {
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
    ] {
        let mut scene = Scene::new().await;
        let mut client = Client::connect(&scene.stage, &[]).await;
        client.send(&bytes).await;
        assert_ended(&mut client, name).await;
        scene.serves_others(name).await;
    }
    // While no instance takes the request, nobody reads its body, so the window of the stream stays
    // as it is. Data beyond it ends the stream, and with the stream the request.
    let mut scene = Scene::new().await;
    let endpoints = scene.stage.set_endpoints(Vec::new()).await;
    let mut client = Client::connect(&scene.stage, &[]).await;
    // The window of the connection begins as small as that of a stream. Data beyond both of them
    // would end the connection, so the client waits until the worker has opened this one further,
    // and stays within it.
    while client.next().await.expect("the connection is open").kind != WINDOW_UPDATE {}
    let head = frame(HEADERS, END_HEADERS, 1, &get("/"));
    let data = frame(DATA, 0, 1, &[0; 16_384]);
    client.send(&[head, data.repeat(16)].concat()).await;
    assert_eq!(client.outcome(1).await, Outcome::Reset(FLOW_CONTROL_ERROR));
    scene.stage.set_endpoints(endpoints).await;
    scene.serves_others("more data than the window").await;
    // A client may send GOAWAY, and since a server starts no streams, the connection then just
    // ends.
    let mut scene = Scene::new().await;
    let mut client = Client::connect(&scene.stage, &[]).await;
    client.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    assert_eq!(client.outcome(u32::MAX).await, Outcome::Closed);
    scene.serves_others("GOAWAY").await;
}
