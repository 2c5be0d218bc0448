//! The proof of the promise: a service under every kind of load is restarted, deployed, deployed
//! badly and reconfigured again and again, and not one request is lost.

use rustix::process::Signal;
use smoothserve_kit::bus::Bus;
use smoothserve_kit::load::{Kind, Load, Options, Report};
use smoothserve_kit::{
    App, Build, Home, PATIENCE, Service, Smoothserve, Start, alone, client, free_port, free_ports,
    local, processes, programs,
};

const ALL: [Kind; 6] = [
    Kind::Small,
    Kind::Slow,
    Kind::Download,
    Kind::Upload,
    Kind::Fresh,
    Kind::Pipelined,
];

const SHOP: &str = "instance_count: 3\nauto_restart: true\nstart_timeout: 3s\n";

struct Scene {
    server: Smoothserve,
    app: App,
    load: Load,
    port: u16,
}

impl Scene {
    async fn new(lines: &str) -> Scene {
        let home = Home::new();
        let port = free_port();
        let app = home.add_shop("shop", port, &format!("{SHOP}{lines}"));
        let server = Smoothserve::start(programs!(), home).await;
        server.running("shop").await;
        let load = Load::start(Options::new(local(port)));
        load.go_on(500).await;
        Scene {
            server,
            app,
            load,
            port,
        }
    }

    /// Waits until a version is served, and all instances run it.
    async fn deployed(&self, version: &str) {
        self.load.see(version, PATIENCE).await.unwrap();
        self.server.running("shop").await;
    }

    /// Waits until a deploy was tried and given up, and checks that the old instances still run.
    async fn given_up(&self, before: &Service) {
        let tried = |shop: &Service| shop.generation > before.generation && shop.state == "running";
        let status = self.server.until("the deploy is given up", |status| {
            tried(&status.services["shop"])
        });
        let after = status.await.services.remove("shop").unwrap();
        assert!(after.last_error.is_some(), "{after:#?}");
        assert_eq!(
            after.pids(),
            before.pids(),
            "the good instances are untouched"
        );
    }

