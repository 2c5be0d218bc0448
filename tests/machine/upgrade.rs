//! Upgrades from the package of an earlier build to that of this one, and back. `make upgrade-test`
//! builds the earlier package.

use std::time::Duration;

use smoothserve_kit::client::{Connection, Request};
use smoothserve_kit::load::{Load, Options};
use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::script::{PYTHON, Script};
use smoothserve_kit::websocket::{SERVICE, talk};
use smoothserve_kit::{Build, client, example, local};

use crate::package::{apt, bring_package, newer};
use crate::scene::{PORT, SHOP, Scene, nothing_is_lost};

/// The environment variable that names the package of the earlier build.
const EARLIER: &str = "SMOOTHSERVE_EARLIER_DEB";

/// The path of the earlier package on the machine.
const EARLIER_HERE: &str = "/srv/smoothserve-earlier.deb";

/// The port of the service with WebSockets.
const CHAT: u16 = 8081;

/// Installs the earlier package on a machine with the shop and a service with WebSockets, whose
/// tunnels have much time to end.
fn install_earlier(machine: &Machine) -> Scene<'_> {
    let earlier = std::env::var_os(EARLIER)
        .expect("this test needs the package of an earlier build: run `make upgrade-test`");
    bring_package(machine);
    machine.install(earlier.as_ref(), EARLIER_HERE);
    machine.add_shop(&example("shop"), &format!("port: {PORT}\n{SHOP}"));
    machine.write("/opt/echo.py", SERVICE);
    machine.write(
        "/etc/smoothserve/services/chat.yaml",
        &format!(
            "name: chat\nport: {CHAT}\nexecutable_path: {PYTHON}\nargs: [/opt/echo.py]\n\
             instance_count: 2\ntunnel_drain_timeout: 10m\n"
        ),
    );
    apt(machine, &format!("install {EARLIER_HERE}"));
    let scene = Scene { machine };
    assert_eq!(scene.settled().ready(), 3);
    scene
}

/// Ends tunnels by a restart of their service, which has to say goodbye in each of them.
async fn goodbye(tunnels: &mut [Script]) {
    for tunnels in tunnels {
        assert_eq!(tunnels.next().await, "[1001] 20");
    }
}

#[test]
#[ignore = "needs the package of an earlier build: make upgrade-test"]
fn an_upgrade_from_an_earlier_build_and_back_loses_nothing() {
    machine::test(async |machine| {
        let scene = install_earlier(machine);
        let load = Load::start(Options {
            slow: 10..4000,
            ..Options::new(scene.address())
        });
        load.go_on(300).await;
        let new = newer(machine, 1, "true");
        for (number, package) in [&new, EARLIER_HERE, &new].into_iter().enumerate() {
            println!("installing {package}");
            let mut tunnels = vec![talk(CHAT).await];
            let (manager, worker) = (scene.manager(), scene.worker());
            let instances = scene.shop().pids();
            apt(machine, &format!("install --allow-downgrades {package}"));
            assert_ne!(scene.manager(), manager);
            scene.worker_after(worker);
            load.go_on(300).await;
            assert_eq!(scene.shop().pids(), instances);

            // The worker of the other build has tunnels, and holds up no deploy.
            tunnels.push(talk(CHAT).await);
            machine.run(&format!("ls /proc/{worker}"));
            let version = format!("after-{number}");
            scene.deploy(&Build::good(&version));
            machine.run("systemctl reload smoothserve");
            load.see(&version, Duration::from_secs(20)).await.unwrap();
            let replaced = scene.settled().pids();
            assert!(replaced.iter().all(|pid| !instances.contains(pid)));
            machine.run(&format!("ls /proc/{worker}"));

            machine.run("smoothctl restart chat");
            goodbye(&mut tunnels).await;
            machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
                text == "gone\n"
            });
        }
        nothing_is_lost(load).await;
        let journal = machine.run("journalctl -t smoothserve -o cat");
        assert!(!journal.contains("the connection to the worker broke"));
        assert_eq!(machine.run("systemctl --failed --no-legend"), "");
    });
}

/// The worker of another build does not hear of the deploy. As long as a client may come back to
/// it, it needs the instances that it knows.
#[test]
#[ignore = "needs the package of an earlier build: make upgrade-test"]
fn a_client_that_is_silent_during_an_upgrade_and_a_deploy_is_answered() {
    machine::test(async |machine| {
        let scene = install_earlier(machine);
        let lines = format!("port: {PORT}\n{SHOP}drain_timeout: 1s\n");
        machine.add_shop(&example("shop"), &lines);
        machine.run("systemctl reload smoothserve");
        let load = Load::start(Options {
            slow: 10..500,
            ..Options::new(scene.address())
        });
        let hello = Request::get("/hello");
        let mut silent = Connection::open(scene.address(), "shop.example")
            .await
            .unwrap();
        assert_eq!(silent.exchange(&hello).await.unwrap().text(), "hello\n");
        let worker = scene.worker();
        apt(machine, &format!("install {}", newer(machine, 1, "true")));
        scene.worker_after(worker);
        scene.deploy(&Build::good("2"));
        machine.run("systemctl reload --no-block smoothserve");
        load.see("2", Duration::from_secs(60)).await.unwrap();
        let drains = || {
            let shop = scene.shop();
            shop.instances
                .iter()
                .any(|instance| instance.state == "draining")
        };
        while !drains() {
            load.go_on(1).await;
        }
        // More than the time after which nobody would wait for a request of the load.
        load.go_on(3000).await;
        assert!(drains());
        assert_eq!(silent.exchange(&hello).await.unwrap().text(), "hello\n");
        drop(silent);
        scene.settled();
        nothing_is_lost(load).await;
    });
}

#[test]
#[ignore = "needs the package of an earlier build: make upgrade-test"]
fn a_port_that_an_earlier_build_has_left_to_its_holder_stays_open() {
    machine::test(async |machine| {
        install_earlier(machine);
        let new = newer(machine, 1, "true");
        // Only reloads open the second port, so no unit has it.
        for package in [&new, EARLIER_HERE] {
            machine.add_shop(&example("shop"), &format!("port: {PORT}\n{SHOP}"));
            machine.run("systemctl reload smoothserve");
            machine.add_shop(&example("shop"), &format!("port: [{PORT}, 82]\n{SHOP}"));
            machine.run("systemctl reload smoothserve && systemctl stop smoothserve");
            let scopes = machine.run("ls /sys/fs/cgroup/smoothserve.slice");
            assert!(scopes.contains("smoothserve-holder-"), "{scopes}");
            apt(machine, &format!("install --allow-downgrades {package}"));
            let active = machine.run("systemctl is-active smoothserve; true");
            assert_eq!(active, "inactive\n", "nobody has asked for it");
            let page = client::get(local(82), "shop.example", "/hello").await;
            assert_eq!(page.unwrap().text(), "hello\n");
            machine.until("ls /sys/fs/cgroup/smoothserve.slice", |scopes| {
                !scopes.contains("smoothserve-holder-")
            });
        }
    });
}
