//! The log level: the flag, the environment and the file that set it, and the messages that clients
//! cannot make smoothserve log.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output};

use rustix::process::Signal;
use smoothserve_kit::{Home, PATIENCE, Smoothserve, free_port, local, processes, programs, write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A home with the service `shop` on this port, and these lines in smoothserve.yaml.
fn home(port: u16, lines: &str) -> Home {
    let home = Home::new();
    home.add_shop("shop", port, "bind: unix\n");
    set(&home, lines);
    home
}

fn set(home: &Home, lines: &str) {
    let text = format!("default_user: nobody\n{lines}");
    write(&home.config().join("smoothserve.yaml"), &text);
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(local(port)).await.unwrap()
}

/// Sends requests on one connection, all at once, and returns the statuses of the responses.
async fn statuses(port: u16, request: &str, count: usize) -> Vec<String> {
    let (mut from, mut to) = connect(port).await.into_split();
    let requests = request.repeat(count);
    let sending = tokio::spawn(async move { to.write_all(requests.as_bytes()).await.map(|()| to) });
    let mut received = String::new();
    let receive = async {
        let mut bytes = vec![0; 1 << 16];
        while received.matches("Request id: ").count() < count || !received.ends_with('\n') {
            let length = from.read(&mut bytes).await.unwrap();
            assert!(length > 0, "closed after {received}");
            received += std::str::from_utf8(&bytes[..length]).unwrap();
        }
    };
    timeout(PATIENCE, receive).await.expect("all are answered");
    drop(sending.await);
    let statuses = received.split("HTTP/1.1 ").skip(1);
    statuses.map(|response| response[..3].to_owned()).collect()
}

/// Requests a host that no service has. A worker logs such a request at the level `debug`.
async fn ask_for_nothing(port: u16, count: usize) {
    let request = "GET / HTTP/1.1\r\nHost: nowhere.example\r\n\r\n";
    let statuses = statuses(port, request, count).await;
    assert_eq!(statuses, vec!["404"; count]);
}

/// Stops the server, and returns everything that it has logged.
async fn log_of(mut server: Smoothserve) -> String {
    server.signal(Signal::TERM);
    assert!(server.ended().await.success());
    server.log()
}

/// Returns the most detailed level of the messages in a log. At `info`, the manager and the worker
/// both log something that this function looks for; at `debug`, the worker does.
fn loudest(log: &str) -> &'static str {
    let says = |level: &str, text: &str| log.contains(&format!("{level} {text}"));
    let is_info = [
        says("INFO", "worker started"),
        says("INFO", "manager connected"),
    ];
    match (is_info, says("DEBUG", "request refused")) {
        ([false, false], false) => "warn",
        ([true, true], false) => "info",
        ([true, true], true) => "debug",
        _ => panic!("manager and worker differ: {log}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_comes_before_the_environment_and_that_before_the_file() {
    for (flag, variable, line, expected) in [
        (None, None, "", "info"),
        (None, None, "log_level: debug\n", "debug"),
        (None, Some(""), "log_level: debug\n", "debug"),
        (None, Some("warn"), "log_level: debug\n", "warn"),
        (Some("debug"), Some("warn"), "log_level: error\n", "debug"),
        (Some("warn"), None, "log_level: debug\n", "warn"),
    ] {
        let port = free_port();
        let server = Smoothserve::start_with(programs!(), home(port, line), |command| {
            command.args(flag.map(|level| format!("--log-level={level}")));
            command.envs(variable.map(|level| ("RUST_LOG", level)))
        })
        .await;
        ask_for_nothing(port, 1).await;
        let log = log_of(server).await;
        assert_eq!(
            loudest(&log),
            expected,
            "{flag:?} {variable:?} {line:?}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_level_and_replaces_nothing() {
    let port = free_port();
    let server = Smoothserve::start(programs!(), home(port, "log_level: warn\n")).await;
    let below = processes::descendants(server.pid());
    ask_for_nothing(port, 1).await;
    set(&server.home, "log_level: debug\n");
    server.ok(&["reload"]).await;
    ask_for_nothing(port, 1).await;
    server.says("DEBUG request refused").await;
    server.says("INFO configuration applied").await;
    set(&server.home, "log_level: error,smoothserve::proxy=debug\n");
    server.ok(&["reload"]).await;
    ask_for_nothing(port, 1).await;
    set(&server.home, "log_level: error\n");
    server.ok(&["reload"]).await;
    ask_for_nothing(port, 1).await;
    assert_eq!(processes::descendants(server.pid()), below);
    let log = log_of(server).await;
    let count = |text| log.matches(text).count();
    assert_eq!(count("DEBUG request refused"), 2, "{log}");
    assert_eq!(count("INFO configuration applied"), 1, "{log}");
    assert_eq!(count("worker started"), 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_level_is_a_fault_with_its_place() {
    let port = free_port();
    let server = Smoothserve::start(programs!(), home(port, "")).await;
    set(&server.home, "log_level: loud\n");
    let reload = server.ctl(&["reload"]).await;
    let folder = server.home.config();
    let check = smoothserve(&["check", folder.to_str().unwrap()], None);
    for output in [reload, check] {
        let words = [output.stdout, output.stderr].concat();
        let words = String::from_utf8(words).unwrap();
        let fault = "smoothserve.yaml:2:12: `log_level`: `loud` is no level; write one of error, ";
        assert!(words.contains(fault), "{words}");
        assert_eq!(output.status.code(), Some(78), "{words}");
    }
    ask_for_nothing(port, 1).await;
    server.stop().await;

    // At its start, smoothserve runs the services without a fault, and logs at the default level.
    let server = Smoothserve::start(programs!(), home(port, "log_level: debgu\n")).await;
    server
        .says("`log_level`: `debgu` is no level; did you mean `debug`?")
        .await;
    ask_for_nothing(port, 1).await;
    assert_eq!(loudest(&log_of(server).await), "info");
}

fn smoothserve(arguments: &[&str], variable: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smoothserve"));
    command.args(arguments).env_remove("RUST_LOG");
    command.envs(variable.map(|level| ("RUST_LOG", level)));
    command.output().unwrap()
}

#[test]
fn a_bad_level_on_the_command_line_or_in_the_environment_is_a_usage_error() {
    let run = [
        "run",
        "--config",
        "/nonexistent",
        "--run-dir",
        "/nonexistent",
    ];
    for (flag, variable, expected) in [
        (
            Some("loud"),
            None,
            "'--log-level <LEVEL>': `loud` is no level",
        ),
        (
            Some("h2=1,7"),
            None,
            "'--log-level <LEVEL>': `7` is no level; the numbers are 0 (off) to 5 (trace)",
        ),
        // An empty flag is a mistake of a script, and no wish to do without RUST_LOG.
        (
            Some(""),
            Some("debug"),
            "'--log-level <LEVEL>': a level is missing",
        ),
        (
            None,
            Some("[span]=info"),
            "'--log-level <LEVEL>': the variable RUST_LOG: `[span]` is no target",
        ),
    ] {
        let flag = flag.map(|level| ["--log-level", level]);
        let arguments = [&run[..], flag.as_ref().map_or(&[], |flag| &flag[..])].concat();
        let output = smoothserve(&arguments, variable);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{words}");
        assert!(words.contains(expected), "{words}");
    }
}

#[test]
fn a_level_that_is_no_text_is_named_by_where_it_comes_from() {
    use std::os::unix::ffi::OsStrExt;
    let bad = std::ffi::OsStr::from_bytes(b"\x1b[1mdebug\xff");
    let run = |flag: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smoothserve"));
        command.args(["run", "--config", "/nonexistent"]);
        match flag {
            true => command.arg("--log-level").arg(bad),
            false => command.env("RUST_LOG", bad),
        };
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run(false);
    assert!(
        said.contains("the variable RUST_LOG is not UTF-8: `\\x1b[1mdebug\u{fffd}`"),
        "{said}"
    );
    let said = run(true);
    assert!(
        said.contains("the value of --log-level is not UTF-8"),
        "{said}"
    );
    assert!(!said.contains('\x1b'), "{said}");
}

#[test]
fn why_a_start_has_failed_is_said_even_if_nothing_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    write(&file, "");
    // A run directory below a file cannot be made.
    let run_dir = file.join("run");
    let arguments = [
        "run",
        "--bus",
        "none",
        "--run-dir",
        run_dir.to_str().unwrap(),
    ];
    for level in ["off", "info"] {
        let output = smoothserve(&arguments, Some(level));
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert_eq!(words.matches("smoothserve failed").count(), 1, "{words}");
        assert!(words.contains("Not a directory"), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_that_a_level_in_the_file_has_no_effect() {
    const NO_EFFECT: &str = "WARN log_level in smoothserve.yaml has no effect, because";
    let port = free_port();
    let server = Smoothserve::start_with(programs!(), home(port, ""), |command| {
        command.env("RUST_LOG", "info")
    })
    .await;
    // The first is the level in force, the second is not, and the third changes nothing.
    for lines in [
        "log_level: info\n",
        "log_level: debug\n",
        "log_level: debug\nforwarded: true\n",
    ] {
        set(&server.home, lines);
        server.ok(&["reload"]).await;
    }
    let log = log_of(server).await;
    assert_eq!(log.matches(NO_EFFECT).count(), 1, "{log}");
}

#[test]
fn targets_in_the_documentation_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/logging.md")).unwrap();
    let (_, table) = text.split_once("| target | what it logs |\n").unwrap();
    let rows = table
        .lines()
        .skip(1)
        .map_while(|line| line.strip_prefix("| `"));
    let targets: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    assert!(targets.len() >= 5, "{targets:?}");
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    for target in targets {
        let Some(path) = target.strip_prefix("smoothserve::") else {
            let package = format!("name = \"{target}\"\n");
            assert!(lock.contains(&package), "{target} is no library");
            continue;
        };
        let path = root.join("src").join(path.replace("::", "/"));
        let logs = |file: &std::path::Path| {
            std::fs::read_to_string(file).is_ok_and(|text| text.contains("tracing::"))
        };
        let below = std::fs::read_dir(&path).into_iter().flatten();
        let mut files = below.map(|entry| entry.unwrap().path());
        let any = logs(&path.with_extension("rs")) || files.any(|file| logs(&file));
        assert!(any, "{target} logs nothing");
    }
}

#[tokio::test]
async fn a_level_that_is_no_single_value_is_a_fault_that_says_what_to_write() {
    for (lines, fault) in [
        (
            "log_level: [info, h2=debug]\n",
            "2:12: `log_level` is a list; write a level, or directives with commas between them, as \
             in `log_level: info,h2=debug`",
        ),
        (
            "log_level: { h2: debug }\n",
            "2:12: `log_level` is a mapping; write a level",
        ),
        (
            "log_level: >-\n  info,\n  smoothserve::proxy=debgu\n",
            "4:22: `log_level`: `debgu` is no level; did you mean `debug`?",
        ),
        (
            "log_level: |\n  inof\n",
            "3:3: `log_level`: `inof` is no level; did you mean `info`?",
        ),
    ] {
        let home = Home::new();
        set(&home, lines);
        let folder = home.config();
        let output = smoothserve(&["check", folder.to_str().unwrap()], None);
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(
            words.contains(&format!("smoothserve.yaml:{fault}")),
            "{words}"
        );
    }
}

/// Connects with HTTP/2, acknowledges PINGs that the worker has never sent, and returns once the
/// worker has read all acknowledgments.
async fn acknowledge_pings(port: u16, count: usize) {
    let ping = |flags, payload: &[u8; 8]| [&[0, 0, 8, 6, flags, 0, 0, 0, 0], &payload[..]].concat();
    let mut client = connect(port).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let flood = ping(1, b"unasked!").repeat(count);
    let bytes = [&preface[..], &settings, &flood, &ping(0, b"the last")].concat();
    client.write_all(&bytes).await.unwrap();
    let answer = ping(1, b"the last");
    let mut received = Vec::new();
    let receive = async {
        while !received.windows(answer.len()).any(|part| part == answer) {
            assert!(client.read_buf(&mut received).await.unwrap() > 0);
        }
    };
    timeout(PATIENCE, receive)
        .await
        .expect("the last is answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_of_pings_that_nobody_has_sent_write_nothing() {
    let port = free_port();
    let server = Smoothserve::start(programs!(), home(port, "log_level: trace\n")).await;
    let before = server.log();
    acknowledge_pings(port, 60_000).await;
    ask_for_nothing(port, 1).await;
    server.ok(&["reload"]).await;
    let log = log_of(server).await;
    let log = log.strip_prefix(&before).unwrap();
    for own in ["DEBUG request refused", "INFO configuration applied"] {
        assert!(log.contains(own), "{log}");
    }
    assert!(!log.contains("PING") && !log.contains("WARN"), "{log}");
    assert!(log.lines().count() < 20, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_library_is_shown_what_it_logs() {
    let port = free_port();
    let server = Smoothserve::start_with(programs!(), home(port, ""), |command| {
        command.env("RUST_LOG", "info,h2=debug")
    })
    .await;
    acknowledge_pings(port, 3).await;
    let log = log_of(server).await;
    let count = |text| log.matches(text).count();
    assert_eq!(count("WARN"), 3, "{log}");
    assert_eq!(count("PING ack that we never sent"), 3, "{log}");
    assert_eq!(loudest(&log), "info", "{log}");
}

/// A service that accepts connections and closes each without a response.
const BROKEN: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    connection, _ = server.accept()
    connection.recv(1)
    connection.close()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn failed_requests_are_counted_after_the_first() {
    const REQUESTS: usize = 500;
    let home = Home::new();
    let port = free_port();
    home.add_python("broken", port, BROKEN, "");
    let server = Smoothserve::start(programs!(), home).await;
    let request = "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n";
    let statuses = statuses(port, request, REQUESTS).await;
    assert_eq!(statuses, vec!["502"; REQUESTS]);
    let log = log_of(server).await;
    // One connection is served by one thread. The machine may be so slow that a second interval
    // begins.
    let logged = log.matches("WARN request failed").count();
    assert!((10..REQUESTS / 10).contains(&logged), "{log}");
    let summaries = log
        .lines()
        .filter(|line| line.contains("WARN more requests failed"));
    let counted = summaries.map(|line| {
        let (_, count) = line.split_once("service=\"broken\" count=").unwrap();
        count.parse::<usize>().unwrap()
    });
    assert_eq!(logged + counted.sum::<usize>(), REQUESTS, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    const REQUESTS: usize = 20_000;
    let port = free_port();
    let (reader, writer) = std::io::pipe().unwrap();
    let server =
        Smoothserve::start_with(programs!(), home(port, "log_level: debug\n"), |command| {
            command.stderr(writer)
        })
        .await;
    ask_for_nothing(port, REQUESTS).await;
    // From here on somebody reads the log, so the server can tell how many messages were lost.
    let (tell, told) = tokio::sync::oneshot::channel();
    let reading = std::thread::spawn(move || {
        let mut tell = Some(tell);
        let mut log = String::new();
        for line in BufReader::new(reader).lines() {
            let line = line.unwrap();
            if line.contains("WARN messages lost")
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(());
            }
            log += &(line + "\n");
        }
        log
    });
    timeout(PATIENCE, told)
        .await
        .expect("a loss is logged")
        .unwrap();
    server.stop().await;
    let log = reading.join().unwrap();
    let lost = log
        .lines()
        .filter(|line| line.contains("WARN messages lost"));
    let lost = lost.map(|line| {
        line.rsplit_once("lost=")
            .unwrap()
            .1
            .parse::<usize>()
            .unwrap()
    });
    let refused = log.matches("DEBUG request refused").count();
    assert_eq!(refused + lost.sum::<usize>(), REQUESTS, "{}", log.len());
    assert!(refused < REQUESTS / 2, "{refused}");
}
