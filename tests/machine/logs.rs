//! The journal: what people find in it, by service, by unit and by message id.

use smoothserve_kit::{Build, Start, machine};

use crate::scene::Scene;

#[test]
fn the_journal_shows_what_a_person_expects() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "start_timeout: 3s\n");
        let own = machine.run("journalctl --sync; journalctl -t shop -o cat");
        assert_eq!(own.matches("is ready").count(), 3, "{own}");
        let about = machine.run("journalctl SERVICE=shop -o cat");
        assert!(about.contains("rollout finished"), "{about}");
        let manager = machine.run("journalctl -u smoothserve -o cat");
        assert!(manager.contains("smoothserve ready"), "{manager}");

        // A crash is found by its message id, with its cause and an explanation.
        let victim = scene.shop().pids()[0];
        machine.run(&format!("kill -ABRT {victim}"));
        scene.machine.until(
            "journalctl -x MESSAGE_ID=3f16c74f50bb47598ba79ed036e96e28",
            |journal| journal.contains("SIGABRT") && journal.contains("Defined-By: smoothserve"),
        );
        scene.settled();

        // A bad deploy fails the reload, and the report has the last words of the program, which
        // only the journal has.
        let before = scene.shop().pids();
        scene.deploy(&Build::starting("bad", Start::Crash));
        let failed = machine.try_run("smoothctl reload");
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success());
        for part in [
            "exited with status 3",
            "log: shop: version bad cannot open its database: no such table: orders",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(scene.settled().pids(), before);
        let aborted =
            machine.run("journalctl -o verbose MESSAGE_ID=5642b97e3c344d6e803252a438960b3c");
        assert!(
            aborted.contains("SERVICE=shop") && aborted.contains("PRIORITY=3"),
            "{aborted}"
        );

        let logs = machine.run("smoothctl logs shop -n 100");
        assert!(
            logs.contains("no such table: orders") && logs.contains("rollout aborted"),
            "{logs}"
        );
    });
}

#[test]
fn logs_shows_only_what_the_service_or_smoothserve_has_written() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "start_timeout: 3s\n");
        machine.run("useradd --create-home --shell /bin/bash ada");
        let ada = "setpriv --reuid ada --regid ada --init-groups";
        // The native protocol takes any field whose name does not begin with `_`.
        let claim = "import socket, sys; \
                     socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto( \
                     b'MESSAGE=forged natively\\nSERVICE=shop\\nSYSLOG_IDENTIFIER=smoothserve\\n\
                     UNIT=smoothserve-shop.slice\\n_SYSTEMD_SLICE=smoothserve-shop.slice\\n', \
                     '/run/systemd/journal/socket')";
        machine.run(&format!("{ada} python3 -c \"{claim}\""));
        machine.run(&format!("{ada} logger -t shop 'forged by logger'"));
        machine.run(&format!(
            "echo 'forged by a stream' | {ada} systemd-cat -t shop"
        ));
        // A stream whose opener names the unit of the service: the header of the protocol.
        let stream = "import socket; s = socket.socket(socket.AF_UNIX); \
                      s.connect('/run/systemd/journal/stdout'); \
                      s.sendall(b'shop\\nsmoothserve-shop.slice\\n6\\n0\\n0\\n0\\n0\\nforged by a unit\\n')";
        machine.run(&format!("{ada} python3 -c \"{stream}\""));
        scene.deploy(&Build::starting("bad", Start::Crash));
        assert!(!machine.try_run("smoothctl reload").status.success());
        let all = machine.run("journalctl --sync; journalctl -t shop -t smoothserve -o cat");
        assert_eq!(all.matches("forged").count(), 4, "{all}");
        let logs = machine.run("smoothctl logs shop -n all");
        for own in ["is ready", "no such table: orders", "rollout aborted"] {
            assert!(logs.contains(own), "{own}: {logs}");
        }
        assert!(!logs.contains("forged"), "{logs}");
        // What the documentation advises finds the same lines of the service.
        let unit = machine.run("journalctl -u smoothserve-shop.slice -o cat");
        assert!(unit.contains("no such table: orders"), "{unit}");
        assert!(!unit.contains("forged"), "{unit}");
        let about = machine.run("journalctl -u smoothserve.slice SERVICE=shop -o cat");
        assert!(about.contains("rollout aborted"), "{about}");
        assert!(!about.contains("forged"), "{about}");
    });
}

/// journalctl 252 counts from the oldest line on if it is also given a time.
#[test]
fn of_much_output_the_last_lines_are_shown() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        let script = "#!/bin/sh\nfor i in $(seq 60); do echo \"said $i\"; done\nexit 3\n";
        machine.write("/opt/chatty/run", script);
        machine.run("chmod 755 /opt/chatty/run");
        machine.write(
            "/etc/smoothserve/services/chatty.yaml",
            "name: chatty\nexecutable_path: /opt/chatty/run\nport: 9090\n",
        );
        let failed = machine.try_run("smoothctl reload");
        assert!(!failed.status.success());
        let told = String::from_utf8_lossy(&failed.stderr);
        assert!(
            told.contains("said 60") && !told.contains("said 40"),
            "{told}"
        );
        machine.run("smoothctl stop chatty && journalctl --sync");
        let newest = machine.run("smoothctl logs chatty -n 3 -- -o cat");
        assert!(newest.contains("kind=Stop"), "{newest}");
        let since = machine.run("smoothctl logs chatty -n 3 --since -1h -- -o cat");
        assert_eq!(since, newest);
    });
}

#[test]
fn a_stuck_journald_holds_nothing_up() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run("systemctl kill --signal=STOP systemd-journald");
        let load = scene.load().await;
        for _ in 0..3 {
            machine.run("smoothctl restart shop");
        }
        machine.run("systemctl kill --signal=CONT systemd-journald");
        crate::scene::nothing_is_lost(load).await;
        machine.until("journalctl -t shop -o cat | grep -c 'is ready'", |count| {
            count == "12\n"
        });
    });
}
