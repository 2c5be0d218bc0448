//! Users other than root: they may look, may act as polkit permits, and may have a smoothserve of
//! their own.

use smoothserve_kit::{Build, Start, client, example, local, machine, programs};

use crate::scene::Scene;

/// The manual of smoothctl, with a rule for polkit.
const MANUAL: &str = include_str!("../../manual/text/smoothctl.md");

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
            if line.starts_with("smoothctl") {
                assert_eq!(refused.status.code(), Some(77), "{said}");
                assert!(said.contains("; use sudo"), "{said}");
                assert_eq!(said.lines().count(), 1, "{said}");
            }
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

/// Runs a command in a session of ada on a terminal, answers each prompt with a password, and
/// prints what the terminal shows and then, in a line of its own, the exit status, whether the
/// terminal shows again what is typed, and how many prompts there were. polkit uses an agent like
/// pkttyagent only in a session.
const TERMINAL: &str = r#"
import os, pty, sys, termios, time
password, line = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("su", ["su", "-", "ada", "--session-command", line])
def echo():
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)
shown, answered = b"", 0
while True:
    try:
        read = os.read(terminal, 4096)
    except OSError:
        break
    shown += read
    prompts = shown.count(b"Password: ")
    if prompts > answered:
        answered = prompts
        # What is typed before the agent has hidden it is thrown away.
        while echo():
            time.sleep(0.01)
        os.write(terminal, password.encode() + b"\n")
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.stdout.write(shown.decode().replace("\r\n", "\n") + f"\n{status} {echo()} {answered}\n")
"#;

#[test]
fn an_ordinary_user_can_give_the_password_of_an_administrator() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        machine.run(&format!("{USER} && echo root:secret | chpasswd"));
        machine.write("/root/terminal.py", TERMINAL);
        let on_terminal = |password: &str, line: &str| {
            let line = format!("python3 /root/terminal.py {password} '{line}'");
            let shown = machine.run(&line);
            let (shown, end) = shown.trim_end().rsplit_once('\n').unwrap();
            (shown.to_owned(), end.to_owned())
        };
        let mut before = scene.shop().pids();
        for line in [
            "smoothctl restart shop",
            "smoothctl restart all",
            "smoothctl --bus system restart shop",
        ] {
            let (shown, end) = on_terminal("secret", line);
            assert_eq!(end, "0 True 1", "{line}: {shown}");
            assert!(shown.contains("web services"), "what it is for: {shown}");
            assert!(shown.contains("restart shop: done"), "{shown}");
            let now = scene.shop().pids();
            assert!(now.iter().all(|pid| !before.contains(pid)), "{line}");
            before = now;
        }
        for (password, line, answers) in [
            ("wrong", "smoothctl restart shop", 1),
            ("secret", "smoothctl restart --no-ask-password shop", 0),
            (
                "secret",
                "smoothctl --run-dir /run/smoothserve restart shop",
                0,
            ),
        ] {
            let (shown, end) = on_terminal(password, line);
            assert_eq!(end, format!("77 True {answers}"), "{line}: {shown}");
            assert!(
                shown.contains("org.smoothserve1.manage-services"),
                "{shown}"
            );
            assert!(shown.contains("; use sudo"), "{shown}");
        }
        // Ctrl-C instead of a password ends all, and leaves the terminal as it was.
        let (shown, end) = on_terminal("\u{3}", "exec smoothctl restart shop");
        assert_eq!(end, "130 True 1", "{shown}");
        // Nobody is asked who only looks, or who sits at no terminal.
        let (_, end) = on_terminal("secret", "smoothctl status shop");
        assert_eq!(end, "0 True 0");
        let ada = "setpriv --reuid ada --regid ada --init-groups";
        let refused = machine.try_run(&format!("{ada} smoothctl restart shop </dev/null"));
        assert_eq!(refused.status.code(), Some(77));
        assert_eq!(scene.shop().pids(), before);
        assert_eq!(machine.try_run("pgrep pkttyagent").stdout, b"");

        // The rule of the manual needs no password.
        let (_, rule) = MANUAL.split_once("\n```\n// /etc/polkit-1").unwrap();
        let (rule, _) = rule.split_once("\n```\n").unwrap();
        let (file, rule) = rule.split_once('\n').unwrap();
        machine.write(&format!("/etc/polkit-1{file}"), rule);
        machine.run("groupadd deploy && usermod --append --groups deploy ada");
        machine.run("systemctl restart polkit");
        let (shown, end) = on_terminal("secret", "smoothctl restart shop");
        assert_eq!(end, "0 True 0", "{shown}");
    });
}

