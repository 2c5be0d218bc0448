//! Which requests are sent again, and which never are.

use crate::kit::first;
use crate::peers::{Peer, Stage};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n")
}

fn with_body(method: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Returns a client and the connection to the instance that its first request has used.
async fn used(stage: &mut Stage) -> (Peer, Peer) {
    let mut client = stage.send(get("/first")).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance.send(OK).await;
    client.receive_until("ok").await;
    (client, instance)
}

#[tokio::test]
async fn connections_to_instances_are_used_again() {
    let mut stage = Stage::new(1).await;
    let (mut client, mut instance) = used(&mut stage).await;
    for _ in 0..3 {
        client.send(with_body("POST", "body")).await;
        instance.receive_until("body").await;
        instance.send(OK).await;
        client.receive_until("\r\n\r\nok").await;
    }
}

#[tokio::test]
async fn race_01_an_idle_connection_that_the_instance_has_closed_costs_no_request() {
    let mut stage = Stage::new(1).await;
    for request in [get("/"), with_body("POST", "body")] {
        let (mut client, instance) = used(&mut stage).await;
        drop(instance);
        client.send(request).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        instance.send(OK).await;
        assert!(
            client
                .receive_head()
                .await
                .starts_with("HTTP/1.1 200 OK\r\n")
        );
        client.receive_until("ok").await;
        drop(instance);
    }
}

#[tokio::test]
async fn race_01_a_request_that_meets_an_idle_close_is_sent_again_only_if_that_is_safe() {
    let mut stage = Stage::new(1).await;
    let (mut client, mut instance) = used(&mut stage).await;
    for request in [get("/"), with_body("PUT", "body"), with_body("DELETE", "")] {
        client.send(&request).await;
        let first = instance.receive_head().await;
        instance.reset();
        instance = stage.accept().await;
        assert_eq!(instance.receive_head().await, first);
        if request.ends_with("body") {
            assert_eq!(instance.receive_until("body").await, "body");
        }
        instance.send(OK).await;
        client.receive_until("\r\n\r\nok").await;
    }
    for request in [with_body("POST", "body"), with_body("PATCH", "body")] {
        client.send(request).await;
        instance.receive_until("body").await;
        instance.reset();
        assert!(client.receive_head().await.starts_with("HTTP/1.1 502 "));
        client.receive_until("\n").await;
        client.send(get("/next")).await;
        instance = stage.accept().await;
        assert!(instance.receive_head().await.starts_with("GET /next "));
        instance.send(OK).await;
        client.receive_until("\r\n\r\nok").await;
    }
}

#[tokio::test]
async fn a_request_is_sent_again_only_once() {
    let mut stage = Stage::new(2).await;
    let mut client = stage.send(get("/")).await;
    for number in 0..2 {
        let mut instance = stage.instances[number].accept().await;
        instance.receive_head().await;
        drop(instance);
    }
    assert!(client.receive_head().await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn a_request_whose_response_has_begun_is_never_sent_again() {
    let mut stage = Stage::new(1).await;
    for begun in [
        "H",
        "HTTP/1.1 200 OK\r\nContent-",
        "HTTP/1.1 103 Early Hints\r\n\r\n",
    ] {
        let mut client = stage.send(get("/")).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        instance.send(begun).await;
        drop(instance);
        let response = client.receive_until("502 Bad Gateway\r\n").await;
        assert!(
            response.ends_with("HTTP/1.1 502 Bad Gateway\r\n"),
            "{begun}: {response}"
        );
    }
}

/// A body that an instance sends although there is none, or more than it has announced.
#[tokio::test]
async fn what_an_instance_sends_beyond_a_response_costs_no_request() {
    let mut stage = Stage::new(1).await;
    let no_body = "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n";
    let cases = [
        ("HEAD", no_body),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 30\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (method, response) in cases {
        for late in ["late", "<p>\r\n\r\n</p>", "HTTP/1.1 204 No Content\r\nX: "] {
            let mut client = stage
                .send(format!("{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n"))
                .await;
            let mut instance = stage.accept().await;
            instance.receive_head().await;
            instance.send(response).await;
            client.receive_head().await;
            instance.send(late).await;
            client.send(get("/next")).await;
            let mut fresh = stage.accept().await;
            assert!(fresh.receive_head().await.starts_with("GET /next "));
            fresh.send_last(OK).await;
            let response = client.receive_until("ok").await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        }
    }
}

/// Bytes that come before the response on a used connection may belong to the request before.
const STRAYS: [&str; 4] = [
    "late",
    "\0\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
];

#[tokio::test]
async fn a_request_that_meets_stray_bytes_is_sent_again() {
    let mut stage = Stage::new(1).await;
    let (mut client, mut instance) = used(&mut stage).await;
    for stray in STRAYS {
        for request in [get("/"), with_body("PUT", "body")] {
            client.send(&request).await;
            let first = instance.receive_head().await;
            if request.ends_with("body") {
                instance.receive_until("body").await;
            }
            instance.send(stray).await;
            instance = stage.accept().await;
            assert_eq!(instance.receive_head().await, first, "{stray:?}");
            if request.ends_with("body") {
                assert_eq!(instance.receive_until("body").await, "body");
            }
            instance.send(OK).await;
            let response = client.receive_until("\r\n\r\nok").await;
            assert!(
                response.starts_with("HTTP/1.1 200 "),
                "{stray:?}: {response}"
            );
        }
    }
}

#[tokio::test]
async fn a_request_that_meets_stray_bytes_is_sent_again_only_if_that_is_safe() {
    let mut stage = Stage::new(1).await;
    for stray in STRAYS {
        let expected = match stray.starts_with("HTTP/1.1 408") {
            true => "HTTP/1.1 408 ",
            false => "HTTP/1.1 502 ",
        };
        // The instance may have done what the request asks for.
        let (mut client, mut instance) = used(&mut stage).await;
        client.send(with_body("POST", "body")).await;
        instance.receive_until("body").await;
        instance.send(stray).await;
        let head = client.receive_head().await;
        assert!(head.starts_with(expected), "{stray:?}: {head}");
        drop(instance);
        // There was no request before on this connection.
        let mut client = stage.send(get("/")).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        instance.send(stray).await;
        let head = client.receive_head().await;
        assert!(head.starts_with(expected), "{stray:?}: {head}");
        drop(instance);
        // A response has begun: its interim part.
        let (mut client, mut instance) = used(&mut stage).await;
        client.send(get("/")).await;
        instance.receive_head().await;
        instance.send("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        assert!(client.receive_head().await.starts_with("HTTP/1.1 103 "));
        instance.send(stray).await;
        let head = client.receive_head().await;
        assert!(head.starts_with(expected), "{stray:?}: {head}");
    }
}

#[tokio::test]
async fn a_request_goes_to_another_instance_if_one_refuses_the_connection() {
    let mut stage = Stage::new(4).await;
    // Nobody listens on the ports of three former instances.
    let mut left = stage.instances.pop().unwrap();
    stage.instances.clear();
    for _ in 0..8 {
        let mut client = stage.send(with_body("POST", "body")).await;
        let mut instance = left.accept().await;
        instance.receive_until("body").await;
        instance
            .send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            .await;
        assert!(client.receive_head().await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn an_instance_that_comes_back_in_time_gets_the_request() {
    let mut stage = Stage::new(1).await;
    let address = match stage.table.services[0].endpoints[0].address {
        smoothserve::ipc::Address::Tcp(address) => address,
        _ => unreachable!(),
    };
    stage.instances.clear();
    let mut client = stage.send(with_body("POST", "body")).await;
    // The request is on its way, but no instance accepts it yet.
    stage.manager.wait_for_connections(1).await;
    let socket = tokio::net::TcpListener::bind(address).await.unwrap();
    let mut instance = crate::peers::Instance::on(socket).accept().await;
    instance.receive_until("body").await;
    instance.send(OK).await;
    assert!(client.receive_head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_to_an_unreachable_service_gets_502_in_the_end() {
    let mut stage = Stage::new(2).await;
    stage.instances.clear();
    let mut client = stage.send(get("/")).await;
    assert!(
        client
            .receive_head()
            .await
            .starts_with("HTTP/1.1 502 Bad Gateway\r\n")
    );
    client.receive_until("\nRequest id: ").await;
    client.receive_until("\n").await;
    // The next request on the same connection finds a working instance.
    let mut instance = crate::peers::Instance::start().await;
    stage.table.number = 2;
    first(&mut stage.table).endpoints = vec![instance.endpoint(7)];
    stage.manager.apply(&stage.table).await;
    client.send(get("/")).await;
    let mut instance = instance.accept().await;
    instance.receive_head().await;
    instance.send(OK).await;
    assert!(client.receive_head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn connections_with_a_short_announced_idle_time_are_not_used_again() {
    let mut stage = Stage::new(1).await;
    let mut client = stage.send(get("/")).await;
    let mut instance = stage.accept().await;
    instance.receive_head().await;
    instance
        .send("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok")
        .await;
    client.receive_until("\r\n\r\nok").await;
    assert_eq!(instance.receive_rest().await, "", "closed at once");
}
