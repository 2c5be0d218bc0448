//! The soak: everything that people do to smoothserve, in a random order, under load on all
//! protocols. `make soak` runs the long form, and every run of the tests the short one.
//!
//! Three services own three sites, which together answer for two ports at any time. The clients
//! check every byte of every response. A request is lost if anything but its right response comes:
//! a refused or broken connection, another status, a wrong byte, no end within a minute, or the
//! end of an idle connection without a word. No operation here may lose one, nor does a manager
//! that is killed: the proxy serves on without it.
//!
//! The order comes from a seed, which is printed. `SOAK_SEED` gives another one, and `SOAK_PART`
//! the percentage of the long form that is run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use smoothserve_kit::load::{Load, Mix, Options, Report};
use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{Build, Start, Status, client, example, install, local};

use crate::package::{apt, bring_package, newer};
use crate::scene::Scene;

/// The services.
const SERVICES: [&str; 3] = ["alder", "birch", "cedar"];

/// The sites: a port, and a host, for which the file has the pattern that follows.
const SITES: [(u16, &str, &str); 3] = [
    (8080, "one.example", "one.example"),
    (8080, "two.example", "_"),
    (8081, "three.example", "_"),
];

/// The units that an administrator may stop by mistake.
const SOCKETS: [&str; 3] = [
    "smoothserve.socket",
    "smoothserve-port-8080.socket",
    "smoothserve-port-8081.socket",
];

/// How many requests the long form sends.
const REQUESTS: u64 = 1_000_000;

/// Something that is done to smoothserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    /// A new version of a service that works.
    GoodDeploy,
    /// A new version that does not become ready, which the reload has to refuse.
    BadDeploy,
    /// A reload after which other services have the sites.
    Move,
    /// `systemctl restart smoothserve`.
    RestartManager,
    /// `smoothctl restart` of a service.
    RestartService,
    /// `kill -9` of the manager.
    Kill,
    /// The installation of a newer package.
    Upgrade,
    /// A stop of a socket unit, and its start.
    Sockets,
}

impl Operation {
    /// Returns all operations, each as often as the long form does it.
    const OF_LONG_FORM: [(Operation, usize); 8] = [
        (Operation::GoodDeploy, 67),
        (Operation::BadDeploy, 33),
        (Operation::Move, 50),
        (Operation::RestartManager, 10),
        (Operation::RestartService, 10),
        (Operation::Kill, 20),
        (Operation::Upgrade, 5),
        (Operation::Sockets, 5),
    ];
}

/// A soak that runs.
struct Soak<'a> {
    scene: Scene<'a>,
    random: fastrand::Rng,
    loads: Vec<Load>,
    /// The service that owns each site.
    owners: [usize; 3],
    /// The version that each service runs.
    versions: [String; 3],
    done: usize,
    upgrades: u32,
}

