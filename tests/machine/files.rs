//! Files of ordinary users that a manager with root's rights reads: nobody gets another user's
//! rights or secrets by them, and nothing waits for them.

use smoothserve_kit::example;
use smoothserve_kit::machine::{self, Machine};

use crate::scene::Scene;

/// What nobody but root may see.
const SECRET: &str = "S3cret-of-root";

/// Runs a command as the user whose folder the service `web` is in.
const WWW: &str = "setpriv --reuid www-data --regid www-data --init-groups";

/// Shows the variables of a `/proc/PID/environ` whose names begin with `T_`, one in a line.
const SHOWN: &str = r"tr '\n\0' '|\n' | grep ^T_ | sort";

/// The service `web`, whose folder belongs to www-data.
struct Web<'a> {
    machine: &'a Machine,
}

impl<'a> Web<'a> {
    /// Starts the shop, and beside it the service of www-data.
    fn start(machine: &'a Machine) -> (Scene<'a>, Web<'a>) {
        let scene = Scene::start(machine, "");
        machine.install(&example("shop"), "/srv/web/web");
        let web = Web { machine };
        machine.write("/srv/web/.env", "GREETING=hello\n");
        machine.run("chown -R www-data: /srv/web");
        web.write("");
        machine.run("smoothctl reload");
        assert!(web.environment().contains("GREETING=hello"));
        (scene, web)
    }

    fn write(&self, lines: &str) {
        self.machine.write(
            "/etc/smoothserve/services/web.yaml",
            &format!(
                "name: web\nexecutable_path: /srv/web/web\nargs: [\"-port={{port}}\"]\nport: 8081\n\
                 environment_file: /srv/web/.env\nauto_restart: false\n{lines}"
            ),
        );
    }

    /// Does something as www-data, in its folder.
    fn does(&self, line: &str) {
        self.machine
            .run(&format!("cd /srv/web && {WWW} sh -c '{line}'"));
    }

