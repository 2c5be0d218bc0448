//! `smoothctl` as people and scripts use it: its command line, what it prints on which stream, its
//! exit statuses.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use rustix::process::Signal;
use smoothserve_kit::{
    App, Build, Home, Smoothserve, Start, free_port, processes, programs, write,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// Runs a program that needs no running smoothserve.
async fn run(program: &Path, arguments: &[&str], run_dir: &Path) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("SMOOTHSERVE_RUN_DIR", run_dir)
        .stdin(Stdio::null());
    command.output().await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Starts smoothserve with one service `shop`, whose instances listen on unix sockets.
async fn shop(lines: &str) -> (Smoothserve, App) {
    let home = Home::new();
    let app = home.add_shop("shop", free_port(), &format!("bind: unix\n{lines}"));
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    (server, app)
}

/// Returns true if no instance is left of those that had these process ids.
async fn all_new(server: &Smoothserve, before: &[u32]) -> bool {
    let now = server.running("shop").await.pids();
    now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))
}

#[tokio::test]
async fn a_wrong_command_line_exits_with_64_and_says_in_a_sentence_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    for (wrong, right) in [
        (&["restart"][..], "`smoothctl restart NAME`"),
        (
            &["restart", "--gently", "shop"],
            "`smoothctl restart --help`",
        ),
        (&["restrat", "shop"], "`smoothctl restart shop`"),
        (&["reload", "shop"], "`smoothctl restart shop`"),
        (&["deploy", "shop"], "`smoothctl reload`"),
        (&["shop", "scale", "5"], "`instance_count`"),
        (&["rollback", "shop"], "`smoothctl reload`"),
        (&["logs", "-f"], "`smoothctl logs NAME`"),
    ] {
        let output = run(&programs!().smoothctl, wrong, folder.path()).await;
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(stdout(&output).is_empty());
        let words = stderr(&output);
        assert!(words.starts_with("smoothctl: "), "{words}");
        assert!(words.contains(right), "{words}");
        assert_eq!(words.lines().count(), 1, "{words}");
    }
    let tram = run(&programs!().smoothctl, &["--bus", "tram"], folder.path()).await;
    assert_eq!(tram.status.code(), Some(64));
    assert!(stderr(&tram).contains("[possible values: auto, system"));
}

#[tokio::test]
async fn the_help_is_short() {
    let folder = tempfile::tempdir().unwrap();
    for words in [&["--help"][..], &["restart", "--help"]] {
        let help = run(&programs!().smoothctl, words, folder.path()).await;
        assert_eq!(help.status.code(), Some(0));
        let help = stdout(&help);
        assert!(help.lines().count() <= 40, "{help}");
        let (_, elsewhere) = help.split_once("\nAnother smoothserve:\n").unwrap();
        assert!(elsewhere.contains("--bus <BUS>"), "{help}");
        assert!(!help.contains("session bus"), "{help}");
    }
}

#[tokio::test]
async fn verbs_exit_with_69_while_smoothserve_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    for verb in [
        &["status"][..],
        &["list"],
        &["reload"],
        &["restart", "all"],
        &["logs", "shop"],
    ] {
        let output = run(&programs!().smoothctl, verb, folder.path()).await;
        assert_eq!(output.status.code(), Some(69), "{verb:?}");
        let words = stderr(&output);
        assert_eq!(words.lines().count(), 1, "{words}");
        let socket = folder.path().join("bus");
        assert!(words.contains("not running"), "{words}");
        assert!(words.contains(socket.to_str().unwrap()), "{words}");
        let cure = format!("`smoothserve run --run-dir {}`", folder.path().display());
        assert!(words.contains(&cure), "{words}");
    }
}

/// An address on which no bus listens.
const NO_BUS: (&str, &str) = ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus");

#[tokio::test]
async fn an_unreachable_bus_exits_with_69() {
    let mut command = Command::new(programs!().smoothctl);
    command.args(["--bus", "session", "status"]).envs([NO_BUS]);
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(69));
    let words = stderr(&output);
    assert!(words.contains("cannot reach the bus"), "{words}");
}

