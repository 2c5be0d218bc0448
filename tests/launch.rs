//! What an instance gets when it starts and how its end is reported: real programs, started by the
//! real smoothserve.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use rustix::process::Signal;
use smoothserve_kit::script::PYTHON;
use smoothserve_kit::{
    App, Home, PATIENCE, Service, Smoothserve, free_port, processes, programs, write,
};

/// A smoothserve with one service `shop`, whose executable is this script.
struct Scene {
    server: Smoothserve,
    app: App,
}

impl Scene {
    fn new(script: &str, lines: &str) -> Scene {
        let home = Home::new();
        let app = home.app("shop");
        install(&app, script);
        fs::set_permissions(app.folder(), fs::Permissions::from_mode(0o777)).unwrap();
        home.write_shop("shop", free_port(), lines);
        let server = Smoothserve::spawn(programs!(), home);
        Scene { server, app }
    }

    /// Waits for a file that the service writes, and returns its text.
    async fn written(&self, name: &str) -> String {
        let file = self.app.folder().join(name);
        let written = tokio::time::timeout(PATIENCE, async {
            loop {
                // The service renames the file to this name once it is complete.
                if let Ok(text) = fs::read_to_string(&file) {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        written.await.expect("the service writes its file in time")
    }

    /// Waits for the first failure of the service, and returns its message.
    async fn failure(&self) -> String {
        let failed = |shop: &Service| shop.last_error.is_some();
        let status = self
            .server
            .until("it has failed", |status| failed(&status.services["shop"]));
        let shop = status.await.services.remove("shop").unwrap();
        shop.last_error.unwrap().message
    }
}

fn install(app: &App, script: &str) {
    write(&app.executable(), script);
    fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
}

const WRITES_WHAT_IT_IS: &str = r#"#!/usr/bin/env python3
import os, json, time
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
mask = os.umask(0)
try:
    os.setuid(0); root = os.getuid() == 0 and status["Uid"].split()[0] != "0"
except PermissionError:
    root = False
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
open("seen.new", "w").write("\n".join([
    "cwd " + os.getcwd(), "umask %o" % mask, "root again %s" % root, "leader %s" % (os.getsid(0) == os.getpid()),
    "blocked " + status["SigBlk"], "groups " + status["Groups"].strip(), "fds " + str([fd for fd in fds if fd < 3]),
    "more fds %d" % len([fd for fd in fds if fd >= 3]),
    "environment " + json.dumps(sorted(os.environ)),
]))
os.rename("seen.new", "seen")
time.sleep(1000)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_starts_with_a_clean_process_state() {
    let scene = Scene::new(
        WRITES_WHAT_IT_IS,
        "ready: notify\nenvironment: { COLOUR: red }\n",
    );
    let seen = scene.written("seen").await;
    let folder = scene.app.folder().canonicalize().unwrap();
    for expected in [
        format!("cwd {}", folder.display()),
        "umask 22".to_owned(),
        "root again False".to_owned(),
        "leader True".to_owned(),
        "blocked 0000000000000000".to_owned(),
        "fds [0, 1, 2]".to_owned(),
        // One descriptor is that of the listing itself.
        "more fds 1".to_owned(),
    ] {
        assert!(
            seen.lines().any(|line| line == expected),
            "no {expected:?} in\n{seen}"
        );
    }
    assert!(seen.contains("\"COLOUR\""), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_of_a_virtual_environment_finds_its_environment() {
    let home = Home::new();
    let app = home.app("shop");
    let folder = app.folder().canonicalize().unwrap();
    // What `python3 -m venv` makes, as far as Python looks for it, in a release.
    fs::create_dir_all(folder.join("7/venv/bin")).unwrap();
    symlink(PYTHON, folder.join("7/venv/bin/python3")).unwrap();
    write(&folder.join("7/venv/pyvenv.cfg"), "home = /usr/bin\n");
    symlink("7", folder.join("current")).unwrap();
    let script = folder.join("shop.py");
    write(
        &script,
        "import os, sys, time\n\
         open('seen.new', 'w').write(sys.prefix)\n\
         os.rename('seen.new', 'seen')\n\
         time.sleep(1000)\n",
    );
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let shown = folder.display();
    home.write_service(
        "shop",
        &format!(
            "name: shop\nport: {}\nexecutable_path: {shown}/current/venv/bin/python3\n\
             args: [{script:?}]\nworking_directory: {shown}\nready: notify\n",
            free_port()
        ),
    );
    let server = Smoothserve::spawn(programs!(), home);
    let scene = Scene { server, app };
    let expected = folder.join("7/venv");
    assert_eq!(scene.written("seen").await, expected.display().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pipe_ends_programs_of_an_instance_as_usual() {
    // The shell leaves signal dispositions as it got them. `yes` must die of SIGPIPE, which the
    // shell reports as 128 + 13.
    let script = "#!/bin/bash\nyes | head -n 1 >/dev/null; echo ${PIPESTATUS[0]} > seen.new; mv seen.new seen; sleep 1000\n";
    let scene = Scene::new(script, "ready: notify\n");
    assert_eq!(scene.written("seen").await.trim(), "141");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_has_the_limits_of_its_service() {
    let script = "#!/bin/bash\necho $(ulimit -Sn) $(ulimit -Hn) $(nice) $(cat /proc/self/oom_score_adj) > seen.new\n\
                  mv seen.new seen; sleep 1000\n";
    let lines = "ready: notify\nlimit_nofile: \"64:128\"\nnice: 15\noom_score_adjust: 500\n";
    let scene = Scene::new(script, lines);
    assert_eq!(scene.written("seen").await.trim(), "64 128 15 500");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_kernel_refuses_is_reported_in_words() {
    let scene = Scene::new("#!/bin/sh\nsleep 1000\n", "limit_nofile: 4000000000\n");
    let failure = scene.failure().await;
    for told in [
        "`limit_nofile` is 4000000000, and the kernel allows no more than",
        "raise fs.nr_open",
    ] {
        assert!(failure.contains(told), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scope_limits_without_systemd_cause_one_warning() {
    let home = Home::new();
    home.add_shop("shop", free_port(), "memory_max: 512M\ntasks_max: 100\n");
    let server = Smoothserve::start(programs!(), home).await;
    server.ok(&["restart", "shop"]).await;
    let log = server.log();
    let warning = r#" WARN limits that only systemd can keep have no effect service="shop" note="memory_max, tasks_max""#;
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_execution_is_reported_in_words() {
    for (script, told) in [
        (
            "#!/no/such/interpreter\n",
            "the interpreter /no/such/interpreter",
        ),
        (
            "#!/bin/sh\necho going under >&2; exit 3\n",
            "exited with status 3",
        ),
        ("#!/bin/sh\nkill -SEGV $$\n", "was killed by SIGSEGV"),
    ] {
        let scene = Scene::new(script, "");
        let failure = scene.failure().await;
        assert!(failure.contains(told), "{failure}");
        // Everybody may read the last error, and output may contain secrets.
        assert!(!failure.contains("going under"), "{failure}");
        let status = scene.server.ok(&["status", "shop"]).await;
        assert_eq!(
            script.contains("going under"),
            status.contains("stderr: going under"),
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_control_sequence_of_an_instance_reaches_a_terminal() {
    // A title, a cleared screen, C1 as UTF-8, an override of the direction, and a NUL.
    let script = "#!/bin/sh\n\
                  printf 'a\\033]0;owned\\007b\\033[2Jc\\302\\23331md\\342\\200\\256e\\000f\\rg\\n' >&2\n\
                  exit 3\n";
    let scene = Scene::new(script, "");
    scene.failure().await;
    let shown = r"stderr: a\x1b]0;owned\x07b\x1b[2Jc\u{9b}31md\u{202e}e\x00f\rg";
    let is_clean = |text: &str| {
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        !text.contains(bad)
    };
    let status = scene.server.ok(&["status", "shop"]).await;
    assert!(status.contains(shown) && is_clean(&status), "{status:?}");
    let failed = scene.server.ctl(&["restart", "shop"]).await;
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.contains(shown) && is_clean(&said), "{said:?}");
    let json = scene.server.ok(&["status", "--json"]).await;
    assert!(is_clean(&json), "{json:?}");
    serde_json::from_str::<serde_json::Value>(&json).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_cannot_be_passed_on_is_named_but_not_quoted() {
    let home = Home::new();
    let app = home.app("shop");
    install(&app, "#!/bin/sh\n");
    write(&app.folder().join("shop.env"), "PASSWORD=S3cret\0\n");
    let lines = format!("environment_file: {}/shop.env\n", app.folder().display());
    home.write_shop("shop", free_port(), &lines);
    let server = Smoothserve::spawn(programs!(), home);
    let scene = Scene { server, app };
    let failure = scene.failure().await;
    assert!(failure.contains("shop.env: line 1 has a NUL"), "{failure}");
    assert!(!failure.contains("S3cret"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn children_of_an_instance_that_does_not_stop_are_killed_with_it() {
    // Both the service and its child ignore the stop signal.
    let script = "#!/bin/sh\ntrap '' TERM\n(trap '' TERM; while :; do sleep 1; done) &\necho $! > child.new\n\
                  mv child.new child\nwhile :; do sleep 1; done\n";
    let scene = Scene::new(script, "ready: notify\nstop_timeout: 300ms\n");
    let child: u32 = scene.written("child").await.trim().parse().unwrap();
    let child = processes::Process::of(child).expect("the child runs");
    scene.server.ok(&["stop", "shop"]).await;
    let gone = tokio::time::timeout(PATIENCE, async {
        while child.runs() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    gone.await.expect("the child of the instance ends, too");
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_blocks_nobody() {
    let script = "#!/bin/sh\nhead -c 50000000 /dev/zero\nhead -c 1000000 /dev/zero | tr '\\0' '\\n' >&2\n\
                  echo done > seen.new; mv seen.new seen; sleep 1000\n";
    let scene = Scene::new(script, "ready: notify\n");
    assert_eq!(scene.written("seen").await, "done\n");
    let peak = fs::read_to_string(format!("/proc/{}/status", scene.server.pid())).unwrap();
    let peak = peak
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(
        kilobytes < 100_000,
        "the manager has kept it: {kilobytes} kB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_manager_leaves_no_process_behind() {
    let scene = Scene::new(
        "#!/bin/sh\necho up > seen.new; mv seen.new seen; exec sleep 1000\n",
        "ready: notify\n",
    );
    scene.written("seen").await;
    let below = processes::descendants(scene.server.pid());
    assert!(below.len() >= 2, "a worker and an instance: {below:?}");
    scene.server.signal(Signal::KILL);
    let gone = tokio::time::timeout(PATIENCE, async {
        while below.iter().any(|process| process.runs()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    gone.await
        .expect("without systemd nothing outlives the manager");
}
