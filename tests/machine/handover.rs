//! Sites change hands while the manager itself is killed or restarted, and whoever waits for a job
//! waits on.

use smoothserve_kit::{Build, machine};

use crate::scene::{Scene, nothing_is_lost};

/// The file of a service that is to have the site of the shop, and needs a while to start.
const WEB: &str = "name: web\nserver_name: shop.example\nport: 8080\n\
                   executable_path: /opt/shop/shop\ndelay_running_time: 8s\n\
                   environment: { SHOP_VERSION: web }\n";

#[test]
fn a_site_changes_hands_over_a_killed_and_a_restarted_manager() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        machine.run("rm /etc/smoothserve/services/shop.yaml");
        machine.write("/etc/smoothserve/services/web.yaml", WEB);
        machine.run(
            "(smoothctl reload >/run/said 2>&1; echo $? >/run/status.new; \
             mv /run/status.new /run/status) </dev/null >/dev/null 2>&1 &",
        );
        machine.until("smoothctl status", |text| {
            text.contains("shop: removed, keeps shop.example until web is ready")
        });
        let manager = scene.manager();
        machine.run(&format!("kill -9 {manager}"));
        scene.another_manager(manager);
        load.go_on(50).await;
        machine.run("systemctl restart smoothserve");
        machine.until("cat /run/status || true", |text| !text.is_empty());
        let (status, said) = (machine.run("cat /run/status"), machine.run("cat /run/said"));
        assert_eq!(status.trim(), "0", "{said}");
        assert!(said.contains("web: 1 instance started"), "{said}");
        machine.until("smoothctl list", |text| text == "web\n");
        let report = nothing_is_lost(load).await;
        assert_eq!(report.last_version(), Some("web"));
    });
}

/// An address that another server has taken over, as keepalived does it.
#[test]
fn an_address_that_went_away_holds_up_no_deploy() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run("ip link set lo up; ip address add 10.9.9.9/32 dev lo");
        machine.write(
            "/etc/smoothserve/services/web.yaml",
            "name: web\nport: 8081\nlisten_address: 10.9.9.9\nexecutable_path: /opt/shop/shop\n",
        );
        machine.run("smoothctl reload");
        machine.run("ip address del 10.9.9.9/32 dev lo");
        let load = scene.load().await;
        for version in ["2", "3"] {
            scene.deploy(&Build::good(version));
            let reload = machine.try_run("smoothctl reload");
            let said = String::from_utf8_lossy(&reload.stderr);
            assert_eq!(reload.status.code(), Some(1), "{said}");
            assert!(said.contains("web.yaml:3:17: `listen_address`"), "{said}");
            assert!(said.contains("shop: 3 instances replaced"), "{said}");
        }
        let report = nothing_is_lost(load).await;
        assert_eq!(report.last_version(), Some("3"));
    });
}

#[test]
fn whoever_waits_for_a_restart_waits_on_when_smoothserve_is_restarted() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "delay_running_time: 2s\n");
        let before = scene.shop().pids();
        machine.run(
            "(smoothctl restart shop >/run/said 2>&1; echo $? >/run/status.new; \
             mv /run/status.new /run/status) </dev/null >/dev/null 2>&1 &",
        );
        machine.until("smoothctl status", |text| text.contains("restart shop 0/3"));
        for _ in 0..2 {
            machine.run("systemctl restart smoothserve");
        }
        machine.until("cat /run/status || true", |text| !text.is_empty());
        let (status, said) = (machine.run("cat /run/status"), machine.run("cat /run/said"));
        assert_eq!(status.trim(), "0", "{said}");
        assert!(said.ends_with("restart shop: done\n"), "{said}");
        let after = scene.shop().pids();
        assert!(after.iter().all(|pid| !before.contains(pid)));
    });
}