#[tokio::test]
async fn check_needs_no_running_smoothserve() {
    let home = Home::new();
    home.add_shop("shop", free_port(), "instance_count: 2\n");
    let config = home.config();
    let config = config.to_str().unwrap();
    let check = async || run(&programs!().smoothctl, &["check", config], &home.run()).await;
    let good = check().await;
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    assert!(stdout(&good).contains("1 service, 2 instances, no faults"));

    home.write_service("blog", "name: blog\nprot: 80\n");
    write(&home.config().join("smoothserve.yaml"), "default_usr: x\n");
    let bad = check().await;
    assert_eq!(bad.status.code(), Some(78));
    assert!(stdout(&bad).is_empty());
    let words = stderr(&bad);
    assert!(words.contains("blog.yaml:2:1: "), "{words}");
    assert!(words.contains("smoothserve.yaml:1:1: "), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_reload_exits_with_78_and_prints_the_whole_report() {
    let (server, _) = shop("").await;
    server
        .home
        .write_shop("shop", free_port(), "instance_cout: 3\n");
    server.home.write_service("blog", "name: blog\nprot: 80\n");
    let reload = server.ctl(&["reload"]).await;
    assert_eq!(reload.status.code(), Some(78));
    assert!(stdout(&reload).is_empty());
    let words = stderr(&reload);
    assert!(words.contains("shop.yaml:5:1: "), "{words}");
    assert!(words.contains("blog.yaml:2:1: "), "{words}");
    // `reload` prints the same report as `check`.
    let config = server.home.config();
    let check = server.ctl(&["check", config.to_str().unwrap()]).await;
    let report = stderr(&check);
    let report = report.strip_prefix("smoothctl: ").unwrap();
    assert!(words.contains(report), "{words}\n---\n{report}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_restart_exits_with_1_and_prints_the_reason() {
    let (server, app) = shop("start_timeout: 2s\nstop_timeout: 200ms\n").await;
    app.replace(&Build::starting("2", Start::Crash));
    let crash = server.ctl(&["restart", "shop"]).await;
    assert_eq!(crash.status.code(), Some(1));
    assert!(stdout(&crash).is_empty());
    let words = stderr(&crash);
    assert!(words.contains("restart shop failed: "), "{words}");
    assert!(words.contains("status 3"), "the exit status: {words}");
    assert!(
        words.contains("no such table: orders"),
        "the last words: {words}"
    );

    app.replace(&Build::starting("3", Start::Mute));
    let mute = server.ctl(&["restart", "shop"]).await;
    assert_eq!(mute.status.code(), Some(1));
    let words = stderr(&mute);
    assert!(words.contains("connect to /"), "the probe: {words}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_service_exits_with_1_and_changes_nothing() {
    let (server, _) = shop("").await;
    let before = server.running("shop").await.pids();
    for verb in ["start", "stop", "restart", "status"] {
        let output = server.ctl(&[verb, "shop", "shpo"]).await;
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let words = stderr(&output);
        assert!(words.contains("did you mean shop?"), "{words}");
    }
    assert_eq!(server.running("shop").await.pids(), before);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_exits_with_69_while_smoothserve_does_not_write_to_the_journal() {
    let (server, _) = shop("").await;
    let unknown = server.ctl(&["logs", "shpo"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("did you mean shop?"));
    let logs = server.ctl(&["shop", "logs"]).await;
    assert_eq!(logs.status.code(), Some(69));
    let words = stderr(&logs);
    assert!(words.contains("does not write to the journal"), "{words}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verb_and_service_may_come_in_either_order() {
    let (server, _) = shop("instance_count: 2\n").await;
    for words in [
        &["restart", "shop"][..],
        &["shop", "restart"],
        &["restart", "all"],
        &["all", "restart"],
    ] {
        let before = server.running("shop").await.pids();
        let said = server.ok(words).await;
        assert_eq!(said, "restart shop: done\n", "{words:?}");
        assert!(all_new(&server, &before).await, "{words:?}");
    }
    assert_eq!(server.ok(&["shop", "stop"]).await, "stop shop: done\n");
    let status = server.status().await.unwrap();
    assert_eq!(status.services["shop"].state, "stopped");
    assert_eq!(server.ok(&["shop", "start"]).await, "start shop: done\n");
    assert!(
        server
            .ok(&["shop", "status"])
            .await
            .starts_with("shop: running, 2/2")
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smoothtool_accepts_its_former_command_lines() {
    let (server, _) = shop("").await;
    let smoothtool: PathBuf = server.home.path().join("smoothtool");
    symlink(programs!().smoothctl, &smoothtool).unwrap();
    let run_dir = server.home.run();
    let tool = async |arguments: &[&str]| run(&smoothtool, arguments, &run_dir).await;
    for restart in [
        &["-restart", "shop"][..],
        &["-restart=shop", "-force"],
        &["-force", "--restart", "all"],
    ] {
        let before = server.running("shop").await.pids();
        let output = tool(restart).await;
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(all_new(&server, &before).await, "{restart:?}");
    }
    assert!(tool(&["-stop=shop"]).await.status.success());
    let status = server.status().await.unwrap();
    assert_eq!(status.services["shop"].state, "stopped");
    assert!(tool(&["-start", "shop"]).await.status.success());
    server.running("shop").await;
    let wrong = tool(&["-start", "shop", "-stop", "shop"]).await;
    assert_eq!(wrong.status.code(), Some(64));
    assert!(stderr(&wrong).contains("usage: smoothtool "));
    assert_eq!(tool(&["-start", "shpo"]).await.status.code(), Some(1));
    server.stop().await;
}

/// More services than signals fit into the queue of a connection, and more jobs than end within a
/// moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_many_services_returns_when_all_are_restarted() {
    let (home, port) = (Home::new(), free_port());
    let services = 80;
    for number in 0..services {
        home.add_shop(&format!("shop-{number}"), port, "");
    }
    let server = Smoothserve::start(programs!(), home).await;
    let restarted = server.ok(&["restart", "all"]).await;
    assert_eq!(restarted.lines().count(), services, "{restarted}");
    let status = server.status().await.unwrap();
    for (name, service) in &status.services {
        assert_eq!(
            (service.state.as_str(), service.generation),
            ("running", 2),
            "{name}"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_block_returns_while_the_job_still_runs() {
    let (server, app) = shop("stop_timeout: 200ms\n").await;
    app.replace(&Build::starting("2", Start::Mute));
    let said = server.ok(&["restart", "--no-block", "shop"]).await;
    assert_eq!(said, "");
    // The new build never gets ready, so the job cannot have ended.
    let status = server.status().await.unwrap();
    assert_eq!(status.services["shop"].state, "rolling");
    app.replace(&Build::good("3"));
    let said = server.ok(&["reload", "--no-block"]).await;
    assert_eq!(said, "");
    server.running("shop").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn list_prints_names_and_nothing_else() {
    let (server, _) = shop("").await;
    server
        .home
        .add_shop("blog", free_port(), "enabled: false\n");
    server.ok(&["reload"]).await;
    assert_eq!(server.ok(&["list"]).await, "blog\nshop\n");
    server.stop().await;
}

/// Collects the keys that `docs/dbus.md` names in this row of the JSON table, but for those of
/// `last_error`.
fn documented_keys(row: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dbus.md");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, json) = text.split_once("\n## The JSON of Dump\n").unwrap();
    let line = json
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| `{row}` | ")))
        .unwrap_or_else(|| panic!("{row} is missing"));
    let words = line.split('`').skip(1).step_by(2);
    let mut keys: Vec<String> = words
        .filter(|key| !["at", "has_output", "message"].contains(key))
        .map(str::to_owned)
        .collect();
    keys.sort();
    keys
}

fn keys(value: &serde_json::Value) -> Vec<String> {
    let object = value.as_object().expect("an object");
    let mut keys: Vec<String> = object.keys().cloned().collect();
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_has_the_documented_keys() {
    let (server, app) = shop("").await;
    app.replace(&Build::starting("2", Start::Crash));
    assert!(!server.ctl(&["restart", "shop"]).await.status.success());
    let json: serde_json::Value =
        serde_json::from_str(&server.ok(&["status", "--json"]).await).unwrap();
    assert_eq!(
        keys(&json),
        [
            "jobs", "journal", "proxy", "services", "settings", "summary", "uid"
        ]
    );
    assert_eq!(keys(&json["settings"]), ["file", "file_written"]);
    assert_eq!(keys(&json["proxy"]), documented_keys("proxy"));
    let shop = &json["services"]["shop"];
    assert_eq!(keys(shop), documented_keys("services"));
    assert_eq!(keys(&shop["last_error"]), ["at", "has_output", "message"]);
    let instance = &shop["instances"][0];
    assert_eq!(keys(instance), documented_keys("services.NAME.instances"));
    let job = json["jobs"]
        .as_object()
        .unwrap()
        .values()
        .next_back()
        .unwrap();
    assert_eq!(keys(job), documented_keys("jobs"));
    assert_eq!(job["state"], "failed");
    assert_eq!(shop["state"], "running");
    assert!(instance["since"].as_f64().unwrap() > 1.6e9, "seconds");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_last_error_and_the_instances() {
    let (server, app) = shop("instance_count: 2\n").await;
    let overview = server.ok(&[]).await;
    let mut lines = overview.lines();
    assert!(lines.next().unwrap().starts_with("SERVICE"));
    let line: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(line[..3], ["shop", "running", "2/2"]);
    assert!(overview.ends_with("\n1 service, 2/2 instances ready\n"));

    app.replace(&Build::starting("2", Start::Crash));
    server.ctl(&["restart", "shop"]).await;
    let detail = server.ok(&["status", "shop"]).await;
    assert!(detail.contains("last error"), "{detail}");
    assert!(detail.contains("no such table: orders"), "{detail}");
    for pid in server.running("shop").await.pids() {
        assert!(detail.contains(&pid.to_string()), "{detail}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_a_name_is_about_that_service() {
    let (server, _) = shop("").await;
    server
        .home
        .add_shop("blog", free_port(), "enabled: false\n");
    server.ok(&["reload"]).await;
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let all = json(server.ok(&["status", "--json"]).await);
    let shop = json(server.ok(&["shop", "status", "--json"]).await);
    let keys_of = |json: &serde_json::Value| keys(&json["services"]);
    assert_eq!(keys_of(&all), ["blog", "shop"]);
    assert_eq!(keys_of(&shop), ["shop"]);
    assert_eq!(keys(&shop), keys(&all));
    let unknown = server.ctl(&["status", "--json", "shpo"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("did you mean shop?"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_a_file_that_is_not_applied_yet() {
    const CHANGED: &str = "its file has changed on disk; `smoothctl reload` applies that, if `smoothctl check` finds no fault";
    let (server, _) = shop("").await;
    let shown = async |words: &[&str]| {
        let text = server.ok(words).await;
        text.contains(CHANGED)
    };
    let both = async || [shown(&["status"]).await, shown(&["status", "shop"]).await];
    assert_eq!(both().await, [false, false]);
    let file = server.home.service("shop");
    let before = std::fs::read_to_string(&file).unwrap();
    write(&file, &format!("{before}stop_timeout: 3s\n"));
    assert_eq!(both().await, [true, true]);
    server.ok(&["reload"]).await;
    assert_eq!(both().await, [false, false]);
    // What is written anew without a change is read at a reload, too.
    write(&file, &format!("{before}stop_timeout: 3s\n"));
    assert_eq!(both().await, [true, true]);
    let reload = server.ok(&["reload"]).await;
    assert!(reload.contains("nothing had changed"), "{reload}");
    assert_eq!(both().await, [false, false]);

    // So does the file of the settings.
    let settings = server.home.config().join("smoothserve.yaml");
    write(&settings, "default_user: nobody\nforwarded: true\n");
    let waits = "\nsmoothserve.yaml: has changed on disk; `smoothctl reload` applies that, if `smoothctl check` finds no fault\n";
    assert!(server.ok(&["status"]).await.contains(waits));
    server.ok(&["reload"]).await;
    assert!(!server.ok(&["status"]).await.contains("on disk"));

    // A fault refuses the change, which stays one.
    write(&file, &format!("{before}stop_time: 3s\n"));
    assert_eq!(server.ctl(&["reload"]).await.status.code(), Some(78));
    assert_eq!(both().await, [true, true]);
    std::fs::remove_file(&file).unwrap();
    let gone = server.ok(&["status", "shop"]).await;
    assert!(gone.contains("its file was removed from disk"), "{gone}");
    server.stop().await;
}

/// Runs `smoothctl` on a terminal with so many columns, and returns what it shows.
async fn on_terminal(server: &Smoothserve, columns: u16, words: &str) -> String {
    let line = format!(
        "stty cols {columns} && {} {words}",
        programs!().smoothctl.display()
    );
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("SMOOTHSERVE_RUN_DIR", server.home.run())
        .env("TERM", "xterm")
        .env_remove("COLUMNS")
        .env_remove("NO_COLOR")
        .env_remove("SYSTEMD_COLORS")
        .stdin(Stdio::null());
    let output = command
        .output()
        .await
        .expect("script, of bsdutils, is installed");
    assert!(output.status.success(), "{output:?}");
    stdout(&output).replace("\r\n", "\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn status_fits_the_terminal() {
    const LAST: &str = "the-other-shop.example";
    let home = Home::new();
    let app = home.app("shop");
    app.replace(&Build::good("1"));
    home.write_service(
        "shop",
        &format!(
            "name: shop\nserver_name: \"shop.example, www.shop.example, {LAST}\"\nport: {}\n\
             executable_path: ../../apps/shop/shop\ninstance_count: 2\nbind: unix\n",
            free_port()
        ),
    );
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    app.replace(&Build::starting("2", Start::Crash));
    server.ctl(&["restart", "shop"]).await;
    for words in ["status", "status shop"] {
        for columns in [80, 40] {
            let shown = on_terminal(&server, columns, words).await;
            let plain = without_colors(&shown);
            for line in plain.lines() {
                let width = line.chars().count();
                assert!(
                    width <= columns.into(),
                    "{width} columns: {line:?} in {plain}"
                );
            }
            assert!(
                shown.contains("\x1b[32m"),
                "what is ready is green: {shown}"
            );
            assert!(plain.contains("Hint: use -l"), "{plain}");
        }
        let whole = on_terminal(&server, 40, &format!("{words} --full")).await;
        assert!(whole.contains(LAST), "{whole}");
        assert!(!whole.contains('…') && !whole.contains("use -l"), "{whole}");
        // What is no terminal gets lines of any length, and no colors.
        let words: Vec<&str> = words.split(' ').collect();
        let piped = server.ok(&words).await;
        assert!(piped.contains(LAST), "{piped}");
        assert_eq!(piped, without_colors(&piped));
        let mut asked = server.ctl_command(&words);
        let asked = asked.env("SYSTEMD_COLORS", "1").output().await.unwrap();
        assert!(stdout(&asked).contains("\x1b[32mrunning\x1b[0m"));
    }
    server.stop().await;
}

fn without_colors(text: &str) -> String {
    let mut pieces = text.split("\x1b[");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| {
        let (_, rest) = piece.split_once('m').expect("it is a color");
        text + rest
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_plain_lines_without_a_terminal() {
    let (server, _) = shop("instance_count: 2\nenvironment: { SHOP_START_DELAY: 500ms }\n").await;
    let restart = server.ctl(&["restart", "shop"]).await;
    assert!(restart.status.success());
    assert_eq!(stdout(&restart), "restart shop: done\n");
    let steps = stderr(&restart);
    assert!(!steps.contains(['\r', '\x1b']), "{steps:?}");
    let lines: Vec<&str> = steps.lines().collect();
    for step in ["restart shop 0/2: ", "restart shop 1/2: "] {
        assert!(lines.iter().any(|line| line.starts_with(step)), "{steps}");
    }
    assert!(
        lines.windows(2).all(|pair| pair[0] != pair[1]),
        "no line twice: {steps}"
    );
    server.stop().await;
}

/// Starts a restart that cannot end and waits until `smoothctl` prints its first step.
async fn waiting(server: &Smoothserve) -> (Child, BufReader<ChildStderr>) {
    let mut command = server.ctl_command(&["restart", "shop"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut step = String::new();
    lines.read_line(&mut step).await.unwrap();
    assert!(step.starts_with("restart shop 0/1"), "{step}");
    (child, lines)
}

async fn end_of(mut child: Child, mut lines: BufReader<ChildStderr>) -> (ExitStatus, String) {
    let mut rest = String::new();
    lines.read_to_string(&mut rest).await.unwrap();
    (child.wait().await.unwrap(), rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_smoothctl_but_not_the_job() {
    let (server, app) = shop("stop_timeout: 200ms\n").await;
    app.replace(&Build::starting("2", Start::Mute));
    let (child, lines) = waiting(&server).await;
    processes::signal_pid(child.id().unwrap(), Signal::INT);
    let (status, rest) = end_of(child, lines).await;
    assert_eq!(status.code(), Some(130));
    assert!(rest.contains("the job goes on"), "{rest}");
    let status = server.status().await.unwrap();
    assert_eq!(status.services["shop"].state, "rolling");
    let overview = server.ok(&["status"]).await;
    assert!(overview.contains("\nrestart shop 0/1"), "{overview}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smoothctl_exits_with_1_when_an_opposite_command_supersedes_its_job() {
    let (server, app) = shop("stop_timeout: 200ms\n").await;
    app.replace(&Build::starting("2", Start::Mute));
    let (child, lines) = waiting(&server).await;
    server.ok(&["stop", "shop"]).await;
    let (status, rest) = end_of(child, lines).await;
    assert_eq!(status.code(), Some(1));
    assert!(rest.contains("superseded by a newer command"), "{rest}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smoothctl_exits_with_69_when_smoothserve_dies_during_its_job() {
    let (server, app) = shop("stop_timeout: 200ms\n").await;
    app.replace(&Build::starting("2", Start::Mute));
    let (child, lines) = waiting(&server).await;
    server.signal(Signal::KILL);
    let (status, rest) = end_of(child, lines).await;
    assert_eq!(status.code(), Some(69), "{rest}");
}
