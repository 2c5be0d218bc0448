//! A load balancer in front of the worker, which tells by the PROXY protocol whose connections it
//! passes on.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use smoothserve::ipc::{ListenerId, Route};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::kit::{self, listen};
use crate::peers::{Peer, Stage, undated};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// Starts a worker that trusts this network and whose listener speaks the PROXY protocol.
async fn stage(trusted: &str) -> Stage {
    let mut stage = Stage::trusting(1, vec![trusted.parse().unwrap()]).await;
    stage.table.number += 1;
    stage.table.listeners[0].proxy_protocol = true;
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    stage
}

/// Takes a request at the instance, answers it, and returns the client address that the instance
/// was told.
async fn serve(stage: &mut Stage) -> String {
    let mut instance = stage.accept().await;
    let head = instance.receive_head().await;
    instance.send(RESPONSE).await;
    let mut lines = head.lines();
    let told = lines.find_map(|line| line.strip_prefix("X-Forwarded-For: "));
    told.unwrap().to_owned()
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_of_its_connection() {
    let mut stage = stage("127.0.0.0/8").await;
    let v2 = |family: u8, rest: &[u8]| {
        let fixed = [0x21, family, 0, rest.len() as u8];
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &fixed, rest].concat()
    };
    let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 20]].concat();
    let cases = [
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n".to_vec(),
            "192.0.2.1",
        ),
        (
            b"PROXY TCP6 2001:db8::1 ::1 5000 80\r\n".to_vec(),
            "2001:db8::1",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (
            v2(0x11, &[192, 0, 2, 1, 0, 0, 0, 0, 1, 2, 0, 80]),
            "192.0.2.1",
        ),
        (v2(0x21, &six), "2001:db8::1"),
        (v2(0x00, &[]), "127.0.0.1"),
    ];
    for (header, told) in cases {
        let whole = [&header, REQUEST.as_bytes()].concat();
        // The bytes come in two pieces, split in the middle of the header and at its end, and in
        // one.
        for cut in [header.len() / 2, header.len(), whole.len()] {
            let mut client = stage.send(&whole[..cut]).await;
            client.send(&whole[cut..]).await;
            assert_eq!(serve(&mut stage).await, told);
            assert!(client.receive_rest().await.ends_with("\r\n\r\nhello"));
        }
    }
}

/// A balancer that passes on a client without its address is not the client. Only a balancer that
/// speaks for itself may say who its client is.
#[tokio::test]
async fn only_local_is_the_balancer_speaking_for_itself() {
    let mut stage = stage("127.0.0.0/8").await;
    let v2 = |command: u8, family: u8, rest: &[u8]| {
        let length = (rest.len() as u16).to_be_bytes();
        let fixed = [&[command, family][..], &length].concat();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &fixed, rest].concat()
    };
    let four = [192, 0, 2, 1, 0, 0, 0, 0, 1, 2, 0, 80];
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    for (header, told) in [
        (v2(0x20, 0x00, &[]), "6.6.6.6, 127.0.0.1"),
        (v2(0x20, 0x11, &four), "6.6.6.6, 127.0.0.1"),
        (v2(0x20, 0x31, &[1; 216]), "6.6.6.6, 127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (b"PROXY UNKNOWN ::1 ::1 1 2\r\n".to_vec(), "127.0.0.1"),
        (v2(0x21, 0x00, &[]), "127.0.0.1"),
        (v2(0x21, 0x31, &[1; 216]), "127.0.0.1"),
        (v2(0x21, 0x32, &[1; 216]), "127.0.0.1"),
        (v2(0x21, 0x11, &four), "192.0.2.1"),
        (v2(0x21, 0x12, &four), "192.0.2.1"),
        // 64 KiB of additions.
        (
            v2(
                0x21,
                0x11,
                &[&four[..], &[4, 0xff, 0xf0], &[7; 0xfff0]].concat(),
            ),
            "192.0.2.1",
        ),
        (v2(0x20, 0x00, &[7; 0xffff]), "6.6.6.6, 127.0.0.1"),
    ] {
        let mut client = stage.send([&header, request.as_bytes()].concat()).await;
        let begin = &header[..header.len().min(20)];
        assert_eq!(serve(&mut stage).await, told, "{}", begin.escape_ascii());
        assert!(client.receive_rest().await.ends_with("\r\n\r\nhello"));
    }
}

