//! The races in which zero-downtime software loses requests: a test for each that the whole program
//! can meet. The number in the name of a test is that of the race in the list against which
//! smoothserve was designed.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::process::Signal;
use smoothserve_kit::load::{Load, Mix, Options};
use smoothserve_kit::{
    App, Build, Home, PATIENCE, Pattern, Service, Smoothserve, alone, client, free_port,
    free_ports, local, processes, programs,
};

struct Scene {
    server: Smoothserve,
    app: App,
    port: u16,
}

impl Scene {
    async fn new(lines: &str) -> Scene {
        let home = Home::new();
        let port = free_port();
        let app = home.add_shop("shop", port, lines);
        let server = Smoothserve::start(programs!(), home).await;
        server.running("shop").await;
        Scene { server, app, port }
    }

    fn options(&self) -> Options {
        Options::new(local(self.port))
    }

    async fn restart(&self, times: usize) {
        for _ in 0..times {
            self.server.ok(&["restart", "shop"]).await;
        }
    }

    /// Waits until the service is in the state that `is_so` recognizes.
    async fn until(&self, wanted: &str, is_so: impl Fn(&Service) -> bool) -> Service {
        let status = self
            .server
            .until(wanted, |status| is_so(&status.services["shop"]))
            .await;
        status.services["shop"].clone()
    }

    async fn end(self, load: Load) {
        let report = load.stop().await;
        println!("{report}");
        self.server.stop().await;
        report.assert_nothing_lost();
    }
}

/// The instance announces how long it keeps idle connections and closes them after exactly that
/// time, when the next request may just be written.
#[tokio::test(flavor = "multi_thread")]
async fn race_01_an_announced_idle_close_of_an_instance_loses_no_request() {
    let _alone = alone().await;
    let environment = "{ SHOP_IDLE: 1s, SHOP_KEEP_ALIVE: 1 }";
    let scene = Scene::new(&format!("instance_count: 2\nenvironment: {environment}\n")).await;
    let load = Load::start(Options {
        pause: Duration::from_secs(1),
        mix: Mix {
            upload: 1,
            ..Mix::small()
        },
        upload: 1000,
        ..scene.options()
    });
    load.go_on(400).await;
    scene.end(load).await;
}

/// The instance closes idle connections without announcing it, so some requests meet the close;
/// idempotent ones are repeated.
#[tokio::test(flavor = "multi_thread")]
async fn race_01_an_unannounced_idle_close_of_an_instance_loses_no_idempotent_request() {
    let _alone = alone().await;
    let scene = Scene::new("instance_count: 2\nenvironment: { SHOP_IDLE: 100ms }\n").await;
    let load = Load::start(Options {
        pause: Duration::from_millis(100),
        mix: Mix {
            slow: 1,
            ..Mix::small()
        },
        slow: 1..5,
        ..scene.options()
    });
    load.go_on(2000).await;
    scene.end(load).await;
}

/// The instance dies at once on SIGTERM, so every request that is sent to it after its drain has
/// begun is lost.
#[tokio::test(flavor = "multi_thread")]
async fn race_02_a_draining_instance_is_never_chosen_again() {
    let _alone = alone().await;
    let scene = Scene::new("instance_count: 2\nenvironment: { SHOP_STOP: abrupt }\n").await;
    let load = Load::start(Options {
        connections: 48,
        pause: Duration::from_millis(2),
        mix: Mix {
            slow: 1,
            ..Mix::small()
        },
        slow: 1..10,
        ..scene.options()
    });
    scene.restart(10).await;
    scene.end(load).await;
}

/// The instance closes its connections after every request, and so do the clients. So at every
/// moment of a drain, connections to the instance and to smoothserve are being opened.
#[tokio::test(flavor = "multi_thread")]
async fn race_03_connections_being_opened_during_a_drain_are_not_lost() {
    let _alone = alone().await;
    let environment = "{ SHOP_STOP: abrupt, SHOP_CLOSE: yes }";
    let scene = Scene::new(&format!("instance_count: 2\nenvironment: {environment}\n")).await;
    let load = Load::start(Options {
        pause: Duration::from_millis(10),
        mix: Mix {
            small: 1,
            fresh: 1,
            ..Mix::small()
        },
        ..scene.options()
    });
    scene.restart(8).await;
    scene.end(load).await;
}

