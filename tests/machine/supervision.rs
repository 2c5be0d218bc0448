//! systemd's view of smoothserve while it starts, works and ends.

use smoothserve_kit::{Build, Start, machine, programs};

use crate::scene::Scene;

#[test]
fn it_is_active_only_when_every_service_has_an_instance_or_has_failed() {
    machine::test(async |machine| {
        // The service needs more time than this, so smoothserve has to extend the timeout.
        machine.write(
            "/etc/systemd/system/smoothserve.service.d/hurry.conf",
            "[Service]\nTimeoutStartSec=3s\n",
        );
        let scene = Scene::install(machine, "environment: { SHOP_START_DELAY: 6s }\n");
        machine.write(
            "/etc/smoothserve/services/broken.yaml",
            "name: broken\nexecutable_path: /bin/false\nport: 8081\nuser: nobody\n",
        );
        machine.run("systemctl daemon-reload && systemctl start --no-block smoothserve");
        let status = |part: &'static str| move |text: &str| text.contains(part);
        let show = "systemctl show --property ActiveState --property StatusText smoothserve";
        let starting = machine.until(show, status("0/4 instances ready"));
        assert!(starting.contains("ActiveState=activating"), "{starting}");
        let up = machine.until(show, status("ActiveState=active"));
        assert!(up.contains("/4 instances ready"), "{up}");
        assert!(scene.shop().ready() > 0);
        machine.until(show, status("3/4 instances ready"));
    });
}

#[test]
fn it_is_ready_and_can_be_restarted_without_any_service() {
    machine::test(async |machine| {
        machine.install_smoothserve(&programs!());
        // Each of these commands waits until its job is done.
        machine.run("systemctl start smoothserve.socket smoothserve.service");
        machine.run("systemctl restart smoothserve && systemctl reload smoothserve");
        let status = machine.run("systemctl show --value --property StatusText smoothserve");
        assert_eq!(status, "0 services, 0/0 instances ready\n");
    });
}

#[test]
fn a_reload_is_under_way_until_its_rollouts_have_ended() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "start_timeout: 3s\nstop_timeout: 1s\n");
        scene.deploy(&Build::starting("bad", Start::Mute));
        machine.run("smoothctl reload --no-block");
        machine.until("systemctl is-active smoothserve; true", |state| {
            state == "reloading\n"
        });
        machine.until("systemctl is-active smoothserve", |state| {
            state == "active\n"
        });
        // A reload by systemctl waits for the rollouts, and reports their failure.
        scene.deploy(&Build::starting("worse", Start::Mute));
        assert!(
            !machine
                .try_run("systemctl reload smoothserve")
                .status
                .success()
        );
        scene.deploy(&Build::good("2"));
        machine.run("systemctl reload smoothserve");
        assert_eq!(scene.shop().ready(), 3);
    });
}

#[test]
fn instances_know_nothing_of_their_managers_supervision() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        for pid in scene.shop().pids() {
            let environment = machine.run(&format!("tr '\\0' '\\n' </proc/{pid}/environ"));
            for name in [
                "NOTIFY_SOCKET",
                "LISTEN_FDS",
                "WATCHDOG_USEC",
                "INVOCATION_ID",
                "LISTEN_PID",
            ] {
                assert!(!environment.contains(&format!("{name}=")), "{environment}");
            }
            let open = machine.run(&format!("ls -l /proc/{pid}/fd"));
            assert_eq!(open.matches("smoothserve").count(), 0, "{open}");
            let group = machine.run(&format!("cat /proc/{pid}/cgroup"));
            assert!(
                group.contains("/smoothserve.slice/smoothserve-shop.slice/smoothserve-shop-"),
                "{group}"
            );
        }
        // Other users may not read the state, which holds environments.
        let modes = machine
            .run("stat -c '%a %n' /run/smoothserve/state.json /run/smoothserve/worker-*.sock");
        assert!(
            modes.starts_with("600 /run/smoothserve/state.json\n"),
            "{modes}"
        );
    });
}
