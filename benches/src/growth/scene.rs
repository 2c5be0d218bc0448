//! A smoothserve with many services.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::peers::{APART, TOGETHER};
use crate::process::{Process, command_line, cpu_time, move_to, wait_until};

/// A service, as in a file of `services/`.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    pub hosts: Vec<String>,
    pub port: u16,
    pub instances: usize,
    /// The arguments of the instances, which ignore them.
    pub args: String,
}

/// How the cores are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// Every process may use every core.
    Shared,
    /// The worker has a core of its own.
    WorkerAlone,
}

/// A running smoothserve, which ends when this value is dropped.
#[derive(Debug)]
pub struct Scene {
    folder: tempfile::TempDir,
    programs: PathBuf,
    process: Process,
    pub worker: u32,
    pub start: Start,
}

/// The times of the start.
#[derive(Debug, Default)]
pub struct Start {
    /// The times until smoothserve was ready, and until all instances were.
    pub ready: Duration,
    pub all: Duration,
    /// The manager's CPU time until then.
    pub cpu: Duration,
}

impl Scene {
    /// Starts smoothserve, and waits until all instances are ready.
    pub fn start(programs: &Path, services: &[Service], cores: Cores) -> anyhow::Result<Scene> {
        for service in services {
            let taken = TcpStream::connect(("127.0.0.1", service.port)).is_ok();
            ensure!(!taken, "port {} is in use", service.port);
        }
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("services"))?;
        for service in services {
            write(folder.path(), programs, service)?;
        }
        let log = folder.path().join("log");
        let config = folder.path().display().to_string();
        let run = folder.path().join("run").display().to_string();
        let arguments = [
            "run",
            "--config",
            &config,
            "--run-dir",
            &run,
            "--bus",
            "none",
        ];
        let begin = Instant::now();
        let own = match cores {
            Cores::Shared => TOGETHER.others,
            Cores::WorkerAlone => APART.others,
        };
        let process = Process::start(own, &programs.join("smoothserve"), &arguments, &log)?;
        let instances: usize = services.iter().map(|service| service.instances).sum();
        let mut start = Start::default();
        wait_until("all instances", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if start.ready.is_zero() && said.contains(" smoothserve ready") {
                start.ready = begin.elapsed();
            }
            !start.ready.is_zero() && said.matches(" instance ready").count() == instances
        })?;
        start.all = begin.elapsed();
        start.cpu = cpu_time(&[process.pid()])?;
        let is_worker = |pid: &u32| command_line(*pid).starts_with("smoothserve: proxy");
        let worker = process.tree().into_iter().find(is_worker);
        let worker = worker.context("smoothserve has no worker")?;
        if cores == Cores::WorkerAlone {
            move_to(APART.proxy, worker)?;
        }
        Ok(Scene {
            folder,
            programs: programs.to_owned(),
            process,
            worker,
            start,
        })
    }

    /// Returns the process id of the manager.
    pub fn manager(&self) -> u32 {
        self.process.pid()
    }

    /// Writes the file of a service again.
    pub fn write(&self, service: &Service) -> anyhow::Result<()> {
        write(self.folder.path(), &self.programs, service)
    }

    /// Runs smoothctl, and returns what it prints.
    pub fn smoothctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(self.programs.join("smoothctl"))
            .arg("--run-dir")
            .arg(self.folder.path().join("run"))
            .args(arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "smoothctl {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Returns the process ids of the instances, by service.
    pub fn pids(&self) -> anyhow::Result<BTreeMap<String, Vec<u64>>> {
        let status: serde_json::Value =
            serde_json::from_str(&self.smoothctl(&["status", "--json"])?)?;
        let services = status["services"]
            .as_object()
            .context("the status has no services")?;
        let pids = services.iter().map(|(name, service)| {
            let instances = service["instances"].as_array().into_iter().flatten();
            let pids = instances.filter_map(|instance| instance["pid"].as_u64());
            (name.clone(), pids.collect())
        });
        Ok(pids.collect())
    }
}

fn write(folder: &Path, programs: &Path, service: &Service) -> anyhow::Result<()> {
    let user = match rustix::process::geteuid().is_root() {
        true => "user: root\n",
        false => "",
    };
    let text = format!(
        "name: {name}\nserver_name: [{hosts}]\nport: {port}\nexecutable_path: {program}\ninstance_count: {instances}\n\
         args: [\"{args}\"]\n{user}",
        name = service.name,
        hosts = service.hosts.join(", "),
        port = service.port,
        program = programs.join("upstream").display(),
        instances = service.instances,
        args = service.args,
    );
    let file = folder.join(format!("services/{}.yaml", service.name));
    Ok(fs::write(file, text)?)
}
