//! TLS with independent clients: curl, openssl, Python.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use smoothserve_kit::{Home, Smoothserve, free_port, programs, write};

/// Runs a program that must succeed, and returns what it prints.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder with a self-signed certificate and its key, as `fullchain.pem` and `privkey.pem`.
struct Pair(PathBuf);

impl Pair {
    #[track_caller]
    fn new(home: &Home, folder: &str, names: &str) -> Pair {
        let pair = Pair(home.path().join(folder));
        fs::create_dir_all(&pair.0).unwrap();
        pair.renew(names, &["-days", "100"]);
        pair
    }

    /// Writes a new certificate and a new key.
    #[track_caller]
    fn renew(&self, names: &str, more: &[&str]) {
        let names = format!("subjectAltName={names}");
        let (key, certificate) = (self.key(), self.certificate());
        let arguments = [
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-subj",
            "/CN=test",
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-addext",
            &names,
        ];
        run("openssl", &[&arguments, more].concat());
    }

    fn certificate(&self) -> String {
        self.0.join("fullchain.pem").to_str().unwrap().to_owned()
    }

    fn key(&self) -> String {
        self.0.join("privkey.pem").to_str().unwrap().to_owned()
    }

    fn folder(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Returns the certificate's fingerprint as `openssl` prints it, on one line.
    fn fingerprint(&self) -> String {
        let certificate = self.certificate();
        run(
            "openssl",
            &["x509", "-noout", "-fingerprint", "-in", &certificate],
        )
    }
}

/// Runs curl, which finds the host on this machine and trusts this certificate alone.
#[track_caller]
fn curl(pair: &Pair, host: &str, port: u16, target: &str, more: &[&str]) -> String {
    let resolve = format!("{host}:{port}:127.0.0.1");
    let url = format!("https://{host}:{port}{target}");
    let certificate = pair.certificate();
    let arguments = [
        "-sS",
        "--max-time",
        "20",
        "--noproxy",
        "*",
        "--cacert",
        &certificate,
        "--resolve",
        &resolve,
        &url,
    ];
    run("curl", &[&arguments, more].concat())
}

/// Returns the fingerprint of the certificate that the server presents for this name, or without
/// one.
#[track_caller]
fn given(port: u16, name: Option<&str>) -> String {
    let name = match name {
        Some(name) => format!("-servername {name}"),
        None => "-noservername".to_owned(),
    };
    let line = format!(
        "openssl s_client -connect 127.0.0.1:{port} {name} </dev/null 2>/dev/null | openssl x509 -noout -fingerprint"
    );
    run("sh", &["-c", &line])
}

struct Scene {
    server: Smoothserve,
    pair: Pair,
    port: u16,
    plain: u16,
}

impl Scene {
    async fn new() -> Scene {
        let home = Home::new();
        let (port, plain) = (free_port(), free_port());
        let pair = Pair::new(&home, "pair", "DNS:shop.example,DNS:*.shop.example");
        home.add_shop("shop", plain, &tls(&pair, port));
        let server = Smoothserve::start(programs!(), home).await;
        server.running("shop").await;
        Scene {
            server,
            pair,
            port,
            plain,
        }
    }

    fn curl(&self, target: &str, more: &[&str]) -> String {
        curl(&self.pair, "shop.example", self.port, target, more)
    }

