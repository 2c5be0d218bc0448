//! Responses over HTTP/2 that end before their requests do: RFC 9113, section 8.1.

use tokio::process::Command;

use crate::frames::{
    ACK, Client, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame,
};
use crate::peers::{Peer, Stage};

const NO_ERROR: u32 = 0;

/// The window of each stream.
const WINDOW: usize = 128 << 10;

/// How many bytes the worker reads of a request after its response, at most.
const MOST_LINGERED: usize = 256 << 10;

const REFUSAL: &str =
    "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nmuch";

/// Begins a request, which the instance refuses before its end. The client has received the
/// response.
async fn refused(stage: &mut Stage) -> (Client, Peer) {
    let mut client = Client::connect(stage, &[]).await;
    client.send(&frame(SETTINGS, ACK, 0, b"")).await;
    let head = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a.example"),
    ]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    client.send(&frame(DATA, 0, 1, b"begun")).await;
    let mut instance = stage.accept().await;
    instance.receive_until("begun").await;
    instance.send(REFUSAL).await;
    assert_eq!(next_of(&mut client, 1, HEADERS).await.stream, 1);
    let body = next_of(&mut client, 1, DATA).await;
    assert_eq!((&body.payload[..], body.flags), (&b"much"[..], END_STREAM));
    (client, instance)
}

/// Returns the next frame of this kind; nothing may reset the stream before.
async fn next_of(client: &mut Client, stream: u32, kind: u8) -> Frame {
    loop {
        let next = client.next().await.expect("the connection stays open");
        if next.kind == kind {
            return next;
        }
        assert!(next.kind != RST_STREAM || next.stream != stream);
    }
}

#[tokio::test]
async fn a_client_may_end_its_request_after_an_early_response() {
    let mut stage = Stage::new(1).await;
    let (mut client, _instance) = refused(&mut stage).await;
    client.send(&frame(DATA, 0, 1, &[b'x'; 1000])).await;
    client.send(&frame(DATA, END_STREAM, 1, b"end")).await;
    client.send(&frame(PING, 0, 0, b"all sent")).await;
    assert_eq!(next_of(&mut client, 1, PING).await.payload, b"all sent");
}

#[tokio::test]
async fn a_client_that_goes_on_after_an_early_response_is_told_to_stop() {
    let mut stage = Stage::new(1).await;
    let (mut client, _instance) = refused(&mut stage).await;
    let (mut sent, mut room) = (0, WINDOW - b"begun".len());
    let reset = loop {
        let piece = room.min(16 << 10);
        if piece > 0 {
            client.send(&frame(DATA, 0, 1, &vec![b'x'; piece])).await;
            (sent, room) = (sent + piece, room - piece);
            continue;
        }
        let next = client.next().await.expect("the connection stays open");
        match next.kind {
            WINDOW_UPDATE if next.stream == 1 => {
                room += u32::from_be_bytes(next.payload.try_into().unwrap()) as usize;
            }
            RST_STREAM => break next,
            _ => {}
        }
    };
    assert_eq!((reset.stream, reset.code()), (1, NO_ERROR));
    // The client has had to read what the worker sent after the response to be able to send as
    // much.
    assert!(
        (MOST_LINGERED..=MOST_LINGERED + 2 * WINDOW).contains(&sent),
        "{sent}"
    );
    client.send(&frame(PING, 0, 0, b"go on...")).await;
    assert_eq!(next_of(&mut client, 1, PING).await.payload, b"go on...");
}

/// The curl of Debian 12 takes a response for lost if the reset comes with it.
#[tokio::test]
async fn curl_gets_every_early_response() {
    let mut stage = Stage::new(1).await;
    let mut instance = stage.instances.remove(0);
    tokio::spawn(async move {
        loop {
            let mut peer = instance.accept_at_leisure().await;
            tokio::spawn(async move {
                peer.receive_head().await;
                peer.send_last(REFUSAL).await;
                peer.receive_all().await;
            });
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let body = directory.path().join("body");
    std::fs::write(&body, vec![b'x'; 20 << 20]).unwrap();
    for number in 0..30 {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*"])
            .args(["--http2-prior-knowledge", "-w", "%{http_code}"])
            .args(["-H", "Host: a.example", "-H", "Expect:", "--data-binary"])
            .arg(format!("@{}", body.display()))
            .arg(format!("http://{}/", stage.address))
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said == "much413" && output.status.success(),
            "{number}: {output:?}"
        );
    }
}
