//! HTTP/2 with independent clients: curl, h2load of nghttp2, and Node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::process::Signal;
use smoothserve_kit::node::{self, nothing_is_lost};
use smoothserve_kit::script::Script;
use smoothserve_kit::websocket;
use smoothserve_kit::{Home, Smoothserve, free_port, programs, write};
use tokio::process::Command;

const HOST: &str = "shop.example";

/// A smoothserve whose service `shop` has a port with TLS and one without.
struct Scene {
    server: Smoothserve,
    secure: u16,
    plain: u16,
    /// The file with all certificates that clients trust.
    authority: PathBuf,
}

/// Returns the lines of `shop.yaml` for the certificate in this folder.
fn shop_lines(pair: &Path, secure: u16) -> String {
    format!(
        "instance_count: 2\ntls: {{certificate: {}, port: {secure}}}\n",
        pair.display()
    )
}

impl Scene {
    async fn new() -> Scene {
        let home = Home::new();
        let (secure, plain) = (free_port(), free_port());
        let pairs = ["first", "second"].map(|name| home.path().join(name));
        let authority = home.path().join("authority.pem");
        let mut certificates = String::new();
        for pair in &pairs {
            fs::create_dir(pair).unwrap();
            certificates += &make_certificate(pair);
        }
        write(&authority, &certificates);
        home.add_shop("shop", plain, &shop_lines(&pairs[0], secure));
        let server = Smoothserve::start(programs!(), home).await;
        server.running("shop").await;
        Scene {
            server,
            secure,
            plain,
            authority,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.server.home.path().join(name)
    }

    /// Starts a Node client that sends requests until it is told to stop.
    async fn load(&self, mode: &str, more: &[&str]) -> Script {
        let port = match mode {
            "h2c" => self.plain,
            _ => self.secure,
        };
        node::load(mode, port, &self.authority, more).await
    }

    /// Runs curl over HTTP/2, or with the version that `more` asks for, and returns what it prints.
    async fn curl(&self, scheme: &str, target: &str, more: &[&str]) -> String {
        let (port, version) = match scheme {
            "https" => (self.secure, "--http2"),
            _ => (self.plain, "--http2-prior-knowledge"),
        };
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--noproxy", "*", version])
            .arg("--cacert")
            .arg(&self.authority)
            .arg("--resolve")
            .arg(format!("{HOST}:{port}:127.0.0.1"))
            .args(more)
            .arg(format!("{scheme}://{HOST}:{port}{target}"))
            .output()
            .await
            .unwrap();
        succeeded(&output)
    }
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a self-signed certificate in a folder, and returns it as PEM.
fn make_certificate(folder: &Path) -> String {
    let certificate = folder.join("fullchain.pem");
    let output = std::process::Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-newkey", "ec", "-days", "100"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=test"])
        .args(["-addext", &format!("subjectAltName=DNS:{HOST}")])
        .arg("-keyout")
        .arg(folder.join("privkey.pem"))
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    succeeded(&output);
    fs::read_to_string(certificate).unwrap()
}

#[tokio::test]
async fn curl_is_served_over_tls_and_over_plain_http2() {
    let scene = Scene::new().await;
    let bytes: Vec<u8> = (0..5_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 9) as u8)
        .collect();
    let (body, back) = (scene.path("body"), scene.path("back"));
    fs::write(&body, &bytes).unwrap();
    let (from, to) = (format!("@{}", body.display()), back.to_str().unwrap());
    for scheme in ["https", "http"] {
        let version = ["-w", "%{http_version}"];
        assert_eq!(scene.curl(scheme, "/hello", &version).await, "hello\n2");
        let head = scene.curl(scheme, "/hello", &["--head"]).await;
        assert!(head.starts_with("HTTP/2 200"), "{head}");
        let headers = scene.curl(scheme, "/headers", &[]).await.to_lowercase();
        for line in [
            format!("x-forwarded-proto: {scheme}\n"),
            format!("x-forwarded-host: {HOST}:"),
            format!("host: {HOST}:"),
        ] {
            assert!(headers.contains(&line), "{line}: {headers}");
        }
        for framing in ["X-Length: known", "Transfer-Encoding: chunked"] {
            let fields = ["-H", framing, "--data-binary", &from, "-o", to];
            scene.curl(scheme, "/echo", &fields).await;
            assert!(fs::read(&back).unwrap() == bytes, "{scheme}, {framing}");
        }
        let missing = ["-o", "/dev/null", "-w", "%{http_code}"];
        assert_eq!(scene.curl(scheme, "/nothing", &missing).await, "404");
    }
    // A client that does not offer HTTP/2 is served over HTTP/1.1.
    let old = ["--http1.1", "-w", "%{http_version}"];
    assert_eq!(scene.curl("https", "/hello", &old).await, "hello\n1.1");
    let old = ["--no-alpn", "-w", "%{http_version}"];
    assert_eq!(scene.curl("https", "/hello", &old).await, "hello\n1.1");
    scene.server.stop().await;
}