/// The instance cuts off all its connections on SIGTERM, even those with long responses and
/// uploads.
#[tokio::test(flavor = "multi_thread")]
async fn race_04_an_instance_that_stops_abruptly_loses_no_request() {
    let _alone = alone().await;
    let scene = Scene::new("instance_count: 3\nenvironment: { SHOP_STOP: abrupt }\n").await;
    let load = Load::start(scene.options());
    load.go_on(300).await;
    scene.restart(5).await;
    load.go_on(300).await;
    scene.end(load).await;
}

/// The port has a single listening socket, and no other process can listen on it as well.
#[tokio::test(flavor = "multi_thread")]
async fn race_05_each_port_has_one_listening_socket() {
    let scene = Scene::new("").await;
    let listening = || {
        let suffix = format!(":{:04X}", scene.port);
        let tables =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap());
        let lines = tables.iter().flat_map(|table| table.lines().skip(1));
        let sockets: Vec<String> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields[1].ends_with(&suffix) && fields[3] == "0A")
            .map(|fields| fields[9].to_owned())
            .collect();
        sockets
    };
    let before = listening();
    assert_eq!(before.len(), 1, "sockets that listen on the port");
    let beside = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    beside.set_reuse_port(true).unwrap();
    beside.set_only_v6(false).unwrap();
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, scene.port));
    let error = beside.bind(&address.into()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    scene.restart(1).await;
    scene.server.ok(&["reload"]).await;
    assert_eq!(listening(), before, "the socket is the same as before");
    scene.server.stop().await;
}

/// While no worker runs, clients that connect wait in the accept queue of the listening socket.
#[tokio::test(flavor = "multi_thread")]
async fn race_06_a_dead_worker_is_replaced_while_new_connections_wait() {
    let scene = Scene::new("instance_count: 2\n").await;
    let before = scene.server.running("shop").await;
    for _ in 0..3 {
        let worker = worker(&scene.server).expect("a worker runs");
        worker.signal(Signal::KILL);
        let gone = tokio::time::timeout(PATIENCE, async {
            while worker.runs() {
                tokio::task::yield_now().await;
            }
        });
        gone.await.unwrap();
        let response = client::get(local(scene.port), "shop.example", "/hello").await;
        assert_eq!(response.unwrap().text(), "hello\n");
    }
    assert_eq!(scene.server.running("shop").await.pids(), before.pids());
    scene.server.stop().await;
}

fn worker(server: &Smoothserve) -> Option<processes::Process> {
    let below = processes::descendants(server.pid());
    below
        .into_iter()
        .find(|process| process.command.contains(" proxy"))
}

/// An instance is in use until the last upload to it has ended.
#[tokio::test(flavor = "multi_thread")]
async fn race_10_an_instance_is_not_stopped_before_an_upload_to_it_ends() {
    let scene = Scene::new("environment: { SHOP_STOP: abrupt }\n").await;
    let body = Pattern::new(1).bytes(300_000);
    let mut upload = client::Connection::open(local(scene.port), "shop.example")
        .await
        .unwrap();
    let head = format!(
        "POST /upload HTTP/1.1\r\nhost: shop.example\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    upload.write(head.as_bytes()).await.unwrap();
    upload.write(&body[..150_000]).await.unwrap();
    let old = scene
        .until("the upload is in flight", |shop| {
            shop.instances[0].in_flight == 1
        })
        .await;

    scene.server.ok(&["restart", "shop", "--no-block"]).await;
    let drains = |shop: &Service| {
        let of_old = shop
            .instances
            .iter()
            .find(|instance| instance.pid == old.instances[0].pid);
        of_old.is_some_and(|instance| instance.state == "draining") && shop.ready() == 1
    };
    scene.until("the old instance drains", drains).await;
    let new = client::get(local(scene.port), "shop.example", "/hello").await;
    assert_eq!(
        new.unwrap().head.status,
        200,
        "others are served by the new instance"
    );

    upload.write(&body[150_000..]).await.unwrap();
    let head = upload.head("POST").await.unwrap();
    let mut sink = client::Sink::keep();
    upload.body(&head, &mut sink).await.unwrap();
    assert_eq!(
        sink.text(),
        format!("{}\n", Pattern::new(1).checksum(300_000))
    );
    scene
        .until("the old instance is gone", |shop| shop.instances.len() == 1)
        .await;
    scene.server.stop().await;
}

/// The client gets `100 Continue` from an instance that wants the body, and not from one that
/// refuses it.
#[tokio::test(flavor = "multi_thread")]
async fn race_11_the_instance_decides_about_100_continue() {
    let scene = Scene::new("").await;
    for (target, status, wanted) in [("/upload", 200, true), ("/refuse", 413, false)] {
        let mut connection = client::Connection::open(local(scene.port), "shop.example")
            .await
            .unwrap();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        );
        connection.write(head.as_bytes()).await.unwrap();
        if wanted {
            connection.continued().await.unwrap();
            connection.write(b"hello").await.unwrap();
        }
        let head = connection.head("POST").await.unwrap();
        assert_eq!((head.status, head.continued), (status, false));
        connection
            .body(&head, &mut client::Sink::keep())
            .await
            .unwrap();
    }
    scene.server.stop().await;
}