    fn home(&self) -> &Home {
        &self.server.home
    }
}

fn tls(pair: &Pair, port: u16) -> String {
    format!("tls: {{certificate: {}, port: {port}}}\n", pair.folder())
}

#[tokio::test]
async fn requests_over_tls_1_2_and_tls_1_3_are_served() {
    let scene = Scene::new().await;
    for version in ["1.2", "1.3"] {
        let limits = [&format!("--tlsv{version}"), "--tls-max", version];
        assert_eq!(scene.curl("/hello", &limits), "hello\n", "{version}");
    }
    let headers = scene.curl("/headers", &[]).to_lowercase();
    assert!(headers.contains("x-forwarded-proto: https"), "{headers}");
    let resolve = format!("shop.example:{}:127.0.0.1", scene.plain);
    let url = format!("http://shop.example:{}/headers", scene.plain);
    let headers = run(
        "curl",
        &["-sS", "--noproxy", "*", "--resolve", &resolve, &url],
    )
    .to_lowercase();
    assert!(headers.contains("x-forwarded-proto: http\n"), "{headers}");
    scene.server.stop().await;
}

#[tokio::test]
async fn a_request_without_tls_is_told_that_the_port_is_for_tls() {
    let scene = Scene::new().await;
    let url = format!("http://127.0.0.1:{}/hello", scene.port);
    let shown = ["-w", " %{http_code}"];
    let told = run(
        "curl",
        &[&["-sS", "--noproxy", "*", &url], &shown[..]].concat(),
    );
    assert_eq!(
        told,
        "This port is for HTTPS. Use https:// in the address.\n 400"
    );
    scene.server.stop().await;
}

/// Clients learn which of their protocols is spoken, or that none is.
#[tokio::test]
async fn protocols_are_agreed_on_or_refused_with_an_alert() {
    let scene = Scene::new().await;
    let port = scene.port;
    for (offered, said) in [
        ("h2,http/1.1", "ALPN protocol: h2"),
        ("http/1.1", "ALPN protocol: http/1.1"),
        ("http/1.0", "ALPN protocol: http/1.0"),
        ("foo,spdy/3", "alert number 120"),
    ] {
        let line = format!(
            "openssl s_client -connect 127.0.0.1:{port} -alpn {offered} </dev/null 2>&1 || true"
        );
        let printed = run("sh", &["-c", &line]);
        assert!(printed.contains(said), "{offered}: {printed}");
    }
    scene.server.stop().await;
}

/// Names that are no usual host names do not fail the handshake.
#[tokio::test]
async fn odd_server_names_get_the_default_certificate() {
    let scene = Scene::new().await;
    let expected = scene.pair.fingerprint();
    for name in ["shop_1.example", "shop.example.", "127.0.0.1", "localhost"] {
        assert_eq!(given(scene.port, Some(name)), expected, "{name}");
    }
    scene.server.stop().await;
}

#[tokio::test]
async fn the_proxy_protocol_header_comes_before_the_handshake() {
    let home = Home::new();
    let (port, plain) = (free_port(), free_port());
    let pair = Pair::new(&home, "pair", "DNS:shop.example");
    let lines = format!("{}proxy_protocol: true\n", tls(&pair, port));
    home.add_shop("shop", plain, &lines);
    write(
        &home.config().join("smoothserve.yaml"),
        "default_user: nobody\ntrusted_proxies: 127.0.0.1\nforwarded: true\n",
    );
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let header = ["--haproxy-protocol"];
    let headers = curl(&pair, "shop.example", port, "/headers", &header).to_lowercase();
    assert!(headers.contains("x-forwarded-proto: https"), "{headers}");
    let element = "forwarded: for=127.0.0.1;host=\"shop.example";
    assert!(headers.contains(element), "{headers}");
    assert!(headers.contains(";proto=https"), "{headers}");
    server.stop().await;
}

#[tokio::test]
async fn large_bodies_pass_unchanged_in_both_directions() {
    let scene = Scene::new().await;
    let body = scene.home().path().join("body");
    let bytes: Vec<u8> = (0..5_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    fs::write(&body, &bytes).unwrap();
    let back = scene.home().path().join("back");
    let (from, to) = (format!("@{}", body.display()), back.to_str().unwrap());
    for framing in ["X-Length: known", "Transfer-Encoding: chunked"] {
        let fields = ["-H", "Expect:", "-H", framing];
        let arguments = [&fields[..], &["--data-binary", &from, "-o", to]].concat();
        scene.curl("/echo", &arguments);
        assert!(fs::read(&back).unwrap() == bytes, "{framing}");
        fs::remove_file(&back).unwrap();
    }
    scene.server.stop().await;
}

#[tokio::test]
async fn the_server_name_of_a_client_selects_the_certificate() {
    let home = Home::new();
    let port = free_port();
    let exact = Pair::new(&home, "exact", "DNS:a.first.example");
    let wide = Pair::new(&home, "wide", "DNS:*.first.example");
    let default = Pair::new(&home, "default", "DNS:other.example");
    for (name, host, pair) in [
        ("one", "a.first.example", &exact),
        ("three", "b.first.example", &wide),
        ("two", "_", &default),
    ] {
        home.app(name).replace(&smoothserve_kit::Build::good(name));
        let lines = tls(pair, port);
        let yaml = format!(
            "name: {name}\nserver_name: {host}\nexecutable_path: ../../apps/{name}/shop\n{lines}"
        );
        home.write_service(name, &yaml);
    }
    let server = Smoothserve::start(programs!(), home).await;
    for name in ["one", "two", "three"] {
        server.running(name).await;
    }
    for (name, pair) in [
        (Some("a.first.example"), &exact),
        (Some("A.FIRST.example"), &exact),
        (Some("b.first.example"), &wide),
        (Some("a.b.first.example"), &default),
        (Some("first.example"), &default),
        (None, &default),
    ] {
        assert_eq!(given(port, name), pair.fingerprint(), "{name:?}");
    }
    assert_eq!(
        curl(&wide, "b.first.example", port, "/hello", &[]),
        "hello\n"
    );
    server.stop().await;
}

#[tokio::test]
async fn every_thread_resumes_sessions() {
    let scene = Scene::new().await;
    let session = scene.home().path().join("session");
    let session = session.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let connect = |flag: &str| {
            // TLS 1.3 sends its session tickets together with the first response.
            let line = format!(
                "(printf 'GET /hello HTTP/1.1\\r\\nHost: shop.example\\r\\nConnection: close\\r\\n\\r\\n'; sleep 1) \
                 | openssl s_client -connect 127.0.0.1:{} -servername shop.example {version} -ign_eof {flag} {session} 2>/dev/null",
                scene.port
            );
            run("sh", &["-c", &line])
        };
        let first = connect("-sess_out");
        assert!(first.contains("\nNew, TLS"), "{first}");
        for _ in 0..4 {
            let again = connect("-sess_in");
            assert!(again.contains("\nReused, TLS"), "{version}: {again}");
            assert!(again.contains("hello\n"), "{again}");
        }
    }
    scene.server.stop().await;
}

/// A Python client that sends two requests over one connection, the second one when it is told to.
const KEEP_ALIVE: &str = r#"
import http.client, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.check_hostname = False
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[2]), context=context, timeout=20)
for turn in range(2):
    connection.request("GET", "/hello", headers={"Host": "shop.example"})
    response = connection.getresponse()
    print(response.status, response.read().decode().strip(), id(connection.sock), flush=True)
    if turn == 0:
        sys.stdin.readline()
