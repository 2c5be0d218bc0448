//! What people do with smoothserve, step by step: deploys of every kind, faulty files, stops and
//! starts, services in other languages.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use smoothserve_kit::load::{Load, Mix, Options};
use smoothserve_kit::{
    App, Build, Home, PATIENCE, Service, Smoothserve, Start, client, free_port, local, processes,
    programs, write,
};
use tokio::net::TcpStream;

/// A smoothserve with one service `shop`.
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

    async fn get(&self, target: &str) -> client::Response {
        let response = client::get(local(self.port), "shop.example", target);
        response.await.unwrap()
    }

    /// Checks that this version is served, by as many requests as there may be instances.
    async fn assert_serves(&self, version: &str) {
        for _ in 0..4 {
            let response = self.get("/hello").await;
            assert_eq!(response.head.header("x-shop-version"), Some(version));
        }
    }

    /// Starts a load of small requests that hardly pause.
    fn load(&self) -> Load {
        Load::start(Options {
            connections: 4,
            pause: Duration::from_millis(10),
            mix: Mix {
                slow: 1,
                ..Mix::small()
            },
            ..Options::new(local(self.port))
        })
    }

    /// Waits until all instances serve a version.
    async fn deployed(&self, load: &Load, version: &str) {
        load.see(version, PATIENCE).await.unwrap();
        self.server.running("shop").await;
        self.assert_serves(version).await;
    }

    /// Waits until a deploy was tried and given up, checks that the old instances still run, and
    /// returns the reason.
    async fn given_up(&self, before: &Service) -> String {
        let status = self.server.until("the deploy is given up", |status| {
            let shop = &status.services["shop"];
            shop.generation > before.generation && shop.state == "running"
        });
        let after = status.await.services.remove("shop").unwrap();
        assert_eq!(
            after.pids(),
            before.pids(),
            "the good instances are untouched"
        );
        after.last_error.unwrap().message
    }

    async fn end(self, load: Load) {
        load.stop().await.assert_nothing_lost();
        self.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_replace_the_executable_is_a_deploy() {
    let scene = Scene::new("instance_count: 2\nauto_restart: true\n").await;
    let load = scene.load();
    for (version, deploy) in [
        ("2", App::replace as fn(&App, &Build)),
        ("3", App::link),
        ("4", App::link),
        ("5", App::overwrite),
    ] {
        deploy(&scene.app, &Build::good(version));
        scene.deployed(&load, version).await;
    }
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_the_current_symlink_is_a_deploy() {
    let home = Home::new();
    let port = free_port();
    let app = home.app("shop");
    app.flip(&Build::good("1"));
    let file = "name: shop\nserver_name: shop.example\nport: PORT\nauto_restart: true\n\
                executable_path: ../../apps/shop/current/shop\n";
    home.write_service("shop", &file.replace("PORT", &port.to_string()));
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let scene = Scene { server, app, port };
    let load = scene.load();
    for version in ["2", "3"] {
        scene.app.flip(&Build::good(version));
        scene.deployed(&load, version).await;
    }
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executable_that_appears_later_is_started() {
    let home = Home::new();
    let port = free_port();
    let app = home.add_shop("shop", port, "auto_restart: true\n");
    fs::remove_file(app.executable()).unwrap();
    let server = Smoothserve::start(programs!(), home).await;
    let scene = Scene { server, app, port };
    scene.app.replace(&Build::good("1"));
    scene.server.running("shop").await;
    scene.assert_serves("1").await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_crashes_is_given_up_with_its_last_output() {
    let scene = Scene::new("instance_count: 2\nauto_restart: true\n").await;
    let load = scene.load();
    let before = scene.server.running("shop").await;
    scene.app.replace(&Build::starting("2", Start::Crash));
    let error = scene.given_up(&before).await;
    assert!(!error.contains("no such table: orders"), "{error}");
    let report = scene.server.ok(&["status", "shop"]).await;
    assert!(report.contains("no such table: orders"), "{report}");
    assert!(
        error.contains("status 3") || error.contains("code 3"),
        "{error}"
    );

    // An instance that crashes now is replaced by the build that worked, although its file is gone.
    processes::signal_pid(before.instances[0].pid, Signal::KILL);
    let repaired =
        |shop: &Service| shop.crashes == 1 && shop.state == "running" && shop.ready() == 2;
    scene
        .server
        .until("it is repaired", |status| {
            repaired(&status.services["shop"])
        })
        .await;
    scene.assert_serves("1").await;

    scene.app.replace(&Build::good("3"));
    scene.deployed(&load, "3").await;
    scene.server.stop().await;
    let _ = load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_never_listens_is_given_up_with_the_failed_probe() {
    let scene = Scene::new("instance_count: 2\nauto_restart: true\nstart_timeout: 2s\n").await;
    let load = scene.load();
    let before = scene.server.running("shop").await;
    scene.app.replace(&Build::starting("2", Start::Mute));
    let error = scene.given_up(&before).await;
    assert!(error.contains("connect to 127.0.0.1:"), "{error}");
    assert!(error.contains("2s") || error.contains("2 s"), "{error}");
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_not_healthy_is_given_up_with_the_status_of_its_probe() {
    let scene = Scene::new("ready: http:/health\nauto_restart: true\nstart_timeout: 2s\n").await;
    let load = scene.load();
    let before = scene.server.running("shop").await;
    scene.app.replace(&Build::starting("2", Start::Sick));
    let error = scene.given_up(&before).await;
    assert!(
        error.contains("/health") && error.contains("500"),
        "{error}"
    );
    let restart = scene.server.ctl(&["restart", "shop"]).await;
    assert!(
        !restart.status.success(),
        "a restart into the bad build fails"
    );
    let words = String::from_utf8_lossy(&restart.stderr).into_owned();
    assert!(
        words.contains("/health") && words.contains("500"),
        "{words}"
    );
    scene.assert_serves("1").await;
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_gets_sick_while_it_is_watched_is_given_up() {
    let scene = Scene::new("ready: http:/health\nauto_restart: true\n").await;
    let before = scene.server.running("shop").await;
    scene.app.replace(&Build::starting("2", Start::Failing));
    let error = scene.given_up(&before).await;
    assert!(
        error.contains("failed its health check: GET /health: status 500"),
        "{error}"
    );
    let restart = scene.server.ctl(&["restart", "shop"]).await;
    assert!(!restart.status.success(), "the restart fails as well");
    scene.assert_serves("1").await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_instance_is_shown_and_does_not_count_as_ready() {
    let scene = Scene::new("ready: http:/health\n").await;
    scene.server.ctl(&["stop", "shop"]).await;
    scene.app.replace(&Build::starting("2", Start::Failing));
    scene.server.ctl(&["start", "shop"]).await;
    let sick = scene.server.until("the instance is unhealthy", |status| {
        status.services["shop"].state == "degraded"
    });
    assert_eq!(sick.await.services["shop"].ready(), 0);
    let status = scene.server.ctl(&["status", "shop"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for words in ["degraded, 0/1 instances ready", "unhealthy: GET /health"] {
        assert!(status.contains(words), "{status}");
    }
    // It gets requests as long as there is no healthy one.
    scene.assert_serves("2").await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auto_restart_a_reload_deploys() {
    let scene = Scene::new("instance_count: 2\n").await;
    let load = scene.load();
    let first = scene.server.running("shop").await;
    scene.server.ok(&["reload"]).await;
    assert_eq!(
        scene.server.running("shop").await.pids(),
        first.pids(),
        "nothing had changed"
    );
    scene.app.replace(&Build::good("2"));
    scene.assert_serves("1").await;
    scene.server.ok(&["reload"]).await;
    scene.assert_serves("2").await;
    let second = scene.server.running("shop").await;
    scene.server.ok(&["reload"]).await;
    assert_eq!(
        scene.server.running("shop").await.pids(),
        second.pids(),
        "nothing had changed"
    );
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_environment_files_and_watched_files_are_deploys() {
    let home = Home::new();
    let port = free_port();
    let app = home.add_shop(
        "shop",
        port,
        "auto_restart: true\nenvironment_file: shop.env\nwatch_files: [templates]\n",
    );
    let templates = app.folder().join("templates/deep");
    fs::create_dir_all(&templates).unwrap();
    let environment = home.config().join("services/shop.env");
    fs::write(&environment, "# the version\nSHOP_VERSION=from-file-1\n").unwrap();
    let server = Smoothserve::start(programs!(), home).await;
    let before = server.running("shop").await;
    let scene = Scene { server, app, port };
    scene.assert_serves("from-file-1").await;

    let load = scene.load();
    fs::write(templates.join("page.html"), "new").unwrap();
    let replaced = |shop: &Service| shop.state == "running" && shop.pids() != before.pids();
    scene
        .server
        .until("the new page is seen", |status| {
            replaced(&status.services["shop"])
        })
        .await;

    write(&environment, "SHOP_VERSION=from-file-2\n");
    scene.server.ok(&["reload"]).await;
    scene.server.running("shop").await;
    scene.assert_serves("from-file-2").await;
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_instance_count_starts_and_stops_only_the_difference() {
    let scene = Scene::new("instance_count: 2\n").await;
    let load = scene.load();
    let two = scene.server.running("shop").await.pids();
    scene
        .server
        .home
        .write_shop("shop", scene.port, "instance_count: 3\n");
    scene.server.ok(&["reload"]).await;
    let three = scene.server.running("shop").await.pids();
    assert_eq!(three.len(), 3);
    assert!(two.iter().all(|pid| three.contains(pid)));
    scene
        .server
        .home
        .write_shop("shop", scene.port, "instance_count: 1\n");
    scene.server.ok(&["reload"]).await;
    let one = scene.server.running("shop").await.pids();
    assert_eq!(one.len(), 1);
    assert!(three.contains(&one[0]));
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_of_one_service_touches_that_service_alone() {
    let home = Home::new();
    let (port, other_port) = (free_port(), free_port());
    let app = home.add_shop("shop", port, "auto_restart: true\n");
    home.add_shop("blog", other_port, "auto_restart: true\n");
    let server = Smoothserve::start(programs!(), home).await;
    server.settled().await;
    let blog = server.running("blog").await.pids();
    let scene = Scene { server, app, port };
    let load = scene.load();
    // With `auto_restart`, the file of the service is watched, too.
    let lines = "auto_restart: true\nenvironment: { SHOP_VERSION: edited }\n";
    scene.server.home.write_shop("shop", port, lines);
    scene.deployed(&load, "edited").await;
    assert_eq!(scene.server.running("blog").await.pids(), blog);
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_with_a_fault_changes_nothing_and_names_every_fault() {
    let scene = Scene::new("instance_count: 2\n").await;
    let load = scene.load();
    let before = scene.server.running("shop").await;
    let home = &scene.server.home;
    home.write_shop("shop", scene.port, "instance_cout: 3\n");
    home.write_service("blog", "name: blog\nport: [\n");
    let reload = scene.server.ctl(&["reload"]).await;
    assert!(!reload.status.success());
    let words = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert!(words.contains("shop.yaml:5:1: "), "{words}");
    assert!(
        words.contains("instance_cout") && words.contains("instance_count"),
        "{words}"
    );
    assert!(words.contains("blog.yaml:"), "{words}");

    let after = scene.server.running("shop").await;
    assert_eq!(
        (after.pids(), after.generation),
        (before.pids(), before.generation)
    );

    home.remove_service("blog");
    home.write_shop("shop", scene.port, "instance_count: 3\n");
    scene.server.ok(&["reload"]).await;
    assert_eq!(scene.server.running("shop").await.instances.len(), 3);
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valid_services_start_beside_a_faulty_file() {
    let home = Home::new();
    let port = free_port();
    let app = home.add_shop("shop", port, "");
    home.write_service("blog", "name: blog\nprot: 80\n");
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    assert!(server.log().contains("blog.yaml:2:1: "), "{}", server.log());
    let scene = Scene { server, app, port };
    scene.assert_serves("1").await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_service_answers_503_and_comes_back() {
    let scene = Scene::new("instance_count: 2\n").await;
    let slow = tokio::spawn({
        let address = local(scene.port);
        async move { client::get(address, "shop.example", "/slow?ms=1500").await }
    });
    let busy = |shop: &Service| shop.instances.iter().any(|instance| instance.in_flight > 0);
    scene
        .server
        .until("the slow request is in flight", |status| {
            busy(&status.services["shop"])
        })
        .await;
    scene.server.ok(&["stop", "shop"]).await;
    assert_eq!(
        slow.await.unwrap().unwrap().text(),
        "slow\n",
        "it was drained"
    );
    let response = scene.get("/hello").await;
    assert_eq!(response.head.status, 503);
    assert!(
        !response.text().to_lowercase().contains("smoothserve"),
        "{}",
        response.text()
    );
    let status = scene.server.status().await.unwrap();
    assert_eq!(status.services["shop"].state, "stopped");
    assert!(status.services["shop"].instances.is_empty());

    scene.server.ok(&["reload"]).await;
    assert_eq!(
        scene.get("/hello").await.head.status,
        503,
        "a reload does not start it"
    );
    scene.server.ok(&["start", "shop"]).await;
    scene.assert_serves("1").await;
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_drain_until_all_requests_have_ended() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut scene = Scene::new("instance_count: 2\n").await;
        let below = processes::descendants(scene.server.pid());
        assert!(below.len() >= 3, "a worker and two instances: {below:#?}");
        let slow: Vec<_> = (0..20)
            .map(|_| {
                tokio::spawn(client::get(
                    local(scene.port),
                    "shop.example",
                    "/slow?ms=1500",
                ))
            })
            .collect();
        scene
            .server
            .until("they are in flight", |status| {
                let instances = status.services["shop"].instances.iter();
                instances.map(|instance| instance.in_flight).sum::<u64>() == 20
            })
            .await;
        scene.server.signal(signal);
        for slow in slow {
            let response = slow.await.unwrap().unwrap();
            assert_eq!(
                (response.head.status, response.text().as_str()),
                (200, "slow\n")
            );
        }
        assert!(scene.server.ended().await.success());
        scene.server.assert_no_process_left(&below);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads() {
    let scene = Scene::new("").await;
    let load = scene.load();
    scene.app.replace(&Build::good("2"));
    scene.server.signal(Signal::HUP);
    scene.deployed(&load, "2").await;
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_over_unix_sockets_inherited_sockets_and_notifications_lose_nothing() {
    for lines in [
        "bind: unix\n",
        "bind: inherit\n",
        "bind: inherit\nready: notify\n",
        "ready: notify\n",
        "bind: unix\nready: http:/health\n",
    ] {
        let delay = "environment: { SHOP_START_DELAY: 200ms }\n";
        let scene = Scene::new(&format!("{lines}{delay}instance_count: 2\n")).await;
        let load = scene.load();
        for _ in 0..2 {
            let before = scene.server.running("shop").await;
            load.go_on(50).await;
            scene.server.ok(&["restart", "shop"]).await;
            let after = scene.server.running("shop").await;
            assert!(
                before.pids().iter().all(|pid| !after.pids().contains(pid)),
                "{lines}"
            );
        }
        scene.end(load).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_inherit_nothing_of_the_manager_and_are_not_root() {
    let home = Home::new();
    let app = home.app("env");
    // This service only writes down what it was given, and then waits.
    let script = "#!/bin/sh\nenv > seen.new; id -u > user; mv seen.new seen; ls /proc/$$/fd > fds; exec sleep 1000\n";
    write(&app.executable(), script);
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(app.executable(), mode(0o755)).unwrap();
    fs::set_permissions(app.folder(), mode(0o777)).unwrap();
    let port = free_port();
    home.write_shop("env", port, "ready: notify\n");
    let server = Smoothserve::spawn(programs!(), home);
    let seen = app.folder().join("fds");
    let limit = tokio::time::timeout(PATIENCE, async {
        while !fs::metadata(&seen).is_ok_and(|file| file.len() > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    limit.await.expect("the service was started");
    let environment = fs::read_to_string(app.folder().join("seen")).unwrap();
    let has = |name: &str| {
        environment
            .lines()
            .any(|line| line.starts_with(&format!("{name}=")))
    };
    for given in [
        "PORT",
        "SMOOTHSERVE_SERVICE",
        "SMOOTHSERVE_INSTANCE",
        "PATH",
    ] {
        assert!(has(given), "{given} is missing in\n{environment}");
    }
    assert!(
        has("NOTIFY_SOCKET"),
        "it is asked to send READY=1\n{environment}"
    );
    for foreign in [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ] {
        assert!(!has(foreign), "{foreign} is there in\n{environment}");
    }
    let user = fs::read_to_string(app.folder().join("user")).unwrap();
    assert_ne!(user.trim(), "0");
    drop(server);
}

/// Starts, deploys, restarts and stops a service in another language, as all others are.
async fn in_another_language(script: &str, interpreter: Option<&Path>) {
    let home = Home::new();
    let port = free_port();
    let app = home.app("shop");
    let file = app.executable();
    let install = |version: &str| {
        let new = app.folder().join("new");
        fs::write(&new, script.replace("VERSION", version)).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &file).unwrap();
    };
    install("1");
    let lines = match interpreter {
        None => format!("executable_path: {}\n", file.display()),
        Some(interpreter) => format!(
            "executable_path: {}\nargs: [{:?}]\nwatch_files: [{:?}]\n",
            interpreter.display(),
            file,
            file
        ),
    };
    home.write_service(
        "shop",
        &format!("name: shop\nserver_name: shop.example\nport: {port}\ninstance_count: 2\nauto_restart: true\n{lines}"),
    );
    let server = Smoothserve::start(programs!(), home).await;
    let before = server.running("shop").await;
    let get = || client::get(local(port), "shop.example", "/");
    assert_eq!(get().await.unwrap().text(), "version 1");

    install("2");
    let replaced = |shop: &Service| shop.state == "running" && shop.pids() != before.pids();
    let status = server
        .until("the new script is seen", |status| {
            replaced(&status.services["shop"])
        })
        .await;
    assert_eq!(get().await.unwrap().text(), "version 2");

    processes::signal_pid(status.services["shop"].instances[0].pid, Signal::KILL);
    let repaired =
        |shop: &Service| shop.crashes == 1 && shop.state == "running" && shop.ready() == 2;
    server
        .until("the crash is repaired", |status| {
            repaired(&status.services["shop"])
        })
        .await;
    for _ in 0..4 {
        assert_eq!(get().await.unwrap().text(), "version 2");
    }
    server.ok(&["restart", "shop"]).await;
    assert_eq!(get().await.unwrap().text(), "version 2");
    server.stop().await;
}

const PYTHON: &str = "#!/usr/bin/env python3
import http.server, os

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        body = b'version VERSION'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Page).serve_forever()
";

const NODE: &str = "#!/usr/bin/env node
const page = (request, response) => response.end('version VERSION');
require('http').createServer(page).listen(Number(process.env.PORT), '127.0.0.1');
";

#[tokio::test(flavor = "multi_thread")]
async fn a_python_script_is_a_service() {
    in_another_language(PYTHON, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_with_a_script_as_its_argument_is_a_service() {
    let python = Path::new("/usr/bin/python3");
    assert!(python.exists(), "the test needs {}", python.display());
    in_another_language(PYTHON, Some(python)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_script_is_a_service() {
    let node = std::process::Command::new("node").arg("--version").output();
    if node.is_err() {
        eprintln!("not tested: there is no node on this machine");
        return;
    }
    in_another_language(NODE, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_a_running_service_changes_nothing() {
    let scene = Scene::new("instance_count: 2\n").await;
    let before = scene.server.running("shop").await;
    scene.server.ok(&["start", "shop"]).await;
    let after = scene.server.running("shop").await;
    assert_eq!(
        (after.pids(), after.generation),
        (before.pids(), before.generation)
    );
    scene.server.stop().await;
}

/// A disabled service that was started by hand has its hosts and ports until the files give them to
/// another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_service_can_be_started_by_hand() {
    let home = Home::new();
    let port = free_port();
    home.add_shop("shop", port, "enabled: false\n");
    let server = Smoothserve::start(programs!(), home).await;
    let get = || client::get(local(port), "shop.example", "/hello");
    assert!(get().await.is_err(), "it has no port yet");
    server.ok(&["start", "shop"]).await;
    assert_eq!(get().await.unwrap().text(), "hello\n");

    let file = "name: twin\nserver_name: shop.example\nport: PORT\nexecutable_path: ../../apps/shop/shop\n";
    let file = file.replace("PORT", &port.to_string());
    server.home.write_service("twin", &file);
    // What is started by hand gives way to the files, of which `check` says that they are good.
    server.ok(&["reload"]).await;
    server.running("twin").await;
    assert_eq!(get().await.unwrap().text(), "hello\n");
    let status = server.settled().await;
    assert_eq!(status.services["shop"].state, "stopped");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_for_fewer_or_more_addresses_loses_nothing_of_those_that_stay() {
    let scene = Scene::new("").await;
    let load = Load::start(Options {
        connections: 8,
        pause: Duration::from_millis(4),
        mix: Mix {
            fresh: 4,
            ..Mix::small()
        },
        ..Options::new(local(scene.port))
    });
    let elsewhere = SocketAddr::from((Ipv6Addr::LOCALHOST, scene.port));
    for (lines, is_wide) in [
        ("listen_address: 127.0.0.1\n", false),
        ("", true),
        ("listen_address: 0.0.0.0\n", false),
        ("listen_address: 127.0.0.1\n", false),
        ("listen_address: 127.0.0.1\n", false),
        ("", true),
    ] {
        load.go_on(100).await;
        scene.server.home.write_shop("shop", scene.port, lines);
        scene.server.ok(&["reload"]).await;
        load.go_on(100).await;
        if is_wide {
            let response = client::get(elsewhere, "shop.example", "/hello").await;
            assert_eq!(response.unwrap().text(), "hello\n");
        } else {
            closed(elsewhere).await;
        }
    }
    scene.end(load).await;
}

/// Waits until nobody listens on an address.
async fn closed(address: SocketAddr) {
    let closes = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let closes = tokio::time::timeout(PATIENCE, closes).await;
    closes.unwrap_or_else(|_| panic!("{address} is still open"));
}
