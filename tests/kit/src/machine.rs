//! A test machine: a real systemd, in namespaces of its own.
//!
//! [`test()`] boots a machine, which takes about a second, and runs a test on it, in a runtime
//! whose threads are in the network namespace of the machine: the test connects to the loopback
//! interface of the machine. The files of the machine are a copy-on-write view of this host's root
//! file system, or of another one that `SMOOTHSERVE_MACHINE_ROOT` names. Nothing of a machine
//! outlives its test; if the test fails, the journal of the machine is printed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Programs;
use crate::processes::Process;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The program that boots a machine.
const BOOT: &str = include_str!("machine/boot.sh");

/// The environment variable that names the root file system, if it is not the one of this host.
const ROOT: &str = "SMOOTHSERVE_MACHINE_ROOT";

/// How long a boot may take on a busy host.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// The option of journalctl that limits how much of the journal is printed.
const JOURNAL_LINES: &str = "--lines=400";

/// The pause between two looks at whether something has happened.
const LOOK: Duration = Duration::from_millis(20);

/// A running machine, which is killed when it is dropped.
#[derive(Debug)]
pub struct Machine {
    outside: Child,
    /// The number of the first process of the machine, as the host counts.
    init: u32,
    /// The mount point of the root file system of the machine; empty in the namespace of the host.
    _folder: tempfile::TempDir,
}

/// Boots a machine, and runs a test on it.
pub fn test(body: impl AsyncFnOnce(&Machine)) {
    let machine = Machine::boot();
    let network = machine.network();
    let enter = move || {
        let network = File::open(&network).expect("the machine runs");
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&network),
            Some(LinkNameSpaceType::Network),
        )
        .expect("root may enter a network namespace");
    };
    enter();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(enter)
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(body(&machine));
}

