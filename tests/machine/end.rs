//! smoothserve ends on request, and at the shutdown of the machine, without losing accepted
//! requests.

use smoothserve_kit::client::{Connection, Request};
use smoothserve_kit::machine::{self, Machine};

use crate::scene::{Scene, nothing_is_lost};

/// Opens requests that are in flight when the end begins. Each takes two seconds, so that it cannot
/// be over by then.
async fn slow_requests(scene: &Scene<'_>) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut connection = Connection::open(scene.address(), "shop.example")
            .await
            .unwrap();
        connection
            .pipeline(&[Request::get("/slow?ms=2000")])
            .await
            .unwrap();
        connections.push(connection);
    }
    scene.machine.until("smoothctl status --json", |text| {
        let status: smoothserve_kit::Status = serde_json::from_str(text).unwrap();
        let instances = &status.services["shop"].instances;
        instances
            .iter()
            .map(|instance| instance.in_flight)
            .sum::<u64>()
            == 8
    });
    connections
}

async fn all_are_answered(connections: Vec<Connection>) {
    for mut connection in connections {
        let head = connection.head("GET").await.unwrap();
        assert_eq!(head.status, 200);
        let mut sink = smoothserve_kit::client::Sink::keep();
        connection.body(&head, &mut sink).await.unwrap();
        assert_eq!(sink.text(), "slow\n");
    }
}

#[test]
fn stop_ends_what_was_accepted_and_leaves_no_process() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let connections = slow_requests(&scene).await;
        let stop = machine
            .command("systemctl")
            .args(["stop", "smoothserve.socket", "smoothserve.service"])
            .spawn();
        all_are_answered(connections).await;
        assert!(stop.unwrap().wait().unwrap().success());
        assert_eq!(scene.processes(), "");
        assert_eq!(
            machine.run("ls /run/smoothserve").trim(),
            "bus\ninstances\nlock"
        );
        assert!(
            tokio::net::TcpStream::connect(scene.address())
                .await
                .is_err(),
            "the port is closed"
        );
        // After the stop it can be started again.
        machine.run("systemctl start smoothserve.socket smoothserve.service");
        assert_eq!(scene.shop().ready(), 3);
    });
}

#[test]
fn a_signal_without_a_command_to_systemd_ends_everything_in_good_order_too() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let (instances, manager) = (scene.shop().pids(), scene.manager());
        let connections = slow_requests(&scene).await;
        machine.run(&format!("kill -TERM {manager}"));
        all_are_answered(connections).await;
        // No person asked for the stop, so `Restart=always` starts another manager.
        scene.another_manager(manager);
        assert!(
            scene
                .shop()
                .pids()
                .iter()
                .all(|pid| !instances.contains(pid))
        );
    });
}

#[test]
fn a_machine_that_is_powered_off_answers_what_was_accepted() {
    let mut off = false;
    machine::test(async |machine: &Machine| {
        let scene = Scene::start(machine, "");
        let connections = slow_requests(&scene).await;
        machine.run("systemctl poweroff");
        all_are_answered(connections).await;
        machine.has_ended();
        off = true;
    });
    assert!(off);
}

#[test]
fn stopping_the_slice_ends_all_of_it() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run("systemctl stop smoothserve.slice");
        assert_eq!(scene.processes(), "");
        machine.until("systemctl is-active smoothserve.service", |state| {
            state == "inactive\n"
        });
    });
}

/// What a shell has started gets SIGTERM, too, although systemd stops scopes only after
/// smoothserve.
#[test]
fn a_stop_tells_what_a_wrapper_has_started() {
    machine::test(async |machine: &Machine| {
        let scene = Scene::install(machine, "");
        machine.write(
            "/opt/server.py",
            "import os, signal, sys\n\
             from http.server import HTTPServer, SimpleHTTPRequestHandler\n\
             def stop(*_):\n    print('told to stop', flush=True)\n    sys.exit()\n\
             signal.signal(signal.SIGTERM, stop)\n\
             HTTPServer(('127.0.0.1', int(os.environ['PORT'])), SimpleHTTPRequestHandler).serve_forever()\n",
        );
        machine.write(
            "/opt/wrapper",
            "#!/bin/sh\n/usr/bin/python3 /opt/server.py\ntrue\n",
        );
        machine.run("chmod +x /opt/wrapper");
        machine.write(
            "/etc/smoothserve/services/shop.yaml",
            "name: shop\nport: 8080\nexecutable_path: /opt/wrapper\nargs: []\n",
        );
        machine.run("systemctl enable --now smoothserve.socket smoothserve.service");
        scene.settled();
        machine.run("systemctl stop smoothserve.socket smoothserve.service");
        let journal = machine.journal();
        assert!(journal.contains("told to stop"), "{journal}");
        assert!(!journal.contains("did not stop in time"), "{journal}");
        assert_eq!(scene.processes(), "");
    });
}

/// systemd says why it ends smoothserve also without a bus, and when it executes itself again.
#[test]
fn a_restart_keeps_the_instances_whatever_happens_to_the_bus() {
    machine::test(async |machine: &Machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let instances = scene.shop().pids();
        for (before, after) in [
            (
                "systemctl stop dbus.socket dbus.service",
                "systemctl start dbus.socket dbus.service",
            ),
            ("true", "systemctl daemon-reexec"),
        ] {
            let manager = scene.manager();
            machine.run(&format!(
                "{before}; systemctl restart --no-block smoothserve; {after}"
            ));
            scene.another_manager(manager);
            load.go_on(50).await;
        }
        assert_eq!(scene.shop().pids(), instances);
        // Scopes are made while systemd executes itself again, too.
        for _ in 0..3 {
            machine.run("smoothctl restart shop & systemctl daemon-reexec; wait %1");
        }
        nothing_is_lost(load).await;
    });
}
