//! Requests through the whole of smoothserve: which service gets them, what is added to them, and
//! what a client receives when something fails.

use std::time::Duration;

use smoothserve_kit::client::{Connection, Request, Response, get};
use smoothserve_kit::{
    Build, Home, PATIENCE, Pattern, Service, Smoothserve, Status, free_port, local, programs,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Scene {
    server: Smoothserve,
    port: u16,
}

impl Scene {
    async fn new(lines: &str) -> Scene {
        let home = Home::new();
        let port = free_port();
        home.add_shop("shop", port, lines);
        let server = Smoothserve::start(programs!(), home).await;
        server.running("shop").await;
        Scene { server, port }
    }

    async fn open(&self) -> Connection {
        Connection::open(local(self.port), "shop.example")
            .await
            .unwrap()
    }

    async fn get(&self, target: &str) -> Response {
        get(local(self.port), "shop.example", target).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_learns_the_address_host_and_scheme_of_the_client() {
    let scene = Scene::new("").await;
    let mut connection = scene.open().await;
    let request = Request::get("/headers?a=1")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-proto", "https")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-public", "2");
    let seen = connection.exchange(&request).await.unwrap().text();
    let has = |line: &str| seen.lines().any(|other| other == line);
    assert!(has("GET /headers?a=1 HTTP/1.1"), "{seen}");
    assert!(has("host: shop.example"), "{seen}");
    assert!(
        has("x-forwarded-for: 127.0.0.1"),
        "a stranger's word is not believed\n{seen}"
    );
    assert!(has("x-forwarded-proto: http"), "{seen}");
    assert!(has("x-forwarded-host: shop.example"), "{seen}");
    assert!(has("x-public: 2") && !seen.contains("x-private"), "{seen}");
    scene.server.stop().await;
}

/// The keys of the configuration files decide what an instance receives.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_stand_behind_a_balancer_and_below_a_path() {
    let home = Home::new();
    let port = free_port();
    home.app("shop").replace(&Build::good("1"));
    smoothserve_kit::write(
        &home.config().join("smoothserve.yaml"),
        "default_user: nobody\ntrusted_proxies: 127.0.0.0/8\nforwarded: true\n",
    );
    home.write_service(
        "shop",
        &format!(
            "name: shop\nserver_name: shop.example/api\nport: {port}\nexecutable_path: ../../apps/shop/shop\n\
             proxy_protocol: true\nstrip_prefix: true\nmax_request_body: 10\n"
        ),
    );
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let open = async || {
        let mut connection = Connection::open(local(port), "shop.example").await.unwrap();
        let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n";
        connection.write(header).await.unwrap();
        connection
    };
    let seen = open().await.exchange(&Request::get("/api/headers")).await;
    let seen = seen.unwrap().text();
    let has = |line: &str| seen.lines().any(|other| other == line);
    assert!(has("GET /headers HTTP/1.1"), "{seen}");
    assert!(has("x-forwarded-for: 192.0.2.1"), "{seen}");
    assert!(has("x-forwarded-prefix: /api"), "{seen}");
    let element = "forwarded: for=192.0.2.1;host=\"shop.example\";proto=http";
    assert!(has(element), "{seen}");
    let large = Request::post("/api/echo", Pattern::new(1), 11);
    let refused = open().await.exchange(&large).await.unwrap();
    assert_eq!(refused.head.status, 413);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_trailers_pass_in_both_directions() {
    let scene = Scene::new("").await;
    let mut connection = scene.open().await;
    let chunks: Vec<Vec<u8>> = (1..40)
        .map(|size| Pattern::new(size).bytes(size as usize * 1000))
        .collect();
    let echo = connection
        .exchange(&Request::post_chunked("/echo", chunks.clone()))
        .await
        .unwrap();
    assert!(echo.body == chunks.concat());
    let trailers = connection
        .exchange(&Request::get("/trailers").header("te", "trailers"))
        .await
        .unwrap();
    assert_eq!(trailers.text(), "one\ntwo\nthree\n");
    assert_eq!(trailers.trailers, [("x-pieces".to_owned(), "3".to_owned())]);
    let head = connection
        .send(&Request::new("HEAD", "/download?bytes=1000"))
        .await
        .unwrap();
    assert_eq!(head.header("content-length"), Some("1000"));
    assert_eq!(
        connection
            .exchange(&Request::get("/hello"))
            .await
            .unwrap()
            .text(),
        "hello\n"
    );
    assert_eq!(connection.requests(), 4, "all on one connection");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_paths_choose_the_service() {
    let home = Home::new();
    let port = free_port();
    for (name, sites) in [
        ("exact", "a.example"),
        ("path", "[a.example/api, b.example/api]"),
        ("deeper", "a.example/api/v2"),
        ("sub", "\"*.example\""),
    ] {
        let app = home.add_shop(name, port, "");
        let file = format!(
            "name: {name}\nserver_name: {sites}\nport: {port}\nexecutable_path: {}\nenvironment: {{ SHOP_VERSION: {name} }}\n",
            app.executable().display()
        );
        home.write_service(name, &file);
    }
    let server = Smoothserve::start(programs!(), home).await;
    for (host, target, service) in [
        ("a.example", "/", Some("exact")),
        ("A.Example:80", "/apix", Some("exact")),
        ("a.example", "/api", Some("path")),
        ("a.example", "/api/v1/x", Some("path")),
        ("a.example", "/api/v2", Some("deeper")),
        ("b.example", "/api/", Some("path")),
        ("c.example", "/api/", Some("sub")),
        ("deep.c.example", "/", Some("sub")),
        ("example", "/", None),
        ("other.test", "/", None),
    ] {
        let response = get(local(port), host, target).await.unwrap();
        let version = response.head.header("x-shop-version").map(str::to_owned);
        assert_eq!(version.as_deref(), service, "{host}{target}: {response:?}");
        if service.is_none() {
            assert_eq!(response.head.status, 404);
            assert!(!response.text().to_lowercase().contains("smoothserve"));
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_kills_its_instance_gets_502_and_the_service_recovers() {
    let scene = Scene::new("instance_count: 2\n").await;
    let mut connection = scene.open().await;
    let crash = Request::post("/crash", Pattern::new(1), 10);
    let response = connection.exchange(&crash).await.unwrap();
    assert_eq!(
        response.head.status, 502,
        "a POST is not sent to a second instance"
    );
    assert_eq!(scene.get("/hello").await.head.status, 200);
    let repaired =
        |shop: &Service| shop.crashes == 1 && shop.state == "running" && shop.ready() == 2;
    scene
        .server
        .until("it is repaired", |status| {
            repaired(&status.services["shop"])
        })
        .await;
    scene.server.stop().await;
}

/// While no instance is ready, a request waits for the next one instead of failing.
#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_while_no_instance_is_ready() {
    let scene = Scene::new("instance_count: 1\nenvironment: { SHOP_START_DELAY: 1s }\n").await;
    let mut connection = scene.open().await;
    let crash = Request::post("/crash", Pattern::new(1), 10);
    assert_eq!(connection.exchange(&crash).await.unwrap().head.status, 502);
    assert_eq!(scene.get("/hello").await.text(), "hello\n");
    scene.server.stop().await;
}

/// A request that never ends delays a restart by `drain_timeout` and no longer. This request is not
/// idempotent, so it is not repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_is_cut_off_after_the_drain_timeout() {
    let scene = Scene::new("drain_timeout: 1s\n").await;
    let address = local(scene.port);
    let stalled = tokio::spawn(async move {
        let mut connection = Connection::open(address, "shop.example").await?;
        let request = Request::post("/stall", Pattern::new(1), 10);
        connection.exchange(&request).await
    });
    let busy = |shop: &Service| shop.instances[0].in_flight == 1;
    scene
        .server
        .until("it is in flight", |status| busy(&status.services["shop"]))
        .await;
    let restart = scene.server.ok(&["restart", "shop"]);
    tokio::time::timeout(Duration::from_secs(20), restart)
        .await
        .expect("the restart ends in time");
    scene.server.running("shop").await;
    let stalled = tokio::time::timeout(Duration::from_secs(20), stalled).await;
    let stalled = stalled.expect("the request is cut off").unwrap();
    assert!(stalled.map_or(true, |response| response.head.status >= 500));
    scene.server.stop().await;
}

/// The memory of the kernel for unsent responses is that of the whole machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_nobody_reads_takes_little_of_the_kernels_memory() {
    let scene = Scene::new("").await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(local(scene.port)).await.unwrap();
    let request = "GET /download?bytes=100000000 HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let client = stream.local_addr().unwrap().port();
    let unsent = || {
        let filter = format!("sport = {} and dport = {client}", scene.port);
        let shown = std::process::Command::new("ss")
            .args(["-Htn", &filter])
            .output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        let sent = shown.split_whitespace().nth(2);
        sent.and_then(|sent| sent.parse::<u64>().ok()).unwrap_or(0)
    };
    let is_full = async {
        while unsent() < 200 << 10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let is_full = tokio::time::timeout(smoothserve_kit::PATIENCE, is_full).await;
    is_full.expect("the response comes until nobody takes it");
    // Without a limit, the buffer would grow to megabytes by now.
    for _ in 0..20 {
        let unsent = unsent();
        assert!(unsent < 600 << 10, "{unsent} bytes wait for the client");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.server.stop().await;
}

/// A client that has closed its connection may still read, so nothing but a drain ends its request.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_does_not_hold_up_a_restart() {
    let scene = Scene::new("drain_timeout: 10m\nclient_gone_timeout: 1s\n").await;
    let begin = async |target: &str| {
        let mut stream = TcpStream::connect(local(scene.port)).await.unwrap();
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let read = async |mut stream: TcpStream| {
        let mut response = String::new();
        let reading = stream.read_to_string(&mut response);
        tokio::time::timeout(PATIENCE, reading)
            .await
            .unwrap()
            .unwrap();
        response
    };
    // Without a drain, a client that sends nothing more gets its response.
    let mut patient = begin("/slow?ms=3000").await;
    patient.shutdown().await.unwrap();
    assert!(read(patient).await.starts_with("HTTP/1.1 200 "));
    // In a drain, only a client without the end of its sending side is waited for.
    let waits = begin("/slow?ms=5000").await;
    let mut before = begin("/stall").await;
    before.shutdown().await.unwrap();
    let mut meanwhile = begin("/stall").await;
    let busy = |shop: &Service| shop.instances.iter().map(|it| it.in_flight).sum::<u64>() == 3;
    let until = |status: &Status| busy(&status.services["shop"]);
    scene.server.until("they are in flight", until).await;
    let restart = scene.server.ok(&["restart", "shop"]);
    let leave = async {
        assert!(read(before).await.starts_with("HTTP/1.1 503 "));
        meanwhile.shutdown().await.unwrap();
        assert!(read(meanwhile).await.starts_with("HTTP/1.1 503 "));
        assert!(read(waits).await.starts_with("HTTP/1.1 200 "));
    };
    tokio::join!(restart, leave);
    scene.server.stop().await;
}
