//! Without systemd, and as the first process of a container: an instance ends with everything that
//! it has started, every process that has ended is reaped, and no signal of other servers ends
//! smoothserve.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use smoothserve_kit::{
    Build, Bystander, Home, PATIENCE, Programs, Smoothserve, example, free_port, install, local,
    processes, programs, write,
};

/// A service, and how many processes it consists of.
struct Kind {
    name: &'static str,
    /// The executable. `./server` is a program that listens on `$PORT`.
    script: &'static str,
    processes: usize,
}

/// How people start programs, and what programs do beside their work.
const KINDS: [Kind; 5] = [
    Kind {
        name: "wrapper",
        script: "#!/bin/sh\n./server\nexit $?\n",
        processes: 2,
    },
    // As npm(1): each program starts the next one by a shell, and passes no signal on.
    Kind {
        name: "chain",
        script: "#!/bin/sh\nsh -c 'sh -c \"./server; exit \\$?\"; exit $?'\nexit $?\n",
        processes: 4,
    },
    // As daemon(3), and deaf to SIGTERM.
    Kind {
        name: "daemon",
        script: "#!/bin/sh\n(setsid sh -c '(trap \"\" TERM; while :; do sleep 0.1; done) &' &)\n\
                 exec ./server\n",
        processes: 2,
    },
    // The server itself goes to the background.
    Kind {
        name: "background",
        script: "#!/bin/sh\n(setsid sh -c './server &' &)\nsleep 100000\n",
        processes: 3,
    },
    // Nobody reaps what has ended, as many programs do as the parent of orphans.
    Kind {
        name: "careless",
        script: "#!/bin/sh\n(sleep 0.1 &)\n(sleep 0.1 &)\nexec ./server\n",
        processes: 1,
    },
];

/// Writes all kinds of services.
fn home(stop_timeout: &str) -> (Home, u16) {
    let home = Home::new();
    let port = free_port();
    for kind in KINDS {
        let app = home.app(kind.name);
        write(&app.executable(), kind.script);
        fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = app.folder().join("server");
        install(&example("shop"), &server, &Build::good("1")).unwrap();
        home.write_shop(kind.name, port, &format!("stop_timeout: {stop_timeout}\n"));
    }
    (home, port)
}

/// Returns smoothserve as the first process in a namespace of its own, as in a container.
fn in_container(home: &Home) -> Programs {
    let programs = programs!();
    let script = home.path().join("container");
    let line = format!(
        "#!/bin/sh\nexec unshare --pid --fork --kill-child --mount-proc {} \"$@\"\n",
        programs.smoothserve.display()
    );
    write(&script, &line);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Programs {
        smoothserve: script,
        ..programs
    }
}

/// Returns how many processes have this folder as their working directory, `sleep` aside.
fn live_in(folder: &Path) -> usize {
    let all = processes::inside(folder).into_iter();
    let all = all.filter(|process| process.command != "sleep 0.1");
    all.count()
}

/// Returns the zombies below a process.
fn zombies(pid: u32) -> Vec<u32> {
    let mut below: Vec<u32> = processes::descendants(pid)
        .iter()
        .map(|process| process.pid)
        .collect();
    below.push(pid);
    let entries = fs::read_dir("/proc").unwrap();
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_zombie = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat
            .rsplit_once(") ")
            .map_or("", |(_, rest)| rest)
            .split(' ');
        fields.next() == Some("Z")
            && fields
                .next()
                .and_then(|parent| parent.parse().ok())
                .is_some_and(|parent| below.contains(&parent))
    };
    numbers.filter(is_zombie).collect()
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Restarts everything three times, and counts what there is.
async fn restarts_leave_nothing(server: &Smoothserve) {
    for round in 1..=3 {
        let names = KINDS.map(|kind| kind.name);
        server.ok(&[&["restart"][..], &names].concat()).await;
        let status = server.settled().await;
        for kind in KINDS {
            assert_eq!(status.services[kind.name].state, "running", "{}", kind.name);
            let folder = server.home.app(kind.name).folder().to_owned();
            let wanted = || live_in(&folder) == kind.processes;
            until(&format!("{} in round {round}", kind.name), wanted).await;
        }
    }
    until("no zombie", || zombies(server.pid()).is_empty()).await;
}

#[tokio::test]
async fn nothing_of_an_instance_outlives_it() {
    let (home, port) = home("1s");
    let server = Smoothserve::start(programs!(), home).await;
    let mut bystander = Bystander::of_shop(local(port), "wrapper.example");
    restarts_leave_nothing(&server).await;
    bystander.is_served().await;
    bystander.end();
    server.stop().await;
}

