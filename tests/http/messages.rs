//! How the worker rewrites requests for instances and responses for clients.

use crate::kit::first;
use crate::peers::{Stage, forwarded, is_made_id, undated};

#[tokio::test]
async fn requests_reach_the_instance_rewritten() {
    let mut stage = Stage::new(1).await;
    let forwarded = forwarded("a.example");
    let common = format!("Host: a.example\r\n{forwarded}");
    let cases = [
        (
            "GET /x?y=1 HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n",
            format!("GET /x?y=1 HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n{forwarded}\r\n"),
        ),
        (
            // Bare LFs, an empty line before the request, and white space around values.
            "\r\n\nGET / HTTP/1.1\nAccept:   a  \nHost: a.example\n\n",
            format!("GET / HTTP/1.1\r\nHost: a.example\r\nAccept: a\r\n{forwarded}\r\n"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0005\r\n\r\nhello",
            format!("POST / HTTP/1.1\r\n{common}Content-Length: 5\r\n\r\nhello"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.example\r\nTrailer: x-sum\r\nTransfer-Encoding: Chunked\r\n\r\n\
             3;a=b\r\nhel\r\n002\r\nlo\r\n0\r\nX-Sum: 5\r\nContent-Length: 7\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
            format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nTrailer: x-sum\r\n{forwarded}Transfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n"
            ),
        ),
        (
            "GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n",
            format!("GET /x HTTP/1.1\r\n{common}\r\n"),
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
            format!("OPTIONS * HTTP/1.1\r\n{common}\r\n"),
        ),
        (
            "GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
            format!("GET / HTTP/1.1\r\n{common}\r\n"),
        ),
        (
            "GET / HTTP/1.0\r\n\r\n",
            format!(
                "GET / HTTP/1.1\r\nHost: \r\n{}\r\n",
                crate::peers::forwarded("")
            ),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: x-hop, Upgrade\r\nX-Hop: 1\r\nUpgrade: h2c\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Forwarded: for=6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nCookie: c\r\n\r\n",
            format!("GET / HTTP/1.1\r\nHost: a.example\r\nCookie: c\r\n{forwarded}\r\n"),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: TE\r\nTE: trailers\r\n\r\n",
            format!("GET / HTTP/1.1\r\n{common}TE: trailers\r\nConnection: TE\r\n\r\n"),
        ),
    ];
    for (sent, expected) in cases {
        let mut client = stage.connect().await;
        client.send_last(sent).await;
        let mut instance = stage.accept().await;
        let end = &expected[expected.len() - 4..];
        let mut received = instance.receive_head().await;
        if received.len() < expected.len() {
            received += &instance.receive_until(end).await;
        }
        assert_eq!(received, expected);
        instance
            .send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            .await;
        let response = client.receive_rest().await;
        assert!(
            response.starts_with("HTTP/1.1 204 No Content\r\n"),
            "{response}"
        );
        assert_eq!(instance.receive_rest().await, "", "nothing more");
    }
}

#[tokio::test]
async fn forwarding_fields_of_a_trusted_peer_are_kept() {
    let mut stage = Stage::trusting(1, vec!["127.0.0.0/8".parse().unwrap()]).await;
    let _client = stage
        .send(
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: b.example\r\n\r\n",
        )
        .await;
    assert_eq!(
        stage.accept().await.receive_head().await,
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 1.1.1.1, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: b.example\r\n\r\n"
    );
}

#[tokio::test]
async fn responses_reach_the_client_rewritten() {
    let mut stage = Stage::new(1).await;
    let cases = [
        (
            "GET 1.1",
            "HTTP/1.1 200 OK\r\nDate: d\r\nServer: s\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 5\r\n\r\nhello",
        ),
        (
            "GET 1.1",
            "HTTP/1.1 200 OK\nX-Hop: 1\nConnection: close, x-hop\nKeep-Alive: timeout=5\nContent-Length: 0\n\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "GET 1.1",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
             3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 5\r\nTransfer-Encoding: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n",
        ),
        (
            "GET 1.0",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        ),
        (
            "GET 1.1",
            "HTTP/1.0 200 OK\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "GET 1.0",
            "HTTP/1.1 200 OK\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        ),
        (
            "HEAD 1.1",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            "HEAD 1.1",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ),
        (
            "GET 1.1",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ),
        (
            "GET 1.1",
            "HTTP/1.1 304 Not Modified\r\nETag: e\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: e\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            "GET 1.1",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 299\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "GET 1.0",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
    ];
    for (request, sent, expected) in cases {
        let (method, version) = request.split_once(' ').unwrap();
        let mut client = stage.connect().await;
        let request = format!("{method} / HTTP/{version}\r\nHost: a.example\r\n\r\n");
        client.send_last(request).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        instance.send_last(sent).await;
        assert_eq!(undated(&client.receive_rest().await), expected, "{sent}");
    }
}

/// A recipient with a clock adds the field before it passes a response on. An interim response does
/// not need it.
#[tokio::test]
async fn responses_without_a_date_get_one() {
    let mut stage = Stage::new(1).await;
    let dates = |head: &str| -> Vec<String> {
        let lines = head
            .lines()
            .map(|line| line.split_once(": ").unwrap_or_default());
        let dates = lines.filter(|(name, _)| name.eq_ignore_ascii_case("date"));
        dates.map(|(_, value)| value.to_owned()).collect()
    };
    for http2 in [false, true] {
        for (sent, expected) in [("", None), ("dAtE: then\r\n", Some("then"))] {
            let (address, version) = (
                stage.address,
                if http2 {
                    "--http2-prior-knowledge"
                } else {
                    "--http1.1"
                },
            );
            let curl = tokio::spawn(async move {
                let mut curl = tokio::process::Command::new("curl");
                curl.args([
                    "-sS",
                    "--max-time",
                    "20",
                    "--noproxy",
                    "*",
                    version,
                    "-D",
                    "-",
                ]);
                curl.args(["-H", "Host: a.example"])
                    .arg(format!("http://{address}/"));
                curl.output().await.unwrap()
            });
            let mut instance = stage.accept().await;
            instance.receive_head().await;
            let response = format!(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n{sent}Content-Length: 0\r\n\r\n"
            );
            instance.send_last(response).await;
            let heard = String::from_utf8(curl.await.unwrap().stdout).unwrap();
            let (interim, last) = heard.split_once("\r\n\r\n").unwrap();
            assert!(interim.contains(" 103") && last.contains(" 200"), "{heard}");
            assert_eq!(dates(interim), [""; 0], "{heard}");
            let dates = dates(last);
            assert_eq!(dates.len(), 1, "{heard}");
            match expected {
                Some(expected) => assert_eq!(dates[0], expected),
                None => drop(httpdate::parse_http_date(&dates[0]).unwrap()),
            }
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_over_one_connection() {
    let mut stage = Stage::new(1).await;
    let request = |n: u32| {
        format!("POST /{n} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\n{n:02}")
    };
    let all: String = (0..20).map(request).collect();
    // The last request comes in two pieces.
    let (most, rest) = all.split_at(all.len() - 30);
    let mut client = stage.send(most).await;
    let mut instance = stage.accept().await;
    for n in 0..20 {
        if n == 10 {
            client.send(rest).await;
        }
        let head = instance.receive_head().await;
        assert!(head.starts_with(&format!("POST /{n} ")), "{head}");
        assert_eq!(
            instance.receive_until(&format!("{n:02}")).await,
            format!("{n:02}")
        );
        instance
            .send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{n:02}"
            ))
            .await;
    }
    for n in 0..20 {
        let response = client.receive_until(&format!("\r\n\r\n{n:02}")).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_keeps_its_connection_if_it_asks() {
    let mut stage = Stage::new(1).await;
    let request = "GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n";
    let mut client = stage.send(request).await;
    let mut instance = stage.accept().await;
    for _ in 0..2 {
        instance.receive_head().await;
        instance
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
        assert_eq!(
            undated(&client.receive_until("\r\n\r\nok").await),
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
        );
        client.send(request).await;
    }
}

#[tokio::test]
async fn the_worker_answers_requests_that_no_instance_can_take() {
    let mut stage = Stage::new(1).await;
    let mut client = stage
        .send("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")
        .await;
    let head = client.receive_head().await;
    assert!(head.contains("\r\nDate: "), "{head}");
    assert_eq!(
        undated(&head),
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 79\r\n\r\n"
    );
    assert_eq!(
        client.receive_until("\n").await,
        "There is nothing at this address.\n"
    );
    let id = client.receive_until("\n").await;
    assert!(id.strip_prefix("Request id: ").is_some_and(is_made_id));

    stage.table.number = 2;
    first(&mut stage.table).running = false;
    first(&mut stage.table).endpoints.clear();
    stage.manager.apply(&stage.table).await;
    client
        .send("HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await;
    assert_eq!(
        undated(&client.receive_head().await),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 89\r\nRetry-After: 1\r\n\r\n"
    );
    // The connection ends after a request whose body nobody has read.
    client
        .send_last("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    assert!(
        client
            .receive_rest()
            .await
            .contains("\r\nConnection: close\r\n")
    );
}
