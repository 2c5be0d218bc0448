//! Tests of the client on which all loss tests rely: against the example service alone it loses
//! nothing, and it notices every way in which a request can be lost.

use std::net::SocketAddr;
use std::time::Duration;

use smoothserve_kit::load::{Kind, Load, Mix, Options, Report};
use smoothserve_kit::{Build, Start, example};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Starts the example service without smoothserve.
async fn shop(build: &Build) -> (Child, SocketAddr) {
    let port = smoothserve_kit::free_port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop");
    smoothserve_kit::install(&example("shop"), &file, build).unwrap();
    let mut child = Command::new(&file)
        .arg(format!("-port={port}"))
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).await.unwrap();
    assert!(line.contains("is ready"), "{line:?}");
    (child, SocketAddr::from(([127, 0, 0, 1], port)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_loses_nothing_without_a_proxy() {
    let (_child, address) = shop(&Build::starting("7.1", Start::Sick)).await;
    let load = Load::start(Options {
        pause: Duration::from_millis(10),
        ..Options::new(address)
    });
    load.see("7.1", Duration::from_secs(10)).await.unwrap();
    load.phase("more");
    load.go_on(3000).await;
    let report = load.stop().await;
    report.assert_nothing_lost();
    report.assert_seen(
        &[
            Kind::Small,
            Kind::Slow,
            Kind::Download,
            Kind::Upload,
            Kind::Fresh,
            Kind::Pipelined,
        ],
        2,
    );
    assert_eq!(report.last_version(), Some("7.1"));
    assert!(report.phase_named("more").latency(0.5) > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_loses_requests() {
    let (mut child, address) = shop(&Build::good("1")).await;
    let load = Load::start(Options {
        pause: Duration::from_millis(10),
        ..Options::new(address)
    });
    load.go_on(300).await;
    child.kill().await.unwrap();
    load.go_on(300).await;
    let report = load.stop().await;
    assert!(report.lost.iter().any(|lost| lost.reused && !lost.answered));
    assert!(
        report
            .lost
            .iter()
            .any(|lost| lost.fault.contains("refused"))
    );
}

/// Runs the load against a server that answers every request with the same bytes and closes the
/// connection.
async fn answering(response: &'static str, kind: Mix) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let name = request_name(&mut stream).await;
                let response = response.replace("{name}", &name);
                let _ = stream.write_all(response.as_bytes()).await;
            });
        }
    });
    let load = Load::start(Options {
        connections: 1,
        pause: Duration::from_millis(1),
        mix: kind,
        limit: Duration::from_secs(5),
        ..Options::new(address)
    });
    load.go_on(2).await;
    load.stop().await
}

async fn request_name(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let name = head
        .lines()
        .find_map(|line| line.strip_prefix("x-load-name: "));
    name.unwrap().to_owned()
}

#[tokio::test]
async fn valid_responses_do_not_count_as_lost() {
    let good = "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\nconnection: close\r\ncontent-length: 6\r\n\r\nhello\n";
    let report = answering(good, Mix::small()).await;
    report.assert_nothing_lost();
    assert!(report.reopened >= 2);
}

#[tokio::test]
async fn every_way_to_lose_a_request_counts_as_a_loss() {
    let cases = [
        ("", "closed before the response"),
        ("HTTP/1.1 200 OK\r\nx-req", "cut off"),
        (
            "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\ncontent-length: 6\r\n\r\nhel",
            "cut off: connection closed after 3 of 6 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello\n\r\n",
            "cut off",
        ),
        (
            "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\ncontent-length: 6\r\n\r\nhullo\n",
            "\"hullo\\n\", not \"hello\\n\"",
        ),
        (
            "HTTP/1.1 200 OK\r\nx-load-name: 0.0\r\ncontent-length: 6\r\n\r\nhello\n",
            "the response to request 0.0",
        ),
        (
            "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\nconnection: close\r\ncontent-length: 6\r\n\r\nhello\n+",
            "1 bytes after the last response",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nwait\n",
            "status 503: \"wait\\n\"",
        ),
        (
            "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\n\r\nhello\n",
            "not framed",
        ),
        ("hello\n", "malformed"),
    ];
    for (response, fault) in cases {
        let report = answering(response, Mix::small()).await;
        assert!(
            report.lost.iter().any(|lost| lost.fault.contains(fault)),
            "{response:?} should be lost by {fault:?}\n{report}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_under_an_idle_client_is_a_loss() {
    let silent = "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\ncontent-length: 6\r\n\r\nhello\n";
    let report = answering(silent, Mix::small()).await;
    assert!(report.lost.iter().all(|lost| lost.reused && !lost.answered));
    assert!(!report.lost.is_empty());
}

#[tokio::test]
async fn one_wrong_byte_in_a_download_is_a_loss() {
    let download = Mix {
        small: 0,
        download: 1,
        ..Mix::small()
    };
    let wrong = "HTTP/1.1 200 OK\r\nx-load-name: {name}\r\ncontent-length: 20971520\r\n\r\nhello\n";
    let report = answering(wrong, download).await;
    let lost = &report.lost[0];
    assert!(
        lost.answered && lost.fault.contains("of the body differs"),
        "{report}"
    );
}
