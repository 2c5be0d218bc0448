//! The three proxies, before the same instances, which smoothserve has started.
//!
//! [`crate::configs`] says what each of them does.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::process::{Resource, getrlimit};

use crate::configs::{self, Certificate, HOST, HOSTS, Haproxy, Kind, Ports, Service, Setting};
use crate::load::ask_once;
use crate::process::{Process, command_line, move_to, wait_until};

/// The cores of the proxies and of everything else.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// The cores of the proxies; each proxy has one worker for each of them.
    pub proxy: &'static [usize],
    /// The cores of the instances and the clients.
    pub others: &'static [usize],
}

/// The proxy has a core to itself, which shows its capacity.
pub const APART: Cores = Cores {
    proxy: &[0],
    others: &[1],
};

/// All processes share both cores, which shows what clients notice on a machine with two cores.
pub const TOGETHER: Cores = Cores {
    proxy: &[0, 1],
    others: &[0, 1],
};

/// The number of instances of the host that clients ask for. Other hosts have one instance each.
pub const INSTANCES: usize = 4;

/// The ports of smoothserve (whose connections are always deferred), nginx and HAProxy.
const PORTS: [Ports; 3] = [ports(18610, 0), ports(18620, 1), ports(18630, 1)];

const fn ports(base: u16, deferred: u16) -> Ports {
    Ports {
        tcp: base,
        deferred: base + deferred,
        unix: base + 2,
        tls: base + 3,
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    /// The main process of the proxy, which ends when this value is dropped.
    _process: Process,
    /// The processes of the proxy, without instances. The last ones forward requests.
    pub pids: Vec<u32>,
    pub ports: Ports,
}

impl Peer {
    /// Returns the process that forwards requests, if the proxies have one core.
    pub fn worker(&self) -> u32 {
        *self.pids.last().expect("every proxy has a process")
    }
}

/// All proxies, smoothserve first. They end when this value is dropped.
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
    /// Starts the proxies. The programs of smoothserve and the upstream are in one folder.
    pub fn start(cores: Cores, programs: &Path) -> anyhow::Result<Peers> {
        for ports in PORTS {
            for port in ports.tcp..=ports.tls {
                let taken = TcpStream::connect(("127.0.0.1", port)).is_ok();
                ensure!(
                    !taken,
                    "port {port} is in use, so another program would be measured"
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

    /// Makes a self-signed certificate.
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
            .context("cannot run openssl, which `make bench` installs")?;
        ensure!(output.status.success(), "{output:?}");
        fs::write(
            &self.both,
            fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?,
        )?;
        Ok(())
    }

    /// Returns the path of the certificate, which all proxies present.
    pub fn certificate(&self) -> PathBuf {
        self.pair.join("fullchain.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts smoothserve, and finds out the addresses of its instances.
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
        // All processes start on the cores of the others, and the worker starts as many threads as
        // there are such cores; the worker is moved afterwards.
        let log = self.path("smoothserve.log");
        let program = self.programs.join("smoothserve");
        let process = Process::start(self.cores.others, &program, &arguments, &log)?;
        let mut worker = None;
        wait_until("smoothserve", || {
            let is_worker = |pid: &u32| command_line(*pid).starts_with("smoothserve: proxy");
            worker = process.tree().into_iter().find(is_worker);
            worker.is_some() && self.find_instances(services).unwrap_or_default()
        })?;
        let worker = worker.context("smoothserve has no worker")?;
        move_to(self.cores.proxy, worker)?;
        self.peers.push(Peer {
            name: "smoothserve",
            pids: vec![process.pid(), worker],
            _process: process,
            ports,
        });
        Ok(())
    }

    /// Runs smoothctl, and returns what it prints.
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

    /// Notes the addresses of the ready instances, and returns true if all instances are ready.
    fn find_instances(&self, services: &mut [Service]) -> anyhow::Result<bool> {
        let status: serde_json::Value =
            serde_json::from_str(&self.smoothctl(&["status", "--json"])?)?;
        for service in &mut *services {
            let instances = status["services"][&service.name]["instances"].as_array();
            let instances = instances.context("the status lacks a service")?.iter();
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
        // nginx has a master process besides its workers.
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

    /// Starts the program with this lowercase name, and waits until it has this number of
    /// processes.
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

/// Returns all services, whose addresses are not known yet.
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
