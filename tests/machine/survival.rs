//! Whatever happens to the manager, clients do not notice it, and the instances stay the same
//! processes.

use std::time::Duration;

use smoothserve_kit::client::{Connection, Request};
use smoothserve_kit::load::Lost;
use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{Build, Status, client, programs};

use crate::scene::{Scene, nothing_is_lost};

#[test]
fn restarts_lose_nothing_and_keep_the_instances() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let (instances, worker) = (scene.shop().pids(), scene.worker());
        for _ in 0..10 {
            let manager = scene.manager();
            machine.run("systemctl restart smoothserve");
            assert_ne!(scene.manager(), manager);
            load.go_on(50).await;
        }
        assert_eq!(scene.shop().pids(), instances);
        assert_eq!(scene.worker(), worker, "the worker goes on, too");
        nothing_is_lost(load).await;
        // A restarted manager can still replace the instances that it has taken over.
        machine.run("smoothctl restart shop");
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
fn reloads_lose_nothing_and_touch_only_what_has_changed() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let instances = scene.shop().pids();
        for _ in 0..20 {
            machine.run("systemctl reload smoothserve");
        }
        assert_eq!(scene.shop().pids(), instances);
        scene.deploy(&Build::good("2"));
        machine.run("systemctl reload smoothserve");
        assert!(
            scene
                .shop()
                .pids()
                .iter()
                .all(|pid| !instances.contains(pid))
        );
        let report = nothing_is_lost(load).await;
        assert_eq!(report.last_version(), Some("2"));
    });
}

#[test]
fn a_reload_with_a_fault_fails_and_leaves_everything_as_it_is() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let instances = scene.shop().pids();
        machine.write(
            "/etc/smoothserve/services/bad.yaml",
            "name: bad\nport: many\n",
        );
        let refused = machine.try_run("systemctl reload smoothserve");
        assert!(!refused.status.success());
        machine.until("journalctl -u smoothserve", |journal| {
            journal.contains("/etc/smoothserve/services/bad.yaml:2:7")
        });
        assert_eq!(scene.property("ActiveState"), "active");
        // A restart with the fault on disk changes nothing either.
        machine.run("systemctl restart smoothserve");
        assert_eq!(scene.shop().pids(), instances);
        let page = client::get(scene.address(), "shop.example", "/")
            .await
            .unwrap();
        assert!(page.text().contains("The shop"));
    });
}

#[test]
fn a_killed_manager_is_followed_by_another() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let instances = scene.shop().pids();
        for _ in 0..10 {
            let manager = scene.manager();
            machine.run(&format!("kill -9 {manager}"));
            scene.another_manager(manager);
            load.go_on(50).await;
        }
        assert_eq!(scene.shop().pids(), instances);
        nothing_is_lost(load).await;
    });
}

#[test]
fn an_upgrade_from_a_version_that_compares_less_keeps_the_instances() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let (instances, manager) = (scene.shop().pids(), scene.manager());
        // Earlier versions have saved one digest for all files, and no folder.
        machine.write(
            "/run/earlier.py",
            "import json\n\
             file = '/run/smoothserve/state.json'\n\
             state = json.load(open(file))\n\
             for service in state['services'].values():\n\
             \x20   for deployment in service['deployments'].values():\n\
             \x20       del deployment['parts'], deployment['folder']\n\
             json.dump(state, open(file, 'w'))\n",
        );
        machine.run(&format!(
            "kill -STOP {manager}; python3 /run/earlier.py && ! grep -q '\"parts\":{{' /run/smoothserve/state.json; kill -9 {manager}"
        ));
        scene.another_manager(manager);
        machine.run("systemctl reload smoothserve");
        assert_eq!(scene.shop().pids(), instances);
        // From here on, the manager compares all that it can.
        machine.run("grep -q '\"parts\":{' /run/smoothserve/state.json");
        scene.deploy(&Build::good("2"));
        machine.run("systemctl reload smoothserve");
        let report = nothing_is_lost(load).await;
        assert_eq!(report.last_version(), Some("2"));
    });
}

