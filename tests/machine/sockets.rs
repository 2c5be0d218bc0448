//! The listening sockets: whatever somebody does to the socket units, a port stays open until the
//! configuration leaves it out or smoothserve is stopped with its units.

use std::net::SocketAddr;

use smoothserve_kit::load::{Load, Mix, Options};
use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{client, local, programs};
use tokio::net::TcpStream;

use crate::scene::{PORT, SHOP, Scene, nothing_is_lost};

/// A port that only a reload opens.
const ADDED: u16 = 81;

/// What can end a manager, other than a stop.
#[derive(Debug, Clone, Copy)]
enum End {
    Restart,
    Upgrade,
    Kill,
}

impl End {
    /// Ends the manager, and waits for the next one.
    fn take_place(self, scene: &Scene<'_>) {
        let manager = scene.manager();
        match self {
            End::Restart => drop(scene.machine.run("systemctl restart smoothserve")),
            End::Upgrade => {
                scene.machine.install_smoothserve(&programs!());
                scene.machine.run("systemctl restart smoothserve");
            }
            End::Kill => drop(scene.machine.run(&format!("kill -9 {manager}"))),
        }
        scene.another_manager(manager);
        scene.settled();
    }
}

/// Starts a load whose every request has a connection of its own.
fn visitors(address: SocketAddr) -> Load {
    Load::start(Options {
        connections: 8,
        mix: Mix {
            small: 0,
            fresh: 1,
            ..Mix::small()
        },
        ..Options::new(address)
    })
}

/// Writes the file of the shop with these lines.
fn configure(machine: &Machine, lines: &str) {
    machine.write(
        "/etc/smoothserve/services/shop.yaml",
        &format!("name: shop\nexecutable_path: /opt/shop/shop\nargs: [\"-port={{port}}\"]\n{lines}\n{SHOP}"),
    );
}

/// Starts the shop, and adds a port by a reload. systemd then makes a unit of this port.
fn start_with_added_port(machine: &Machine) -> Scene<'_> {
    let scene = Scene::start(machine, "");
    configure(machine, &format!("port: [{PORT}, {ADDED}]"));
    machine.run("systemctl reload smoothserve && systemctl daemon-reload");
    scene
}

async fn is_open(port: u16) -> bool {
    TcpStream::connect(local(port)).await.is_ok()
}

#[test]
fn a_port_outlives_a_stop_of_its_unit_and_then_the_manager() {
    machine::test(async |machine| {
        let scene = start_with_added_port(machine);
        let instances = scene.shop().pids();
        let loads = [PORT, ADDED].map(|port| visitors(local(port)));
        for (stop, end) in [
            ("stop smoothserve-port-8080.socket", End::Restart),
            ("restart smoothserve-port-8080.socket", End::Kill),
            ("stop smoothserve-port-81.socket", End::Upgrade),
            ("stop smoothserve.socket", End::Restart),
            ("stop smoothserve.socket", End::Kill),
            ("stop smoothserve.socket", End::Upgrade),
            ("restart smoothserve.socket", End::Restart),
            ("isolate multi-user.target", End::Kill),
        ] {
            println!("systemctl {stop}, then {end:?}");
            // A unit cannot start while the service is active, so these fail.
            machine.try_run(&format!("systemctl {stop}"));
            end.take_place(&scene);
            for load in &loads {
                load.go_on(50).await;
            }
        }
        machine.until("systemctl --failed --no-legend", str::is_empty);
        for load in loads {
            nothing_is_lost(load).await;
        }
        assert_eq!(scene.shop().pids(), instances);
    });
}

