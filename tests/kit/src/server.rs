//! A running smoothserve, without systemd.
//!
//! No process outlives a test: when a [`Smoothserve`] is dropped, the manager and all processes
//! below it are killed, and the log is printed if the test has failed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};

use crate::Home;
use crate::processes::{self, Process};

/// How long a test waits for an event before it fails. A test that succeeds waits no longer than it
/// has to.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Lets one test of a test binary run at a time, for tests whose load would slow down others.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// The programs under test.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The file of `smoothserve`.
    pub smoothserve: PathBuf,
    /// The file of `smoothctl`.
    pub smoothctl: PathBuf,
}

impl Programs {
    /// Returns the programs that cargo has built beside the running example.
    pub fn beside_examples() -> Programs {
        let running = std::env::current_exe().expect("a program knows its file");
        // Examples are in `target/PROFILE/examples`, programs in `target/PROFILE`.
        let profile = running.parent().and_then(Path::parent);
        let profile = profile.expect("cargo puts examples two folders deep");
        Programs {
            smoothserve: profile.join("smoothserve"),
            smoothctl: profile.join("smoothctl"),
        }
    }
}

/// Returns the programs that cargo has built for this test.
#[macro_export]
macro_rules! programs {
    () => {
        $crate::Programs {
            smoothserve: env!("CARGO_BIN_EXE_smoothserve").into(),
            smoothctl: env!("CARGO_BIN_EXE_smoothctl").into(),
        }
    };
}

/// A running smoothserve.
#[derive(Debug)]
pub struct Smoothserve {
    /// The folders of this smoothserve.
    pub home: Home,
    programs: Programs,
    manager: Child,
    pid: u32,
}

impl Smoothserve {
    /// Starts smoothserve with the configuration in `home`, and waits until no service is on its
    /// way to another state.
    pub async fn start(programs: Programs, home: Home) -> Smoothserve {
        let server = Smoothserve::spawn(programs, home);
        server.settled().await;
        server
    }

    /// Starts smoothserve with the configuration in `home`, and does not wait.
    pub fn spawn(programs: Programs, home: Home) -> Smoothserve {
        Smoothserve::spawn_on(programs, home, None)
    }

    /// Starts smoothserve with the configuration in `home`, connected to the session bus at this
    /// address, if there is one.
    pub fn spawn_on(programs: Programs, home: Home, bus: Option<&str>) -> Smoothserve {
        Smoothserve::spawn_with(programs, home, bus, |command| command)
    }

    /// Starts smoothserve with the configuration in `home`, with a command line and an environment
    /// that `change` has changed, and waits until no service is on its way to another state.
    pub async fn start_with(
        programs: Programs,
        home: Home,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Smoothserve {
        let server = Smoothserve::spawn_with(programs, home, None, change);
        server.settled().await;
        server
    }

    /// Starts smoothserve with the configuration in `home`, with a command line and an environment
    /// that `change` has changed, and does not wait.
    pub fn spawn_with(
        programs: Programs,
        home: Home,
        bus: Option<&str>,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Smoothserve {
        let log = File::create(home.log()).expect("the log can be made");
        let mut command = Command::new(&programs.smoothserve);
        command
            .arg("run")
            .args(["--bus", bus.map_or("none", |_| "session")])
            .envs(bus.map(|address| ("DBUS_SESSION_BUS_ADDRESS", address)))
            .arg("--config")
            .arg(home.config())
            .arg("--run-dir")
            .arg(home.run())
            // What is logged is for the test to say.
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be copied"))
            .stderr(log)
            // A Ctrl-C on the terminal must not reach smoothserve; the program that has started it
            // stops it.
            .process_group(0);
        let manager = change(&mut command).spawn();
        let manager = manager.expect("smoothserve can be started");
        let pid = manager.id().expect("it was not waited for");
        Smoothserve {
            home,
            programs,
            manager,
            pid,
        }
    }

    /// Returns the process number of the manager.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the manager, and what it starts from now on, have few descriptors and little writable
    /// memory: more than it needs, and less than an attack would take.
    pub fn confine(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        for (resource, most) in [(Resource::Nofile, 512), (Resource::Data, 256 << 20)] {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            prlimit(pid, resource, limit).expect("the manager is ours");
        }
    }

    /// Panics if the manager has ever used more than 120,000 KiB of memory. An idle one has used
    /// about 30,000.
    #[track_caller]
    pub fn assert_small(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let mut lines = status.lines();
        let peak = lines.find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let used: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(used < 120_000, "the manager has used {used} KiB");
    }

    /// Returns the path of the private D-Bus socket.
    pub fn bus(&self) -> PathBuf {
        self.home.run().join("bus")
    }

    /// Returns the log up to now.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.log()).unwrap_or_default()
    }

    /// Waits until the log contains this text.
    #[track_caller]
    pub fn says<'a>(&'a self, text: &'a str) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let started = Instant::now();
            while !self.log().contains(text) {
                assert!(
                    started.elapsed() < PATIENCE,
                    "at {caller}: it did not say {text:?}"
                );
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Runs `smoothctl`, and returns its output.
    pub async fn ctl(&self, arguments: &[&str]) -> Output {
        self.ctl_command(arguments)
            .output()
            .await
            .expect("smoothctl can be started")
    }

    /// Returns a `smoothctl` command for this smoothserve, not started.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.smoothctl);
        command
            .args(arguments)
            .env("SMOOTHSERVE_RUN_DIR", self.home.run())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `smoothctl`, checks that it succeeds, and returns its standard output.
    #[track_caller]
    pub fn ok<'a>(&'a self, arguments: &'a [&'a str]) -> impl Future<Output = String> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let output = self.ctl(arguments).await;
            assert!(
                output.status.success(),
                "at {caller}: smoothctl {arguments:?} failed with {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    }

    /// Returns the status of all services, or `None` while smoothserve does not answer.
    pub async fn status(&self) -> Option<Status> {
        let output = self.ctl(&["status", "--json"]).await;
        if !output.status.success() {
            return None;
        }
        let status = serde_json::from_slice(&output.stdout);
        Some(status.expect("the status is the JSON that was agreed on"))
    }

    /// Waits until the status is as wanted, and returns it.
    #[track_caller]
    pub fn until<'a>(
        &'a self,
        wanted: &'a str,
        is_so: impl Fn(&Status) -> bool + 'a,
    ) -> impl Future<Output = Status> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let started = Instant::now();
            let mut last = None;
            while started.elapsed() < PATIENCE {
                if let Some(status) = self.status().await {
                    if is_so(&status) {
                        return status;
                    }
                    last = Some(status);
                }
                sleep(Duration::from_millis(50)).await;
            }
            panic!("at {caller}: {wanted}: not within {PATIENCE:?}; the last state was {last:#?}");
        }
    }

    /// Waits until no service is on its way to another state.
    #[track_caller]
    pub fn settled(&self) -> impl Future<Output = Status> + '_ {
        self.until("everything is settled", Status::settled)
    }

    /// Waits until a service is `running`: all its instances are ready and of the newest
    /// generation, and no rollout is on its way.
    #[track_caller]
    pub fn running<'a>(&'a self, service: &'a str) -> impl Future<Output = Service> + 'a {
        let status = self.until("the service runs", move |status| {
            let service = status.services.get(service);
            service.is_some_and(|service| service.state == "running")
        });
        async move {
            let mut status = status.await;
            status.services.remove(service).expect("it was just seen")
        }
    }

    /// Sends a signal to the manager.
    pub fn signal(&self, signal: Signal) {
        processes::signal_pid(self.pid, signal);
    }

    /// Waits until the manager has exited.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.manager.wait())
            .await
            .expect("smoothserve ends in time")
            .expect("a child can be waited for")
    }

    /// Stops smoothserve by SIGTERM, as a service manager does, and checks that it succeeds and
    /// leaves no process behind.
    pub async fn stop(mut self) {
        let below = processes::descendants(self.pid);
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "smoothserve ended with {status}");
        self.assert_no_process_left(&below);
    }

    /// Panics if one of these processes, or any process in the folders of this smoothserve, still
    /// runs.
    #[track_caller]
    pub fn assert_no_process_left(&self, below: &[Process]) {
        let left: Vec<Process> = below
            .iter()
            .filter(|process| process.runs())
            .cloned()
            .chain(processes::inside(self.home.path()))
            .collect();
        assert!(left.is_empty(), "processes were left: {left:#?}");
    }
}