#[test]
fn a_manager_that_cannot_read_the_state_of_the_last_one_begins_anew_and_loses_nothing() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let (instances, manager) = (scene.shop().pids(), scene.manager());
        machine.run(&format!(
            "kill -STOP {manager}; echo 'half of a' >/run/smoothserve/state.json; kill -9 {manager}"
        ));
        scene.another_manager(manager);
        assert!(
            scene
                .shop()
                .pids()
                .iter()
                .all(|pid| !instances.contains(pid))
        );
        machine.until("pgrep -cx shop", |count| count == "3\n");
        nothing_is_lost(load).await;
    });
}

/// Makes the saved state one of a build that nobody has written yet.
const LATER: &str = "import json
file = '/run/smoothserve/state.json'
state = json.load(open(file))
state['format'] = 1000
state['config'] = state['jobs'] = state['routes'] = 'of another kind'
for service in state['services'].values():
    service['spec'] = service['deployments'] = 'of another kind'
    service['core']['instances'][0]['stage'] = 'Observed'
json.dump(state, open(file, 'w'))
";

#[test]
fn a_manager_that_finds_the_state_of_a_later_build_replaces_its_instances_and_loses_nothing() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run("smoothctl restart shop");
        let load = scene.load().await;
        let before = scene.shop();
        let manager = scene.manager();
        machine.write("/run/later.py", LATER);
        machine.run(&format!(
            "kill -STOP {manager}; python3 /run/later.py && kill -9 {manager}"
        ));
        // All are ready until others are: the first one of another generation is watched.
        machine.until("smoothctl status --json", |text| {
            let status = serde_json::from_str(text).ok();
            let shop = status.and_then(|mut status: Status| status.services.remove("shop"));
            shop.is_some_and(|shop| {
                let mut olds = before.pids().into_iter();
                shop.ready() == 4 && olds.all(|pid| shop.pids().contains(&pid))
            })
        });
        scene.another_manager(manager);
        let after = scene.settled();
        assert!(after.pids().iter().all(|pid| !before.pids().contains(pid)));
        assert!(after.instances.iter().all(|instance| {
            let mut olds = before.instances.iter();
            olds.all(|old| instance.id > old.id && instance.generation > old.generation)
        }));
        machine.until("pgrep -cx shop", |count| count == "3\n");
        nothing_is_lost(load).await;
        let journal = machine.run("journalctl -u smoothserve.service -o cat");
        assert!(journal.contains("is that of another build"), "{journal}");
        // The state is this build's again.
        let manager = scene.manager();
        machine.run("systemctl restart smoothserve");
        assert_ne!(scene.manager(), manager);
        assert_eq!(scene.shop().pids(), after.pids());
    });
}

#[test]
fn a_stuck_manager_is_ended_by_the_watchdog() {
    machine::test(async |machine| {
        // The manager pings the watchdog every 5 s.
        machine.write(
            "/etc/systemd/system/smoothserve.service.d/watchdog.conf",
            "[Service]\nWatchdogSec=8s\n",
        );
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let (instances, manager) = (scene.shop().pids(), scene.manager());
        machine.run(&format!("kill -STOP {manager}"));
        scene.another_manager(manager);
        machine.until("journalctl -u smoothserve", |journal| {
            journal.contains("Watchdog timeout")
        });
        assert_eq!(scene.shop().pids(), instances);
        nothing_is_lost(load).await;
    });
}

#[test]
fn a_stuck_worker_is_replaced() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let (instances, worker) = (scene.shop().pids(), scene.worker());
        machine.run(&format!("kill -STOP {worker}"));
        machine.until("journalctl -t smoothserve", |journal| {
            journal.contains("worker does not answer, killing it")
        });
        let page = client::get(scene.address(), "shop.example", "/")
            .await
            .unwrap();
        assert!(page.text().contains("The shop"));
        assert_ne!(scene.worker(), worker);
        assert_eq!(scene.shop().pids(), instances);
    });
}

#[test]
fn an_upgrade_replaces_manager_and_worker_and_keeps_the_instances() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let instances = scene.shop().pids();
        for _ in 0..3 {
            let (manager, worker) = (scene.manager(), scene.worker());
            // To the running manager, the same program in another file is a newer build.
            machine.install_smoothserve(&programs!());
            machine.run("systemctl restart smoothserve");
            assert_ne!(scene.manager(), manager);
            machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
                text == "gone\n"
            });
            assert_ne!(scene.worker(), worker);
            load.go_on(100).await;
        }
        assert_eq!(scene.shop().pids(), instances);
        nothing_is_lost(load).await;
    });
}

