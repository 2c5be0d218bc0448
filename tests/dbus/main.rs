//! The D-Bus interface of a running smoothserve, on the private socket and on a bus, compared with
//! its documentation.

mod client;
mod daemon;
mod floods;
mod reference;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use smoothserve_kit::{Build, Home, PATIENCE, Smoothserve, Start, free_port, local, programs};
use zbus::{OwnedObjectPath, OwnedVariant};

use client::{Client, JOB, MANAGER, MANAGER_PATH, SERVICE, error_name};
use daemon::Daemon;

const SHOP: &str = "/org/smoothserve1/service/shop";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The properties of an object, by interface.
type Shown = HashMap<String, HashMap<String, OwnedVariant>>;

/// A smoothserve on a bus and on its private socket, with one service `shop`, whose instances
/// listen on unix sockets.
struct Scene {
    server: Smoothserve,
    app: smoothserve_kit::App,
    port: u16,
    daemon: Daemon,
}

impl Scene {
    async fn new(lines: &str) -> Scene {
        let daemon = Daemon::start().await;
        let home = Home::new();
        let port = free_port();
        let app = home.add_shop("shop", port, &format!("bind: unix\n{lines}"));
        let server = Smoothserve::spawn_on(programs!(), home, Some(&daemon.address()));
        server.running("shop").await;
        Scene {
            server,
            app,
            port,
            daemon,
        }
    }

    async fn private(&self) -> Client {
        Client::private(&self.server.bus()).await
    }