/// The response to a refused upload arrives, no matter how much of the upload is still to be sent.
#[tokio::test(flavor = "multi_thread")]
async fn race_12_an_early_response_to_an_upload_arrives() {
    let scene = Scene::new("").await;
    for turn in 0..20 {
        let request = client::Request::post("/refuse", Pattern::new(turn), 20 << 20);
        let mut connection = client::Connection::open(local(scene.port), "shop.example")
            .await
            .unwrap();
        let response = connection.exchange(&request).await.unwrap();
        assert_eq!(
            (response.head.status, response.text().as_str()),
            (413, "too large\n")
        );
    }
    scene.server.stop().await;
}

/// The new instance is probed on an address of its own while the old one still listens, so no probe
/// can reach the wrong one.
#[tokio::test(flavor = "multi_thread")]
async fn race_14_a_new_instance_is_not_ready_because_the_old_one_answers() {
    let first = free_ports(8);
    let lines = format!("start_instance_port: {first}\nenvironment: {{ SHOP_START_DELAY: 1s }}\n");
    let scene = Scene::new(&lines).await;
    let old = scene.server.running("shop").await.instances[0].clone();
    let load = Load::start(Options {
        connections: 4,
        pause: Duration::from_millis(5),
        mix: Mix::small(),
        ..scene.options()
    });
    scene.server.ok(&["restart", "shop", "--no-block"]).await;
    let starts = |shop: &Service| {
        shop.instances
            .iter()
            .any(|instance| instance.state == "starting")
    };
    let both = scene.until("the new instance starts", starts).await;
    assert_eq!(both.instances.len(), 2, "{both:#?}");
    assert_ne!(both.instances[0].address, both.instances[1].address);
    assert_eq!(both.ready(), 1, "it is not ready before its delay is over");
    let replaced = |shop: &Service| shop.state == "running" && shop.instances[0].pid != old.pid;
    scene.until("the old instance is replaced", replaced).await;
    scene.end(load).await;
}

/// Another program listens on a port that an instance should get. The instance gets another port,
/// and the log says so.
#[tokio::test(flavor = "multi_thread")]
async fn race_15_an_instance_whose_port_is_taken_gets_another() {
    let first = free_ports(4);
    let home = Home::new();
    let port = free_port();
    let taken: Vec<_> = (first..first + 2)
        .map(|port| TcpListener::bind(local(port)).unwrap())
        .collect();
    let lines = format!("start_instance_port: {first}\ninstance_count: 2\n");
    let app = home.add_shop("shop", port, &lines);
    let server = Smoothserve::start(programs!(), home).await;
    let scene = Scene { server, app, port };
    let shop = scene.server.running("shop").await;
    for instance in &shop.instances {
        let address: SocketAddr = instance.address.parse().unwrap();
        assert!(!(first..first + 2).contains(&address.port()), "{shop:#?}");
    }
    assert!(
        scene.server.log().contains(&first.to_string()),
        "{}",
        scene.server.log()
    );
    let load = Load::start(scene.options());
    scene.restart(2).await;
    drop(taken);
    scene.restart(1).await;
    scene.end(load).await;
}