impl Drop for Smoothserve {
    fn drop(&mut self) {
        let below = processes::descendants(self.pid);
        let _ = self.manager.start_kill();
        for process in below.iter().chain(&processes::inside(self.home.path())) {
            process.signal(Signal::KILL);
        }
        if std::thread::panicking() {
            print_log(&self.home.log());
        }
    }
}

/// Prints the end of the log, to explain why a test has failed.
fn print_log(file: &Path) {
    const LINES: usize = 200;
    let log = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let skipped = lines.len().saturating_sub(LINES);
    eprintln!("--- the log of smoothserve, without its first {skipped} lines");
    for line in &lines[skipped..] {
        eprintln!("{line}");
    }
    eprintln!("--- the end of the log");
}

/// The output of `smoothctl status --json`, as far as tests read it.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The services, by name.
    pub services: BTreeMap<String, Service>,
}

/// A service in a [`Status`].
#[derive(Debug, Clone, Deserialize)]
pub struct Service {
    /// The state: `running`, `rolling`, …
    pub state: String,
    /// The desired number of instances.
    pub wanted: u32,
    /// The newest desired generation.
    pub generation: u64,
    /// The instances, ordered by slot and age.
    pub instances: Vec<Instance>,
    /// The number of instances that exited without being asked to.
    pub crashes: u64,
    /// The last failure of the service.
    pub last_error: Option<Failure>,
}

/// A failure of a service in a [`Status`].
#[derive(Debug, Clone, Deserialize)]
pub struct Failure {
    /// What has failed, and why.
    pub message: String,
}

/// An instance in a [`Status`].
#[derive(Debug, Clone, Deserialize)]
pub struct Instance {
    /// The number of the instance, which is never reused.
    pub id: u64,
    /// The slot, from 1 to the number of instances.
    pub slot: u32,
    /// The generation that the instance runs.
    pub generation: u64,
    /// The process number.
    pub pid: u32,
    /// The address on which the instance listens.
    pub address: String,
    /// The state: `ready`, `draining`, …
    pub state: String,
    /// Why the health check of the instance fails, if it does.
    pub fault: Option<String>,
    /// The number of open requests.
    pub in_flight: u64,
    /// The number of open tunnels, which are connections that have upgraded their protocol.
    pub tunnels: u64,
}

impl Status {
    /// Returns true if no service is on its way to another state.
    pub fn settled(&self) -> bool {
        self.services.values().all(|service| {
            matches!(service.state.as_str(), "running" | "stopped" | "failed")
                && service.instances.len() == service.ready()
        })
    }
}

impl Service {
    /// Returns the number of instances that are ready and healthy.
    pub fn ready(&self) -> usize {
        let instances = self.instances.iter();
        instances
            .filter(|it| it.state == "ready" && it.fault.is_none())
            .count()
    }

    /// Returns the process numbers of the instances, sorted.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.instances.iter().map(|instance| instance.pid).collect();
        pids.sort_unstable();
        pids
    }
}