    /// Ends the load and smoothserve, after checking that this version is the last one served.
    async fn end(self, version: &str) -> Report {
        for _ in 0..6 {
            let page = client::get(local(self.port), "shop.example", "/")
                .await
                .unwrap();
            assert!(
                page.text().contains(&format!("version {version}<")),
                "{}",
                page.text()
            );
        }
        let report = self.load.stop().await;
        println!("{report}");
        self.server.stop().await;
        assert_eq!(report.last_version(), Some(version));
        report
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_planned_operation_loses_a_request() {
    let _alone = alone().await;
    let scene = Scene::new("").await;
    let (server, app, load) = (&scene.server, &scene.app, &scene.load);

    load.phase("restarts");
    let bus = Bus::open(&server.bus()).await.unwrap();
    for turn in 0..20 {
        let before = server.running("shop").await;
        if turn % 2 == 0 {
            let result = bus.job("RestartService", "shop").await.unwrap();
            assert_eq!(result, "done");
        } else {
            server.ok(&["restart", "shop"]).await;
        }
        let after = server.running("shop").await;
        assert!(before.pids().iter().all(|pid| !after.pids().contains(pid)));
    }

    load.phase("deploys");
    for (number, deploy) in [App::replace, App::link, App::overwrite, App::replace]
        .iter()
        .enumerate()
    {
        let version = format!("2.{number}");
        deploy(app, &Build::good(&version));
        scene.deployed(&version).await;
    }
    for burst in [3, 4] {
        for number in 0..3 {
            app.replace(&Build::good(format!("{burst}.{number}")));
            load.go_on(20).await;
        }
        scene.deployed(&format!("{burst}.2")).await;
    }

    load.phase("bad deploys");
    for number in 0..4 {
        let before = server.running("shop").await;
        let start = if number % 2 == 0 {
            Start::Crash
        } else {
            Start::Mute
        };
        app.replace(&Build::starting(format!("bad-{number}"), start));
        scene.given_up(&before).await;
    }
    app.replace(&Build::good("5"));
    scene.deployed("5").await;

    load.phase("reloads");
    reloads(&scene).await;

    let report = scene.end("5").await;
    report.assert_nothing_lost();
    report.assert_seen(&ALL, 10);
    let bad = report
        .versions
        .keys()
        .find(|version| version.starts_with("bad"));
    assert_eq!(bad, None, "a bad version was never served");
}

/// Reloads five times, which adds, changes and removes other services on the same port and on other
/// ports.
async fn reloads(scene: &Scene) {
    let (server, port) = (&scene.server, scene.port);
    let shop = server.running("shop").await;
    let home = &server.home;
    let news_port = free_port();
    let get = |port, host, target| async move {
        client::get(local(port), host, target)
            .await
            .map(|response| response.head.status)
    };

    home.add_shop("blog", port, "");
    server.ok(&["reload"]).await;
    assert_eq!(get(port, "blog.example", "/hello").await.unwrap(), 200);

    home.add_shop("news", news_port, "instance_count: 2\n");
    home.write_shop("blog", port, "instance_count: 2\n");
    server.ok(&["reload"]).await;
    assert_eq!(get(news_port, "news.example", "/hello").await.unwrap(), 200);
    assert_eq!(server.running("blog").await.instances.len(), 2);

    home.write_shop(
        "blog",
        port,
        "instance_count: 2\nenvironment: { SHOP_VERSION: new }\n",
    );
    server.ok(&["reload"]).await;
    let page = client::get(local(port), "blog.example", "/").await.unwrap();
    assert!(page.text().contains("version new"), "{}", page.text());

    home.remove_service("news");
    home.write_shop("blog", news_port, "instance_count: 1\n");
    server.ok(&["reload"]).await;
    assert_eq!(get(port, "blog.example", "/hello").await.unwrap(), 404);
    assert_eq!(get(news_port, "blog.example", "/hello").await.unwrap(), 200);

    home.remove_service("blog");
    server.ok(&["reload"]).await;
    let refused = get(news_port, "blog.example", "/hello").await.unwrap_err();
    assert!(matches!(refused, client::Fault::Connect(_)), "{refused}");

    let after = server.running("shop").await;
    assert_eq!(
        after.pids(),
        shop.pids(),
        "the reloads touched other services alone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_in_place_rollout_loses_nothing() {
    let _alone = alone().await;
    let first = free_ports(3);
    let scene = Scene::new(&format!(
        "rollout: in-place\nstart_instance_port: {first}\n"
    ))
    .await;
    for _ in 0..3 {
        scene.server.ok(&["restart", "shop"]).await;
    }
    scene.app.replace(&Build::good("2"));
    scene.deployed("2").await;
    let shop = scene.server.running("shop").await;
    for instance in &shop.instances {
        let own = first + u16::try_from(instance.slot).unwrap() - 1;
        assert_eq!(instance.address, format!("127.0.0.1:{own}"));
    }
    let report = scene.end("2").await;
    report.assert_nothing_lost();
    report.assert_seen(&ALL, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_an_instance_loses_only_what_was_in_flight_in_it() {
    let _alone = alone().await;
    let scene = Scene::new("").await;
    for killed in 1..=3 {
        let shop = scene.server.running("shop").await;
        processes::signal_pid(shop.instances[0].pid, Signal::KILL);
        let crashed =
            |shop: &Service| shop.crashes == killed && shop.state == "running" && shop.ready() == 3;
        scene
            .server
            .until("it is repaired", |status| crashed(&status.services["shop"]))
            .await;
        scene.load.go_on(300).await;
    }
    let report = scene.end("1").await;
    report.assert_seen(&ALL, 2);
    for lost in &report.lost {
        assert!(
            lost.answered || !lost.kind.idempotent(),
            "a request that could have been repeated was lost: {lost:?}\n{report}"
        );
        assert!(
            lost.reused || !lost.fault.contains("connect"),
            "{lost:?}\n{report}"
        );
    }
    // Each kill may lose at most what the load had in flight at that moment.
    assert!(report.lost.len() < 3 * 32, "{report}");
}
