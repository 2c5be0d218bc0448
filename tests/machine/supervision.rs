//! systemd's view of smoothserve while it starts, works and ends.

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{Build, Start, programs};

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
            for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "LISTEN_PID"] {
                assert!(!environment.contains(&format!("{name}=")), "{environment}");
            }
            // The instance has an invocation of its own.
            let own = scene.property("InvocationID");
            assert!(environment.contains("INVOCATION_ID=") && !environment.contains(&own));
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

/// An instance that leaves a process behind, which has left its session and ignores SIGTERM. It is
/// ready only when that has happened.
const LEAVES: &str = r#"
import http.server, os, signal, sys

read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(write, b".")
    os.execlp("sleep", "leftover", "100000")
os.read(read, 1)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"#;

/// Lists the processes that instances have left or may leave.
fn leftovers(machine: &Machine) -> String {
    machine.run("pgrep --full '^leftover' || true")
}

#[test]
fn what_a_stopped_instance_leaves_ends_within_its_time_and_the_command_waits_for_it() {
    machine::test(async |machine| {
        machine.write("/opt/leaves/leaves.py", LEAVES);
        let scene = Scene::install(machine, "");
        machine.write(
            "/etc/smoothserve/services/leaves.yaml",
            "name: leaves\nport: 8081\nexecutable_path: /usr/bin/python3\n\
             args: [/opt/leaves/leaves.py, \"{port}\"]\nuser: backup\ninstance_count: 1\n\
             ready: tcp\nstop_timeout: 1s\n",
        );
        machine.run("systemctl daemon-reload && systemctl start smoothserve");
        scene.settled();
        let first = leftovers(machine);
        assert_eq!(first.lines().count(), 1);
        // One that crashes is replaced at once, and systemd ends what it has left.
        machine.run("pkill --full --signal KILL 'leaves[.]py'");
        machine.until("pgrep --full '^leftover'", |pids| {
            pids.lines().count() == 1 && pids != first
        });
        scene.settled();
        machine.run("smoothctl restart leaves");
        assert_eq!(leftovers(machine).lines().count(), 1);
        machine.run("systemctl restart smoothserve && smoothctl stop leaves");
        assert_eq!(leftovers(machine), "");
        let scopes = machine
            .run("systemctl list-units --all --plain --no-legend 'smoothserve-leaves*.scope'");
        assert_eq!(scopes, "");
    });
}
