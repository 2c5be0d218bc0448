//! Failed starts and the environment of instances under a real systemd.

use std::collections::BTreeMap;

use smoothserve_kit::machine::{self, Machine};

use crate::people::users_own;
use crate::scene::Scene;

/// Adds a service `web` with a program of this text, and returns how a reload fails.
fn fails(machine: &Machine, program: &str, lines: &str) -> String {
    machine.write("/srv/web/web", program);
    machine.run("chmod 755 /srv/web/web");
    machine.write(
        "/etc/smoothserve/services/web.yaml",
        &format!("name: web\nport: 8081\nexecutable_path: /srv/web/web\n{lines}"),
    );
    let reload = machine.try_run("smoothctl reload");
    assert!(!reload.status.success());
    let error = machine.run(
        "busctl get-property org.smoothserve1 /org/smoothserve1/service/web \
         org.smoothserve1.Service LastError",
    );
    machine.run("rm /etc/smoothserve/services/web.yaml && smoothctl reload");
    error
}

#[test]
fn the_cause_of_a_failed_start_is_in_the_job_the_last_error_and_the_journal() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        let listens = "#!/usr/bin/python3\nimport socket, time\ns = socket.socket()\n\
                       s.bind(('127.0.0.1', 3456)); s.listen(); time.sleep(1000)\n";
        machine.write("/srv/web/web", listens);
        machine.run("chmod 755 /srv/web/web");
        machine.write(
            "/etc/smoothserve/services/web.yaml",
            "name: web\nport: 8081\nexecutable_path: /srv/web/web\nargs: []\nstart_timeout: 3s\n",
        );
        let reload = machine.try_run("smoothctl reload");
        let said = String::from_utf8_lossy(&reload.stderr).into_owned();
        let cause = "it listens on 127.0.0.1:3456; give it {port} in `args`, or let it read PORT";
        assert!(!reload.status.success() && said.contains(cause), "{said}");
        let error = machine.run(
            "busctl get-property org.smoothserve1 /org/smoothserve1/service/web \
             org.smoothserve1.Service LastError",
        );
        assert!(error.contains(cause), "{error}");
        machine.run("journalctl --sync");
        let journal = machine.run("journalctl -u smoothserve.slice SERVICE=web");
        assert!(journal.contains(cause), "{journal}");
    });
}

#[test]
fn what_only_a_whole_machine_shows_is_told_as_well() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        let error = fails(machine, "#!/bin/sh\nsetsid sleep 1000 &\nexit 0\n", "");
        assert!(error.contains("; it went to the background"), "{error}");

        machine.run("useradd --create-home anna && chmod 700 /home/anna");
        machine.run("mkdir /home/anna/data && chown -R anna: /home/anna");
        let lines = "user: www-data\nworking_directory: /home/anna/data\n";
        let error = fails(machine, "#!/bin/sh\nsleep 1000\n", lines);
        let cause = "user www-data may not enter /home/anna (0700 anna:anna)";
        assert!(error.contains(cause), "{error}");

        machine.run("mkdir -p /srv/web && mount -t tmpfs -o noexec,mode=755 none /srv/web");
        let error = fails(machine, "#!/bin/sh\nsleep 1000\n", "");
        assert!(
            error.contains("its file system is mounted with `noexec`"),
            "{error}"
        );
    });
}

/// The environment of a program that prints it, without what differs from process to process.
fn environment(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let mut found: BTreeMap<String, String> = lines
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    // dash adds these to what it was given.
    for own in ["PWD", "OLDPWD", "_"] {
        found.remove(own);
    }
    for (key, shape) in [
        ("INVOCATION_ID", "32 hex digits"),
        ("JOURNAL_STREAM", "a stream"),
        ("SYSTEMD_EXEC_PID", "its number"),
    ] {
        if let Some(value) = found.get_mut(key) {
            let hex = value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit());
            let good = match key {
                "INVOCATION_ID" => hex,
                "JOURNAL_STREAM" => value.contains(':'),
                _ => value.parse::<u32>().is_ok(),
            };
            assert!(good, "{key}={value}");
            *value = shape.to_owned();
        }
    }
    found
}

