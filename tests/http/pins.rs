//! Connections whose client has proved its identity for the connection (NTLM, Negotiate).

use smoothserve::ipc::{EndpointId, EndpointState, FromWorker};

use crate::frames::{Client, HEADERS, Outcome, WHOLE, block, frame};
use crate::peers::{Peer, Stage, undated};

/// HTTP_1_1_REQUIRED of RFC 9113.
const HTTP_1_1_REQUIRED: u32 = 0xd;

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n")
}

/// The status line of a usual response, without its version.
const OK: &str = "200 OK\r\n";

/// Sends a request over a connection of a client, and answers it over one of the instance, with
/// this status line and these fields.
async fn pass(client: &mut Peer, instance: &mut Peer, request: &str, head: &str) {
    client.send(request).await;
    answer(client, instance, request, head).await;
}

/// Does the same as [`pass`], but the request must come over a new connection to the instance.
async fn pass_anew(stage: &mut Stage, client: &mut Peer, request: &str, head: &str) -> Peer {
    client.send(request).await;
    let mut instance = stage.accept().await;
    answer(client, &mut instance, request, head).await;
    instance
}

async fn answer(client: &mut Peer, instance: &mut Peer, request: &str, head: &str) {
    let line = request.lines().next().unwrap();
    let received = instance.receive_head().await;
    assert!(received.starts_with(line), "{received}");
    let response = format!("HTTP/1.1 {head}Content-Length: 2\r\n\r\nok");
    instance.send(&response).await;
    assert_eq!(undated(&client.receive_until("\r\n\r\nok").await), response);
}

/// What begins to authenticate a connection: fields of a request, and the head of the response to
/// it.
const BEGINS: [(&str, &str); 5] = [
    ("", "200 OK\r\nWWW-Authenticate: NTLM\r\n"),
    ("", "401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\n"),
    (
        "",
        "200 OK\r\nWWW-Authenticate: Basic realm=\"a\", negotiate\r\n",
    ),
    ("Authorization: NTLM TlRMTVNTUAAB\r\n", OK),
    ("authorization: negotiate YII=\r\n", OK),
];

#[tokio::test]
async fn an_authenticated_connection_belongs_to_its_client() {
    for (asked, answered) in BEGINS {
        let mut stage = Stage::new(1).await;
        let mut client = stage.send("").await;
        let mut own = pass_anew(&mut stage, &mut client, &get("/1", asked), answered).await;
        // Another client gets another connection, which is shared as usual.
        let mut stranger = stage.send("").await;
        let first = get("/stranger", "");
        let mut shared = pass_anew(&mut stage, &mut stranger, &first, OK).await;
        // All later requests of the client use its own, also those without a sign of it.
        let signed = get("/2", "Authorization: NTLM TlRM\r\n");
        pass(&mut client, &mut own, &signed, OK).await;
        pass(&mut client, &mut own, &get("/3", ""), OK).await;
        pass(&mut stranger, &mut shared, &get("/4", ""), OK).await;
        let post = "POST /5 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n";
        pass(&mut client, &mut own, post, OK).await;
        // The connection ends with that of its client, and the other one goes on.
        drop(client);
        assert_eq!(own.receive_rest().await, "", "{asked}{answered}");
        pass(&mut stranger, &mut shared, &get("/6", ""), OK).await;
    }
}

#[tokio::test]
async fn other_ways_to_authenticate_pin_no_connection() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send("").await;
    let mut instance = pass_anew(&mut stage, &mut client, &get("/1", ""), OK).await;
    let challenge = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"NTLM\"\r\n";
    for (asked, answered) in [
        ("", challenge),
        ("Authorization: Basic bnRsbQ==\r\n", OK),
        ("Authorization: Bearer negotiate\r\n", OK),
    ] {
        pass(&mut client, &mut instance, &get("/2", asked), answered).await;
        let mut other = stage.send("").await;
        pass(&mut other, &mut instance, &get("/3", ""), OK).await;
    }
}

/// The instance may close a pinned connection, and a drain does. The client then gets another one.
#[tokio::test]
async fn a_pinned_connection_that_was_closed_is_replaced() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send("").await;
    let challenge = "401 Unauthorized\r\nWWW-Authenticate: NTLM\r\n";
    let own = pass_anew(&mut stage, &mut client, &get("/1", ""), challenge).await;
    drop(own);
    let mut own = pass_anew(&mut stage, &mut client, &get("/2", ""), challenge).await;
    // A drain closes the connections that no request uses.
    stage.set_state(EndpointState::Draining).await;
    assert_eq!(own.receive_rest().await, "");
    let idle = FromWorker::Idle(EndpointId(1));
    stage.manager.wait_for_message(&idle).await;
}

/// Streams of HTTP/2 share a connection, so clients are sent to HTTP/1.1, as RFC 9113 provides it.
#[tokio::test]
async fn over_http2_no_connection_can_be_authenticated() {
    let mut stage = Stage::new(1).await;
    let fields = |more: &[(&'static str, &'static str)]| {
        let usual = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a.example"),
        ];
        block(&[&usual, more].concat())
    };
    // No instance gets a request that authenticates its connection.
    for value in ["NTLM TlRMTVNTUAAB", "Negotiate YII="] {
        let mut client = Client::connect(&stage, &[]).await;
        let head = fields(&[("authorization", value)]);
        client.send(&frame(HEADERS, WHOLE, 1, &head)).await;
        assert_eq!(client.outcome(1).await, Outcome::Reset(HTTP_1_1_REQUIRED));
    }
    // No client gets the challenge, and the connection is used by nobody else.
    let mut client = Client::connect(&stage, &[]).await;
    client.send(&frame(HEADERS, WHOLE, 1, &fields(&[]))).await;
    let mut instance = stage.accept().await;
    let head = instance.receive_head().await;
    assert!(!head.contains("uthorization"), "{head}");
    instance
        .send("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 2\r\n\r\nno")
        .await;
    assert_eq!(client.outcome(1).await, Outcome::Reset(HTTP_1_1_REQUIRED));
    assert_eq!(instance.receive_all().await.0, "");
    // Other streams of the connection go on.
    let head = fields(&[("authorization", "Basic bnRsbQ==")]);
    client.send(&frame(HEADERS, WHOLE, 3, &head)).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    assert_eq!(
        client.outcome(3).await,
        Outcome::Answer(200, "ok".to_owned())
    );
}
