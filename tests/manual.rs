//! The manual is complete, the tools for manual pages accept it, and the shells complete what it
//! describes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use rustix::process::Signal;
use smoothserve::cli::Smoothserve;
use smoothserve::config::{GLOBAL_KEYS, SERVICE_KEYS};
use smoothserve::ctl::Smoothctl;
use smoothserve_kit::{Home, Smoothserve as Server, free_port, programs};
use tempfile::TempDir;

const PAGES: [&str; 4] = [
    "smoothctl.1",
    "org.smoothserve1.5",
    "smoothserve.yaml.5",
    "smoothserve.8",
];

fn manual() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    smoothserve_manual::write(folder.path()).unwrap();
    folder
}

/// Renders a page as a reader sees it, without bold and underlined letters.
fn read(manual: &TempDir, page: &str) -> String {
    let output = Command::new("man")
        .args(["--local-file", "--warnings", "--encoding=UTF-8"])
        .arg(manual.path().join(page))
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "80")
        .env_remove("MAN_KEEP_FORMATTING")
        .output()
        .expect("this test needs man");
    assert_silent(&output);
    String::from_utf8(output.stdout).unwrap()
}

fn assert_silent(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Returns true if a line of the page begins with this term, at any indentation.
fn has_item(page: &str, term: &str) -> bool {
    page.lines().any(|line| {
        let rest = line.trim_start().strip_prefix(term);
        rest.is_some_and(|rest| {
            !rest.starts_with(|next: char| next.is_alphanumeric() || next == '-')
        })
    })
}

#[test]
fn the_tools_for_manual_pages_find_no_fault() {
    let manual = manual();
    for page in PAGES {
        let text = read(&manual, page);
        assert!(!text.contains('\u{2010}'), "{page} hyphenates");
        assert!(
            !text.contains("**") && !text.contains("`"),
            "{page}: {text}"
        );
        let name = Command::new("lexgrog")
            .arg(manual.path().join(page))
            .output()
            .expect("this test needs lexgrog");
        assert_silent(&name);
        let name = String::from_utf8(name.stdout).unwrap();
        let (title, _) = page.rsplit_once('.').unwrap();
        assert!(name.contains(&format!("\"{title} - ")), "{name}");
    }
    let alias = fs::read_to_string(manual.path().join("smoothtool.1")).unwrap();
    assert_eq!(alias, ".so man1/smoothctl.1\n");
}

#[test]
fn a_programs_page_describes_its_whole_command_line() {
    let manual = manual();
    for (mut command, page) in [
        (Smoothserve::command(), "smoothserve.8"),
        (Smoothctl::command(), "smoothctl.1"),
    ] {
        command.build();
        let text = read(&manual, page);
        for option in command.get_arguments() {
            assert_has_argument(&text, option);
        }
        for verb in command.get_subcommands() {
            let name = verb.get_name();
            assert_eq!(has_item(&text, name), !verb.is_hide_set(), "{page}: {name}");
            for argument in verb.get_arguments().filter(|_| !verb.is_hide_set()) {
                assert_has_argument(&text, argument);
            }
        }
    }
}

fn assert_has_argument(page: &str, argument: &clap::Arg) {
    let long = argument.get_long().map(|long| format!("--{long}"));
    let term = match (argument.get_short(), long) {
        (Some(short), Some(long)) => format!("-{short}, {long}"),
        (None, Some(long)) => long,
        (_, None) => argument.get_value_names().unwrap()[0].to_string(),
    };
    assert!(has_item(page, &term), "{term} is missing");
}

#[test]
fn the_page_of_the_configuration_describes_every_key() {
    let page = read(&manual(), "smoothserve.yaml.5");
    for key in GLOBAL_KEYS.iter().chain(SERVICE_KEYS) {
        assert!(has_item(&page, key), "{key} is missing");
    }
}

#[test]
fn the_page_of_the_bus_describes_every_member() {
    let page = read(&manual(), "org.smoothserve1.5");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dbus.md");
    let reference = fs::read_to_string(file).unwrap();
    let mut members = 0;
    for line in reference.lines() {
        let Some((member, _)) = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split_once('`'))
        else {
            continue;
        };
        assert!(has_item(&page, member), "{member} is missing");
        members += 1;
    }
    assert!(members > 30, "{members}");
}

