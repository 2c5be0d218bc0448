//! A site that changes hands is answered at every moment, whoever is to have it: services that are
//! renamed, hosts and paths that move, services that swap `enabled`, and new owners that are late,
//! fail, or are stopped.

use std::fs;
use std::net::TcpListener;
use std::process::Output;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use smoothserve_kit::load::{Load, Mix, Options};
use smoothserve_kit::{
    Build, Home, PATIENCE, Smoothserve, Start, Status, client, free_port, local, programs, write,
};

/// A smoothserve whose services share a port.
struct Scene {
    server: Smoothserve,
    port: u16,
}

impl Scene {
    /// Starts smoothserve with these services: name, `server_name`, further lines.
    async fn new(services: &[(&str, &str, &str)]) -> Scene {
        let (home, port) = (Home::new(), free_port());
        for (name, hosts, lines) in services {
            add(&home, port, name, hosts, lines);
        }
        let server = Smoothserve::start(programs!(), home).await;
        Scene { server, port }
    }

    /// Adds a service, or changes its file. The version that it answers with is its name.
    fn add(&self, name: &str, hosts: &str, lines: &str) {
        add(&self.server.home, self.port, name, hosts, lines);
    }

    fn remove(&self, name: &str) {
        self.server.home.remove_service(name);
    }

    fn load(&self) -> Load {
        Load::start(Options {
            connections: 8,
            pause: Duration::from_millis(20),
            mix: Mix {
                slow: 1,
                upload: 1,
                fresh: 2,
                pipelined: 1,
                ..Mix::small()
            },
            upload: 100_000,
            slow: 10..300,
            ..Options::new(local(self.port))
        })
    }

    /// Returns which service answers.
    async fn owner(&self, host: &str, target: &str) -> String {
        let response = client::get(local(self.port), host, target).await.unwrap();
        let version = response.head.header("x-shop-version");
        version
            .unwrap_or_else(|| panic!("{:?}", response.head))
            .to_owned()
    }

    /// Waits until `smoothctl status` has this text.
    async fn shows(&self, text: &str) {
        let begin = std::time::Instant::now();
        loop {
            let shown = self.server.ok(&["status"]).await;
            if shown.contains(text) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{text} is not in\n{shown}");
        }
    }

    /// Ends the load and smoothserve, and checks that nothing was lost.
    async fn end(self, load: Load, last: &str) {
        load.go_on(50).await;
        let report = load.stop().await;
        println!("{report}");
        self.server.stop().await;
        report.assert_nothing_lost();
        assert_eq!(report.last_version(), Some(last));
    }
}

fn add(home: &Home, port: u16, name: &str, hosts: &str, lines: &str) {
    let app = home.app(name);
    if !app.executable().exists() {
        app.replace(&Build::good(name));
    }
    home.write_service(
        name,
        &format!(
            "name: {name}\nserver_name: {hosts}\nport: {port}\n\
             executable_path: ../../apps/{name}/shop\n{lines}"
        ),
    );
}

/// Returns what a command that fails says.
#[track_caller]
fn failed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    text
}

const LATE: &str = "instance_count: 2\ndelay_running_time: 4s\nqueue_timeout: 1s\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_service_that_is_late_loses_nothing() {
    let scene = Scene::new(&[("shop", "shop.example", "instance_count: 2\n")]).await;
    let load = scene.load();
    load.go_on(100).await;
    scene.remove("shop");
    scene.add("web", "shop.example", LATE);
    let reload = scene.server.ctl_command(&["reload"]).output();
    let shown = scene.shows("shop: removed, keeps shop.example until web is ready");
    let (reload, ()) = tokio::join!(reload, shown);
    let reload = reload.unwrap();
    let text = String::from_utf8_lossy(&reload.stdout);
    assert!(reload.status.success());
    assert!(text.contains("web: 2 instances started"), "{text}");
    assert!(text.contains("shop: removed"), "{text}");
    let status = scene.server.settled().await;
    assert!(!status.services.contains_key("shop"), "{status:?}");
    scene.end(load, "web").await;
}