#[test]
fn who_finds_no_smoothserve_is_told_how_to_start_it() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        machine.run(&format!("{USER} && systemctl stop smoothserve.slice"));
        let ada = "setpriv --reuid ada --regid ada --init-groups";
        for (line, cure) in [
            (
                "smoothctl status".to_owned(),
                "`systemctl start smoothserve`",
            ),
            (
                format!("{ada} smoothctl --run-dir /run/smoothserve status"),
                "`smoothserve run --run-dir",
            ),
        ] {
            let output = machine.try_run(&line);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(69), "{said}");
            assert!(said.contains(cure), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        // The cure is one.
        machine.run("systemctl start smoothserve && smoothctl status shop");
    });
}

/// The paragraph "Who has port 80?" of the README, with a program that has it.
#[test]
fn who_has_port_80_is_found_and_told_to_leave() {
    machine::test(async |machine| {
        let _scene = Scene::start(machine, "");
        machine.run(
            "systemd-run --quiet --unit nginx --collect python3 -m http.server --bind 0.0.0.0 80",
        );
        let ss = "ss --listening --tcp --numeric --processes 'sport = :80'";
        machine.until(ss, |listening| listening.contains("(\"python3\","));
        // One service is new, and of the other one only the port is.
        let files = "/etc/smoothserve/services";
        machine.run(&format!(
            "sed 's/^name: .*/name: web/; s/^port: .*/port: 80/' {files}/shop.yaml >{files}/web.yaml \
             && sed -i 's/^port: .*/port: [8080, 80]/; s/^name: .*/&\\nserver_name: shop.example/' \
             {files}/shop.yaml"
        ));
        let changed = "its file has changed on disk";
        assert!(machine.run("smoothctl status").contains(changed));
        let refused = machine.try_run("systemctl reload smoothserve");
        assert!(!refused.status.success());
        let web = machine.run("smoothctl status web");
        assert!(web.contains("not reachable on port 80,"), "{web}");
        let shop = machine.run("smoothctl status shop");
        assert!(shop.contains("a change was not applied"), "{shop}");
        assert!(shop.contains(":80: ") && !shop.contains(changed), "{shop}");
        machine.run("systemctl stop nginx && systemctl reload smoothserve");
        for service in ["shop", "web"] {
            let status = machine.run(&format!("smoothctl status {service}"));
            assert!(!status.contains("warning"), "{status}");
        }
        assert!(
            machine
                .run("smoothctl status shop")
                .contains("listen      80 8080\n")
        );
        assert!(machine.run(ss).contains("(\"smoothserve\","));
    });
}

#[test]
fn the_last_output_is_for_those_who_read_the_journal() {
    machine::test(async |machine| {
        const SECRET: &str = "no such table: orders";
        let scene = Scene::start(machine, "start_timeout: 3s\n");
        machine.run(USER);
        scene.deploy(&Build::starting("bad", Start::Crash));
        assert!(!machine.try_run("smoothctl reload").status.success());
        let ada = "setpriv --reuid ada --regid ada --init-groups";
        let line = format!("{ada} smoothctl status shop");
        let status = machine.run(&line);
        assert!(status.contains("exited with status 3"), "{status}");
        assert!(!status.contains(SECRET), "{status}");
        assert!(status.contains("`sudo smoothctl logs shop`"), "{status}");
        let ask = "busctl call org.smoothserve1 /org/smoothserve1/service/shop \
                   org.smoothserve1.Service GetLastErrorReport";
        let refused = machine.try_run(&format!("{ada} {ask}"));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("group systemd-journal or adm"), "{said}");

        machine.run("usermod --append --groups systemd-journal ada");
        assert!(machine.run(&line).contains(SECRET));
        assert!(machine.run(&format!("{ada} {ask}")).contains(SECRET));
        machine.run("gpasswd --delete ada systemd-journal");
        assert!(!machine.run(&line).contains(SECRET));
        for action in ["read-output", "manage-services"] {
            machine.write(
                "/etc/polkit-1/rules.d/ada.rules",
                &format!(
                    "polkit.addRule(function(action, subject) {{\n\
                     if (action.id == 'org.smoothserve1.{action}' && subject.user == 'ada') \
                     return polkit.Result.YES; }});\n"
                ),
            );
            machine.run("systemctl restart polkit");
            assert!(machine.run(&line).contains(SECRET), "{action}");
        }
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

/// The port of the shop of a user.
pub const USERS_PORT: u16 = 9090;

/// The user ada, who has a smoothserve of her own under `systemctl --user`.
pub struct Ada<'a> {
    machine: &'a machine::Machine,
}

impl Ada<'_> {
    /// Runs a shell command as ada, and returns its output.
    pub fn run(&self, command: &str) -> String {
        self.machine.run(&format!("{ADA} sh -c '{command}'"))
    }

    /// Returns the number of the process of her newest worker.
    pub fn worker(&self) -> u32 {
        let found = self.machine.run("pgrep -u ada -n -f 'smoothserve: proxy'");
        found.trim().parse().expect("she has a worker")
    }
}

