//! Users other than root: they may look, may act as polkit permits, and may have a smoothserve of
//! their own.

use smoothserve_kit::{client, example, local, machine};

use crate::scene::Scene;

/// Makes the user ada.
const USER: &str = "useradd --create-home --shell /bin/bash ada";

#[test]
fn an_ordinary_user_may_look_but_not_touch() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run(USER);
        let status = machine.run("setpriv --reuid ada --regid ada --init-groups smoothctl status");
        assert!(status.contains("shop"), "{status}");
        let lock = "setpriv --reuid ada --regid ada --init-groups flock --nonblock --shared /run/smoothserve/lock true";
        assert_eq!(
            machine.try_run(lock).status.code(),
            Some(66),
            "EX_NOINPUT of flock(1): not even opened"
        );
        let before = scene.shop().pids();
        for line in [
            "smoothctl restart shop",
            "smoothctl --run-dir /run/smoothserve restart shop",
            "busctl call org.smoothserve1 /org/smoothserve1 org.smoothserve1.Manager RestartService s shop",
        ] {
            let refused = machine.try_run(&format!(
                "setpriv --reuid ada --regid ada --init-groups {line}"
            ));
            assert!(!refused.status.success());
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("org.smoothserve1.manage-services"), "{said}");
        }
        assert_eq!(scene.shop().pids(), before);
        machine.write(
            "/etc/polkit-1/rules.d/ada.rules",
            "polkit.addRule(function(action, subject) {\n\
             if (action.id == 'org.smoothserve1.manage-services' && subject.user == 'ada') return polkit.Result.YES; });\n",
        );
        machine.run("systemctl restart polkit");
        machine.run("setpriv --reuid ada --regid ada --init-groups smoothctl restart shop");
        assert!(scene.shop().pids().iter().all(|pid| !before.contains(pid)));
    });
}

#[test]
fn to_complete_names_starts_no_smoothserve() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        machine.run(USER);
        let root = "";
        let ada = "setpriv --reuid ada --regid ada --init-groups";
        // The call of the completion scripts that are installed for the shells.
        let tab = |who: &str| {
            machine.run(&format!(
                "{who} env SMOOTHCTL_COMPLETE=bash _CLAP_COMPLETE_INDEX=2 smoothctl -- smoothctl restart s"
            ))
        };
        assert_eq!([tab(root), tab(ada)], ["shop", "shop"]);
        machine.run("systemctl stop smoothserve.service");
        assert_eq!([tab(root), tab(ada)], ["", ""]);
        // A connection is either in the queue of the socket or has started the service.
        let queue = machine.run("ss -xlH src /run/smoothserve/bus | awk '{ print $3 }'");
        assert_eq!(queue, "0\n");
        let state = |property: &str, unit: &str| {
            machine.run(&format!(
                "systemctl show --value --property={property} {unit}"
            ))
        };
        assert_eq!(state("SubState", "smoothserve.socket"), "listening\n");
        assert_eq!(state("ActiveState", "smoothserve.service"), "inactive\n");
    });
}

#[test]
fn busctl_shows_a_clean_interface() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let tree = machine.run("busctl --list tree org.smoothserve1");
        let paths: Vec<&str> = tree.lines().collect();
        assert_eq!(
            paths,
            [
                "/",
                "/org",
                "/org/smoothserve1",
                "/org/smoothserve1/service",
                "/org/smoothserve1/service/shop"
            ]
        );
        let shown = machine.run(
            "busctl introspect org.smoothserve1 /org/smoothserve1/service/shop org.smoothserve1.Service",
        );
        let names = shown
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        assert_eq!(
            names.filter(|name| *name == ".Restart").count(),
            1,
            "{shown}"
        );
        assert!(!shown.contains("writable"), "{shown}");

        let monitor = "busctl monitor org.smoothserve1 >/run/monitor 2>&1";
        machine.run(&format!(
            "systemd-run --quiet --unit monitor sh -c '{monitor}'"
        ));
        machine.until("cat /run/monitor", |text| text.contains("Monitoring"));
        let before = scene.shop().pids();
        let job = machine.run(
            "busctl call org.smoothserve1 /org/smoothserve1 org.smoothserve1.Manager RestartService s shop",
        );
        assert!(job.starts_with("o \"/org/smoothserve1/job/"), "{job}");
        let seen = machine.until("cat /run/monitor", |text| text.contains("JobRemoved"));
        for word in ["RestartService", "JobNew", "PropertiesChanged", "\"done\""] {
            assert!(seen.contains(word), "{word}: {seen}");
        }
        assert!(scene.shop().pids().iter().all(|pid| !before.contains(pid)));
    });
}

#[test]
fn a_user_has_a_smoothserve_of_his_own() {
    machine::test(async |machine| {
        Scene::install(machine, "");
        machine.run(USER);
        machine.install(&example("shop"), "/home/ada/shop");
        machine.write(
            "/home/ada/.config/smoothserve/services/shop.yaml",
            "name: shop\nexecutable_path: /home/ada/shop\nargs: [\"-port={port}\"]\nport: 9090\ninstance_count: 2\n",
        );
        machine.run("chown -R ada: /home/ada && loginctl enable-linger ada");
        let ada = "setpriv --reuid ada --regid ada --init-groups env HOME=/home/ada \
                   XDG_RUNTIME_DIR=/run/user/$(id -u ada) \
                   DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u ada)/bus";
        machine.until(
            &format!("{ada} systemctl --user is-system-running"),
            |state| matches!(state, "running\n" | "degraded\n"),
        );
        machine.run(&format!(
            "{ada} systemctl --user enable --now smoothserve.socket smoothserve.service"
        ));
        let pids = |machine: &machine::Machine| machine.run("pgrep -u ada -x shop");
        let before = pids(machine);
        assert_eq!(before.lines().count(), 2);
        machine.run(&format!("{ada} systemctl --user restart smoothserve"));
        machine.run(&format!("{ada} systemctl --user reload smoothserve"));
        assert_eq!(
            pids(machine),
            before,
            "they are in scopes of the user's systemd"
        );
        let page = client::get(local(9090), "shop.example", "/").await.unwrap();
        assert!(page.text().contains("The shop"));
        machine.run(&format!("{ada} smoothctl restart shop"));
        assert_ne!(pids(machine), before);
        machine.run(&format!(
            "{ada} systemctl --user stop smoothserve.socket smoothserve"
        ));
        assert_eq!(machine.try_run("pgrep -u ada -x shop").stdout, b"");
    });
}
