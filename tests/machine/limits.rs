//! What systemd and the kernel know of the limits of a service.

use std::collections::BTreeMap;

use smoothserve_kit::machine::{self, Machine};

use crate::scene::{Scene, nothing_is_lost};

/// In the file of the shop at first.
const LIMITS: &str = "memory_max: 512M\nmemory_high: 300.5M\ncpu_quota: 150%\ntasks_max: 100\n\
                      limit_nofile: 1024:2048\nnice: 5\noom_score_adjust: 300\n";

/// What becomes of a limit in the scope and the process of an instance.
#[derive(Debug, PartialEq)]
struct Seen {
    /// By the names that systemd has for them.
    scope: BTreeMap<String, String>,
    /// Soft and hard.
    nofile: (String, String),
    nice: String,
    oom_score_adjust: String,
}

impl Seen {
    fn of(machine: &Machine, pid: u32) -> Seen {
        let group = machine.run(&format!("cat /proc/{pid}/cgroup"));
        let scope = group
            .lines()
            .find_map(|line| line.rsplit_once('/').filter(|_| line.starts_with("0::")));
        let (_, scope) = scope.expect("it is in a cgroup");
        assert!(scope.starts_with("smoothserve-shop-"), "{scope}");
        let properties = machine.run(&format!(
            "systemctl show -p MemoryMax,MemoryHigh,CPUQuotaPerSecUSec,TasksMax {scope}"
        ));
        let limits = machine.run(&format!("grep '^Max open files' /proc/{pid}/limits"));
        let mut numbers = limits.split_ascii_whitespace().skip(3).map(str::to_owned);
        let number = |line: &str| machine.run(line).trim().to_owned();
        Seen {
            scope: properties
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            nofile: (
                numbers.next().expect("there is a soft limit"),
                numbers.next().expect("there is a hard limit"),
            ),
            nice: number(&format!("ps -o ni= -p {pid}")),
            oom_score_adjust: number(&format!("cat /proc/{pid}/oom_score_adj")),
        }
    }
}

/// What [`LIMITS`] are on the machine.
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
        nice: "5".to_owned(),
        oom_score_adjust: "300".to_owned(),
    }
}

/// Every instance has them.
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
        scene.write_shop(
            &LIMITS
                .replace("100\n", "infinity\n")
                .replace("nice: 5", "nice: 7"),
        );
        machine.run("systemctl reload smoothserve");
        let mut changed = expected();
        changed.scope.insert("TasksMax".into(), "infinity".into());
        changed.nice = "7".to_owned();
        assert_limits(&scene, &changed);
        assert!(scene.shop().pids().iter().all(|pid| !before.contains(pid)));
        nothing_is_lost(load).await;
    });
}

#[test]
fn what_follows_a_crash_after_a_takeover_has_the_same_limits() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, LIMITS);
        machine.run("systemctl restart smoothserve");
        let before = scene.shop().pids();
        let crashed = before[0];
        machine.run(&format!("kill -9 {crashed}"));
        machine.until("pgrep -x shop", |pids| {
            pids.lines().count() == 3 && !pids.lines().any(|pid| pid == crashed.to_string())
        });
        scene.settled();
        assert_limits(&scene, &expected());
    });
}