impl<'a> Soak<'a> {
    fn start(machine: &'a Machine, seed: u64) -> Soak<'a> {
        bring_package(machine);
        let mut soak = Soak {
            scene: Scene { machine },
            random: fastrand::Rng::with_seed(seed),
            loads: Vec::new(),
            owners: [0, 1, 2],
            versions: ["1", "1", "1"].map(str::to_owned),
            done: 0,
            upgrades: 0,
        };
        for service in 0..SERVICES.len() {
            soak.put(service, &Build::good("1"));
        }
        soak.configure();
        apt(machine, &format!("install {}", crate::package::HERE));
        soak.settle();
        for (port, host, _) in SITES {
            for http2 in [false, true] {
                soak.loads.push(Load::start(Options {
                    host: host.to_owned(),
                    http2,
                    connections: if http2 { 3 } else { 12 },
                    download: 1 << 20,
                    upload: 256 << 10,
                    slow: 10..2000,
                    mix: Mix {
                        slow: 20,
                        ..Mix::default()
                    },
                    ..Options::new(local(port))
                }));
            }
        }
        soak
    }

    /// Puts a build in the place of a service's program.
    fn put(&self, service: usize, build: &Build) {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("shop");
        install(&example("shop"), &file, build).expect("it can be written");
        let name = SERVICES[service];
        let place = format!("/opt/{name}/shop");
        self.scene.machine.install(&file, &place);
    }

    /// Writes the files of all services, so that each has the site that it owns.
    fn configure(&self) {
        for (&owner, (port, _, pattern)) in self.owners.iter().zip(SITES) {
            let name = SERVICES[owner];
            self.scene.machine.write(
                &format!("/etc/smoothserve/services/{name}.yaml"),
                &format!(
                    "name: {name}\nport: {port}\nserver_name: {pattern}\n\
                     executable_path: /opt/{name}/shop\nargs: [\"-port={{port}}\"]\n\
                     instance_count: 2\nready: http:/health\nstart_timeout: 5s\n"
                ),
            );
        }
    }

    fn requests(&self) -> u64 {
        let counts = self.loads.iter().map(Load::counts);
        counts.map(|counts| counts.requests).sum()
    }

    /// Waits until all services run what they should, and checks it by a request to each site.
    fn settle(&self) {
        let is_settled = |text: &str| {
            serde_json::from_str(text).is_ok_and(|status: Status| {
                let mut services = status.services.values();
                let running = services.all(|service| service.state == "running");
                running && status.services.len() == SERVICES.len() && status.settled()
            })
        };
        let machine = self.scene.machine;
        machine.until("smoothctl status --json", is_settled);
    }

    /// Checks that the owner of each site answers with its version, and that nothing was lost.
    async fn check(&self, operation: Operation) {
        self.settle();
        for (&owner, (port, host, _)) in self.owners.iter().zip(SITES) {
            let page = client::get(local(port), host, "/hello").await.unwrap();
            let version = page.head.header("x-shop-version").unwrap_or_default();
            let name = SERVICES[owner];
            assert_eq!(version, self.versions[owner], "{name} after {operation:?}");
        }
        for load in &self.loads {
            if load.counts().lost > 0 {
                panic!("{operation:?} has lost requests\n{}", load.so_far());
            }
        }
    }

    fn run(&self, line: &str) {
        self.scene.machine.run(line);
    }

    /// Begins the deploy of a good build without waiting for it, every second time, and lets it
    /// come as far as chance has it. So what follows often meets a rollout.
    async fn perhaps_begin_a_deploy(&mut self) {
        if self.random.bool() {
            return;
        }
        let service = self.random.usize(0..SERVICES.len());
        self.good_build(service);
        self.run("systemctl reload --no-block smoothserve");
        let requests = self.random.u64(0..2000);
        self.go_on(requests).await;
    }

    fn good_build(&mut self, service: usize) {
        let version = format!("{}", self.done + 2);
        self.put(service, &Build::good(&version));
        self.versions[service] = version;
    }

    /// Waits until this many more requests have ended.
    async fn go_on(&self, requests: u64) {
        let goal = self.requests() + requests;
        while self.requests() < goal {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn perform(&mut self, operation: Operation) {
        let manager = self.scene.manager();
        match operation {
            Operation::GoodDeploy => {
                let service = self.random.usize(0..SERVICES.len());
                self.good_build(service);
                self.run("systemctl reload smoothserve");
            }
            Operation::BadDeploy => self.bad_deploy(),
            Operation::Move => {
                let before = self.owners;
                while self.owners == before {
                    self.random.shuffle(&mut self.owners);
                }
                self.configure();
                self.run("systemctl reload smoothserve");
            }
            Operation::RestartManager => {
                self.perhaps_begin_a_deploy().await;
                self.run("systemctl restart smoothserve");
            }
            Operation::RestartService => {
                let name = SERVICES[self.random.usize(0..SERVICES.len())];
                self.run(&format!("smoothctl restart {name}"));
            }
            Operation::Kill => {
                self.perhaps_begin_a_deploy().await;
                self.run(&format!("kill -9 {manager}"));
                self.scene.another_manager(manager);
            }
            Operation::Upgrade => {
                self.perhaps_begin_a_deploy().await;
                self.upgrades += 1;
                let package = newer(self.scene.machine, self.upgrades, "true");
                apt(self.scene.machine, &format!("install {package}"));
                self.run(&format!("rm {package}"));
                assert_ne!(self.scene.manager(), manager);
            }
            Operation::Sockets => {
                let unit = SOCKETS[self.random.usize(0..SOCKETS.len())];
                self.run(&format!("systemctl stop {unit}"));
                self.go_on(500).await;
                // A unit cannot open its port while smoothserve has it, so this may fail.
                let start = format!("systemctl start {unit} smoothserve.socket");
                self.scene.machine.try_run(&start);
            }
        }
    }

    /// Deploys a build that does not become ready, and takes it back.
    fn bad_deploy(&mut self) {
        let service = self.random.usize(0..SERVICES.len());
        let name = SERVICES[service];
        let starts = [Start::Crash, Start::Crash, Start::Sick, Start::Mute];
        let start = starts[self.random.usize(0..starts.len())];
        self.run(&format!("cd /opt/{name} && ln -f shop good"));
        self.put(service, &Build::starting("bad", start));
        let reload = self.scene.machine.try_run("systemctl reload smoothserve");
        assert!(!reload.status.success(), "{start:?} was deployed");
        self.run(&format!("cd /opt/{name} && mv good shop"));
        self.run("systemctl reload smoothserve");
    }

    /// Stops the load, and returns what became of it.
    async fn stop(self) -> Vec<Report> {
        let mut reports = Vec::new();
        for load in self.loads {
            reports.push(load.stop().await);
        }
        reports
    }
}

/// Runs this percentage of the long form, but every operation at least once.
async fn soak(machine: &Machine, part: usize) {
    let seed = std::env::var("SOAK_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SOAK_SEED={seed} SOAK_PART={part}");
    let begin = Instant::now();
    let mut soak = Soak::start(machine, seed);
    let all = Operation::OF_LONG_FORM;
    let counts = all.map(|(operation, count)| (operation, (count * part / 100).max(1)));
    let mut operations: Vec<Operation> = counts
        .iter()
        .flat_map(|&(operation, count)| std::iter::repeat_n(operation, count))
        .collect();
    soak.random.shuffle(&mut operations);
    let requests = REQUESTS * part as u64 / 100;
    for &operation in &operations {
        println!(
            "{:5} s: {operation:?} ({} of {}), {} requests",
            begin.elapsed().as_secs(),
            soak.done + 1,
            operations.len(),
            soak.requests()
        );
        soak.perform(operation).await;
        soak.check(operation).await;
        soak.done += 1;
        let goal = requests * soak.done as u64 / operations.len() as u64;
        soak.go_on(goal.saturating_sub(soak.requests()).max(100))
            .await;
    }
    let left = soak.scene.machine.run("pgrep -cx shop");
    assert_eq!(left, "6\n", "instances that nobody knows were left");
    // The manager makes units fine again that could not open their ports.
    machine.run("systemctl restart smoothserve");
    machine.until("systemctl --failed --no-legend", str::is_empty);
    let journal = machine.run("journalctl -t smoothserve -o cat");
    assert!(!journal.contains("panicked"), "a process has panicked");
    let done: BTreeMap<Operation, usize> = counts.into_iter().collect();
    let reports = soak.stop().await;
    println!("{}", told(&reports, &done));
    println!("in {} s, SOAK_SEED={seed}", begin.elapsed().as_secs());
    for report in &reports {
        report.assert_nothing_lost();
    }
}

/// Tells the result of a soak for people.
fn told(reports: &[Report], done: &BTreeMap<Operation, usize>) -> String {
    let requests: u64 = reports.iter().map(Report::requests).sum();
    let lost = reports.iter().flat_map(|report| &report.lost);
    let refused = lost
        .clone()
        .filter(|lost| lost.fault.starts_with("connect"));
    let reopened: u64 = reports.iter().map(|report| report.reopened).sum();
    let mut text = format!(
        "{requests} requests, {} lost, {} of them refused, {reopened} connections reopened\n",
        lost.clone().count(),
        refused.count()
    );
    for (operation, count) in done {
        text += &format!("  {operation:?}: {count}\n");
    }
    let mut longest = BTreeMap::new();
    for (kind, took) in reports.iter().flat_map(|report| &report.longest) {
        let known: &mut Duration = longest.entry(kind).or_default();
        *known = (*known).max(*took);
    }
    for (kind, took) in longest {
        text += &format!("  longest {kind:?}: {took:?}\n");
    }
    text
}

#[test]
fn a_short_soak_loses_nothing() {
    machine::test(async |machine| soak(machine, 0).await);
}

#[test]
#[ignore = "takes most of an hour: make soak"]
fn a_long_soak_loses_nothing() {
    let part = std::env::var("SOAK_PART").ok();
    let part = part.and_then(|part| part.parse().ok()).unwrap_or(100);
    machine::test(async |machine| soak(machine, part).await);
}
