//! The three proxies, before the same instances: those that smoothserve has started.
//!
//! What each does is in [`crate::configs`].

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::process::{Resource, getrlimit};

use crate::configs::{self, Certificate, HOST, HOSTS, Haproxy, Kind, Ports, Service, Setting};
use crate::load::ask_once;
use crate::process::{Process, command_line, move_to, wait_until};

/// Who runs where.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// Each proxy has a worker for each of these.
    pub proxy: &'static [usize],
    /// The instances, and who asks.
    pub others: &'static [usize],
}

/// The proxy has one to itself: that tells what it can do with it.
pub const APART: Cores = Cores {
    proxy: &[0],
    others: &[1],
};

/// Nobody has one to himself: that tells what is felt on a machine of two.
pub const TOGETHER: Cores = Cores {
    proxy: &[0, 1],
    others: &[0, 1],
};

/// The instances of the host that is asked for. The others have one each.
pub const INSTANCES: usize = 4;

/// The ports of smoothserve, which is the same for deferred connections, of nginx and of HAProxy.
const PORTS: [Ports; 3] = [ports(18610, 0), ports(18620, 1), ports(18630, 1)];

const fn ports(base: u16, deferred: u16) -> Ports {
    Ports {
        tcp: base,
        deferred: base + deferred,
        unix: base + 2,
        tls: base + 3,
    }
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    /// It ends with this.
    _process: Process,
    /// The processes that are its own, without instances. Those that forward are the last.
    pub pids: Vec<u32>,
    pub ports: Ports,
}

impl Peer {
    /// The process that forwards, if there is one core for it.
    pub fn worker(&self) -> u32 {
        *self.pids.last().expect("it has a process")
    }
}

/// All of them, smoothserve first. They end when this is dropped.
#[derive(Debug)]
pub struct Peers {
    pub cores: Cores,
    pub peers: Vec<Peer>,
    folder: tempfile::TempDir,
    /// The folder of a certificate and its key, and a file in it that has both.
    pair: PathBuf,
    both: PathBuf,
    programs: PathBuf,
}

impl Peers {
    /// Starts them. The programs of smoothserve and the upstream are in one folder.
    pub fn start(cores: Cores, programs: &Path) -> anyhow::Result<Peers> {
        for ports in PORTS {
            for port in ports.tcp..=ports.tls {
                let taken = TcpStream::connect(("127.0.0.1", port)).is_ok();
                ensure!(
                    !taken,
                    "port {port} is in use; who is it that would be measured?"
                );
            }
        }
        let folder = tempfile::tempdir()?;
        let pair = folder.path().join("pair");
        let mut peers = Peers {
            cores,
            peers: Vec::new(),
            both: pair.join("both.pem"),
            pair,
            folder,
            programs: programs.to_owned(),
        };
        peers.make_certificate()?;
        let mut services = services();
        peers.start_smoothserve(&mut services)?;
        peers.start_nginx(&services)?;
        peers.start_haproxy(&services)?;
        for peer in &peers.peers {
            let Ports {
                tcp,
                deferred,
                unix,
                tls: _,
            } = peer.ports;
            for port in [tcp, deferred, unix] {
                for host in HOSTS {
                    ask_once(port, host, "/", 0).with_context(|| {
                        format!("{} on port {port}, asked for {host}", peer.name)
                    })?;
                }
            }
        }
        Ok(peers)
    }

