//! Ports: systemd holds the configured ones from boot on, and stores those that a reload adds.

use std::net::SocketAddr;

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{client, local};

use crate::scene::{PORT, SHOP, Scene, nothing_is_lost};

async fn page(address: SocketAddr) -> String {
    client::get(address, "shop.example", "/")
        .await
        .unwrap()
        .text()
}

/// Writes the file of the shop with these ports.
fn listen_on(machine: &Machine, ports: &str) {
    machine.write(
        "/etc/smoothserve/services/shop.yaml",
        &format!("name: shop\nexecutable_path: /opt/shop/shop\nargs: [\"-port={{port}}\"]\nport: {ports}\n{SHOP}"),
    );
}

#[test]
fn the_first_connection_starts_it() {
    machine::test(async |machine| {
        let scene = Scene::install(machine, "");
        listen_on(machine, &format!("[{PORT}, 80]"));
        machine.run("systemctl daemon-reload && systemctl enable --now smoothserve.socket");
        assert_eq!(scene.property("ActiveState"), "inactive");
        let sockets = machine.run("systemctl list-sockets --no-pager");
        assert!(
            sockets.contains("[::]:80 ") && sockets.contains("[::]:8080"),
            "{sockets}"
        );
        assert!(page(local(80)).await.contains("The shop"));
        assert!(page(local(PORT)).await.contains("The shop"));
        machine.until("systemctl is-active smoothserve", |state| {
            state == "active\n"
        });
    });
}

#[test]
fn a_port_that_a_reload_adds_is_kept_and_one_that_it_removes_is_closed() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let instances = scene.shop().pids();
        let load = scene.load().await;
        listen_on(machine, &format!("[{PORT}, 80, \"81\"]"));
        machine.run("systemctl reload smoothserve");
        for restart in [
            "true",
            "systemctl restart smoothserve",
            "kill -9 $(systemctl show --value -p MainPID smoothserve)",
        ] {
            let manager = scene.manager();
            machine.run(restart);
            if restart != "true" {
                scene.another_manager(manager);
            }
            assert!(page(local(80)).await.contains("The shop"));
        }
        // systemd gets its own socket units of these ports later, which does no harm.
        machine.run("systemctl daemon-reload && systemctl restart smoothserve");
        assert_eq!(machine.run("systemctl --failed --no-legend"), "");
        nothing_is_lost(load).await;
        assert_eq!(scene.shop().pids(), instances);

        listen_on(machine, "81");
        machine.run("systemctl reload smoothserve");
        for closed in [80, PORT] {
            machine.until(&format!("ss -Hltn 'sport = {closed}'"), |listening| {
                listening.is_empty()
            });
        }
        assert!(page(local(81)).await.contains("The shop"));
        assert_eq!(scene.shop().pids(), instances);
    });
}

#[test]
fn a_port_that_another_program_has_fails_the_reload_and_touches_nothing() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let _other = tokio::net::TcpListener::bind("[::]:80").await.unwrap();
        listen_on(machine, &format!("[{PORT}, 80]"));
        let refused = machine.try_run("smoothctl reload");
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{message}");
        assert!(
            message.contains("/etc/smoothserve/services/shop.yaml: cannot listen on [::]:80"),
            "{message}"
        );
        assert!(page(scene.address()).await.contains("The shop"));
    });
}

#[test]
fn a_port_that_another_program_has_at_the_start_is_shown() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run("systemctl stop smoothserve.slice");
        let other = tokio::net::TcpListener::bind("[::]:80").await.unwrap();
        listen_on(machine, &format!("[{PORT}, 80]"));
        machine.run("systemctl daemon-reload; systemctl start smoothserve");
        scene.settled();
        assert!(page(scene.address()).await.contains("The shop"));
        let status = machine.run("smoothctl status shop");
        assert!(status.contains("not reachable on port 80,"), "{status}");
        let listen = machine.run(
            "busctl get-property org.smoothserve1 /org/smoothserve1/service/shop org.smoothserve1.Service Listen",
        );
        assert_eq!(listen, format!("as 1 \"[::]:{PORT}\"\n"));
        drop(other);
        let done = machine.run("smoothctl reload");
        assert!(done.contains("shop: reachable on [::]:80 now"), "{done}");
        assert!(page(local(80)).await.contains("The shop"));
        let status = machine.run("smoothctl status shop");
        assert!(!status.contains("not reachable"), "{status}");
    });
}
