//! Fields by which proxies tell instances who the client is and what it has asked for: what becomes
//! of each, as docs/http.md says it.

use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

use crate::frames::{Client, HEADERS, WHOLE, block, frame};
use crate::peers::{Peer, Stage, is_made_id, undated};

/// A field of the table, and what becomes of it if a stranger or a trusted proxy sends it.
struct Row {
    name: String,
    from_stranger: String,
    from_trusted: String,
}

/// Reads the table below a heading of docs/http.md. A `*` in a name stands for any letters.
fn table(heading: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http.md"));
    let text = text.unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let lines = section.lines().skip_while(|line| !line.starts_with('|'));
    let lines = lines.take_while(|line| line.starts_with('|')).skip(2);
    let rows = lines.flat_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, from_stranger, from_trusted, _] = cells[..] else {
            panic!("expected a row of four cells: {line}");
        };
        let names = names.split('`').skip(1).step_by(2);
        names.map(move |name| Row {
            name: name.replace('*', "Any"),
            from_stranger: from_stranger.to_owned(),
            from_trusted: from_trusted.to_owned(),
        })
    });
    rows.collect()
}

/// Connects to the worker from one of the addresses of this machine.
async fn connect(stage: &Stage, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(stage.address).await.unwrap()
}

const STRANGER: [u8; 4] = [127, 0, 0, 1];
const TRUSTED: [u8; 4] = [127, 0, 0, 2];

const DONE: &str = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

async fn stage() -> Stage {
    Stage::trusting(1, vec!["127.0.0.2/32".parse().unwrap()]).await
}

/// Sends a request with these fields over HTTP/1.1 and over HTTP/2, and returns the two heads that
/// the instance gets.
async fn sent(stage: &mut Stage, from: [u8; 4], fields: &[(String, String)]) -> [String; 2] {
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let mut client = Peer::new(connect(stage, from).await);
    client
        .send(format!("GET /1 HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n"))
        .await;
    let mut instance = stage.accept().await;
    let first = instance.receive_until("\r\n\r\n").await;
    instance.send(DONE).await;

    let names: Vec<String> = fields.iter().map(|(name, _)| name.to_lowercase()).collect();
    let pseudo = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/2"),
        (":authority", "a.example"),
    ];
    let own = names
        .iter()
        .zip(fields)
        .map(|(name, (_, value))| (&**name, &**value));
    let all: Vec<(&str, &str)> = pseudo.into_iter().chain(own).collect();
    let mut client = Client::over(connect(stage, from).await, &[]).await;
    client.send(&frame(HEADERS, WHOLE, 1, &block(&all))).await;
    let mut instance = stage.accept().await;
    let second = instance.receive_until("\r\n\r\n").await;
    instance.send(DONE).await;
    assert!(first.starts_with("GET /1 ") && second.starts_with("GET /2 "));
    [first, second]
}

/// Reads the next head, and takes the id of the request out of it.
async fn take_id(instance: &mut Peer) -> String {
    let head = instance.receive_until("\r\n\r\n").await;
    match values(&head, "X-Request-Id")[..] {
        [id] => id.to_owned(),
        _ => panic!("expected one id: {head}"),
    }
}

/// A person finds a request again by its id, and nobody else can choose it.
#[tokio::test]
async fn each_request_has_an_id_that_no_stranger_chooses() {
    let mut stage = stage().await;
    let mut seen = std::collections::BTreeSet::new();
    for (from, sent, kept) in [
        (STRANGER, "", false),
        (STRANGER, "X-Request-Id: mine-1\r\n", false),
        (TRUSTED, "X-Request-Id: mine-1\r\n", true),
        (TRUSTED, "X-Request-Id: mine 1\r\n", false),
        (TRUSTED, "X_Request_Id: mine-1\r\n", false),
    ] {
        let mut client = Peer::new(connect(&stage, from).await);
        let request = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{sent}\r\n");
        client.send(&request).await;
        let mut instance = stage.accept().await;
        let id = take_id(&mut instance).await;
        match kept {
            true => assert_eq!(id, "mine-1"),
            false => assert!(is_made_id(&id) && seen.insert(id.clone()), "{sent}: {id}"),
        }
        // The instance answers with something that is no response.
        instance.send("nonsense\r\n\r\n").await;
        let answer = client.receive_until("\nRequest id: ").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(client.receive_until("\n").await, format!("{id}\n"));
    }
}

/// Returns the values of a field in a head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let found = fields.filter(|(found, _)| found.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value).collect()
}

/// Returns what smoothserve itself says in a field.
fn own(name: &str, from: [u8; 4]) -> String {
    match name {
        "X-Forwarded-For" => std::net::Ipv4Addr::from(from).to_string(),
        "X-Forwarded-Proto" => "http".to_owned(),
        "X-Forwarded-Host" => "a.example".to_owned(),
        "X-Request-Id" => "(made)".to_owned(),
        _ => panic!("smoothserve says nothing in {name}"),
    }
}