    /// One that signs itself, but no others.
    fn make_certificate(&self) -> anyhow::Result<()> {
        fs::create_dir(&self.pair)?;
        let (certificate, key) = (self.certificate(), self.pair.join("privkey.pem"));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-newkey", "ec", "-days", "100"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=bench"])
            .args(["-addext", &format!("subjectAltName=DNS:{HOST}")])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .context("openssl is installed by `make bench`")?;
        ensure!(output.status.success(), "{output:?}");
        fs::write(
            &self.both,
            fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?,
        )?;
        Ok(())
    }

    /// The certificate of all of them.
    pub fn certificate(&self) -> PathBuf {
        self.pair.join("fullchain.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it, and learns where its instances are.
    fn start_smoothserve(&mut self, services: &mut [Service]) -> anyhow::Result<()> {
        let [ports, ..] = PORTS;
        let upstream = self.programs.join("upstream");
        let is_root = rustix::process::geteuid().is_root();
        fs::create_dir(self.path("services"))?;
        for service in &*services {
            let file = self.path(&format!("services/{}.yaml", service.name));
            let certificate = Certificate {
                folder: &self.pair,
                file: &self.both,
            };
            let text = configs::smoothserve(
                service,
                ports,
                instance_count(service),
                &upstream,
                certificate,
                is_root,
            );
            fs::write(file, text)?;
        }
        let folder = self.folder.path().display().to_string();
        let run = self.path("run").display().to_string();
        let arguments = [
            "run",
            "--config",
            &folder,
            "--run-dir",
            &run,
            "--bus",
            "none",
        ];
        // All that it starts is where it is, and its worker has as many threads as there are cores; that is moved afterwards.
        let log = self.path("smoothserve.log");
        let program = self.programs.join("smoothserve");
        let process = Process::start(self.cores.others, &program, &arguments, &log)?;
        let mut worker = None;
        wait_until("smoothserve", || {
            let is_worker = |pid: &u32| command_line(*pid).starts_with("smoothserve proxy");
            worker = process.tree().into_iter().find(is_worker);
            worker.is_some() && self.find_instances(services).unwrap_or_default()
        })?;
        let worker = worker.context("it has one")?;
        move_to(self.cores.proxy, worker)?;
        self.peers.push(Peer {
            name: "smoothserve",
            pids: vec![process.pid(), worker],
            _process: process,
            ports,
        });
        Ok(())
    }

    /// smoothctl, with the answer that it gives.
    pub fn smoothctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(self.programs.join("smoothctl"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .args(arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "smoothctl {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts an instance that smoothserve does not know.
    pub fn start_stranger(&self, number: u32) -> anyhow::Result<Process> {
        let socket = format!(
            "SOCKET={}",
            self.path(&format!("stranger-{number}")).display()
        );
        let upstream = self.programs.join("upstream").display().to_string();
        let log = self.path("strangers.log");
        Process::start(
            self.cores.others,
            Path::new("env"),
            &[&socket, &upstream],
            &log,
        )
    }

    /// Puts down the addresses of the instances that are ready, and tells whether these are all.
    fn find_instances(&self, services: &mut [Service]) -> anyhow::Result<bool> {
        let status: serde_json::Value =
            serde_json::from_str(&self.smoothctl(&["status", "--json"])?)?;
        for service in &mut *services {
            let instances = status["services"][&service.name]["instances"].as_array();
            let instances = instances.context("no such service")?.iter();
            let ready = instances.filter(|instance| instance["state"] == "ready");
            let addresses =
                ready.filter_map(|instance| instance["address"].as_str().map(str::to_owned));
            service.addresses = addresses.collect();
        }
        let mut services = services.iter();
        Ok(services.all(|service| service.addresses.len() == instance_count(service)))
    }

    fn start_nginx(&mut self, services: &[Service]) -> anyhow::Result<()> {
        let [_, ports, _] = PORTS;
        let config = self.path("nginx.conf");
        fs::write(&config, configs::nginx(&self.setting(ports, services)))?;
        let arguments = ["-c", &config.display().to_string()];
        // It has a master besides its workers.
        self.start_peer("nginx", &arguments, ports, 1 + self.cores.proxy.len())
    }

    fn start_haproxy(&mut self, services: &[Service]) -> anyhow::Result<()> {
        let [.., ports] = PORTS;
        let Haproxy { config: text, maps } = configs::haproxy(&self.setting(ports, services));
        for (name, map) in maps {
            fs::write(self.path(name), map)?;
        }
        let config = self.path("haproxy.cfg");
        fs::write(&config, text)?;
        let arguments = ["-f", &config.display().to_string()];
        self.start_peer("HAProxy", &arguments, ports, 1)
    }

    fn setting<'a>(&'a self, ports: Ports, services: &'a [Service]) -> Setting<'a> {
        Setting {
            ports,
            workers: self.cores.proxy.len(),
            folder: self.folder.path(),
            descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            is_root: rustix::process::geteuid().is_root(),
            services,
            certificate: Certificate {
                folder: &self.pair,
                file: &self.both,
            },
        }
    }

    /// Starts the program of this name, in small letters, and waits for so many processes.
    fn start_peer(
        &mut self,
        name: &'static str,
        arguments: &[&str],
        ports: Ports,
        processes: usize,
    ) -> anyhow::Result<()> {
        let log = self.path(&format!("{name}.log"));
        let program = name.to_ascii_lowercase();
        let process = Process::start(self.cores.proxy, Path::new(&program), arguments, &log)?;
        let mut pids = Vec::new();
        wait_until(name, || {
            pids = process.tree();
            pids.len() == processes && TcpStream::connect(("127.0.0.1", ports.tcp)).is_ok()
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        self.peers.push(Peer {
            name,
            _process: process,
            pids,
            ports,
        });
        Ok(())
    }
}

/// What there is, without the addresses that are not known yet.
fn services() -> Vec<Service> {
    let service = |name: &str, host, kind| Service {
        name: name.to_owned(),
        host,
        addresses: Vec::new(),
        kind,
    };
    let of_host = |host: &'static str| match host.split_once('.') {
        Some((name, _)) if host != HOST => vec![service(name, host, Kind::Other)],
        _ => vec![
            service("tcp", host, Kind::Tcp),
            service("unix", host, Kind::Unix),
        ],
    };
    HOSTS.into_iter().flat_map(of_host).collect()
}

fn instance_count(service: &Service) -> usize {
    match service.kind {
        Kind::Tcp | Kind::Unix => INSTANCES,
        Kind::Other => 1,
    }
}