#[test]
fn a_port_that_a_reload_has_opened_outlives_stops() {
    machine::test(async |machine| {
        let scene = start_with_added_port(machine);
        let loads = [PORT, ADDED].map(|port| visitors(local(port)));
        for _ in 0..3 {
            for load in &loads {
                load.go_on(50).await;
            }
            // The visitors start it again at once.
            machine.run("systemctl stop smoothserve");
        }
        for load in loads {
            nothing_is_lost(load).await;
        }
        scene.settled();
        machine.run("systemctl stop smoothserve");
        assert_eq!(scene.property("ActiveState"), "inactive");
        // All of these are in the queue before smoothserve has started.
        let visits: Vec<_> = (0..100)
            .map(|_| tokio::spawn(client::get(local(ADDED), "shop.example", "/hello")))
            .collect();
        for visit in visits {
            assert_eq!(visit.await.unwrap().unwrap().text(), "hello\n");
        }
        machine.until("ls /sys/fs/cgroup/smoothserve.slice", |scopes| {
            !scopes.contains("holder")
        });
        machine.run("systemctl restart smoothserve");
        assert!(is_open(ADDED).await);
        assert_eq!(machine.run("systemctl --failed --no-legend"), "");
    });
}

#[test]
fn a_holder_that_does_not_answer_is_asked_again() {
    machine::test(async |machine| {
        let scene = start_with_added_port(machine);
        machine.run("systemctl stop smoothserve");
        let signal = |name: &str| {
            machine.run(&format!(
                "kill -{name} $(cat /sys/fs/cgroup/smoothserve.slice/smoothserve-holder-*.scope/cgroup.procs)"
            ))
        };
        signal("STOP");
        machine.run("systemctl start --no-block smoothserve");
        machine.until("journalctl -u smoothserve", |journal| {
            journal.contains("ports not taken over yet, trying again")
        });
        signal("CONT");
        let visit = client::get(local(ADDED), "shop.example", "/hello").await;
        assert_eq!(visit.unwrap().text(), "hello\n");
        scene.settled();
        machine.until("ls /sys/fs/cgroup/smoothserve.slice", |scopes| {
            !scopes.contains("holder")
        });
    });
}

#[test]
fn a_stop_of_the_units_closes_all_ports() {
    machine::test(async |machine| {
        let scene = start_with_added_port(machine);
        for stop in [
            "smoothserve.slice",
            "smoothserve.socket smoothserve.service",
        ] {
            // Whether smoothserve runs or was stopped before makes no difference.
            for before in ["true", "systemctl stop smoothserve"] {
                machine.run(before);
                machine.run(&format!("systemctl stop {stop}"));
                assert_eq!(scene.processes(), "", "{before}, {stop}");
                for port in [PORT, ADDED] {
                    assert!(!is_open(port).await, "{before}, {stop}: port {port}");
                }
                machine.run("rm /etc/smoothserve/services/shop.yaml; systemctl daemon-reload");
                configure(machine, &format!("port: {PORT}"));
                machine.run("systemctl daemon-reload; systemctl start smoothserve");
                scene.settled();
                configure(machine, &format!("port: [{PORT}, {ADDED}]"));
                machine.run("systemctl reload smoothserve && systemctl daemon-reload");
            }
        }
    });
}

#[test]
fn a_port_that_listens_on_fewer_or_more_addresses_loses_nothing() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = visitors(local(PORT));
        let listening = format!("ss -Hltn 'sport = {PORT}' | awk '{{print $4}}'");
        for (lines, then) in [
            ("listen_address: 127.0.0.1\n", End::Restart),
            ("", End::Kill),
            ("listen_address: 127.0.0.1\n", End::Upgrade),
            ("listen_address: 0.0.0.0\n", End::Restart),
        ] {
            configure(machine, &format!("port: {PORT}\n{lines}"));
            machine.run("systemctl reload smoothserve && systemctl daemon-reload");
            load.go_on(50).await;
            if lines.contains("127") {
                machine.until(&listening, |text| text == format!("127.0.0.1:{PORT}\n"));
            }
            then.take_place(&scene);
            load.go_on(50).await;
            machine.run("systemctl stop smoothserve");
            load.go_on(50).await;
            scene.settled();
        }
        nothing_is_lost(load).await;
        assert_eq!(machine.run("systemctl --failed --no-legend"), "");
    });
}