/// A shell that finds the programs and the completions in their usual places.
struct Shell {
    folder: TempDir,
}

impl Shell {
    fn new() -> Shell {
        let folder = tempfile::tempdir().unwrap();
        let completions = folder.path().join("bash-completion/completions");
        smoothserve_manual::write(&completions).unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for program in [programs!().smoothctl, programs!().smoothserve] {
            symlink(&program, bin.join(program.file_name().unwrap())).unwrap();
        }
        Shell { folder }
    }

    /// Runs a script with a run directory and with the folder of the completions in `$1`. The
    /// script must print nothing but its result.
    fn run(&self, program: &str, options: &[&str], script: &str, run_dir: &Path) -> String {
        let path = std::env::var("PATH").unwrap();
        let output = Command::new(program)
            .args(options)
            .args(["-c", script, program])
            .arg(self.folder.path().join("bash-completion/completions"))
            .env(
                "PATH",
                format!("{}/bin:{path}", self.folder.path().display()),
            )
            .env("HOME", self.folder.path())
            .env("XDG_DATA_DIRS", self.folder.path())
            .env("SMOOTHSERVE_RUN_DIR", run_dir)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
        assert_silent(&output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns what bash suggests at Tab after these words; bash-completion finds the file by
    /// itself.
    fn bash(&self, words: &[&str], run_dir: &Path) -> Vec<String> {
        const TAB: &str = r#"
            shift
            . /usr/share/bash-completion/bash_completion
            _completion_loader "$1"
            [[ $(complete -p "$1") =~ -F\ ([^ ]+) ]] || exit 1
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
            "${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}"
        "#;
        let words = words.join("' '");
        let script = format!("set -- \"$1\" '{words}'\n{TAB}");
        let shown = self.run("bash", &["--norc"], &script, run_dir);
        shown
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// Starts smoothserve with one service `shop`, whose instances listen on unix sockets.
async fn server() -> Server {
    let home = Home::new();
    home.add_shop("shop", free_port(), "bind: unix\n");
    let server = Server::start(programs!(), home).await;
    server.running("shop").await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_verbs_options_and_services() {
    let server = server().await;
    let shell = Shell::new();
    let run_dir = server.home.run();
    let bash = |words: &[&str]| shell.bash(words, &run_dir);
    assert_eq!(bash(&["smoothctl", "res"]), ["restart"]);
    assert_eq!(bash(&["smoothctl", "restart", "s"]), ["shop"]);
    assert_eq!(bash(&["smoothctl", "restart", "--no-b"]), ["--no-block"]);
    assert_eq!(bash(&["smoothctl", "stop", "a"]), ["all"]);
    for verb in ["status", "start", "stop", "restart", "logs"] {
        let shown = bash(&["smoothctl", verb, ""]);
        assert!(shown.contains(&"shop".to_owned()), "{verb}: {shown:?}");
        let all = ["start", "stop", "restart"].contains(&verb);
        assert_eq!(shown.contains(&"all".to_owned()), all, "{verb}");
    }
    // A name that is there already is not offered again.
    for words in [
        &["shop", ""][..],
        &["shop", "s"],
        &["all", "s"],
        &["--no-block", "shop", ""],
    ] {
        let shown = bash(&[&["smoothctl", "restart"], words].concat());
        let names = ["shop", "all"];
        assert!(
            !shown.iter().any(|it| names.contains(&it.as_str())),
            "{words:?}: {shown:?}"
        );
    }
    assert_eq!(bash(&["smoothctl", "restart", "shop"]), ["shop"]);
    assert_eq!(bash(&["smoothctl", "--bus", "sy"]), ["system"]);
    assert_eq!(bash(&["smoothserve", "r"]), ["run"]);
    assert_eq!(bash(&["smoothserve", "run", "--log"]), ["--log-level"]);
    assert_eq!(bash(&["smoothserve", "run", "--log-level", "d"]), ["debug"]);
    // The roles `launch` and `proxy` are hidden: people do not start them.
    assert!(bash(&["smoothserve", "l"]).is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_the_services_of_the_smoothserve_that_the_command_line_names() {
    let server = server().await;
    let shell = Shell::new();
    let run_dir = server.home.run();
    let elsewhere = tempfile::tempdir().unwrap();
    let words = [
        "smoothctl",
        "--run-dir",
        run_dir.to_str().unwrap(),
        "stop",
        "",
    ];
    let shown = shell.bash(&words, elsewhere.path());
    assert!(shown.contains(&"shop".to_owned()), "{shown:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_does_not_wait_for_a_smoothserve_that_hangs() {
    let server = server().await;
    server.signal(Signal::STOP);
    let shown = Shell::new().bash(&["smoothctl", "restart", "s"], &server.home.run());
    assert!(shown.is_empty(), "{shown:?}");
    server.signal(Signal::CONT);
    server.stop().await;
}

#[test]
fn without_a_running_smoothserve_no_services_are_completed() {
    let shell = Shell::new();
    let folder = tempfile::tempdir().unwrap();
    assert!(
        shell
            .bash(&["smoothctl", "restart", "s"], folder.path())
            .is_empty()
    );
    assert_eq!(
        shell.bash(&["smoothctl", "res"], folder.path()),
        ["restart"]
    );
    // systemd would start smoothserve on a connection to this socket, but nobody answers on it.
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("bus")).unwrap();
    assert!(
        shell
            .bash(&["smoothctl", "restart", "s"], folder.path())
            .is_empty()
    );
    socket.set_nonblocking(true).unwrap();
    assert!(socket.accept().is_err(), "completion must not connect");
}

#[tokio::test(flavor = "multi_thread")]
async fn fish_and_zsh_describe_each_suggestion() {
    let server = server().await;
    let shell = Shell::new();
    let run_dir = server.home.run();
    let fish = |line: &str| {
        let script = format!("source $argv[2]/smoothctl.fish; complete -C '{line}'");
        shell.run("fish", &["--no-config"], &script, &run_dir)
    };
    let restart = fish("smoothctl res");
    assert!(
        restart.starts_with("restart\tReplace every instance"),
        "{restart}"
    );
    let shop = fish("smoothctl restart s");
    assert_eq!(shop, "shop\trunning, 1/1 instances ready\n");
    assert_eq!(fish("smoothctl restart shop s"), "");
    let script = "source $argv[2]/smoothserve.fish; complete -C 'smoothserve c'";
    let check = shell.run("fish", &["--no-config"], script, &run_dir);
    assert!(check.starts_with("check\tCheck a configuration"), "{check}");

    // zsh writes its suggestions to a terminal; the test replaces the function that receives them.
    const TAB: &str = r#"
        fpath=($1 $fpath)
        autoload -Uz compinit && compinit -u -d $HOME/dump
        print -r -- "$_comps[smoothctl] $_comps[smoothserve]"
        _describe() { print -rl -- "${(@P)${@[-1]}}" }
        words=(smoothctl restart s) CURRENT=3
        _smoothctl
        words=(smoothctl restart shop s) CURRENT=4
        _smoothctl
        words=(smoothctl res) CURRENT=2
        $_comps[smoothctl]
    "#;
    let shown = shell.run("zsh", &["-f"], TAB, &run_dir);
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("_smoothctl _smoothserve"));
    assert_eq!(lines.next(), Some("shop:running, 1/1 instances ready"));
    assert!(
        lines.next().unwrap().starts_with("restart:Replace every"),
        "{shown}"
    );
    server.stop().await;
}