/// An instance dies while others are being replaced. It is replaced too, and the rollout ends well.
#[tokio::test(flavor = "multi_thread")]
async fn race_16_a_crash_in_the_middle_of_a_rollout_is_repaired() {
    let scene = Scene::new("instance_count: 3\nenvironment: { SHOP_START_DELAY: 500ms }\n").await;
    let load = Load::start(Options {
        connections: 8,
        mix: Mix {
            fresh: 1,
            ..Mix::small()
        },
        ..scene.options()
    });
    let before = scene.server.running("shop").await;
    scene.server.ok(&["restart", "shop", "--no-block"]).await;
    let begun = |shop: &Service| {
        shop.instances
            .iter()
            .any(|instance| instance.state == "starting")
    };
    scene.until("the rotation has begun", begun).await;
    processes::signal_pid(before.instances[2].pid, Signal::KILL);
    let after = scene
        .until("it has come to its end", |shop| {
            shop.state == "running" && shop.crashes == 1
        })
        .await;
    assert_eq!(after.ready(), 3);
    assert!(
        before.pids().iter().all(|pid| !after.pids().contains(pid)),
        "{before:#?} {after:#?}"
    );
    let newest = after.generation;
    assert!(
        after
            .instances
            .iter()
            .all(|instance| instance.generation == newest),
        "{after:#?}"
    );
    // All requests of this load could be repeated, so none may be lost.
    scene.end(load).await;
}

/// The executable is still open for writing when it is to be started, so smoothserve tries again.
#[tokio::test(flavor = "multi_thread")]
async fn race_18_an_executable_that_is_still_written_is_started_later() {
    let scene = Scene::new("auto_restart: true\ndelay_update_time: 0\n").await;
    let load = Load::start(Options {
        connections: 2,
        mix: Mix::small(),
        ..scene.options()
    });
    scene.app.replace(&Build::good("2"));
    let writer = fs::OpenOptions::new()
        .append(true)
        .open(scene.app.executable())
        .unwrap();
    load.go_on(10).await;
    drop(writer);
    load.see("2", PATIENCE).await.unwrap();
    scene.server.running("shop").await;
    scene.end(load).await;
}

/// Commands, reloads and new executables overlap. None of them is dropped, and the newest wins.
#[tokio::test(flavor = "multi_thread")]
async fn race_20_of_overlapping_commands_the_newest_wins() {
    let _alone = alone().await;
    let lines = "auto_restart: true\nenvironment: { SHOP_START_DELAY: 200ms }\n";
    let scene = Scene::new(&format!("instance_count: 2\n{lines}")).await;
    let load = Load::start(Options {
        connections: 16,
        ..scene.options()
    });
    for round in 1..=3 {
        for _ in 0..3 {
            scene.server.ok(&["restart", "shop", "--no-block"]).await;
        }
        scene.app.replace(&Build::good(format!("{round}.1")));
        scene.server.ok(&["reload", "--no-block"]).await;
        let count = 2 + round % 2;
        scene.server.home.write_shop(
            "shop",
            scene.port,
            &format!("instance_count: {count}\n{lines}"),
        );
        scene.server.ok(&["reload", "--no-block"]).await;
        scene.app.replace(&Build::good(format!("{round}.2")));
        load.see(&format!("{round}.2"), PATIENCE).await.unwrap();
        let wanted = |shop: &Service| shop.state == "running" && shop.ready() == count;
        scene.until("the newest is reached", wanted).await;
        for _ in 0..4 {
            let response = client::get(local(scene.port), "shop.example", "/hello")
                .await
                .unwrap();
            let version = format!("{round}.2");
            assert_eq!(
                response.head.header("x-shop-version"),
                Some(version.as_str())
            );
        }
    }
    scene.server.ok(&["stop", "shop", "--no-block"]).await;
    scene.server.ok(&["start", "shop"]).await;
    assert_eq!(scene.server.running("shop").await.ready(), 3);
    // A stopped service answers 503, so the last two commands are not part of the proof.
    let report = load.stop().await;
    let stopped = report
        .lost
        .iter()
        .all(|lost| lost.fault.contains("status 503"));
    assert!(stopped, "{report}");
    scene.server.stop().await;
}
