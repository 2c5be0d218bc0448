//! A message bus for one test alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use smoothserve_kit::PATIENCE;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A `dbus-daemon`, which is ended when this value is dropped.
pub struct Daemon {
    folder: TempDir,
    process: Child,
}

impl Daemon {
    /// Starts a daemon whose policy allows everything, so that only smoothserve refuses calls.
    pub async fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "<busconfig>\
             <type>session</type>\
             <listen>unix:path={}/socket</listen>\
             <auth>EXTERNAL</auth>\
             <policy context=\"default\">\
             <allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
             </policy>\
             </busconfig>",
            folder.path().display()
        );
        fs::write(folder.path().join("config"), config).unwrap();
        let process = spawn(&folder).await;
        Daemon { folder, process }
    }

    /// Returns the address of the bus.
    pub fn address(&self) -> String {
        format!("unix:path={}/socket", self.folder.path().display())
    }

    /// Kills the daemon, as a crash would.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Starts a new daemon at the same address.
    pub async fn start_again(&mut self) {
        self.process = spawn(&self.folder).await;
    }
}

async fn spawn(folder: &TempDir) -> Child {
    let mut process = Command::new("dbus-daemon")
        .arg("--config-file")
        .arg(folder.path().join("config"))
        .args(["--nofork", "--nopidfile", "--print-address"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("this test needs a dbus-daemon");
    // The daemon prints its address once it listens.
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let address = timeout(PATIENCE, lines.next_line()).await;
    address
        .unwrap()
        .unwrap()
        .expect("the daemon says where it is");
    process
}
