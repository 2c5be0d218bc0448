//! A machine with an installed smoothserve and a service named `shop` on port 8080.

use std::net::SocketAddr;

use smoothserve_kit::load::{Load, Options, Report};
use smoothserve_kit::machine::Machine;
use smoothserve_kit::{Build, Service, Status, example, local, programs};

/// The port of the shop.
pub const PORT: u16 = 8080;

/// The lines in the file of the shop that all tests have, except its port.
pub const SHOP: &str = "instance_count: 3\n";

/// A machine with an installed smoothserve.
pub struct Scene<'a> {
    pub machine: &'a Machine,
}

impl<'a> Scene<'a> {
    /// Installs smoothserve and the shop, and starts nothing.
    pub fn install(machine: &'a Machine, lines: &str) -> Scene<'a> {
        machine.install_smoothserve(&programs!());
        let scene = Scene { machine };
        scene.write_shop(lines);
        machine.run("systemctl daemon-reload");
        scene
    }

    /// Writes the file of the shop, with these further lines.
    pub fn write_shop(&self, lines: &str) {
        let lines = format!("port: {PORT}\n{SHOP}{lines}");
        self.machine.add_shop(&example("shop"), &lines);
    }

    /// Installs smoothserve and the shop, and starts them as an administrator does.
    pub fn start(machine: &'a Machine, lines: &str) -> Scene<'a> {
        let scene = Scene::install(machine, lines);
        machine.run("systemctl enable --now smoothserve.socket smoothserve.service");
        assert_eq!(scene.settled().ready(), 3);
        scene
    }

    /// Puts load on the shop, and returns when 300 requests have ended.
    pub async fn load(&self) -> Load {
        let load = Load::start(Options::new(self.address()));
        load.go_on(300).await;
        load
    }

    /// Returns the address of the shop in the network namespace of the machine, where the tests
    /// run.
    pub fn address(&self) -> SocketAddr {
        local(PORT)
    }

    /// Returns the shop in the output of `smoothctl status`.
    pub fn shop(&self) -> Service {
        let text = self.machine.run("smoothctl status --json");
        let mut status: Status = serde_json::from_str(&text).expect("it is JSON");
        status.services.remove("shop").expect("it is configured")
    }

    /// Waits until no service is on its way to another state, and returns the shop.
    pub fn settled(&self) -> Service {
        let is_settled =
            |text: &str| serde_json::from_str(text).is_ok_and(|status: Status| status.settled());
        self.machine.until("smoothctl status --json", is_settled);
        self.shop()
    }

    /// Returns the process number of the manager, as the machine counts.
    pub fn manager(&self) -> u32 {
        self.property("MainPID").parse().expect("it is a number")
    }

    /// Returns the process number of the newest worker, found by its scope.
    pub fn worker(&self) -> u32 {
        let pids = self
            .machine
            .run("cat /sys/fs/cgroup/smoothserve.slice/smoothserve-worker-*.scope/cgroup.procs");
        let newest = pids.split_ascii_whitespace().last();
        newest
            .and_then(|pid| pid.parse().ok())
            .expect("there is one")
    }

    /// Waits until there is a newer worker than `before`.
    pub fn worker_after(&self, before: u32) {
        self.machine.until(
            "cat /sys/fs/cgroup/smoothserve.slice/smoothserve-worker-*.scope/cgroup.procs",
            |pids| pids.lines().any(|pid| pid != before.to_string()),
        );
    }

    /// Returns a property of `smoothserve.service`.
    pub fn property(&self, name: &str) -> String {
        let line = format!("systemctl show --value --property {name} smoothserve.service");
        self.machine.run(&line).trim().to_owned()
    }

    /// Waits until the service is active with another manager than `before`.
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

    /// Makes the manager a program that fails at once, and restarts it.
    pub fn restart_into_failure(&self) {
        self.machine.write(
            "/etc/systemd/system/smoothserve.service.d/broken.conf",
            "[Service]\nExecStart=\nExecStart=/bin/false\n",
        );
        self.machine.run("systemctl daemon-reload");
        let restart = self.machine.try_run("systemctl restart smoothserve");
        assert!(!restart.status.success());
    }

    /// Replaces the executable of the shop with another build.
    pub fn deploy(&self, build: &Build) {
        let new = tempfile::tempdir().expect("a folder can be made");
        let file = new.path().join("shop");
        smoothserve_kit::install(&example("shop"), &file, build).expect("it can be written");
        self.machine.install(&file, "/opt/shop/shop");
    }

    /// Lists all processes in the slice of smoothserve.
    pub fn processes(&self) -> String {
        self.machine.run(
            "find /sys/fs/cgroup/smoothserve.slice -name cgroup.procs -exec cat {} + 2>/dev/null || true",
        )
    }
}

/// Ends the load, and checks that no request was lost.
pub async fn nothing_is_lost(load: Load) -> Report {
    load.go_on(300).await;
    let report = load.stop().await;
    println!("{report}");
    report.assert_nothing_lost();
    report
}