#[tokio::test]
async fn the_first_process_of_a_container_reaps_everything() {
    let (home, port) = home("1s");
    let server = Smoothserve::start(in_container(&home), home).await;
    let first = processes::descendants(server.pid());
    let first = first
        .iter()
        .find(|process| process.command.contains(" run "))
        .unwrap()
        .pid;
    let mut bystander = Bystander::of_shop(local(port), "wrapper.example");
    // As `docker exec` does: a process from outside, whose child is left to the first process.
    for _ in 0..14 {
        let entered = Command::new("nsenter")
            .args([
                "--target",
                &first.to_string(),
                "--pid",
                "sh",
                "-c",
                "sleep 0.1 &",
            ])
            .status();
        assert!(entered.unwrap().success());
    }
    restarts_leave_nothing(&server).await;
    bystander.is_served().await;
    bystander.end();
    processes::signal_pid(first, Signal::TERM);
    let mut server = server;
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn a_manager_that_is_killed_leaves_nothing() {
    let (home, _) = home("1s");
    let mut server = Smoothserve::start(programs!(), home).await;
    let below = processes::descendants(server.pid());
    server.signal(Signal::KILL);
    server.ended().await;
    until("nothing is left", || {
        below.iter().all(|process| !process.runs())
            && processes::inside(server.home.path()).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_keeper_that_is_killed_fails_its_instance() {
    let home = Home::new();
    home.add_shop("shop", free_port(), "");
    let server = Smoothserve::start(programs!(), home).await;
    let below = processes::descendants(server.pid());
    let keeper = below
        .iter()
        .find(|process| process.command == "smoothserve: keeper");
    let shop = server.running("shop").await.pids();
    keeper.unwrap().signal(Signal::KILL);
    let status = server.until("another one runs", |status| {
        let service = &status.services["shop"];
        service.state == "running" && service.pids() != shop
    });
    let error = status.await.services["shop"].last_error.clone().unwrap();
    assert!(error.message.contains("its keeper was killed"), "{error:?}");
    until("the old one ends", || {
        live_in(server.home.app("shop").folder()) == 1
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_left_of_a_keeper_that_is_killed_ends_though_deaf() {
    let home = Home::new();
    let port = free_port();
    let app = home.app("deaf");
    let script = "#!/bin/sh\ntrap '' TERM\n\
                  (setsid sh -c '(while :; do sleep 0.1; done) &' &)\n./server\nexit $?\n";
    write(&app.executable(), script);
    fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
    let folder = app.folder().to_owned();
    install(&example("shop"), &folder.join("server"), &Build::good("1")).unwrap();
    home.write_shop("deaf", port, "stop_timeout: 1s\n");
    home.add_shop("shop", port, "");
    let server = Smoothserve::start(programs!(), home).await;
    let mut bystander = Bystander::of_shop(local(port), "shop.example");
    let deaf = server.running("deaf").await.pids();
    let before = processes::inside(&folder);
    let below = processes::descendants(server.pid());
    let keepers = below.iter().filter(|process| {
        let holds = |keeper: u32| {
            let below = processes::descendants(keeper);
            below.iter().any(|process| deaf.contains(&process.pid))
        };
        process.command == "smoothserve: keeper" && holds(process.pid)
    });
    let keepers: Vec<_> = keepers.collect();
    assert_eq!(keepers.len(), 1);
    keepers[0].signal(Signal::KILL);
    let others = server.until("another one runs", |status| {
        let service = &status.services["deaf"];
        service.state == "running" && service.pids() != deaf
    });
    others.await;
    until("the old one ends", || {
        before.iter().all(|process| !process.runs()) && live_in(&folder) == 3
    })
    .await;
    bystander.is_served().await;
    bystander.end();
    server.stop().await;
}

#[tokio::test]
async fn signals_for_other_servers_end_nothing_and_processes_have_names() {
    let home = Home::new();
    let port = free_port();
    home.add_shop("shop", port, "");
    let server = Smoothserve::start(programs!(), home).await;
    let mut bystander = Bystander::of_shop(local(port), "shop.example");
    let below = processes::descendants(server.pid());
    let named = |name: &str| {
        let mut found = below
            .iter()
            .filter(|process| process.command.starts_with(name));
        found
            .next()
            .unwrap_or_else(|| panic!("no {name} in {below:?}"))
            .pid
    };
    let (worker, keeper) = (named("smoothserve: proxy --"), named("smoothserve: keeper"));
    for pid in [server.pid(), worker, keeper] {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name, "smoothserve\n");
        for signal in [Signal::QUIT, Signal::USR1, Signal::USR2] {
            processes::signal_pid(pid, signal);
        }
    }
    for signal in ["SIGQUIT", "SIGUSR1", "SIGUSR2"] {
        let told = format!(
            "signal ignored: SIGHUP reloads, SIGTERM drains and ends, smoothctl does everything \
             else signal=\"{signal}\""
        );
        server.says(&told).await;
    }
    bystander.is_served().await;
    bystander.end();
    let now = processes::descendants(server.pid());
    assert_eq!(now, below, "the same processes as before");
    server.stop().await;
}
