//! A machine with an installed smoothserve and a service named `shop` on port 8080.

use std::net::SocketAddr;

use smoothserve_kit::load::{Load, Options, Report};
use smoothserve_kit::machine::Machine;
use smoothserve_kit::{Build, Service, Status, example, local, programs};

/// Where the shop is.
pub const PORT: u16 = 8080;

/// The shop's file but for its ports.
pub const SHOP: &str = "instance_count: 3\n";

/// The machine.
pub struct Scene<'a> {
    pub machine: &'a Machine,
}

impl<'a> Scene<'a> {
    /// Installs everything, starts nothing.
    pub fn install(machine: &'a Machine, lines: &str) -> Scene<'a> {
        machine.install_smoothserve(&programs!());
        let scene = Scene { machine };
        scene.write_shop(lines);
        machine.run("systemctl daemon-reload");
        scene
    }

    /// Writes the shop's file, with further lines in it.
    pub fn write_shop(&self, lines: &str) {
        let lines = format!("port: {PORT}\n{SHOP}{lines}");
        self.machine.add_shop(&example("shop"), &lines);
    }

    /// Installs everything and starts it as an administrator does.
    pub fn start(machine: &'a Machine, lines: &str) -> Scene<'a> {
        let scene = Scene::install(machine, lines);
        machine.run("systemctl enable --now smoothserve.socket smoothserve.service");
        assert_eq!(scene.settled().ready(), 3);
        scene
    }

    /// Puts load on the shop, and waits until it is well under way.
    pub async fn load(&self) -> Load {
        let load = Load::start(Options::new(self.address()));
        load.go_on(300).await;
        load
    }

    /// As seen from inside of the machine, where the tests run.
    pub fn address(&self) -> SocketAddr {
        local(PORT)
    }

    /// What `smoothctl` says of the shop.
    pub fn shop(&self) -> Service {
        let text = self.machine.run("smoothctl status --json");
        let mut status: Status = serde_json::from_str(&text).expect("it is JSON");
        status.services.remove("shop").expect("it is configured")
    }

    /// Waits until nothing is on its way any more.
    pub fn settled(&self) -> Service {
        let is_settled =
            |text: &str| serde_json::from_str(text).is_ok_and(|status: Status| status.settled());
        self.machine.until("smoothctl status --json", is_settled);
        self.shop()
    }

    /// The process of the manager.
    pub fn manager(&self) -> u32 {
        self.property("MainPID").parse().expect("it is a number")
    }

    /// The process of the worker that accepts, by its scope.
    pub fn worker(&self) -> u32 {
        let pids = self
            .machine
            .run("cat /sys/fs/cgroup/smoothserve.slice/smoothserve-worker-*.scope/cgroup.procs");
        let newest = pids.split_ascii_whitespace().last();
        newest
            .and_then(|pid| pid.parse().ok())
            .expect("there is one")
    }

    /// A property of `smoothserve.service`.
    pub fn property(&self, name: &str) -> String {
        let line = format!("systemctl show --value --property {name} smoothserve.service");
        self.machine.run(&line).trim().to_owned()
    }

    /// Waits until another manager than this one is up.
    pub fn another_manager(&self, before: u32) {
        self.machine.until(
            "systemctl show --value --property MainPID --property ActiveState smoothserve.service",
            |text| {
                let is_new = text
                    .lines()
                    .any(|line| line.parse().is_ok_and(|pid: u32| pid != 0 && pid != before));
                is_new && text.lines().any(|line| line == "active")
            },
        );
    }

    /// Puts a build of the shop in the place of the one that is there.
    pub fn deploy(&self, build: &Build) {
        let new = tempfile::tempdir().expect("a folder can be made");
        let file = new.path().join("shop");
        smoothserve_kit::install(&example("shop"), &file, build).expect("it can be written");
        self.machine.install(&file, "/opt/shop/shop");
    }

    /// All processes in the slice.
    pub fn processes(&self) -> String {
        self.machine.run(
            "find /sys/fs/cgroup/smoothserve.slice -name cgroup.procs -exec cat {} + 2>/dev/null || true",
        )
    }
}

/// Ends the load and checks that nothing was lost.
pub async fn nothing_is_lost(load: Load) -> Report {
    load.go_on(300).await;
    let report = load.stop().await;
    println!("{report}");
    report.assert_nothing_lost();
    report
}