"#;

#[tokio::test]
async fn open_connections_survive_the_renewal_of_a_certificate() {
    let scene = Scene::new().await;
    let before = scene.server.running("shop").await;
    let mut python = Command::new("python3")
        .args([
            "-c",
            KEEP_ALIVE,
            &scene.pair.certificate(),
            &scene.port.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(python.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("200 hello"), "{first}");
    let old = given(scene.port, Some("shop.example"));
    scene.pair.renew("DNS:shop.example", &["-days", "200"]);
    scene.server.ok(&["reload"]).await;
    let new = given(scene.port, Some("shop.example"));
    assert_ne!(new, old);
    assert_eq!(new, scene.pair.fingerprint());
    writeln!(python.stdin.take().unwrap()).unwrap();
    // The client has the same local port as before: its connection stayed open.
    assert_eq!(lines.next().unwrap().unwrap(), first);
    assert!(python.wait().unwrap().success());
    let after = scene.server.running("shop").await;
    assert_eq!(after.pids(), before.pids());
    scene.server.stop().await;
}

#[tokio::test]
async fn a_disabled_service_that_a_command_starts_has_its_certificate() {
    let home = Home::new();
    let (port, plain) = (free_port(), free_port());
    let pair = Pair::new(&home, "pair", "DNS:shop.example");
    let lines = format!("enabled: false\n{}", tls(&pair, port));
    home.add_shop("shop", plain, &lines);
    let server = Smoothserve::start(programs!(), home).await;
    server.ok(&["start", "shop"]).await;
    let answer = curl(&pair, "shop.example", port, "/hello", &[]);
    assert_eq!(answer, "hello\n");
    server.stop().await;
}

/// The files are symlinks to the newest of several certificates, as certbot makes them.
#[tokio::test]
async fn changed_certificate_files_are_loaded_automatically() {
    let home = Home::new();
    let (port, plain) = (free_port(), free_port());
    let names = "DNS:shop.example";
    let (old, new) = (Pair::new(&home, "1", names), Pair::new(&home, "2", names));
    let live = Pair(home.path().join("live"));
    fs::create_dir(&live.0).unwrap();
    let links = [
        (old.certificate(), new.certificate(), live.certificate()),
        (old.key(), new.key(), live.key()),
    ];
    for (old, _, link) in &links {
        symlink(old, link).unwrap();
    }
    home.add_shop("shop", plain, &tls(&live, port));
    let server = Smoothserve::start(programs!(), home).await;
    let before = server.running("shop").await;
    assert_eq!(given(port, Some("shop.example")), old.fingerprint());
    let next = server.home.path().join("next");
    for (_, new, link) in &links {
        symlink(new, &next).unwrap();
        fs::rename(&next, link).unwrap();
    }
    server.says("certificate renewed").await;
    // The worker takes the new certificate a moment after the manager has logged it.
    while given(port, Some("shop.example")) != new.fingerprint() {}
    fs::write(new.key(), "no key\n").unwrap();
    server.says("changed certificate not taken").await;
    assert_eq!(given(port, Some("shop.example")), new.fingerprint());
    let after = server.running("shop").await;
    assert_eq!(after.pids(), before.pids());
    server.stop().await;
}

#[tokio::test]
async fn requests_without_tls_are_redirected_and_answers_over_tls_carry_hsts() {
    let home = Home::new();
    let (port, plain) = (free_port(), free_port());
    let pair = Pair::new(&home, "pair", "DNS:shop.example");
    let lines = format!("{}redirect_https: true\nhsts: 365d\n", tls(&pair, port));
    home.add_shop("shop", plain, &lines);
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let plain_address = format!("shop.example:{plain}:127.0.0.1");
    let secure_address = format!("shop.example:{port}:127.0.0.1");
    let ask = |target: &str, more: &[&str]| {
        let url = format!("http://shop.example:{plain}{target}");
        let certificate = pair.certificate();
        let arguments = [
            "-sSi",
            "--max-time",
            "20",
            "--noproxy",
            "*",
            "--cacert",
            &certificate,
            "--resolve",
            &plain_address,
            "--resolve",
            &secure_address,
            &url,
        ];
        run("curl", &[&arguments, more].concat())
    };
    let place = |target: &str| format!("\r\nLocation: https://shop.example:{port}{target}\r\n");
    let hsts = "\r\nstrict-transport-security: max-age=31536000\r\n";
    let answer = ask("/a%20b?c=d&e", &[]);
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(answer.contains(&place("/a%20b?c=d&e")), "{answer}");
    assert!(!answer.to_lowercase().contains(hsts), "{answer}");
    // The client sends the body again, to the port with TLS.
    let answer = ask("/echo", &["--location", "--data-binary", "is kept"]);
    assert!(answer.contains(&place("/echo")), "{answer}");
    assert!(answer.to_lowercase().contains(hsts), "{answer}");
    assert!(answer.ends_with("is kept"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn requests_that_a_trusted_balancer_received_over_tls_are_not_redirected() {
    let home = Home::new();
    let (port, plain) = (free_port(), free_port());
    let pair = Pair::new(&home, "pair", "DNS:shop.example");
    let lines = format!("{}redirect_https: true\nhsts: 1d\n", tls(&pair, port));
    home.add_shop("shop", plain, &lines);
    write(
        &home.config().join("smoothserve.yaml"),
        "default_user: nobody\ntrusted_proxies: 127.0.0.1\n",
    );
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let url = format!("http://127.0.0.1:{plain}/hello");
    let ask = |proto: &str| {
        let proto = format!("X-Forwarded-Proto: {proto}");
        let fields = ["-H", "Host: shop.example", "-H", &proto];
        let options = ["-sSi", "--max-time", "20", "--noproxy", "*", &url];
        run("curl", &[&options[..], &fields].concat()).to_lowercase()
    };
    let answer = ask("https");
    assert!(answer.ends_with("hello\n"), "{answer}");
    assert!(answer.contains("max-age=86400\r\n"), "{answer}");
    let answer = ask("http");
    assert!(answer.starts_with("http/1.1 308 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_shown_and_logged() {
    let home = Home::new();
    let (port, plain) = (free_port(), free_port());
    let pair = Pair::new(&home, "pair", "DNS:shop.example");
    pair.renew("DNS:shop.example", &["-days", "10"]);
    home.add_shop("shop", plain, &tls(&pair, port));
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let status = server.ok(&["status"]).await;
    let warning = "shop: the certificate expires in 9d";
    assert!(status.contains(warning), "{status}");
    assert!(server.log().contains("expires soon: "), "{}", server.log());
    pair.renew("DNS:shop.example", &["-days", "100"]);
    server.ok(&["reload"]).await;
    let status = server.ok(&["status"]).await;
    assert!(!status.contains("certificate"), "{status}");
    server.stop().await;
}

#[tokio::test]
async fn an_unusable_certificate_or_key_fails_the_reload_and_leaves_its_service_alone() {
    let scene = Scene::new().await;
    let before = given(scene.port, Some("shop.example"));
    let other = Pair::new(scene.home(), "other", "DNS:shop.example");
    let good = (
        fs::read(scene.pair.certificate()).unwrap(),
        fs::read(scene.pair.key()).unwrap(),
    );
    let (certificate, key) = (scene.pair.certificate(), scene.pair.key());
    let refused = async |why: &str| {
        let reload = scene.server.ctl(&["reload"]).await;
        assert_eq!(reload.status.code(), Some(1), "{why}");
        let said = String::from_utf8_lossy(&reload.stderr).into_owned();
        assert!(said.contains(why), "{said}");
        let place = format!("{}:5:20:", scene.home().service("shop").display());
        assert!(said.contains(&place), "{said}");
        assert_eq!(given(scene.port, Some("shop.example")), before);
        assert_eq!(scene.curl_believing(&good.0, "/hello"), "hello\n");
    };
    fs::copy(other.key(), &key).unwrap();
    refused("is not that of").await;
    fs::write(&key, "no key\n").unwrap();
    refused("has no private key in it").await;
    fs::write(&key, &good.1).unwrap();
    fs::write(&certificate, "nothing\n").unwrap();
    refused("has no certificate in it").await;
    fs::remove_file(&certificate).unwrap();
    refused("cannot be read: No such file").await;
    fs::write(&certificate, EXPIRED).unwrap();
    fs::write(&key, EXPIRED_KEY).unwrap();
    refused("has expired: ").await;
    scene.server.stop().await;
}

impl Scene {
    /// Returns what a client receives that trusts a certificate which is no longer on disk.
    fn curl_believing(&self, certificate: &[u8], target: &str) -> String {
        let pair = Pair(self.home().path().join("believed"));
        fs::create_dir_all(&pair.0).unwrap();
        fs::write(pair.certificate(), certificate).unwrap();
        curl(&pair, "shop.example", self.port, target, &[])
    }
}

/// A certificate that was valid in 2020: old versions of openssl cannot make one that has expired.
const EXPIRED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBRjCB7aADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwHhcN
MjAwMTAxMDAwMDAwWhcNMjEwMTAxMDAwMDAwWjAPMQ0wCwYDVQQDDAR0ZXN0MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEl0TguxavleiAWwHBktJKMzuyo1wPtite
XR42Q0zhI56MQsh9nia19FWywlGQCvQPu/PnnoDgzPY9i/KqcyF6HaM6MDgwFwYD
VR0RBBAwDoIMc2hvcC5leGFtcGxlMB0GA1UdDgQWBBSPam7BklIfu+B+GCmJ37nn
UVREhzAKBggqhkjOPQQDAgNIADBFAiEArg6JvBipRFetb1MS259e4gaNxirz6RTA
DWpuUCgMuZcCIHeVyWQpYutFqxB9eU5pMS8P/xU7BO6Pnta695Jm6I9O
-----END CERTIFICATE-----
";

const EXPIRED_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCm/CUrUt/JRCbtcV
6g8wJQKcx7Ik0L67RrIhwzdi+wihRANCAASXROC7Fq+V6IBbAcGS0kozO7KjXA+2
K15dHjZDTOEjnoxCyH2eJrX0VbLCUZAK9A+78+eegODM9j2L8qpzIXod
-----END PRIVATE KEY-----
";
