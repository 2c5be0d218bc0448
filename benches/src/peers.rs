//! The three proxies, before the same instances: those that smoothserve has started.
//!
//! Each has one worker on a core of its own, keeps connections to the instances open, sets `X-Forwarded-*`, looks the host
//! up, chooses the instance with the fewest requests, and logs nothing for a request: what smoothserve does as it ships.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::process::{Process, command_line, wait_until};

/// Where the proxies are; the load and the instances have the other core.
pub const PROXY_CORE: usize = 0;
pub const LOAD_CORE: usize = 1;

/// The host that is asked for.
pub const HOST: &str = "bench.example";

const INSTANCES: usize = 4;

/// The ports of a proxy, counted from its base.
const BASES: [u16; 3] = [18610, 18620, 18630];
/// Before instances on TCP ports,
pub const TCP: u16 = 0;
/// with the kernel keeping a connection to itself until its request is there, as smoothserve always has it,
pub const DEFERRED: u16 = 1;
/// and before instances on unix sockets.
pub const UNIX: u16 = 2;

/// A proxy that runs.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    /// It ends with this.
    _process: Process,
    /// The processes that are its own, without instances.
    pub pids: Vec<u32>,
    base: u16,
}

impl Peer {
    /// Where it listens, by [`TCP`], [`DEFERRED`] or [`UNIX`].
    pub fn port(&self, kind: u16) -> u16 {
        // smoothserve is the same for both.
        match (self.name, kind) {
            ("smoothserve", DEFERRED) => self.base + TCP,
            _ => self.base + kind,
        }
    }
}

/// All of them, smoothserve first. They end when this is dropped.
#[derive(Debug)]
pub struct Peers {
    pub peers: Vec<Peer>,
    folder: tempfile::TempDir,
    programs: PathBuf,
}

