//! The limits of a service, as systemd and the kernel enforce them.

use std::collections::BTreeMap;

use smoothserve_kit::example;
use smoothserve_kit::machine::{self, Machine};

use crate::scene::{Scene, nothing_is_lost};

/// Limits in the file of the shop. Only root may set such a `nice`, and the shop runs as another
/// user.
const LIMITS: &str = "memory_max: 512M\nmemory_high: 300.5M\ncpu_quota: 150%\ntasks_max: 100\n\
                      limit_nofile: 1024:2048\nnice: -5\noom_score_adjust: 300\n";

/// The limits of [`LIMITS`] that systemd enforces, as percentages, and another `nice`.
const SHARES: &str =
    "memory_max: 12.5%\nmemory_high: 10%\ncpu_quota: 33.33%\ntasks_max: 7%\nnice: 7\n";

/// The limits that the scope and the process of an instance have.
#[derive(Debug, PartialEq)]
struct Seen {
    scope: BTreeMap<String, String>,
    nofile: (String, String),
    nice: String,
    oom_score_adjust: String,
}

impl Seen {
    fn of(machine: &Machine, pid: u32) -> Seen {
        let group = machine.run(&format!("cat /proc/{pid}/cgroup"));
        let mut groups = group.lines().filter(|line| line.starts_with("0::"));
        let scope = groups.next().and_then(|line| line.rsplit('/').next());
        let scope = scope.expect("it is in a cgroup");
        assert!(scope.starts_with("smoothserve-shop-"), "{scope}");
        let number = |line: &str| machine.run(line).trim().to_owned();
        Seen {
            scope: properties(machine, scope),
            nofile: nofile(machine, pid),
            // The value of the process and, if the kernel has autogroups, of its session.
            nice: number(&format!(
                "(ps -o ni= -p {pid}; sed 's/.* //' /proc/{pid}/autogroup) | sort -bu"
            )),
            oom_score_adjust: number(&format!("cat /proc/{pid}/oom_score_adj")),
        }
    }
}

/// Returns the resource limits that systemd applies to a unit.
fn properties(machine: &Machine, unit: &str) -> BTreeMap<String, String> {
    let text = machine.run(&format!(
        "systemctl show -p MemoryMax,MemoryHigh,CPUQuotaPerSecUSec,TasksMax {unit}"
    ));
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Returns how many descriptors a process may have open: the soft and the hard limit.
fn nofile(machine: &Machine, pid: u32) -> (String, String) {
    let text = machine.run(&format!("grep '^Max open files' /proc/{pid}/limits"));
    let numbers: Vec<&str> = text.split_ascii_whitespace().skip(3).collect();
    (numbers[0].to_owned(), numbers[1].to_owned())
}

/// Returns the limits that an instance of the shop must have with [`LIMITS`].
fn expected() -> Seen {
    let scope = [
        ("MemoryMax", "536870912"),
        ("MemoryHigh", "315097088"),
        ("CPUQuotaPerSecUSec", "1.500000s"),
        ("TasksMax", "100"),
    ];
    Seen {
        scope: scope
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        nofile: ("1024".to_owned(), "2048".to_owned()),
        nice: "-5".to_owned(),
        oom_score_adjust: "300".to_owned(),
    }
}

/// Checks that each instance of the shop has the expected limits.
fn assert_limits(scene: &Scene<'_>, expected: &Seen) {
    let pids = scene.shop().pids();
    assert_eq!(pids.len(), 3);
    for pid in pids {
        assert_eq!(Seen::of(scene.machine, pid), *expected);
    }
}

#[test]
fn limits_are_those_of_scopes_and_processes_and_follow_a_reload() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, LIMITS);
        assert_limits(&scene, &expected());
        let load = scene.load().await;
        let before = scene.shop().pids();
        scene.write_shop(SHARES);
        machine.run("systemctl reload smoothserve");
        assert!(scene.shop().pids().iter().all(|pid| !before.contains(pid)));
        // A percentage means the same as in a unit that systemd-run makes.
        machine.run(
            "systemd-run --unit=model -p MemoryMax=12.5% -p MemoryHigh=10% -p CPUQuota=33.33% \
             -p TasksMax=7% sleep 1000",
        );
        let changed = Seen {
            scope: properties(machine, "model.service"),
            nofile: nofile(machine, scene.manager()),
            nice: "7".to_owned(),
            oom_score_adjust: "0".to_owned(),
        };
        assert_limits(&scene, &changed);
        nothing_is_lost(load).await;
    });
}

#[test]
fn what_follows_a_crash_after_a_takeover_has_the_same_limits() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, LIMITS);
        machine.run("systemctl restart smoothserve");
        let crashed = scene.shop().pids()[0];
        machine.run(&format!("kill -9 {crashed}"));
        machine.until("pgrep -x shop", |pids| {
            pids.lines().count() == 3 && !pids.lines().any(|pid| pid == crashed.to_string())
        });
        scene.settled();
        assert_limits(&scene, &expected());
    });
}

#[test]
fn what_only_root_may_set_is_told_to_others_in_words() {
    machine::test(async |machine| {
        Scene::install(machine, "");
        machine.run("useradd --create-home ada");
        machine.install(&example("shop"), "/home/ada/shop");
        for (name, port, limit) in [
            ("nofile", 9001, "limit_nofile: 1024:8192"),
            ("nice", 9002, "nice: -1"),
            ("oom", 9003, "oom_score_adjust: -1"),
            ("most", 9004, "limit_nofile: infinity"),
        ] {
            machine.write(
                &format!("/home/ada/config/services/{name}.yaml"),
                &format!("name: {name}\nexecutable_path: /home/ada/shop\nport: {port}\n{limit}\n"),
            );
        }
        // This smoothserve has no `NOTIFY_SOCKET`, so it runs as in a terminal, without scopes.
        machine.run(
            "chown -R ada: /home/ada && systemd-run --unit=ada --uid=ada -p LimitNOFILE=4096 \
             smoothserve run --bus none --config /home/ada/config --run-dir /home/ada/run",
        );
        let log = machine.until("journalctl -u ada -o cat", |log| {
            log.matches("instance failed to start").count() >= 3 && log.contains("instance ready")
        });
        for words in [
            "`limit_nofile` is 1024:8192, and smoothserve itself may have no more than 4096; give less, or raise LimitNOFILE=",
            "`nice` is -1, and smoothserve, which has 0, is not allowed to give less; give 0 or more",
            "`oom_score_adjust` is -1, and smoothserve, which has 0, is not allowed to give less; give 0 or more",
        ] {
            assert!(log.contains(words), "no {words:?} in\n{log}");
        }
        let pid = machine.run("pgrep -u ada -x shop");
        let pid = pid.trim().parse().expect("only one of them runs");
        let most = ("4096".to_owned(), "4096".to_owned());
        assert_eq!(nofile(machine, pid), most);
    });
}
