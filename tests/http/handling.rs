//! What the configuration of a service says about the handling of its requests.

use smoothserve::ipc::{Host, ListenerId, Route};

use crate::kit::first;
use crate::peers::{Stage, forwarded, undated, without_id};

const TOO_LARGE: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nContent-Length: 71\r\n\
    Connection: close\r\n\r\nThe request is too large.\n";

/// Starts a worker with a service that accepts bodies of at most ten bytes.
async fn stage() -> Stage {
    let mut stage = Stage::new(1).await;
    stage.table.number += 1;
    first(&mut stage.table).handling.max_request_body = Some(10);
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    stage
}

/// No instance hears of the request, and the bytes after its head are not taken for another
/// request.
#[tokio::test]
async fn a_body_announced_as_too_large_reaches_no_instance() {
    let mut stage = stage().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for fields in ["", "Expect: 100-continue\r\n"] {
        let head =
            format!("POST / HTTP/1.1\r\nHost: a.example\r\n{fields}Content-Length: 11\r\n\r\n");
        for body in ["", "01234567890", smuggled] {
            let mut client = stage.send(format!("{head}{body}")).await;
            assert_eq!(
                without_id(&undated(&client.receive_rest().await)),
                TOO_LARGE
            );
        }
    }
    let chunks = format!("1\r\n0\r\na\r\n0123456789\r\n0\r\n\r\n{smuggled}");
    let chunked =
        format!("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let mut client = stage.send(chunked).await;
    assert_eq!(
        without_id(&undated(&client.receive_rest().await)),
        TOO_LARGE
    );
    let mut client = stage
        .send("GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    let mut instance = stage.accept().await;
    assert!(instance.receive_head().await.starts_with("GET /next "));
    instance.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    client.receive_head().await;
}

#[tokio::test]
async fn a_body_that_turns_out_to_be_too_large_is_never_completed() {
    let mut stage = stage().await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = stage.send(format!("{head}5\r\n01234\r\n")).await;
    let mut instance = stage.accept().await;
    instance.receive_until("5\r\n01234\r\n").await;
    client.send("6\r\n012345\r\n0\r\n\r\n").await;
    assert_eq!(
        without_id(&undated(&client.receive_rest().await)),
        TOO_LARGE
    );
    let (rest, _) = instance.receive_all().await;
    assert_eq!(rest, "", "the last chunk would make it whole");
}

/// Once the response has begun, the worker can only end the connection.
#[tokio::test]
async fn a_body_that_gets_too_large_during_the_response_cuts_it_off() {
    let mut stage = stage().await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = stage.send(format!("{head}5\r\n01234\r\n")).await;
    let mut instance = stage.accept().await;
    instance.receive_until("5\r\n01234\r\n").await;
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin";
    instance.send(response).await;
    assert_eq!(undated(&client.receive_until("begin").await), response);
    client.send("6\r\n012345\r\n0\r\n\r\n").await;
    assert_eq!(client.receive_all().await.0, "");
    assert_eq!(instance.receive_all().await.0, "");
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_passed_on() {
    let mut stage = stage().await;
    let forwarded = forwarded("a.example");
    for (framing, body) in [
        ("Content-Length: 10", "0123456789"),
        ("Transfer-Encoding: chunked", "a\r\n0123456789\r\n0\r\n\r\n"),
    ] {
        let head = "POST / HTTP/1.1\r\nHost: a.example\r\n";
        let mut client = stage.send(format!("{head}{framing}\r\n\r\n{body}")).await;
        let mut instance = stage.accept().await;
        let received = instance.receive_head().await + &instance.receive_until(body).await;
        assert_eq!(
            received,
            format!("{head}{forwarded}{framing}\r\n\r\n{body}")
        );
        instance
            .send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            .await;
        assert!(client.receive_head().await.starts_with("HTTP/1.1 204 "));
    }
}

#[tokio::test]
async fn a_stripped_prefix_is_told_to_the_instance() {
    let mut stage = Stage::trusting(1, vec!["127.0.0.0/8".parse().unwrap()]).await;
    stage.table.number += 1;
    first(&mut stage.table).routes = vec![
        route("/api", "/api".len()),
        route("/api/v2", "/api".len()),
        route("/plain", 0),
    ];
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    let common = forwarded("a.example");
    for (target, fields, rewritten, told) in [
        (
            "/api/users?a=/api/b",
            "",
            "/users?a=/api/b",
            "X-Forwarded-Prefix: /api\r\n",
        ),
        ("/api", "", "/", "X-Forwarded-Prefix: /api\r\n"),
        ("/api?x", "", "/?x", "X-Forwarded-Prefix: /api\r\n"),
        ("/api/", "", "/", "X-Forwarded-Prefix: /api\r\n"),
        (
            "http://a.example/api/x",
            "",
            "/x",
            "X-Forwarded-Prefix: /api\r\n",
        ),
        ("/api/v2/x", "", "/v2/x", "X-Forwarded-Prefix: /api\r\n"),
        (
            "/api/x",
            "X-Forwarded-Prefix: /shop/\r\n",
            "/x",
            "X-Forwarded-Prefix: /shop/api\r\n",
        ),
        ("/plain/api", "", "/plain/api", ""),
    ] {
        let mut client = stage
            .send(format!(
                "GET {target} HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n"
            ))
            .await;
        let mut instance = stage.accept().await;
        assert_eq!(
            instance.receive_head().await,
            format!("GET {rewritten} HTTP/1.1\r\nHost: a.example\r\n{common}{told}\r\n")
        );
        // A redirect of the instance is passed on unchanged.
        instance
            .send("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
        let response = client.receive_head().await;
        assert!(response.contains("\r\nLocation: /login\r\n"), "{response}");
    }
    let mut client = stage
        .send("GET /apix HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    assert!(client.receive_head().await.starts_with("HTTP/1.1 404 "));
}

fn route(path: &str, strip: usize) -> Route {
    Route {
        host: Host::Exact("a.example".to_owned()),
        path: path.to_owned(),
        strip,
        listener: ListenerId(1),
    }
}