/// Most requests wait for others to end when their service hands over its site.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_the_old_owner_are_answered_by_it() {
    let scene = Scene::new(&[("shop", "shop.example", "max_in_flight: 1\n")]).await;
    let load = Load::start(Options {
        connections: 12,
        pause: Duration::from_millis(5),
        mix: Mix {
            small: 0,
            slow: 1,
            ..Mix::small()
        },
        slow: 100..200,
        ..Options::new(local(scene.port))
    });
    for (old, new) in [("shop", "web"), ("web", "store")] {
        load.go_on(20).await;
        scene.remove(old);
        scene.add(new, "shop.example", "max_in_flight: 1\n");
        scene.server.ok(&["reload"]).await;
    }
    scene.end(load, "store").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_and_a_path_move_without_loss_and_with_a_deploy_of_the_new_owner() {
    let scene = Scene::new(&[
        ("shop", "shop.example, old.example", ""),
        ("web", "web.example", ""),
    ])
    .await;
    let load = scene.load();
    load.go_on(100).await;
    scene.add("shop", "old.example", "");
    let deploy = "environment: { SHOP_VERSION: newer }\ndelay_running_time: 3s\n";
    scene.add("web", "web.example, shop.example", deploy);
    let reload = scene.server.ok(&["reload"]);
    let shown = scene.shows("shop: keeps shop.example until web is ready");
    tokio::join!(reload, shown);
    assert_eq!(scene.owner("shop.example", "/hello").await, "newer");
    assert_eq!(scene.owner("old.example", "/hello").await, "shop");

    // A path of its own, with a new service.
    scene.add("slow", "shop.example/slow, shop.example/hello", LATE);
    let reload = scene.server.ok(&["reload"]);
    let shown = scene.shows("web: keeps shop.example/hello, shop.example/slow until slow is ready");
    tokio::join!(reload, shown);
    assert_eq!(scene.owner("shop.example", "/hello").await, "slow");
    assert_eq!(scene.owner("shop.example", "/").await, "newer");

    // Back to the service for the whole host, at once.
    scene.remove("slow");
    scene.server.ok(&["reload"]).await;
    scene.end(load, "newer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_swap_enabled_lose_nothing_by_a_reload_and_by_changed_files() {
    for lines in ["", "auto_restart: true\n"] {
        let on = format!("{lines}enabled: true\n");
        let off = format!("{lines}enabled: false\n");
        let scene = Scene::new(&[
            ("blue", "shop.example", &on),
            ("green", "shop.example", &off),
        ])
        .await;
        let load = scene.load();
        load.go_on(100).await;
        scene.add("blue", "shop.example", &off);
        scene.add(
            "green",
            "shop.example",
            &format!("{on}delay_running_time: 3s\n"),
        );
        scene
            .server
            .ok(&["check", &scene.server.home.config().display().to_string()])
            .await;
        if lines.is_empty() {
            scene.server.ok(&["reload"]).await;
        }
        let swapped = scene.server.until("they have swapped", |status| {
            let state = |name: &str| status.services[name].state.as_str();
            state("blue") == "stopped" && state("green") == "running"
        });
        swapped.await;
        scene.end(load, "green").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_that_cannot_start_changes_nothing_and_fails_every_reload() {
    let scene = Scene::new(&[("shop", "shop.example", "")]).await;
    let load = scene.load();
    scene.remove("shop");
    let app = scene.server.home.app("web");
    app.replace(&Build::starting("web", Start::Crash));
    scene.add("web", "shop.example", "");
    for _ in 0..2 {
        let text = failed(&scene.server.ctl(&["reload"]).await);
        assert!(text.contains("web/1 exited with status 3"), "{text}");
        assert!(
            text.contains("shop keeps shop.example until web is ready"),
            "{text}"
        );
        assert_eq!(scene.owner("shop.example", "/hello").await, "shop");
    }
    scene
        .shows("shop: removed, keeps shop.example until web is ready")
        .await;
    app.replace(&Build::good("web"));
    scene.server.ok(&["reload"]).await;
    scene.end(load, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_owner_that_crashes_comes_back_and_keeps_the_site() {
    let scene = Scene::new(&[("shop", "shop.example", "instance_count: 1\n")]).await;
    scene.remove("shop");
    let app = scene.server.home.app("web");
    app.replace(&Build::starting("web", Start::Crash));
    scene.add("web", "shop.example", "");
    failed(&scene.server.ctl(&["reload"]).await);
    let shop = |status: &Status| status.services.get("shop").cloned();
    let before = scene.server.status().await.as_ref().and_then(shop);
    let pid = Pid::from_raw(before.unwrap().pids()[0].cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let is_back =
        |status: &Status| shop(status).is_some_and(|shop| shop.crashes == 1 && shop.ready() == 1);
    scene.server.until("shop is back", is_back).await;
    assert_eq!(scene.owner("shop.example", "/hello").await, "shop");
    scene
        .shows("shop: removed, keeps shop.example until web is ready")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_in_a_chain_and_the_way_back_lose_nothing() {
    let scene = Scene::new(&[("shop", "shop.example", "")]).await;
    let load = scene.load();
    let never = "delay_running_time: 1h\n";
    scene.remove("shop");
    scene.add("web", "shop.example", never);
    scene.server.ok(&["reload", "--no-block"]).await;
    scene
        .shows("shop: removed, keeps shop.example until web is ready")
        .await;
    scene.remove("web");
    scene.add("store", "shop.example", never);
    scene.server.ok(&["reload", "--no-block"]).await;
    scene
        .shows("shop: removed, keeps shop.example until store is ready")
        .await;
    load.go_on(50).await;
    let before = scene.server.running("shop").await.pids();
    scene.add("shop", "shop.example", "");
    scene.remove("store");
    scene.server.ok(&["reload"]).await;
    assert_eq!(scene.server.running("shop").await.pids(), before);
    scene.end(load, "shop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_the_new_owner_leaves_the_site_and_a_start_moves_it() {
    let scene = Scene::new(&[("shop", "shop.example", "")]).await;
    let load = scene.load();
    scene.remove("shop");
    scene.add("web", "shop.example", "delay_running_time: 3s\n");
    scene.server.ok(&["reload", "--no-block"]).await;
    scene
        .shows("shop: removed, keeps shop.example until web is ready")
        .await;
    scene.server.ok(&["stop", "web"]).await;
    load.go_on(50).await;
    assert_eq!(scene.owner("shop.example", "/hello").await, "shop");
    scene.server.ok(&["start", "web"]).await;
    scene
        .server
        .until("the old owner is gone", |status| {
            !status.services.contains_key("shop")
        })
        .await;
    // The new owner can be stopped, and the old one too, even though it is not configured.
    scene.add("shop", "shop.example", "delay_running_time: 1h\n");
    scene.remove("web");
    scene.server.ok(&["reload", "--no-block"]).await;
    scene
        .shows("web: removed, keeps shop.example until shop is ready")
        .await;
    let report = load.stop().await;
    report.assert_nothing_lost();
    scene.server.ok(&["stop", "web"]).await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_a_command_has_started_gives_way_to_the_files() {
    let scene = Scene::new(&[("shop", "shop.example", "enabled: false\n")]).await;
    scene.server.ok(&["start", "shop"]).await;
    let load = scene.load();
    scene.add("web", "shop.example", "delay_running_time: 3s\n");
    scene.server.ok(&["reload"]).await;
    let status = scene.server.settled().await;
    assert_eq!(status.services["shop"].state, "stopped");
    let text = failed(&scene.server.ctl(&["start", "shop"]).await);
    assert!(text.contains("leads to `web`"), "{text}");
    scene.end(load, "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_lacks_for_one_service_holds_up_no_other() {
    let scene = Scene::new(&[("shop", "shop.example", ""), ("blog", "blog.example", "")]).await;
    let load = scene.load();
    let home = scene.server.home.path().to_owned();
    let fifo = home.join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let listening = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let other = listening.local_addr().unwrap().port();
    for (number, (lines, cause)) in [
        (
            "environment_file: /nonexistent/env\n".to_owned(),
            "environment_file",
        ),
        (
            format!("environment_file: {}\n", fifo.display()),
            "no regular file",
        ),
        (
            format!("port: {}\nlisten_address: 192.0.2.1\n", free_port()),
            "no address of this machine",
        ),
        ("user: no-such-user\n".to_owned(), "no user `no-such-user`"),
        (format!("port: {other}\n"), "address in use: port"),
    ]
    .into_iter()
    .enumerate()
    {
        let blog = scene.server.running("blog").await.pids();
        let yaml = format!(
            "name: blog\nserver_name: blog.example\nexecutable_path: ../../apps/blog/shop\n{}{lines}",
            match lines.starts_with("port") {
                true => String::new(),
                false => format!("port: {}\n", scene.port),
            },
        );
        scene.server.home.write_service("blog", &yaml);
        let version = format!("{number}");
        scene
            .server
            .home
            .app("shop")
            .replace(&Build::good(&version));
        for _ in 0..2 {
            let text = failed(&scene.server.ctl(&["reload"]).await);
            assert!(text.contains(cause), "{cause}: {text}");
            assert!(text.contains("blog goes on with what it runs"), "{text}");
        }
        assert_eq!(scene.owner("shop.example", "/hello").await, version);
        assert_eq!(scene.owner("blog.example", "/hello").await, "blog");
        assert_eq!(scene.server.running("blog").await.pids(), blog);
        scene.shows("blog: a change was not applied").await;
    }
    scene.add("blog", "blog.example", "");
    let text = scene.server.ok(&["reload"]).await;
    assert_eq!(text, "reload: done: nothing had changed (2 services)\n");
    assert!(
        !scene
            .server
            .ok(&["status"])
            .await
            .contains("was not applied")
    );

    // The executable, of a service that runs and of a new one.
    fs::remove_file(scene.server.home.app("blog").executable()).unwrap();
    write(
        &scene.server.home.service("news"),
        &format!(
            "name: news\nserver_name: news.example\nport: {}\nexecutable_path: ../../apps/none\n",
            scene.port
        ),
    );
    scene.add("shop", "shop.example", "instance_count: 2\n");
    let text = failed(&scene.server.ctl(&["reload"]).await);
    assert!(text.contains("blog goes on with what it runs"), "{text}");
    assert!(text.contains("news was not started"), "{text}");
    assert!(
        text.contains("done all the same:\n  shop: 1 instance started"),
        "{text}"
    );
    assert_eq!(scene.owner("blog.example", "/hello").await, "blog");

    // Faults of the files refuse everything.
    scene.add("shop", "shop.example", "instance_count: many\n");
    let output = scene.server.ctl(&["reload"]).await;
    assert_eq!(output.status.code(), Some(78));
    let report = load.stop().await;
    report.assert_nothing_lost();
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_auto_restart_has_refused_is_shown_until_it_is_gone_or_applied() {
    let scene = Scene::new(&[("shop", "shop.example", "auto_restart: true\n")]).await;
    let file = scene.server.home.service("shop");
    let good = fs::read_to_string(&file).unwrap();
    let other = free_port();
    let words = "shop: a change was not applied";
    let moved = good.replace(&format!("port: {}", scene.port), &format!("port: {other}"));
    for bad in [moved.clone(), "name: shop\n".to_owned()] {
        write(&file, &bad);
        scene.shows(words).await;
        write(&file, &good);
        let begin = std::time::Instant::now();
        while scene.server.ok(&["status"]).await.contains(words) {
            assert!(begin.elapsed() < PATIENCE);
        }
    }
    write(&file, &moved);
    scene.shows(words).await;
    scene.server.ok(&["reload"]).await;
    assert!(!scene.server.ok(&["status"]).await.contains(words));
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_held_stays_so_when_another_change_of_its_files_is_refused() {
    let lines = "auto_restart: true\n";
    let scene = Scene::new(&[("shop", "shop.example", lines), ("web", "web.example", "")]).await;
    let lacking = format!("{lines}environment_file: /nonexistent/env\n");
    scene.add("shop", "store.example", &lacking);
    scene.add("web", "web.example, shop.example", "");
    let is_held = async || {
        let text = failed(&scene.server.ctl(&["reload"]).await);
        assert!(text.contains("shop goes on with what it runs"), "{text}");
        assert_eq!(scene.owner("shop.example", "/hello").await, "web");
    };
    is_held().await;
    is_held().await;
    let file = scene.server.home.service("shop");
    write(&file, "name: shop\nport: many\n");
    scene.shows("shop.yaml:2:7").await;
    assert_eq!(scene.owner("shop.example", "/hello").await, "web");
    failed(&scene.server.ctl(&["reload"]).await);
    scene.add("shop", "store.example", &lacking);
    is_held().await;
    scene.add("shop", "store.example", lines);
    scene.server.ok(&["reload"]).await;
    assert_eq!(scene.owner("store.example", "/hello").await, "shop");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_just_being_replaced_in_place_keeps_its_site() {
    let in_place = "rollout: in-place\ndelay_running_time: 4s\nqueue_timeout: 30s\n";
    let scene = Scene::new(&[("shop", "shop.example", in_place)]).await;
    scene.server.running("shop").await;
    scene.server.ok(&["restart", "--no-block", "shop"]).await;
    let is_away = |status: &Status| status.services["shop"].ready() == 0;
    scene.server.until("the old one is gone", is_away).await;
    scene.remove("shop");
    scene.add("web", "shop.example", "delay_running_time: 1h\n");
    scene.server.ok(&["reload", "--no-block"]).await;
    scene
        .shows("shop: removed, keeps shop.example until web is ready")
        .await;
    assert_eq!(scene.owner("shop.example", "/hello").await, "shop");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_cannot_listen_beside_one_that_is_held_stay_as_they_were() {
    let narrow = "listen_address: 127.0.0.1\n";
    let services = [
        ("shop", "shop.example", narrow),
        ("web", "web.example", narrow),
    ];
    let scene = Scene::new(&services).await;
    let load = scene.load();
    scene.add(
        "shop",
        "shop.example",
        "environment_file: /nonexistent/env\n",
    );
    scene.add("web", "web.example", "");
    scene.add("news", "news.example", "");
    for _ in 0..2 {
        let text = failed(&scene.server.ctl(&["reload"]).await);
        for part in [
            "shop goes on with what it runs",
            "web goes on with what it runs",
            "news was not started",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let cause = format!("port {} is taken on 127.0.0.1 only by `shop`", scene.port);
        assert_eq!(text.matches(&cause).count(), 2, "{text}");
        assert_eq!(scene.owner("web.example", "/hello").await, "web");
    }
    scene.add("shop", "shop.example", "");
    scene.server.ok(&["reload"]).await;
    assert_eq!(scene.owner("web.example", "/hello").await, "web");
    assert_eq!(scene.owner("news.example", "/hello").await, "news");
    scene.end(load, "shop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_whose_address_changes_with_its_owner_loses_nothing() {
    let narrow = "listen_address: 127.0.0.1\n";
    let scene = Scene::new(&[("shop", "shop.example", narrow)]).await;
    let load = scene.load();
    for (old, new, lines) in [("shop", "web", ""), ("web", "store", narrow)] {
        load.go_on(50).await;
        scene.remove(old);
        scene.add(new, "shop.example", &format!("{LATE}{lines}"));
        let reload = scene.server.ok(&["reload"]);
        let words = format!("{old}: removed, keeps shop.example until {new} is ready");
        tokio::join!(reload, scene.shows(&words));
    }
    scene.end(load, "store").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_port_cannot_be_opened_holds_up_no_other_restart() {
    let scene = Scene::new(&[
        ("off", "off.example", "enabled: false\n"),
        ("shop", "shop.example", ""),
        ("web", "web.example", "auto_restart: true\n"),
    ])
    .await;
    scene.server.ok(&["start", "off"]).await;
    scene.add("web", "web.example, off.example", "auto_restart: true\n");
    let begin = std::time::Instant::now();
    while scene
        .server
        .ok(&["status", "--json"])
        .await
        .matches("\"off.example\"")
        .count()
        < 2
    {
        assert!(begin.elapsed() < PATIENCE);
    }
    let before = scene.server.settled().await;
    let text = failed(&scene.server.ctl(&["restart", "all"]).await);
    assert!(text.contains("leads to `web`"), "{text}");
    let after = scene.server.settled().await;
    for (name, is_restarted) in [("off", false), ("shop", true), ("web", true)] {
        let pids = |status: &Status| status.services[name].pids();
        assert_eq!(pids(&before) != pids(&after), is_restarted, "{name}");
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_what_it_has_done() {
    let scene = Scene::new(&[
        ("shop", "shop.example", "instance_count: 3\n"),
        ("blog", "blog.example", ""),
    ])
    .await;
    let reload = async |text: &str| {
        assert_eq!(
            scene.server.ok(&["reload"]).await,
            format!("reload: done{text}\n")
        );
    };
    reload(": nothing had changed (2 services)").await;
    scene.server.home.app("shop").replace(&Build::good("2"));
    reload(": shop: 3 instances replaced").await;
    scene.add("shop", "shop.example", "");
    reload(": shop: 2 instances stopped").await;
    scene.add("shop", "shop.example", "max_in_flight: 100\n");
    reload(": shop: settings changed, no instance replaced").await;
    scene.add("news", "news.example", "");
    scene.add("blog", "blog.example", "enabled: false\n");
    reload(":\n  blog: stopped\n  news: 1 instance started").await;
    scene.server.stop().await;
}