/// A close can meet a request that is on its way. So an upgrade closes no connection earlier than
/// its client has to expect.
#[test]
fn an_upgrade_closes_no_idle_connection() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let worker = scene.worker();
        let request = Request::get("/");
        let mut connections = Vec::new();
        for _ in 0..20 {
            let mut connection = Connection::open(scene.address(), "shop.example")
                .await
                .unwrap();
            assert!(!connection.exchange(&request).await.unwrap().head.closes());
            connections.push(connection);
        }
        machine.install_smoothserve(&programs!());
        machine.run("systemctl restart smoothserve");
        machine.until("journalctl -t smoothserve", |journal| {
            journal.contains("worker replaced, the old one drains")
        });
        for (seconds, mut connection) in (0..5).flat_map(|second| [second; 4]).zip(connections) {
            // Longer and longer, as clients do who have nothing to ask.
            tokio::time::sleep(Duration::from_secs(seconds) / 4).await;
            assert!(connection.exchange(&request).await.unwrap().head.closes());
            connection.closed().await.unwrap();
        }
        machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
            text == "gone\n"
        });
    });
}

#[test]
fn everything_around_it_can_be_restarted() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let instances = scene.shop().pids();
        for line in [
            "systemctl daemon-reload",
            "systemctl daemon-reexec",
            "systemctl restart dbus",
            "systemctl restart systemd-journald",
        ] {
            machine.run(line);
            load.go_on(50).await;
            // smoothserve can make new scopes, and is on the bus again.
            machine.run("smoothctl restart shop");
            machine.until(
                "busctl call org.smoothserve1 /org/smoothserve1 org.smoothserve1.Manager ListServices",
                |answer| answer.contains("shop"),
            );
        }
        assert!(
            scene
                .shop()
                .pids()
                .iter()
                .all(|pid| !instances.contains(pid))
        );
        let instances = scene.shop().pids();
        machine.run("systemctl restart smoothserve");
        assert_eq!(scene.shop().pids(), instances);
        machine.run("logger -t mark mark && journalctl --sync");
        let lines = machine.run("journalctl -t shop -o cat");
        assert!(lines.contains("is ready"), "{lines}");
        nothing_is_lost(load).await;
    });
}

#[test]
fn a_killed_worker_loses_only_what_was_in_flight() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let (instances, worker) = (scene.shop().pids(), scene.worker());
        let before = load.counts().requests;
        machine.run(&format!("kill -9 {worker}"));
        load.go_on(300).await;
        let report = load.stop().await;
        println!("{report}");
        assert!(report.requests() > before);
        // Each of the 32 connections had at most two requests in flight, those of one packet.
        assert!(report.lost.len() <= 64, "{report}");
        let refused = |lost: &Lost| lost.fault.to_string().contains("refused");
        assert!(
            !report.lost.iter().any(refused),
            "no connection was refused"
        );
        assert_eq!(scene.shop().pids(), instances);
    });
}

#[test]
fn a_manager_that_fails_for_good_leaves_the_traffic_flowing() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        scene.restart_into_failure();
        nothing_is_lost(load).await;
        machine.run("systemctl stop smoothserve.slice smoothserve.socket");
        assert_eq!(scene.processes(), "");
    });
}

/// A job goes on with the next manager, and whoever waits for it waits on. A stop ends the waiting,
/// and nobody starts smoothserve again by waiting.
#[test]
fn waiting_for_a_job_goes_on_over_a_restart_of_smoothserve_and_ends_with_a_stop() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        let waiting = |bus: &str, change: &str| {
            machine.try_run(&format!(
                "smoothctl --bus {bus} restart shop >/tmp/said 2>&1 & waiting=$!; \
                 until grep -q shop /tmp/said; do kill -0 $waiting && sleep 0.01 || exit 1; done; \
                 systemctl {change} smoothserve; wait $waiting; status=$?; cat /tmp/said; exit $status",
            ))
        };
        for bus in ["auto", "system"] {
            let waited = waiting(bus, "restart");
            let said = String::from_utf8_lossy(&waited.stdout);
            assert_eq!(waited.status.code(), Some(0), "{said}");
            assert_eq!(said.lines().last(), Some("restart shop: done"), "{said}");
        }
        for bus in ["auto", "system"] {
            let waited = waiting(bus, "stop");
            let said = String::from_utf8_lossy(&waited.stdout);
            assert!(!waited.status.success(), "{said}");
            let active = machine.try_run("systemctl is-active smoothserve");
            assert!(!active.status.success(), "nobody has asked for it");
            machine.run("systemctl start smoothserve");
        }
    });
}