    /// Returns how a command was refused.
    fn refused(&self, line: &str) -> String {
        let output = self.machine.try_run(line);
        assert!(!output.status.success(), "{line} succeeds");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Returns the environments and users of all instances of the service.
    fn environment(&self) -> String {
        self.machine.run(
            "for scope in /sys/fs/cgroup/smoothserve.slice/smoothserve-web.slice/*.scope; do \
             for pid in $(cat $scope/cgroup.procs); do \
             tr '\\0' '\\n' </proc/$pid/environ; ps -o user= -p $pid; done; done",
        )
    }

    /// Checks that the manager answers, and that nobody was told the secret.
    fn is_well(&self) {
        let status = self.machine.run("timeout 10 smoothctl status --json");
        let journal = self
            .machine
            .run("journalctl --no-pager --output=export --unit=smoothserve");
        for text in [status, journal, self.environment()] {
            assert!(!text.contains(SECRET), "{text}");
        }
    }
}

#[test]
fn an_environment_file_is_read_with_the_rights_of_whoever_put_it_there() {
    machine::test(async |machine| {
        let (_scene, web) = Web::start(machine);
        machine.write("/etc/secret.env", &format!("TOKEN={SECRET}\n"));
        machine.run("chmod 600 /etc/secret.env");
        web.does("ln -sf /etc/secret.env .env");
        for command in [
            "smoothctl restart web",
            "smoothctl reload",
            "smoothserve check",
        ] {
            let error = web.refused(command);
            let expected = "/srv/web/.env, which www-data owns, leads to /etc/secret.env, which www-data does not own; \
                so it is opened with the rights of www-data: user www-data may not read /etc/secret.env (0600 root:root)";
            assert!(error.contains(expected), "{command}: {error}");
            assert!(error.contains("let www-data read it"), "{error}");
            assert!(!error.contains(SECRET), "{error}");
            web.is_well();
        }
        // What www-data may read anyway, it may link to.
        machine.run("chgrp www-data /etc/secret.env && chmod 640 /etc/secret.env");
        machine.run("sed -i s/S3cret/Shared/ /etc/secret.env && smoothctl restart web");
        assert!(web.environment().contains("TOKEN=Shared-of-root"));

        // The environment of a process of root, and of one of its own.
        let line = format!("systemd-run --quiet --unit=holder --setenv=TOKEN={SECRET} sleep 1000");
        machine.run(&line);
        let holder = machine.run("systemctl show --value --property=MainPID holder");
        for pid in [holder.trim(), "self"] {
            web.does(&format!("ln -sf /proc/{pid}/environ .env"));
            let error = web.refused("smoothctl restart web");
            assert!(error.contains("/srv/web/.env"), "{error}");
            assert!(!error.contains(SECRET), "{error}");
            web.is_well();
        }
        // Root's own mistake is not quoted either.
        machine.run(&format!(
            "ln -sfn /proc/{}/environ /srv/web/.env",
            holder.trim()
        ));
        web.write("");
        let error = web.refused("smoothctl restart web");
        assert!(!error.contains(SECRET), "{error}");
        web.is_well();
    });
}

#[test]
fn a_link_to_a_program_of_another_user_is_a_fault_by_name() {
    machine::test(async |machine| {
        let (_scene, web) = Web::start(machine);
        machine.run("useradd bob && mkdir /opt/bob && cp /srv/web/web /opt/bob/program && chown -R bob: /opt/bob");
        web.does("ln -sf /opt/bob/program web && echo LD_PRELOAD=/srv/web/mine.so >.env");
        for command in [
            "smoothctl restart web",
            "smoothctl reload",
            "smoothserve check",
        ] {
            let error = web.refused(command);
            let expected = "/srv/web/web, which www-data owns, leads to /opt/bob/program, which www-data does not own";
            assert!(error.contains(expected), "{command}: {error}");
            assert!(error.contains("give the service a `user`"), "{error}");
        }
        assert_eq!(machine.try_run("pgrep -u bob").stdout, b"");
        // The cure: then it is www-data who runs it.
        web.does("echo GREETING=again >.env");
        web.write("user: www-data\n");
        machine.run("smoothctl reload");
        assert!(web.environment().contains("GREETING=again"));
        assert!(web.environment().contains("\nwww-data\n"));
        machine.run("chmod 700 /opt/bob");
        let error = web.refused("smoothctl restart web");
        assert!(
            error.contains(
                "with the rights of www-data: user www-data may not enter /opt/bob (0700 bob:bob)"
            ),
            "{error}"
        );

        // Releases by links, absolute ones, too, are what they were.
        web.write("");
        web.does("mkdir -p releases/7 && cp /usr/bin/env releases/7 && ln -sfn /srv/web/releases/7 current");
        machine.install(&example("shop"), "/srv/web/releases/7/web");
        machine.run("chown -R www-data: /srv/web/releases");
        web.does("ln -sf current/web web");
        machine.run("smoothctl reload && smoothctl restart web");
        assert!(web.environment().contains("GREETING=again"));
    });
}

#[test]
fn files_that_are_none_make_nobody_wait() {
    machine::test(async |machine| {
        machine.run(
            "mkdir -p /etc/shop-tls && cd /etc/shop-tls && umask 077 \
             && openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=test -days 100 \
                -addext subjectAltName=DNS:shop.example -keyout privkey.pem -out fullchain.pem 2>/dev/null",
        );
        let (scene, web) = Web::start(machine);
        scene.write_shop("tls: {certificate: /etc/shop-tls}\n");
        machine.run("smoothctl reload");
        for (make, expected) in [
            ("mkfifo .env", "is no regular file"),
            ("ln -s /dev/zero .env", "is no regular file"),
            ("truncate -s 6G .env", "it is larger than 1024 KiB"),
        ] {
            web.does(&format!("rm -f .env && {make}"));
            for command in [
                "smoothctl restart web",
                "smoothctl reload",
                "smoothserve check",
            ] {
                let error = web.refused(&format!("timeout 60 {command}"));
                assert!(error.contains(expected), "{make}: {command}: {error}");
                web.is_well();
            }
        }
        web.does("rm .env && echo GREETING=again >.env");
        // The watcher of certificates looks at it by itself, and a reload does.
        machine.run("cd /etc/shop-tls && mv fullchain.pem kept && mkfifo fullchain.pem");
        let error = web.refused("timeout 60 smoothctl reload");
        assert!(
            error.contains("fullchain.pem cannot be read: it is no regular file"),
            "{error}"
        );
        machine.until("journalctl --no-pager --unit=smoothserve", |journal| {
            journal.contains("changed certificate not taken")
        });
        web.is_well();
        machine.run("cd /etc/shop-tls && mv kept fullchain.pem && smoothctl reload && smoothctl restart web");
        assert!(web.environment().contains("GREETING=again"));
        let peak = machine.run(&format!("grep VmHWM /proc/{}/status", scene.manager()));
        let peak: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(peak < 200 << 10, "the manager has taken {peak} KiB");
    });
}

/// An environment file means the same in a unit and here.
#[test]
fn an_environment_file_means_what_it_means_in_a_unit() {
    machine::test(async |machine| {
        let (_scene, _web) = Web::start(machine);
        let odd = include_str!("../fixtures/odd.env");
        for text in [
            odd.to_owned(),
            odd.replace('\n', "\r\n"),
            format!("{odd}\n"),
        ] {
            machine.write("/srv/web/.env", &text);
            machine.run("smoothctl restart web");
            let theirs = machine.run(&format!(
                "systemd-run --quiet --wait --pipe -p EnvironmentFile=/srv/web/.env cat /proc/self/environ | {SHOWN}"
            ));
            assert!(theirs.lines().count() > 30, "{theirs}");
            let ours = machine.run(&format!(
                "cat /proc/$(pgrep --oldest --exact web)/environ | {SHOWN}"
            ));
            assert_eq!(ours, theirs);
        }
        let notes = machine.run("smoothctl check");
        let ignored = "/srv/web/.env: line 38 is ignored: it is no `NAME=value`";
        assert!(notes.contains(ignored), "{notes}");
    });
}