#[tokio::test]
async fn many_requests_share_few_connections() {
    let scene = Scene::new().await;
    let addresses = [
        format!("https://127.0.0.1:{}/hello", scene.secure),
        format!("http://127.0.0.1:{}/hello", scene.plain),
    ];
    for address in addresses {
        let output = Command::new("h2load")
            .args(["-n", "5000", "-c", "2", "-m", "100"])
            .args(["-H", &format!(":authority: {HOST}"), &address])
            .output()
            .await
            .expect("this test needs h2load of nghttp2-client");
        let said = succeeded(&output);
        let all = "5000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all), "{said}");
        assert!(said.contains("status codes: 5000 2xx"), "{said}");
    }
    scene.server.stop().await;
}

#[tokio::test]
async fn restarts_and_reloads_lose_no_request() {
    let scene = Scene::new().await;
    let before = scene.server.running("shop").await;
    let mut clients = Vec::new();
    for mode in ["h2", "h2c", "https"] {
        clients.push(scene.load(mode, &[]).await);
    }
    for _ in 0..2 {
        scene.server.ok(&["restart", "shop"]).await;
    }
    // This reload renews the certificate and replaces the instances.
    let second = shop_lines(&scene.path("second"), scene.secure);
    let lines = format!("{second}environment: {{NEW: 1}}\n");
    scene.server.home.write_shop("shop", scene.plain, &lines);
    scene.server.ok(&["reload"]).await;
    let after = scene.server.running("shop").await;
    assert!(after.pids().iter().all(|pid| !before.pids().contains(pid)));
    for client in clients {
        nothing_is_lost(client).await;
    }
    scene.server.stop().await;
}

#[tokio::test]
async fn the_end_of_smoothserve_loses_no_request() {
    let mut scene = Scene::new().await;
    let mut clients = Vec::new();
    for mode in ["h2", "h2c"] {
        clients.push(scene.load(mode, &["end"]).await);
    }
    scene.server.signal(Signal::TERM);
    for mut client in clients {
        assert_eq!(client.next().await, "served true false");
        client.ended().await;
    }
    assert!(scene.server.ended().await.success());
}

/// A WebSocket client by RFC 8441, written over Node's HTTP/2. It prints `open` once its first
/// message was echoed, keeps sending messages, and finally prints the code of the close frame.
const SOCKET: &str = r#"
const http2 = require('http2'), net = require('net'), crypto = require('crypto');
const port = process.argv[1];
const fail = (why) => { console.log('failed: ' + (why.stack || why)); process.exit(1); };
const session = http2.connect(`http://shop.example:${port}`, { createConnection: () => net.connect(port, '127.0.0.1') });
session.on('error', fail);
session.on('remoteSettings', (settings) => {
    if (!settings.enableConnectProtocol) fail('no extended CONNECT');
    const stream = session.request({
        ':method': 'CONNECT', ':protocol': 'websocket', ':path': '/talk', ':scheme': 'http',
        'sec-websocket-version': '13', origin: 'http://shop.example',
    }, { endStream: false });
    stream.on('error', fail);
    const send = (text) => {
        const mask = crypto.randomBytes(4), payload = Buffer.from(text);
        stream.write(Buffer.concat([Buffer.from([0x81, 0x80 | payload.length]), mask, payload.map((b, i) => b ^ mask[i % 4])]));
    };
    let number = 0, received = Buffer.alloc(0);
    stream.on('response', (head) => {
        if (head[':status'] !== 200) { console.log('status ' + head[':status']); process.exit(0); }
        send('0');
    });
    stream.on('data', (chunk) => {
        received = Buffer.concat([received, chunk]);
        while (received.length >= 2 && received.length >= 2 + received[1]) {
            const payload = received.subarray(2, 2 + received[1]), kind = received[0];
            received = received.subarray(2 + received[1]);
            if (kind === 0x88) { console.log('goodbye ' + payload.readUInt16BE()); process.exit(0); }
            if (payload.toString() !== String(number)) fail(payload.toString());
            if (number === 0) console.log('open');
            number += 1;
            setTimeout(() => send(String(number)), 5);
        }
    });
    stream.on('end', () => fail('ended without a goodbye'));
});
"#;

#[tokio::test]
async fn a_websocket_over_http2_gets_the_close_frame_of_its_instance() {
    let home = Home::new();
    let port = free_port();
    home.add_python("shop", port, websocket::SERVICE, "");
    // The instances of this service know no WebSockets.
    let plain = free_port();
    home.add_shop("plain", plain, "");
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    server.running("plain").await;
    let mut socket = Script::node(SOCKET, &[&port.to_string()]);
    assert_eq!(socket.next().await, "open");
    server
        .until("it is counted as a tunnel", |status| {
            let instances = &status.services["shop"].instances;
            instances.iter().any(|instance| instance.tunnels == 1)
        })
        .await;
    server.ok(&["restart", "shop"]).await;
    assert_eq!(socket.next().await, "goodbye 1001");
    let mut refused = Script::node(SOCKET, &[&plain.to_string()]);
    assert_eq!(refused.next().await, "status 404");
    server.stop().await;
}