/// Does something as ada, in her session.
const ADA: &str = "setpriv --reuid ada --regid ada --init-groups env HOME=/home/ada \
                   XDG_RUNTIME_DIR=/run/user/$(id -u ada) \
                   DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u ada)/bus";

/// Makes the user ada, and starts a smoothserve of her own with a shop, which has these further
/// lines in its configuration file.
pub fn users_own<'a>(machine: &'a machine::Machine, lines: &str) -> Ada<'a> {
    machine.run(USER);
    machine.install(&example("shop"), "/home/ada/shop");
    machine.write(
        "/home/ada/.config/smoothserve/services/shop.yaml",
        &format!(
            "name: shop\nexecutable_path: /home/ada/shop\nport: {USERS_PORT}\ninstance_count: 2\n{lines}"
        ),
    );
    machine.run("chown -R ada: /home/ada && loginctl enable-linger ada");
    let ada = Ada { machine };
    machine.until(
        &format!("{ADA} systemctl --user is-system-running"),
        |state| matches!(state, "running\n" | "degraded\n"),
    );
    ada.run("systemctl --user enable --now smoothserve.socket smoothserve.service");
    ada
}

#[test]
fn a_user_has_a_smoothserve_of_his_own() {
    machine::test(async |machine| {
        Scene::install(machine, "");
        let ada = users_own(machine, "args: [\"-port={port}\"]\n");
        let pids = |machine: &machine::Machine| machine.run("pgrep -u ada -x shop");
        let before = pids(machine);
        assert_eq!(before.lines().count(), 2);
        ada.run("systemctl --user restart smoothserve");
        ada.run("systemctl --user reload smoothserve");
        assert_eq!(
            pids(machine),
            before,
            "they are in scopes of the user's systemd"
        );
        let page = client::get(local(USERS_PORT), "shop.example", "/")
            .await
            .unwrap();
        assert!(page.text().contains("The shop"));
        ada.run("smoothctl restart shop");
        assert_ne!(pids(machine), before);
        ada.run("systemctl --user stop smoothserve.socket smoothserve");
        assert_eq!(machine.try_run("pgrep -u ada -x shop").stdout, b"");
    });
}

/// Without XDG_RUNTIME_DIR, as under cron or su, the run directory is in /tmp, where everyone may
/// make it first.
#[test]
fn a_run_directory_of_a_stranger_is_not_used() {
    machine::test(async |machine| {
        machine.install_smoothserve(&programs!());
        machine.run(USER);
        machine.run("useradd eve");
        let uid = machine.run("id -u ada").trim().to_owned();
        let run_dir = format!("/tmp/smoothserve-{uid}");
        let as_user = |user: &str, line: &str| {
            machine.try_run(&format!(
                "setpriv --reuid {user} --regid {user} --init-groups env -u XDG_RUNTIME_DIR {line}"
            ))
        };
        let refused = |line: &str, status: i32, fault: &str| {
            let output = as_user("ada", line);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(status), "{line}: {said}");
            assert!(said.contains(fault), "{line}: {said}");
        };
        let faults = |fault: &str| {
            // EX_NOPERM of sysexits.h.
            refused(&format!("smoothctl --run-dir {run_dir} status"), 77, fault);
            refused("smoothctl status", 77, fault);
            refused("smoothserve run --config /home/ada", 1, fault);
        };
        assert!(
            as_user("eve", &format!("mkdir --mode 0755 {run_dir}"))
                .status
                .success()
        );
        let eve = machine.run("id -u eve").trim().to_owned();
        faults(&format!("belongs to user {eve}, not to user {uid}"));
        machine.run(&format!("rmdir {run_dir}"));
        assert!(
            as_user("eve", &format!("ln -s /home/ada {run_dir}"))
                .status
                .success()
        );
        faults("is a link");
        machine.run(&format!("rm {run_dir}"));
        machine.run(
            "mkdir -p /home/ada/config && chown ada: /home/ada/config && systemd-run --quiet --unit ada --uid ada smoothserve run --config /home/ada/config --bus none",
        );
        machine.until(&format!("stat -c %a:%U {run_dir} || true"), |mode| {
            mode == "700:ada\n"
        });
        machine.until(&format!("ls {run_dir}/bus || true"), |found| {
            found.contains("bus")
        });
        assert!(as_user("ada", "smoothctl status").status.success());
        machine.run("systemctl stop ada");
    });
}