impl Peers {
    /// Starts them. The programs of smoothserve and the upstream are in one folder.
    pub fn start(programs: &Path) -> anyhow::Result<Peers> {
        for base in BASES {
            for port in base..base + 3 {
                let taken = TcpStream::connect(("127.0.0.1", port)).is_ok();
                ensure!(
                    !taken,
                    "port {port} is in use; who is it that would be measured?"
                );
            }
        }
        let mut peers = Peers {
            peers: Vec::new(),
            folder: tempfile::tempdir()?,
            programs: programs.to_owned(),
        };
        peers.start_smoothserve()?;
        let tcp = peers.instances("tcp")?;
        let unix = peers.instances("unix")?;
        peers.start_nginx(&tcp, &unix)?;
        peers.start_haproxy(&tcp, &unix)?;
        for peer in &peers.peers {
            for kind in [TCP, DEFERRED, UNIX] {
                let listens = || TcpStream::connect(("127.0.0.1", peer.port(kind))).is_ok();
                wait_until(peer.name, listens)?;
            }
        }
        Ok(peers)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_smoothserve(&mut self) -> anyhow::Result<()> {
        let [base, ..] = BASES;
        let upstream = self.programs.join("upstream");
        let user = match rustix::process::geteuid().is_root() {
            true => "user: root\n",
            false => "",
        };
        for (name, port, bind) in [
            ("tcp", base + TCP, ""),
            ("unix", base + UNIX, "bind: unix\n"),
        ] {
            let file = self.path(&format!("services/{name}.yaml"));
            fs::create_dir_all(file.parent().context("it is in a folder")?)?;
            let text = format!(
                "name: {name}\nserver_name: {HOST}\nport: {port}\nexecutable_path: {}\ninstance_count: {INSTANCES}\n{bind}{user}",
                upstream.display()
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
        // All that it starts is where it is; its worker is moved afterwards.
        let log = self.path("smoothserve.log");
        let program = self.programs.join("smoothserve");
        let process = Process::start(Some(LOAD_CORE), &program, &arguments, &log)?;
        let mut worker = None;
        wait_until("smoothserve", || {
            let is_worker = |pid: &u32| command_line(*pid).starts_with("smoothserve proxy");
            worker = process.tree().into_iter().find(is_worker);
            let ready = |service| {
                self.instances(service)
                    .is_ok_and(|found| found.len() == INSTANCES)
            };
            worker.is_some() && ready("tcp") && ready("unix")
        })?;
        let worker = worker.context("it has one")?;
        let moved = Command::new("taskset")
            .args([
                "-a",
                "-c",
                "-p",
                &PROXY_CORE.to_string(),
                &worker.to_string(),
            ])
            .output()?;
        ensure!(moved.status.success(), "{moved:?}");
        self.peers.push(Peer {
            name: "smoothserve",
            pids: vec![process.pid(), worker],
            _process: process,
            base,
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

    /// The addresses of the ready instances of a service.
    fn instances(&self, service: &str) -> anyhow::Result<Vec<String>> {
        let status: serde_json::Value =
            serde_json::from_str(&self.smoothctl(&["status", "--json"])?)?;
        let instances = status["services"][service]["instances"].as_array();
        let instances = instances.context("no such service")?.iter();
        let ready = instances.filter(|instance| instance["state"] == "ready");
        let addresses =
            ready.filter_map(|instance| instance["address"].as_str().map(str::to_owned));
        Ok(addresses.collect())
    }

    fn start_nginx(&mut self, tcp: &[String], unix: &[String]) -> anyhow::Result<()> {
        let base = BASES[1];
        let servers = |addresses: &[String], scheme: &str| -> String {
            let lines = addresses
                .iter()
                .map(|address| format!("server {scheme}{address}; "));
            lines.collect()
        };
        let server = |listen: String, upstream: &str| {
            format!(
                "server {{ {listen} server_name {HOST}; location / {{ proxy_pass http://{upstream}; \
                 proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
                 proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host; }} }}\n"
            )
        };
        let keep = "keepalive 256; keepalive_requests 1000000000;";
        let user = match rustix::process::geteuid().is_root() {
            true => "user root;",
            false => "",
        };
        let text = format!(
            "{user} daemon off; worker_processes 1; pid {pid}; error_log {log};\n\
             worker_rlimit_nofile 20000; events {{ worker_connections 16384; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0;\n\
             client_body_temp_path {temp}; proxy_temp_path {temp}; fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; \
             scgi_temp_path {temp};\n\
             upstream tcp {{ least_conn; {tcp_servers} {keep} }}\n\
             upstream unix {{ least_conn; {unix_servers} {keep} }}\n{tcp_server}{deferred_server}{unix_server} }}\n",
            pid = self.path("nginx.pid").display(),
            log = self.path("nginx.error").display(),
            temp = self.path("nginx.temp").display(),
            tcp_servers = servers(tcp, ""),
            unix_servers = servers(unix, "unix:"),
            tcp_server = server(format!("listen {};", base + TCP), "tcp"),
            deferred_server = server(format!("listen {} deferred;", base + DEFERRED), "tcp"),
            unix_server = server(format!("listen {};", base + UNIX), "unix"),
        );
        let config = self.path("nginx.conf");
        fs::write(&config, text)?;
        let config = config.display().to_string();
        self.start_peer("nginx", Path::new("nginx"), &["-c", &config], base)
    }

    fn start_haproxy(&mut self, tcp: &[String], unix: &[String]) -> anyhow::Result<()> {
        let base = BASES[2];
        let backend = |name: &str, addresses: &[String], scheme: &str| {
            let numbered = addresses.iter().enumerate();
            let servers: String = numbered
                .map(|(number, address)| format!(" server s{number} {scheme}{address}\n"))
                .collect();
            format!(
                "backend {name}\n balance leastconn\n option forwardfor\n \
                 http-request set-header X-Forwarded-Proto http\n \
                 http-request set-header X-Forwarded-Host %[req.hdr(host)]\n{servers}"
            )
        };
        let frontend = |name: &str, binds: String, backend: &str| {
            format!("frontend {name}\n{binds} use_backend {backend} if {{ hdr(host) -i {HOST} }}\n")
        };
        let text = format!(
            "global\n nbthread 1\n maxconn 9000\n\
             defaults\n mode http\n http-reuse always\n timeout connect 1s\n timeout client 60s\n timeout server 60s\n \
             timeout http-request 15s\n{}{}{}{}",
            frontend(
                "tcp_front",
                format!(
                    " bind :{}\n bind :{} defer-accept\n",
                    base + TCP,
                    base + DEFERRED
                ),
                "tcp"
            ),
            frontend("unix_front", format!(" bind :{}\n", base + UNIX), "unix"),
            backend("tcp", tcp, ""),
            backend("unix", unix, "unix@"),
        );
        let config = self.path("haproxy.cfg");
        fs::write(&config, text)?;
        let config = config.display().to_string();
        self.start_peer("HAProxy", Path::new("haproxy"), &["-f", &config], base)
    }

    fn start_peer(
        &mut self,
        name: &'static str,
        program: &Path,
        arguments: &[&str],
        base: u16,
    ) -> anyhow::Result<()> {
        let log = self.path(&format!("{name}.log"));
        let process = Process::start(Some(PROXY_CORE), program, arguments, &log)?;
        let listens = || TcpStream::connect(("127.0.0.1", base)).is_ok();
        wait_until(name, listens).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let pids = process.tree();
        self.peers.push(Peer {
            name,
            _process: process,
            pids,
            base,
        });
        Ok(())
    }
}