    /// Runs smoothctl as a user who may change nothing. Needs root.
    async fn ctl_of_nobody(&self, bus: &str, arguments: &[&str]) -> Output {
        const NOBODY: u32 = 65534;
        // The target folder may be closed to other users, so they run a copy.
        let smoothctl = self.server.home.path().join("smoothctl");
        if !smoothctl.exists() {
            std::fs::copy(programs!().smoothctl, &smoothctl).unwrap();
            std::fs::set_permissions(&smoothctl, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = tokio::process::Command::new(&smoothctl);
        command
            .args(["--bus", bus])
            .args(arguments)
            .current_dir("/")
            .env("SMOOTHSERVE_RUN_DIR", self.server.home.run())
            .env("DBUS_SESSION_BUS_ADDRESS", self.daemon.address())
            .uid(NOBODY);
        command.output().await.unwrap()
    }

    /// Connects in both ways: on the private socket and on the bus.
    async fn clients(&self) -> [Client; 2] {
        [
            self.private().await,
            Client::on_bus(&self.daemon.address()).await,
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_shows_exactly_the_documented_members() {
    let scene = Scene::new("").await;
    for client in scene.clients().await {
        let job = client.begin("RestartService", "shop").await.unwrap();
        for (path, interface) in [(MANAGER_PATH, MANAGER), (SHOP, SERVICE), (&*job, JOB)] {
            let description = client.introspect(path).await.unwrap();
            assert_eq!(
                reference::introspected(&description, interface),
                reference::documented(interface)
            );
        }
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_a_job_whose_start_and_end_are_signaled() {
    let scene = Scene::new("instance_count: 2\n").await;
    for client in scene.clients().await {
        let before = scene.server.running("shop").await;
        let mut signals = client.signals().await;
        let mut results = client.signals().await;
        let job = client.begin("RestartService", "shop").await.unwrap();
        assert_eq!(signals.job_new().await, (job.clone(), "shop".to_owned()));
        assert_eq!(results.result_of(&job).await, "done");
        let after = scene.server.running("shop").await;
        assert!(
            after.pids().iter().all(|pid| !before.pids().contains(pid)),
            "both are new"
        );
        let state: String = client.property(&job, JOB, "State").await.unwrap();
        let kind: String = client.property(&job, JOB, "Kind").await.unwrap();
        let done: u32 = client.property(&job, JOB, "Done").await.unwrap();
        assert_eq!(
            (state.as_str(), kind.as_str(), done),
            ("done", "restart", 2)
        );
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_subscriber_gets_no_signals_of_earlier_jobs() {
    let scene = Scene::new("").await;
    let early = scene.private().await;
    let mut signals = early.signals().await;
    let old = early.begin("RestartService", "shop").await.unwrap();
    assert_eq!(signals.result_of(&old).await, "done");

    let late = scene.private().await;
    let mut signals = late.signals().await;
    let state: String = late.property(&old, JOB, "State").await.unwrap();
    assert_eq!(state, "done", "the job that has ended is still there");
    let new = late.begin("RestartService", "shop").await.unwrap();
    assert_eq!(
        signals.job_new().await.0,
        new,
        "the first job that is new is the one that was begun"
    );
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_all_starts_a_job_for_every_service() {
    let scene = Scene::new("").await;
    scene
        .server
        .home
        .add_shop("blog", free_port(), "bind: unix\n");
    scene.server.ok(&["reload"]).await;
    let client = scene.private().await;
    let mut signals = client.signals().await;
    let jobs: Vec<OwnedObjectPath> = client.manager("RestartAll", &()).await.unwrap();
    let mut services = Vec::new();
    for job in &jobs {
        services.push(
            client
                .property::<String>(job, JOB, "Service")
                .await
                .unwrap(),
        );
    }
    assert_eq!(services, ["blog", "shop"]);
    let mut open: BTreeSet<String> = jobs.iter().map(|job| job.to_string()).collect();
    while !open.is_empty() {
        let ended = signals.find(|message| {
            if message.header().member()?.as_str() != "JobRemoved" {
                return None;
            }
            let (job, _, result): (OwnedObjectPath, String, String) =
                message.body().deserialize().unwrap();
            Some((job.to_string(), result))
        });
        let (job, result) = ended.await;
        assert_eq!(result, "done");
        assert!(open.remove(&job), "{job} ends once");
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_error_is_returned_under_its_name() {
    let scene = Scene::new("").await;
    let documented: BTreeSet<String> =
        reference::rows(reference::section(&reference::text(), "## Errors"))
            .iter()
            .map(|row| reference::plain(row[0]))
            .collect();
    // AccessDenied needs a caller who is not root; another test covers it.
    let mut seen: BTreeSet<String> = ["org.smoothserve1.Error.AccessDenied".to_owned()].into();
    let clients = scene.clients().await;
    for client in &clients {
        for method in [
            "StartService",
            "StopService",
            "RestartService",
            "GetService",
        ] {
            let name = error_name(client.begin(method, "shoop").await);
            assert_eq!(name, "org.smoothserve1.Error.NoSuchService", "{method}");
            seen.insert(name);
        }
        let mut signals = client.signals().await;
        let job = client.begin("StartService", "shop").await.unwrap();
        assert_eq!(signals.result_of(&job).await, "done");
        let name = error_name(client.call::<()>(&job, JOB, "Cancel", &()).await);
        assert_eq!(name, "org.smoothserve1.Error.NoSuchJob");
        seen.insert(name);
        let name = error_name(client.introspect("/org/smoothserve1/service/shoop").await);
        assert!(name.starts_with("org.freedesktop.DBus.Error."), "{name}");
    }
    scene
        .server
        .home
        .write_shop("shop", scene.port, "instance_cout: 3\n");
    for client in &clients {
        let result = client.manager::<OwnedObjectPath>("Reload", &()).await;
        let Err(zbus::Error::MethodError(name, Some(message), _)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(name.as_str(), "org.smoothserve1.Error.InvalidConfig");
        assert!(message.contains("shop.yaml:5:1: "), "{message}");
        seen.insert(name.to_string());
    }

    // A request that does not end prolongs the drain, so that smoothserve is still there to answer.
    let stalled = tokio::spawn(smoothserve_kit::client::get(
        local(scene.port),
        "shop.example",
        "/stall",
    ));
    scene
        .server
        .until("it is in flight", |status| {
            status.services["shop"].instances[0].in_flight == 1
        })
        .await;
    let [client, _] = &clients;
    let mut signals = client.signals().await;
    scene.server.signal(Signal::TERM);
    while !signals
        .changed::<String>(MANAGER_PATH, "Status")
        .await
        .starts_with("ending; ")
    {}
    for client in &clients {
        let name = error_name(client.begin("RestartService", "shop").await);
        assert_eq!(name, "org.smoothserve1.Error.ShuttingDown");
        seen.insert(name);
    }
    stalled.abort();
    assert_eq!(seen, documented);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_properties_are_announced() {
    let scene = Scene::new("").await;
    for client in scene.clients().await {
        let mut states = client.signals().await;
        let mut wanted = client.signals().await;
        let mut status = client.signals().await;
        client.begin("StopService", "shop").await.unwrap();
        while states.changed::<String>(SHOP, "State").await != "stopped" {}
        assert_eq!(wanted.changed::<u32>(SHOP, "Wanted").await, 0);
        let state: String = client.property(SHOP, SERVICE, "State").await.unwrap();
        assert_eq!(state, "stopped");

        client.begin("StartService", "shop").await.unwrap();
        assert_eq!(
            states.changed::<String>(SHOP, "State").await,
            "starting",
            "the first change after the stop"
        );
        assert_eq!(states.changed::<String>(SHOP, "State").await, "running");
        assert_eq!(wanted.changed::<u32>(SHOP, "Wanted").await, 1);
        let line = "1 service, 1/1 instances ready";
        while status.changed::<String>(MANAGER_PATH, "Status").await != line {}
        let now: String = client
            .property(MANAGER_PATH, MANAGER, "Status")
            .await
            .unwrap();
        assert_eq!(now, line);
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_adds_and_removes_service_objects() {
    let scene = Scene::new("").await;
    let services = format!("{MANAGER_PATH}/service");
    for client in scene.clients().await {
        assert_eq!(client.children(&services).await, ["shop"]);
        scene
            .server
            .home
            .add_shop("my-shop", free_port(), "bind: unix\n");
        let mut signals = client.signals().await;
        let job: OwnedObjectPath = client.manager("Reload", &()).await.unwrap();
        assert_eq!(signals.result_of(&job).await, "done");
        assert_eq!(client.children(&services).await, ["my_2dshop", "shop"]);
        let path: OwnedObjectPath = client.manager("GetService", &("my-shop",)).await.unwrap();
        assert_eq!(path.as_str(), "/org/smoothserve1/service/my_2dshop");
        let name: String = client.property(&path, SERVICE, "Name").await.unwrap();
        assert_eq!(name, "my-shop");
        type Listed = Vec<(String, String, u32, u32, OwnedObjectPath)>;
        let listed: Listed = client.manager("ListServices", &()).await.unwrap();
        let running = |(name, state, ready, wanted, path): &(_, String, _, _, OwnedObjectPath)| {
            let name: &String = name;
            (
                name.clone(),
                state.clone(),
                *ready,
                *wanted,
                path.to_string(),
            )
        };
        let expected = |name: &str, path: &str| {
            let path = format!("{services}/{path}");
            (name.to_owned(), "running".to_owned(), 1, 1, path)
        };
        assert_eq!(
            listed.iter().map(running).collect::<Vec<_>>(),
            [expected("my-shop", "my_2dshop"), expected("shop", "shop")]
        );

        scene.server.home.remove_service("my-shop");
        let job: OwnedObjectPath = client.manager("Reload", &()).await.unwrap();
        assert_eq!(signals.result_of(&job).await, "done");
        assert_eq!(client.children(&services).await, ["shop"]);
        let read = client.property::<String>(&path, SERVICE, "State").await;
        assert!(error_name(read).starts_with("org.freedesktop.DBus.Error."));
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_rollout_leaves_the_old_instances_serving() {
    let scene = Scene::new("instance_count: 2\nstop_timeout: 200ms\n").await;
    let before = scene.server.running("shop").await;
    scene.app.replace(&Build::starting("2", Start::Mute));
    for client in scene.clients().await {
        let mut signals = client.signals().await;
        let job = client.begin("RestartService", "shop").await.unwrap();
        scene
            .server
            .until("a new instance is starting", |status| {
                let mut instances = status.services["shop"].instances.iter();
                instances.any(|instance| instance.state == "starting")
            })
            .await;
        // It waits for the same instances, and does not wait for ever.
        let reload: OwnedObjectPath = client.manager("Reload", &()).await.unwrap();
        client.call::<()>(&job, JOB, "Cancel", &()).await.unwrap();
        assert_eq!(signals.result_of(&job).await, "canceled");
        assert_eq!(signals.result_of(&reload).await, "failed");
        let state: String = client.property(&job, JOB, "State").await.unwrap();
        assert_eq!(state, "canceled");
        let after = scene.server.running("shop").await;
        assert_eq!(after.pids(), before.pids());
        let response = smoothserve_kit::client::get(local(scene.port), "shop.example", "/hello");
        let response = response.await.unwrap();
        assert_eq!(response.head.header("x-shop-version"), Some("1"));
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smoothserve_returns_to_a_bus_that_was_restarted() {
    let mut scene = Scene::new("").await;
    let [private, on_bus] = scene.clients().await;
    let mut signals = private.signals().await;
    on_bus.begin("StartService", "shop").await.unwrap();
    scene.daemon.kill().await;
    signals.job_new().await;
    let job = private.begin("RestartService", "shop").await.unwrap();
    assert_eq!(
        signals.result_of(&job).await,
        "done",
        "the private socket needs no bus"
    );

    scene.daemon.start_again().await;
    let client = Client::on_bus(&scene.daemon.address()).await;
    let bus = zbus::fdo::DBusProxy::new(&client.connection).await.unwrap();
    let name = zbus::names::BusName::try_from("org.smoothserve1").unwrap();
    let back = async {
        while !bus.name_has_owner(name.clone()).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back)
        .await
        .expect("smoothserve comes back");
    let mut signals = client.signals().await;
    let old: String = client.property(&job, JOB, "State").await.unwrap();
    assert_eq!(old, "done", "all objects are back as well");
    let job = client.begin("RestartService", "shop").await.unwrap();
    assert_eq!(signals.result_of(&job).await, "done");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_may_read_everything_and_change_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let scene = Scene::new("").await;
    let pids = scene.server.running("shop").await.pids();
    let ctl = async |bus: &str, arguments: &[&str]| scene.ctl_of_nobody(bus, arguments).await;
    for bus in ["none", "session"] {
        let status = ctl(bus, &["status"]).await;
        assert!(status.status.success(), "{bus}: {status:?}");
        assert!(String::from_utf8_lossy(&status.stdout).contains("shop"));
        for change in [&["restart", "shop"][..], &["stop", "shop"], &["reload"]] {
            let refused = ctl(bus, change).await;
            assert_eq!(refused.status.code(), Some(77), "{bus} {change:?}");
            let words = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(words.contains("only root"), "{words}");
        }
    }
    assert_eq!(scene.server.running("shop").await.pids(), pids);
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_may_control_get_what_an_instance_has_written() {
    // The last words of an instance of the build that crashes.
    const SECRET: &str = "no such table: orders";
    let scene = Scene::new("").await;
    scene.app.replace(&Build::starting("2", Start::Crash));
    for client in scene.clients().await {
        let mut signals = client.signals().await;
        let job = client.begin("RestartService", "shop").await.unwrap();
        let mut sent = Vec::new();
        let end = signals.find(|message| {
            sent.push(message.data().to_vec());
            (message.header().member()?.as_str() == "JobRemoved").then_some(())
        });
        end.await;
        let dump: String = client.manager("Dump", &()).await.unwrap();
        let error: String = client.property(&job, JOB, "Error").await.unwrap();
        let all = client
            .call::<std::collections::HashMap<String, zbus::OwnedVariant>>(
                SHOP,
                "org.freedesktop.DBus.Properties",
                "GetAll",
                &(SERVICE,),
            )
            .await
            .unwrap();
        assert!(error.contains("exited with status 3"), "{error}");
        for shown in [&dump, &error, &format!("{all:?}")] {
            assert!(!shown.contains(SECRET), "{shown}");
        }
        let is_in = |bytes: &[u8]| {
            bytes
                .windows(SECRET.len())
                .any(|it| it == SECRET.as_bytes())
        };
        assert!(!sent.iter().any(|message| is_in(message)), "in a signal");
        let report: String = client.call(&job, JOB, "GetErrorReport", &()).await.unwrap();
        assert!(
            report.starts_with(&error) && report.contains(SECRET),
            "{report}"
        );
        let (time, report): (u64, String) = client
            .call(SHOP, SERVICE, "GetLastErrorReport", &())
            .await
            .unwrap();
        assert!(time > 0 && report.contains(SECRET), "{report}");
    }
    if rustix::process::geteuid().is_root() {
        for bus in ["none", "session"] {
            let status = scene.ctl_of_nobody(bus, &["status", "shop"]).await;
            let words = String::from_utf8(status.stdout).unwrap();
            assert!(words.contains("exited with status 3"), "{words}");
            assert!(!words.contains(SECRET), "{words}");
            assert!(words.contains("`sudo smoothctl status shop`"), "{words}");
        }
    } else {
        eprintln!("skipped in part: only root can be somebody else");
    }
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_above_the_limit_of_connections_is_refused() {
    let home = Home::new();
    let server = Smoothserve::start(programs!(), home).await;
    let mut clients = Vec::new();
    for _ in 0..128 {
        clients.push(Client::private(&server.bus()).await);
    }
    let refused = server.ctl(&["status"]).await;
    assert_eq!(refused.status.code(), Some(69));
    clients.clear();
    server
        .until("there is room again", |status| status.services.is_empty())
        .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smoothctl_reports_that_nobody_owns_the_bus_name() {
    let daemon = Daemon::start().await;
    let mut command = tokio::process::Command::new(programs!().smoothctl);
    command
        .args(["--bus", "session", "status"])
        .env("DBUS_SESSION_BUS_ADDRESS", daemon.address());
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(69));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("not running, or not on this bus"), "{words}");
}

#[tokio::test]
async fn all_objects_come_at_once_and_their_coming_and_going_is_announced() {
    let scene = Scene::new("").await;
    for client in scene.clients().await {
        let mut signals = client.signals().await;
        let job = client.begin("RestartService", "shop").await.unwrap();
        let (path, interfaces): (OwnedObjectPath, Shown) =
            signals.next_of("InterfacesAdded", "/job/").await;
        assert_eq!(path, job, "nothing that was there before is new");
        assert_eq!(interfaces.keys().collect::<Vec<_>>(), [JOB]);
        let kind = String::try_from(interfaces[JOB]["Kind"].try_clone().unwrap()).unwrap();
        assert_eq!(kind, "restart");
        let objects: HashMap<OwnedObjectPath, Shown> = client
            .call(MANAGER_PATH, OBJECT_MANAGER, "GetManagedObjects", &())
            .await
            .unwrap();
        let paths: BTreeSet<&str> = objects.keys().map(|path| path.as_str()).collect();
        assert!(
            paths.contains(SHOP) && paths.contains(job.as_str()),
            "{paths:?}"
        );
        let all: HashMap<String, OwnedVariant> = client
            .call(SHOP, PROPERTIES, "GetAll", &SERVICE)
            .await
            .unwrap();
        let shown = &objects[&OwnedObjectPath::try_from(SHOP).unwrap()][SERVICE];
        assert_eq!(
            all.keys().collect::<BTreeSet<_>>(),
            shown.keys().collect::<BTreeSet<_>>()
        );
        scene.server.settled().await;

        // A service that goes, and one that comes.
        let port = free_port();
        scene.server.home.add_shop("other", port, "");
        scene.server.ok(&["reload"]).await;
        let (path, _): (OwnedObjectPath, Shown) =
            signals.next_of("InterfacesAdded", "/service/").await;
        assert_eq!(path.as_str(), "/org/smoothserve1/service/other");
        scene.server.home.remove_service("other");
        scene.server.ok(&["reload"]).await;
        let (path, interfaces): (OwnedObjectPath, Vec<String>) =
            signals.next_of("InterfacesRemoved", "/service/").await;
        assert_eq!(path.as_str(), "/org/smoothserve1/service/other");
        assert_eq!(interfaces, [SERVICE]);
    }
    scene.server.stop().await;
}

/// Returns the last word of the name of an error.
fn last_word<T: std::fmt::Debug>(result: zbus::Result<T>) -> String {
    let name = error_name(result);
    name.rsplit('.').next().unwrap().to_owned()
}

#[tokio::test]
async fn calls_are_understood_as_the_specification_has_them() {
    let scene = Scene::new("").await;
    for client in scene.clients().await {
        // Properties can only be read, and the error says which.
        let set = async |path: &str, interface: &str, property: &str| {
            let value = zbus::Variant::from("x");
            let arguments = (interface, property, value);
            let error = client.call::<()>(path, PROPERTIES, "Set", &arguments).await;
            last_word(error)
        };
        assert_eq!(set(SHOP, SERVICE, "State").await, "PropertyReadOnly");
        assert_eq!(set(SHOP, "", "State").await, "PropertyReadOnly");
        assert_eq!(
            set(MANAGER_PATH, MANAGER, "Version").await,
            "PropertyReadOnly"
        );
        assert_eq!(set(SHOP, SERVICE, "Color").await, "UnknownProperty");
        assert_eq!(set(SHOP, "a.b", "State").await, "UnknownInterface");
        assert_eq!(set("/org/nowhere", SERVICE, "State").await, "UnknownObject");
        let error = client.call::<()>(SHOP, PROPERTIES, "Set", &"x").await;
        assert_eq!(last_word(error), "InvalidArgs");

        // An empty interface is that of the object.
        for path in [SHOP, MANAGER_PATH] {
            let own = if path == SHOP { SERVICE } else { MANAGER };
            let one: HashMap<String, OwnedVariant> =
                client.call(path, PROPERTIES, "GetAll", &own).await.unwrap();
            let any: HashMap<String, OwnedVariant> =
                client.call(path, PROPERTIES, "GetAll", &"").await.unwrap();
            assert_eq!(
                one.keys().collect::<BTreeSet<_>>(),
                any.keys().collect::<BTreeSet<_>>()
            );
        }
        let state: OwnedVariant = client
            .call(SHOP, PROPERTIES, "Get", &("", "State"))
            .await
            .unwrap();
        assert_eq!(String::try_from(state).unwrap(), "running");

        // A call without an interface.
        let text: String = client.bare(MANAGER_PATH, "Introspect", &()).await.unwrap();
        assert!(text.contains(OBJECT_MANAGER), "{text}");
        let path: OwnedObjectPath = client
            .bare(MANAGER_PATH, "GetService", &"shop")
            .await
            .unwrap();
        assert_eq!(path.as_str(), SHOP);
        let () = client.bare("/anywhere", "Ping", &()).await.unwrap();
        let job: OwnedObjectPath = client.bare(SHOP, "Restart", &()).await.unwrap();
        assert!(job.starts_with("/org/smoothserve1/job/"));
        scene.server.settled().await;
        for (path, method, wanted) in [
            (SHOP, "Fly", "UnknownMethod"),
            ("/anywhere", "Fly", "UnknownObject"),
        ] {
            let error = client.bare::<()>(path, method, &()).await;
            assert_eq!(last_word(error), wanted, "{path} {method}");
        }
        let error = client.bare::<()>(MANAGER_PATH, "GetService", &7u32).await;
        assert_eq!(last_word(error), "InvalidArgs");
    }
    scene.server.stop().await;
}

#[tokio::test]
async fn busctl_sees_all_objects() {
    let scene = Scene::new("").await;
    let address = scene.daemon.address();
    let busctl = async |arguments: &[&str]| {
        let output = tokio::process::Command::new("busctl")
            .args(["--address", &address])
            .args(arguments)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (tree, _) = busctl(&["tree", "--list", "org.smoothserve1"]).await;
    assert!(tree.lines().any(|line| line == SHOP), "{tree}");
    let (objects, error) = busctl(&[
        "call",
        "org.smoothserve1",
        MANAGER_PATH,
        OBJECT_MANAGER,
        "GetManagedObjects",
    ])
    .await;
    assert!(objects.contains(SHOP), "{objects}{error}");
    let (_, error) = busctl(&[
        "set-property",
        "org.smoothserve1",
        SHOP,
        SERVICE,
        "State",
        "s",
        "x",
    ])
    .await;
    assert!(error.contains("can only be read"), "{error}");
    scene.server.stop().await;
}