/// Writes the program that prints its environment, to be seen in `/run/shows`.
fn add_program(machine: &Machine) {
    machine.write(
        "/opt/shows",
        "#!/bin/sh\nenv >/run/shows/$1.new && mv /run/shows/$1.new /run/shows/$1\nexec sleep 1000\n",
    );
    machine.run("chmod 755 /opt/shows && mkdir -m 1777 /run/shows");
}

/// Waits for the environment that the program has printed under this name.
fn shown(machine: &Machine, name: &str) -> BTreeMap<String, String> {
    let line = format!("cat /run/shows/{name} || true");
    environment(&machine.until(&line, |text| !text.is_empty()))
}

/// Checks that an instance with `ready: notify` has the variables that smoothserve alone sets, and
/// otherwise the environment of a service of systemd.
fn assert_same(mut own: BTreeMap<String, String>, mut expected: BTreeMap<String, String>) {
    for key in ["PORT", "SMOOTHSERVE_INSTANCE", "SMOOTHSERVE_SERVICE"] {
        assert!(own.remove(key).is_some(), "{key}");
    }
    // It has a socket, as a service of Type=notify has.
    let socket = own.remove("NOTIFY_SOCKET").expect("there is a socket");
    assert!(socket.contains("/smoothserve/"), "{socket}");
    // A scope has none of the thresholds that later versions of systemd set for a service.
    for key in ["MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"] {
        expected.remove(key);
    }
    assert_eq!(own, expected);
}

#[test]
fn an_instance_has_the_environment_of_a_service_of_systemd() {
    machine::test(async |machine| {
        machine.run("useradd --create-home --shell /bin/bash anna");
        machine.run("useradd --system --home-dir / --shell /bin/false bare");
        machine.write(
            "/etc/systemd/system/smoothserve.service.d/leak.conf",
            "[Service]\nEnvironment=SECRET_OF_THE_MANAGER=1 RUST_LOG=info\n",
        );
        let scene = Scene::install(machine, "");
        add_program(machine);
        let file = "FROM_FILE=file\nBOTH=file\nLANG=de_DE.UTF-8\n";
        machine.write("/etc/shows.env", file);
        machine.run("systemctl enable --now smoothserve.socket smoothserve.service");
        scene.settled();
        let users = ["www-data", "anna", "bare", "root"];
        for user in users {
            // Every user runs the program as a service of systemd, and as one of smoothserve.
            machine.run(&format!(
                "systemd-run --quiet --unit shows-{user} --uid {user} \
                 --property EnvironmentFile=/etc/shows.env --setenv BOTH=unit --setenv OWN=unit \
                 /opt/shows systemd-{user}"
            ));
            machine.write(
                &format!("/etc/smoothserve/services/{user}.yaml"),
                &format!(
                    "name: {user}\nport: 9000\nserver_name: {user}.example\n\
                     executable_path: /opt/shows\nargs: [own-{user}]\nready: notify\n\
                     user: {user}\nenvironment: {{BOTH: unit, OWN: unit}}\n\
                     environment_file: /etc/shows.env\n"
                ),
            );
        }
        machine.run("smoothctl reload >/dev/null 2>&1 &");
        for user in users {
            let own = shown(machine, &format!("own-{user}"));
            assert_eq!(own["BOTH"], "file", "the file has the last word");
            assert_same(own, shown(machine, &format!("systemd-{user}")));
        }
    });
}

#[test]
fn an_instance_of_a_users_own_smoothserve_has_the_environment_of_a_service_of_the_user() {
    machine::test(async |machine| {
        Scene::install(machine, "");
        let ada = users_own(machine, "args: [\"-port={port}\"]\n");
        add_program(machine);
        ada.run("systemd-run --user --quiet --unit shows /opt/shows systemd");
        machine.write(
            "/home/ada/.config/smoothserve/services/shows.yaml",
            "name: shows\nport: 9091\nexecutable_path: /opt/shows\nargs: [own]\nready: notify\n",
        );
        ada.run("smoothctl reload >/dev/null 2>&1 &");
        assert_same(shown(machine, "own"), shown(machine, "systemd"));
    });
}