/// The balancer is trusted, but the client behind it is not.
#[tokio::test]
async fn forwarding_fields_from_the_client_of_a_trusted_proxy_are_ignored() {
    let mut stage = stage("127.0.0.0/8").await;
    let _client = stage
        .send(
            "PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n\
             GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
        )
        .await;
    assert_eq!(serve(&mut stage).await, "192.0.2.1");
}

#[tokio::test]
async fn connections_without_a_valid_proxy_header_are_closed() {
    let stage = stage("127.0.0.0/8").await;
    for begin in [
        REQUEST,
        "PROXY TCP4 192.0.2.1 192.0.2.2 5000 80x\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        // A checksum that is wrong.
        "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x01\x02\x03\x04\x01\x02\x03\x04\0\x01\0\x02\x03\0\x04abcd\
         GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ] {
        let (received, _) = stage.send(begin).await.receive_all().await;
        assert_eq!(received, "", "{begin:?}");
    }
}

#[tokio::test]
async fn a_proxy_header_from_an_untrusted_peer_closes_the_connection() {
    let stage = stage("192.0.2.0/24").await;
    let header = "PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n";
    let mut client = stage.send(format!("{header}{REQUEST}")).await;
    assert_eq!(client.receive_all().await.0, "");
}

/// On a listener without the PROXY protocol, its header is an invalid request.
#[tokio::test]
async fn a_proxy_header_on_a_listener_without_the_protocol_is_refused() {
    let stage = Stage::trusting(1, vec!["127.0.0.0/8".parse().unwrap()]).await;
    let header = "PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n";
    let mut client = stage.send(format!("{header}{REQUEST}")).await;
    let response = client.receive_rest().await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[tokio::test]
async fn the_proxy_header_of_curl_is_understood() {
    let mut stage = stage("127.0.0.0/8").await;
    let curl = Command::new("curl")
        .args(["--silent", "--max-time", "20", "--haproxy-protocol"])
        .args(["--header", "Host: a.example"])
        .arg(format!("http://{}/", stage.address))
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs curl, see scripts/install-needs");
    assert_eq!(serve(&mut stage).await, "127.0.0.1");
    let output = tokio::task::spawn_blocking(|| curl.wait_with_output());
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"hello");
}