impl Machine {
    /// Boots a machine, and waits until systemd has started all enabled units.
    pub fn boot() -> Machine {
        assert!(
            rustix::process::geteuid().is_root(),
            "a test machine needs root: run the tests as root, or those without a machine by `make check-fast`"
        );
        let folder = tempfile::tempdir().expect("a folder can be made");
        let program = folder.path().join("boot");
        fs::write(&program, BOOT).expect("the folder can be written to");
        let root = folder.path().join("root");
        fs::create_dir(&root).expect("the folder can be written to");
        // If the test is killed, the machine is killed with it.
        let outside = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "sh"])
            .arg(&program)
            .arg(&root)
            .arg(std::env::var_os(ROOT).unwrap_or_else(|| "/".into()))
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("setpriv, of util-linux, is installed");
        let mut machine = Machine {
            outside,
            init: 0,
            _folder: folder,
        };
        let begin = Instant::now();
        while !machine.is_up() {
            let ended = machine.outside.try_wait().expect("it is a child");
            assert!(
                ended.is_none() && begin.elapsed() < BOOT_LIMIT,
                "the test machine does not boot ({ended:?}); it needs namespaces, overlayfs and cgroup2"
            );
            thread::sleep(LOOK);
        }
        machine
    }

    fn is_up(&mut self) -> bool {
        let Some(init) = first_child(self.outside.id()) else {
            return false;
        };
        self.init = init;
        let is_systemd = fs::read_link(format!("/proc/{init}/exe"))
            .is_ok_and(|program| program.ends_with("systemd"));
        if !is_systemd || !self.path("/run/systemd/private").exists() {
            return false;
        }
        let state = self.try_run("systemctl is-system-running");
        let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
        matches!(state.as_str(), "running" | "degraded")
    }

    /// Returns the first process of the machine, by its number on the host.
    pub fn first_process(&self) -> u32 {
        self.init
    }

    /// Returns the number that the process `pid` of the machine has on the host.
    pub fn outside(&self, pid: u32) -> u32 {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.init.to_string());
        let number_there = |here: &str| -> Option<u32> {
            let status = fs::read_to_string(format!("/proc/{here}/status")).ok()?;
            let numbers = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            numbers.split_whitespace().last()?.parse().ok()
        };
        let processes = fs::read_dir("/proc").expect("it is there").flatten();
        let mut names = processes.filter_map(|entry| entry.file_name().into_string().ok());
        let found = names.find(|here| number_there(here) == Some(pid) && namespace(here) == own);
        found
            .and_then(|here| here.parse().ok())
            .unwrap_or_else(|| panic!("the machine has no process {pid}"))
    }

    /// Returns the path by which the host reaches a file of the machine.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// Returns the path of the network namespace of the machine.
    fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.init))
    }

    /// Returns a command that runs a program on the machine, with the environment of a login of
    /// root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["env", "--ignore-environment"])
            .args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"])
            .args(["HOME=/root", "USER=root", "--chdir=/", program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell command on the machine, for at most [`PATIENCE`](crate::PATIENCE).
    pub fn try_run(&self, line: &str) -> Output {
        let limit = crate::PATIENCE.as_secs().to_string();
        let shell = self
            .command("timeout")
            .args([&limit, "sh", "-c", line])
            .output();
        shell.expect("nsenter, of util-linux, is installed")
    }

    /// Runs a shell command on the machine, checks that it succeeds, and returns its standard
    /// output.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{line}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs a shell command on the machine again and again until its output is as wanted.
    pub fn until(&self, line: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let output = self.try_run(line);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if wanted(&text) {
                return text;
            }
            assert!(
                begin.elapsed() < crate::PATIENCE,
                "{line}: still {text:?}, {}",
                String::from_utf8_lossy(&output.stderr)
            );
            thread::sleep(LOOK);
        }
    }

    /// Writes a file of the machine, and makes its folder.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        make_folder_of(&path);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Installs a program on the machine as a deploy does: by renaming a new file.
    pub fn install(&self, program: &Path, path: &str) {
        let path = self.path(path);
        make_folder_of(&path);
        let new = path.with_extension("new");
        fs::copy(program, &new).expect("a program can be copied");
        fs::set_permissions(&new, Permissions::from_mode(0o755)).expect("it is ours");
        fs::rename(&new, &path).expect("it is on the same file system");
    }

    /// Installs smoothserve by `make install`, and does what the package does after its
    /// installation.
    pub fn install_smoothserve(&self, programs: &Programs) {
        let folder = programs
            .smoothserve
            .parent()
            .expect("a file is in a folder");
        let manual = tempfile::tempdir().expect("a folder can be made");
        smoothserve_manual::write(manual.path()).expect("it can be written to");
        let made = Command::new("make")
            .args([
                "--silent",
                "--directory",
                env!("CARGO_MANIFEST_DIR"),
                "--directory=../..",
            ])
            .arg("install")
            .arg(format!("DESTDIR={}", self.path("/").display()))
            .arg(format!("BIN={}", folder.display()))
            .arg(format!("MANUAL={}", manual.path().display()))
            .status();
        assert!(made.expect("make can be started").success());
        self.run(
            "systemd-sysusers smoothserve.conf && systemd-tmpfiles --create smoothserve.conf \
             && journalctl --update-catalog && systemctl daemon-reload && systemctl reload dbus",
        );
    }

    /// Adds a service named `shop` that runs the example service, with these further lines in its
    /// configuration file.
    pub fn add_shop(&self, shop: &Path, lines: &str) {
        self.install(shop, "/opt/shop/shop");
        self.write(
            "/etc/smoothserve/services/shop.yaml",
            &format!(
                "name: shop\nexecutable_path: /opt/shop/shop\nargs: [\"-port={{port}}\"]\n{lines}"
            ),
        );
    }

    /// Returns the last lines of the journal of the machine.
    pub fn journal(&self) -> String {
        let output = self
            .command("journalctl")
            .args(["--no-pager", "--no-hostname", "--output=short-monotonic"])
            .arg(JOURNAL_LINES)
            .output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Waits until the machine has powered off by itself.
    pub fn has_ended(&self) {
        let begin = Instant::now();
        while self.runs() {
            assert!(
                begin.elapsed() < crate::PATIENCE,
                "the machine does not end"
            );
            thread::sleep(LOOK);
        }
    }

    fn runs(&self) -> bool {
        self.init != 0 && Process::of(self.init).is_some()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() && self.init != 0 {
            eprintln!("the journal of the test machine:\n{}", self.journal());
        }
        crate::processes::signal_pid(self.outside.id(), Signal::KILL);
        let _ = self.outside.wait();
        // The first process ends last, after all others of the machine.
        let begin = Instant::now();
        while self.runs() && begin.elapsed() < BOOT_LIMIT {
            thread::sleep(LOOK);
        }
    }
}

fn make_folder_of(path: &Path) {
    let folder = path.parent().expect("a file is in a folder");
    fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}

/// Returns the only child of `unshare --fork`.
fn first_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}