/// Mounts a file system on /mnt where nobody is answered, and whoever waits for an answer does not
/// end by SIGKILL.
const HANG: &str = r#"
import ctypes, os, struct
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hang", b"/mnt", b"fuse", 0, options.encode()) != 0:
    raise OSError(ctypes.get_errno(), "mount")
request = os.read(fuse, 1 << 20)
unique = struct.unpack_from("<Q", request, 8)[0]
answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
os.write(fuse, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
while True:
    os.read(fuse, 1 << 20)
"#;

/// Puts a file system on /mnt that does not answer.
fn hang(machine: &Machine) {
    machine.write("/run/hang.py", HANG);
    machine.run("mknod /dev/fuse c 10 229; systemd-run --unit hang python3 /run/hang.py");
    machine.until("cat /proc/mounts", |mounts| {
        mounts.contains("hang /mnt fuse")
    });
}

#[test]
fn an_executable_that_was_not_stored_and_does_not_answer_holds_up_no_takeover() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let (instances, manager) = (scene.shop().pids(), scene.manager());
        hang(machine);
        // By this number, nothing is stored.
        machine.write(
            "/run/lose.py",
            "import json\n\
             file = '/run/smoothserve/state.json'\n\
             text = open(file).read().replace('\"generation\":1,', '\"generation\":7,')\n\
             state = json.loads(text)\n\
             shop = state['services']['shop']\n\
             shop['last_generation'] = 7\n\
             shop['deployments'] = {'7': shop['deployments']['1']}\n\
             shop['deployments']['7']['executable'] = '/mnt/x'\n\
             json.dump(state, open(file, 'w'))\n",
        );
        machine.run(&format!(
            "kill -STOP {manager}; python3 /run/lose.py; kill -9 {manager}"
        ));
        scene.another_manager(manager);
        machine.until("journalctl -u smoothserve", |journal| {
            journal.contains("executable lost, no instance of it can be started")
        });
        // What is configured answers, and takes its place.
        machine.run("smoothctl reload");
        let shop = scene.settled();
        assert_eq!(shop.ready(), 3);
        assert!(shop.pids().iter().all(|pid| !instances.contains(pid)));
        nothing_is_lost(load).await;
        machine.run("systemctl kill --signal KILL hang");
    });
}

#[test]
fn what_does_not_end_by_sigkill_is_left_behind_and_nothing_waits_for_it() {
    machine::test(async |machine| {
        let scene = Scene::install(machine, "stop_timeout: 1s\n");
        hang(machine);
        machine.run("mv /opt/shop/shop /opt/shop/server");
        let executable = |line: &str| {
            machine.write("/opt/shop/new", &format!("#!/bin/sh\n{line}\n"));
            machine.run("chmod 755 /opt/shop/new; mv /opt/shop/new /opt/shop/shop");
        };
        // The server ends, and leaves a process that does not.
        executable("(setsid stat /mnt/x &)\nexec /opt/shop/server \"$@\"");
        machine.run("systemctl enable --now smoothserve.socket smoothserve.service");
        assert_eq!(scene.settled().ready(), 3);
        // The first process of an instance itself does not end.
        executable("trap 'exec stat /mnt/x' TERM\n/opt/shop/server \"$@\" & wait");
        let is_told = |line: &str| {
            let output = machine.try_run(line);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{line}: {said}");
            let left = " does not end although it was killed; it is left behind";
            assert!(said.contains("shop/1: process "), "{line}: {said}");
            assert!(said.contains(left), "{line}: {said}");
            assert_eq!(scene.shop().ready(), 3);
            machine.run("smoothctl reload");
        };
        is_told("smoothctl reload");
        is_told("smoothctl restart shop");
        // The next manager waits for it no longer.
        machine.run("smoothctl restart --no-block shop");
        machine.until("smoothctl status shop", |text| text.contains("stopping"));
        machine.run("systemctl restart smoothserve");
        scene.settled();
        machine.run("systemctl stop smoothserve.socket smoothserve.service");
        assert_eq!(scene.property("Result"), "success");
        machine.run("systemctl kill --signal KILL hang");
    });
}