/// HAProxy, which passes connections on to one address.
struct Balancer {
    process: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Balancer {
    fn start(target: SocketAddr, option: &str) -> Balancer {
        Balancer::start_with(target, option, "")
    }

    /// Starts HAProxy with more lines in the section of its listener.
    fn start_with(target: SocketAddr, option: &str, lines: &str) -> Balancer {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("haproxy.cfg");
        let text = format!(
            "global\n maxconn 100\ndefaults\n mode tcp\n timeout connect 10s\n timeout client 20s\n timeout server 20s\n\
             listen front\n bind fd@0\n bind unix@{}\n{lines} server back {target} {option}\n",
            directory.path().join("socket").display()
        );
        std::fs::write(&file, text).unwrap();
        let process = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .spawn()
            .expect("this test needs HAProxy, see scripts/install-needs");
        Balancer {
            process,
            address,
            directory,
        }
    }

    /// Connects to HAProxy as a client with this address.
    async fn connect(&self, from: [u8; 4]) -> Peer {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        Peer::new(socket.connect(self.address).await.unwrap())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn the_proxy_headers_of_haproxy_are_understood() {
    for option in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options unique-id,crc32c",
    ] {
        let mut stage = stage("127.0.0.1/32").await;
        let balancer = Balancer::start(stage.address, option);
        let mut client = balancer.connect([127, 0, 0, 2]).await;
        client.send(REQUEST).await;
        assert_eq!(serve(&mut stage).await, "127.0.0.2", "{option}");
        let response = client.receive_rest().await;
        assert!(response.ends_with("\r\n\r\nhello"), "{response}");
    }
}

/// A client of HAProxy that has no IP address, and HAProxy itself when it checks the health. In
/// version 2, HAProxy says LOCAL for both, so there nobody can tell them apart.
#[tokio::test]
async fn haproxy_speaks_for_itself_only_if_it_says_so() {
    for (option, told) in [
        ("send-proxy", "127.0.0.1"),
        ("send-proxy-v2", "6.6.6.6, 127.0.0.1"),
    ] {
        let mut stage = stage("127.0.0.1/32").await;
        let balancer = Balancer::start(stage.address, option);
        // HAProxy listens on all its sockets as soon as it serves one of them.
        let mut first = balancer.connect([127, 0, 0, 2]).await;
        first.send(REQUEST).await;
        assert_eq!(serve(&mut stage).await, "127.0.0.2", "{option}");
        let path = balancer.directory.path().join("socket");
        let mut client = tokio::net::UnixStream::connect(path).await.unwrap();
        let claim = "\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
        let request = REQUEST.replace("\r\n\r\n", claim);
        client.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(serve(&mut stage).await, told, "{option}");
    }
    let mut stage = stage("127.0.0.1/32").await;
    let check = " option httpchk\n http-check send meth GET uri /health ver HTTP/1.1 hdr Host a.example \
        hdr X-Forwarded-For 6.6.6.6\n";
    let option = "send-proxy-v2 check-send-proxy check inter 1s";
    let _balancer = Balancer::start_with(stage.address, option, check);
    assert_eq!(serve(&mut stage).await, "6.6.6.6, 127.0.0.1");
}

#[tokio::test]
async fn forwarded_is_set_when_it_is_configured() {
    let mut stage = Stage::trusting(1, vec!["127.0.0.2/32".parse().unwrap()]).await;
    stage.table.number += 1;
    stage.table.forwarded = true;
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    let ours = "for=127.0.0.1;host=\"a.example\";proto=http";
    let theirs = "Forwarded: for=\"[2001:db8::1]\";proto=https";
    let request = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{theirs}\r\n\r\n");
    let _client = stage.send(&request).await;
    let mut instance = stage.accept().await;
    let head = instance.receive_head().await;
    assert!(
        head.contains(&format!("\r\nForwarded: {ours}\r\n")),
        "{head}"
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut trusted = Peer::new(socket.connect(stage.address).await.unwrap());
    trusted.send(&request).await;
    let ours = ours.replace("127.0.0.1", "127.0.0.2");
    let head = stage.accept().await.receive_head().await;
    assert!(
        head.contains(&format!("\r\n{theirs}, {ours}\r\n")),
        "{head}"
    );
}

#[tokio::test]
async fn connections_above_the_limit_wait_until_one_ends() {
    let mut stage = Stage::new(1).await;
    stage.table.number += 1;
    stage.table.max_connections = Some(2);
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut first = stage.send(request("/first")).await;
    let mut one = stage.accept().await;
    assert!(one.receive_head().await.starts_with("GET /first "));
    let mut second = stage.send(request("/second")).await;
    let mut another = stage.accept().await;
    assert!(another.receive_head().await.starts_with("GET /second "));
    let mut third = stage.send(request("/third")).await;
    // Each listener has a limit of its own.
    let (socket, address) = listen();
    stage.manager.send_listener(2, &socket).await;
    stage.table.number += 1;
    let mut other = stage.table.listeners[0].clone();
    (other.id, other.address) = (ListenerId(2), address);
    stage.table.listeners.push(other);
    let routes = stage.table.services[0].routes.clone();
    kit::first(&mut stage.table)
        .routes
        .extend(routes.into_iter().map(|route| Route {
            listener: ListenerId(2),
            ..route
        }));
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    let mut other = Peer::new(TcpStream::connect(address).await.unwrap());
    other.send(request("/other")).await;
    let mut elsewhere = stage.accept().await;
    assert!(elsewhere.receive_head().await.starts_with("GET /other "));
    elsewhere.send(answer).await;
    other.receive_head().await;
    one.send(answer).await;
    first.receive_head().await;
    drop(first);
    assert!(one.receive_head().await.starts_with("GET /third "));
    one.send(answer).await;
    assert_eq!(undated(&third.receive_head().await), answer);
    another.send(answer).await;
    assert_eq!(undated(&second.receive_head().await), answer);
}