#[tokio::test]
async fn each_field_about_the_client_is_handled_as_the_table_says() {
    let mut stage = stage().await;
    let rows = table("Fields about the client");
    assert!(rows.len() > 50, "{} fields", rows.len());
    let claim = |row: &Row| match &*row.name {
        "X-Forwarded-Proto" => "https".to_owned(),
        name => format!("claim-{}", name.to_lowercase()),
    };
    // A head has at most 100 fields.
    for rows in rows.chunks(60) {
        let fields: Vec<_> = rows
            .iter()
            .map(|row| (row.name.clone(), claim(row)))
            .collect();
        for from in [STRANGER, TRUSTED] {
            for head in sent(&mut stage, from, &fields).await {
                for row in rows {
                    let decision = match from {
                        STRANGER => &row.from_stranger,
                        _ => &row.from_trusted,
                    };
                    let expected = match &**decision {
                        "removed" => vec![],
                        "replaced" => vec![own(&row.name, from)],
                        "passed on" => vec![claim(row)],
                        "extended" => vec![format!("{}, {}", claim(row), own(&row.name, from))],
                        other => panic!("{}: what is {other:?}?", row.name),
                    };
                    let mut values = values(&head, &row.name);
                    if let Some(value) = values.first_mut().filter(|value| is_made_id(value)) {
                        *value = "(made)";
                    }
                    assert_eq!(values, expected, "{}\n{head}", row.name);
                }
            }
        }
    }
}

/// Programs read `X_Client_IP` and `X.Client.IP` as `X-Client-IP`, so no sender gets them through.
#[tokio::test]
async fn no_field_about_the_client_passes_in_disguise() {
    let mut stage = stage().await;
    let rows = table("Fields about the client");
    for (mark, first_only) in [("_", false), ("_", true), (".", false)] {
        let disguised = rows.iter().filter(|row| row.name.contains('-')).map(|row| {
            let name = match first_only {
                true => row.name.replacen('-', mark, 1),
                false => row.name.replace('-', mark),
            };
            (name, "claim".to_owned())
        });
        let disguised: Vec<_> = disguised.collect();
        for fields in disguised.chunks(60) {
            for from in [STRANGER, TRUSTED] {
                for head in sent(&mut stage, from, fields).await {
                    assert!(!head.contains("claim"), "{head}");
                }
            }
        }
    }
}

/// A client cannot take away what smoothserve says, or what a trusted proxy has said.
#[tokio::test]
async fn the_connection_field_takes_no_field_about_the_client_away() {
    let mut stage = stage().await;
    let mut client = Peer::new(connect(&stage, TRUSTED).await);
    client
        .send(
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-Real-IP: 1.1.1.1\r\nConnection: x-real-ip, x-forwarded-for, \
             x-http-method-override\r\nX-HTTP-Method-Override: PATCH\r\n\r\n",
        )
        .await;
    let head = stage.accept().await.receive_head().await;
    assert_eq!(values(&head, "x-real-ip"), ["1.1.1.1"]);
    assert_eq!(values(&head, "x-forwarded-for"), ["127.0.0.2"]);
    assert_eq!(values(&head, "x-http-method-override"), ["PATCH"]);
}

/// An instance tells a proxy that understands it which file to send. Nobody else learns its name.
#[tokio::test]
async fn only_trusted_proxies_get_fields_about_internal_files() {
    let mut stage = stage().await;
    for (from, expected) in [(STRANGER, false), (TRUSTED, true)] {
        let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let mut client = Peer::new(connect(&stage, from).await);
        client.send(request).await;
        let mut instance = stage.accept().await;
        instance.receive_head().await;
        let secret =
            "X-Accel-Redirect: /secret\r\nx-accel-buffering: no\r\nX-Sendfile: /srv/secret\r\n";
        let rest = "Content-Type: a\r\nContent-Length: 0\r\n\r\n";
        instance
            .send(format!("HTTP/1.1 200 OK\r\n{secret}{rest}"))
            .await;
        let secret = if expected { secret } else { "" };
        let head = undated(&client.receive_head().await);
        let rest = "Content-Type: a\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(head, format!("HTTP/1.1 200 OK\r\n{secret}{rest}"));
    }
}

/// A request that an instance takes for a POST must not be sent twice, although it says GET.
#[tokio::test]
async fn a_request_with_another_method_in_a_field_is_sent_only_once() {
    let mut stage = Stage::new(1).await;
    for (field, repeated) in [
        ("X-HTTP-Method-Override: POST", false),
        ("x-method-override: post", false),
        ("X-HTTP-Method: PATCH", false),
        ("X-HTTP: POST", true),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{field}\r\n\r\n");
        let mut client = stage.send(request).await;
        let mut instance = stage.accept().await;
        let first = instance.receive_head().await;
        assert!(first.contains(field), "{first}");
        instance.reset();
        if repeated {
            assert_eq!(stage.accept().await.receive_head().await, first);
        } else {
            let head = client.receive_head().await;
            assert!(head.starts_with("HTTP/1.1 502 "), "{field}: {head}");
        }
    }
}
