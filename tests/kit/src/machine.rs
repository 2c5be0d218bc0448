//! A test machine: a real systemd, in namespaces of its own.
//!
//! [`test()`] boots it, which takes about a second, and runs a test on it, in a runtime whose threads are in the machine's
//! network: what the test connects to, listens on the machine's loopback. The files of the machine are a copy-on-write
//! view of this one's, or of another root file system that `SMOOTHSERVE_MACHINE_ROOT` names. Whatever happens to the
//! test, nothing is left of the machine; if the test fails, the machine's journal is printed.

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

/// The program that boots it.
const BOOT: &str = include_str!("machine/boot.sh");

/// Names another root file system than that of the machine that runs the tests.
const ROOT: &str = "SMOOTHSERVE_MACHINE_ROOT";

/// How long a boot may take on a machine that has much else to do.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How much of the journal is printed.
const JOURNAL_LINES: &str = "--lines=400";

/// Between two looks at whether something has happened.
const LOOK: Duration = Duration::from_millis(20);

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    outside: Child,
    /// The number of its first process, as seen from here.
    init: u32,
    /// Where it is put together; empty as seen from here.
    _folder: tempfile::TempDir,
}

/// Boots a machine and runs a test on it.
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
    /// Boots it and waits until all that it starts by itself has been started.
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
        // If the test is killed, the machine ends with it.
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

    /// Its first process, by the number that it has here.
    pub fn first_process(&self) -> u32 {
        self.init
    }

    /// The number that one of its processes has here.
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

    /// A file of the machine as it is reached from here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// Its network namespace.
    fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.init))
    }

    /// A program on the machine, with the environment of a login of root.
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

    /// Runs a line of shell, for as long as a test waits for anything.
    pub fn try_run(&self, line: &str) -> Output {
        let limit = crate::PATIENCE.as_secs().to_string();
        let shell = self
            .command("timeout")
            .args([&limit, "sh", "-c", line])
            .output();
        shell.expect("nsenter, of util-linux, is installed")
    }

    /// Runs a line of shell, which has to succeed, and returns what it writes.
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

    /// Runs a line of shell again and again until what it writes is as it is to be.
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

    /// Writes a file, and the folders on the way to it.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        make_folder_of(&path);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Puts a program there as a deploy does it: another file in the place of the old one.
    pub fn install(&self, program: &Path, path: &str) {
        let path = self.path(path);
        make_folder_of(&path);
        let new = path.with_extension("new");
        fs::copy(program, &new).expect("a program can be copied");
        fs::set_permissions(&new, Permissions::from_mode(0o755)).expect("it is ours");
        fs::rename(&new, &path).expect("it is on the same file system");
    }

    /// Installs smoothserve as `make install` does, and does what a package does after that.
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

    /// Adds a service named `shop` whose instances are the example, with further lines in its file.
    pub fn add_shop(&self, shop: &Path, lines: &str) {
        self.install(shop, "/opt/shop/shop");
        self.write(
            "/etc/smoothserve/services/shop.yaml",
            &format!(
                "name: shop\nexecutable_path: /opt/shop/shop\nargs: [\"-port={{port}}\"]\n{lines}"
            ),
        );
    }

    /// Its journal, as far as it is worth printing.
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

    /// Waits until it has ended by itself.
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
        // Its first process goes last, after all others.
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

/// The only child of `unshare --fork`.
fn first_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}
