//! The configurations of the proxies, which make all of them do what smoothserve does as it ships.
//!
//! Every proxy looks the host up among several, chooses the instance with the fewest requests,
//! keeps connections to it open, sets `X-Forwarded-*`, logs no requests, and never writes a body to
//! disk.

use std::path::Path;

/// The hosts that every proxy knows, each with instances of its own.
pub const HOSTS: [&str; 5] = [
    "shop.example",
    "blog.example",
    HOST,
    "api.example",
    "docs.example",
];

/// The host that the clients ask for.
pub const HOST: &str = "bench.example";

/// The least number of client connections that each proxy accepts.
const CONNECTIONS: u64 = 10_500;

/// The ports of one proxy, by the kind of instances behind them.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The port before instances on TCP ports.
    pub tcp: u16,
    /// The same, but the kernel reports a connection only once its request is there, as always with
    /// smoothserve.
    pub deferred: u16,
    /// The port before instances on unix sockets.
    pub unix: u16,
    /// The port before instances on TCP ports with TLS, and HTTP/2 if the client speaks it.
    pub tls: u16,
}

/// One host and its instances.
#[derive(Debug, Clone)]
pub struct Service {
    /// The name of the service in smoothserve.
    pub name: String,
    pub host: &'static str,
    /// The addresses of the instances: `ADDRESS:PORT` or the path of a socket.
    pub addresses: Vec<String>,
    /// The ports that lead to the service.
    pub kind: Kind,
}

/// The ports of a proxy that lead to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Unix,
    /// All ports. No client asks for such a service: its host is there to be told apart.
    Other,
}

/// The certificate that every proxy has on its port with TLS.
#[derive(Debug, Clone, Copy)]
pub struct Certificate<'a> {
    /// A folder with the certificate and the key, as `fullchain.pem` and `privkey.pem`.
    pub folder: &'a Path,
    /// A file with both.
    pub file: &'a Path,
}

/// What a configuration depends on.
#[derive(Debug)]
pub struct Setting<'a> {
    pub ports: Ports,
    /// The number of processes or threads that forward requests.
    pub workers: usize,
    /// A folder in which files may be written.
    pub folder: &'a Path,
    /// The number of descriptors that a process may have.
    pub descriptors: u64,
    pub is_root: bool,
    pub services: &'a [Service],
    pub certificate: Certificate<'a>,
}

/// Returns smoothserve's file for a service, which needs no addresses of instances.
pub fn smoothserve(
    service: &Service,
    ports: Ports,
    instances: usize,
    program: &Path,
    certificate: Certificate<'_>,
    is_root: bool,
) -> String {
    let folder = certificate.folder.display();
    let (listen, bind) = match service.kind {
        Kind::Tcp => (
            format!(
                "{}\ntls: {{certificate: {folder}, port: {}}}",
                ports.tcp, ports.tls
            ),
            "port",
        ),
        Kind::Unix => (ports.unix.to_string(), "unix"),
        Kind::Other => (format!("[{}, {}]", ports.tcp, ports.unix), "port"),
    };
    let user = if is_root { "user: root\n" } else { "" };
    format!(
        "name: {}\nserver_name: {}\nport: {listen}\nexecutable_path: {}\ninstance_count: {instances}\nbind: {bind}\n{user}",
        service.name,
        service.host,
        program.display()
    )
}

/// Returns `nginx.conf`. Its buffers hold as much as those of HAProxy and smoothserve; the rest of
/// a body waits in the instance.
pub fn nginx(setting: &Setting<'_>) -> String {
    let Setting {
        ports,
        workers,
        descriptors,
        ..
    } = *setting;
    let file = |name: &str| setting.folder.join(name).display().to_string();
    let temp = file("nginx.temp");
    let upstream = |service: &Service| {
        let scheme = match service.kind {
            Kind::Unix => "unix:",
            Kind::Tcp | Kind::Other => "",
        };
        let addresses = service.addresses.iter();
        let servers: String = addresses
            .map(|address| format!(" server {scheme}{address};"))
            .collect();
        format!(
            "upstream {} {{ least_conn;{servers} keepalive 256; keepalive_requests 1000000000; }}\n",
            service.name
        )
    };
    // nginx takes the options of a port only once, in the first of its servers.
    let server = |service: &Service| {
        let listen = match service.kind {
            Kind::Tcp => format!(
                "listen {}; listen {} deferred; listen {} ssl http2;",
                ports.tcp, ports.deferred, ports.tls
            ),
            Kind::Unix => format!("listen {};", ports.unix),
            Kind::Other => format!(
                "listen {}; listen {}; listen {};",
                ports.tcp, ports.deferred, ports.unix
            ),
        };
        format!(
            "server {{ {listen} server_name {}; location / {{ proxy_pass http://{}; }} }}\n",
            service.host, service.name
        )
    };
    let upstreams: String = setting.services.iter().map(upstream).collect();
    let servers: String = setting.services.iter().map(server).collect();
    format!(
        "{user} daemon off; worker_processes {workers}; pid {pid}; error_log {log};\n\
         worker_rlimit_nofile {descriptors}; events {{ worker_connections {connections}; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0;\n\
         client_body_temp_path {temp}; proxy_temp_path {temp}; fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; \
         scgi_temp_path {temp};\n\
         proxy_buffers 16 16k; proxy_buffer_size 16k; proxy_busy_buffers_size 64k; proxy_max_temp_file_size 0;\n\
         ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_session_cache shared:all:10m;\n\
         map $http_upgrade $kept {{ default \"\"; websocket upgrade; }}\n\
         proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $kept; \
         proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; \
         proxy_set_header X-Forwarded-Host $http_host;\n\
         {upstreams}{servers}}}\n",
        user = if setting.is_root { "user root;" } else { "" },
        pid = file("nginx.pid"),
        log = file("nginx.error"),
        connections = CONNECTIONS.min(descriptors),
        certificate = setting.certificate.folder.join("fullchain.pem").display(),
        key = setting.certificate.folder.join("privkey.pem").display(),
    )
}

/// The files of HAProxy: `haproxy.cfg`, and a map of hosts for each kind of instance.
#[derive(Debug)]
pub struct Haproxy {
    pub config: String,
    /// The name of each map and its content.
    pub maps: [(&'static str, String); 2],
}

/// Returns the files of HAProxy.
pub fn haproxy(setting: &Setting<'_>) -> Haproxy {
    let Setting { ports, workers, .. } = *setting;
    let backend = |service: &Service| {
        let scheme = match service.kind {
            Kind::Unix => "unix@",
            Kind::Tcp | Kind::Other => "",
        };
        let numbered = service.addresses.iter().enumerate();
        let servers: String = numbered
            .map(|(number, address)| format!(" server s{number} {scheme}{address}\n"))
            .collect();
        format!(
            "backend {}\n balance leastconn\n option forwardfor\n \
             http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n \
             http-request set-header X-Forwarded-Host %[req.hdr(host)]\n{servers}",
            service.name
        )
    };
    let frontend = |name: &str, map: &str, binds: &str| {
        format!(
            "frontend {name}\n{binds} use_backend %[req.hdr(host),lower,map_str({})]\n",
            setting.folder.join(map).display()
        )
    };
    let map = |kind: Kind| -> String {
        let services = setting.services.iter();
        let known = services.filter(|service| service.kind == kind || service.kind == Kind::Other);
        known
            .map(|service| format!("{} {}\n", service.host, service.name))
            .collect()
    };
    let backends: String = setting.services.iter().map(backend).collect();
    // A connection needs a descriptor on each side.
    let connections = CONNECTIONS.min(setting.descriptors.saturating_sub(200) / 2);
    let config = format!(
        "global\n nbthread {workers}\n maxconn {connections}\n\
         defaults\n mode http\n http-reuse always\n timeout connect 1s\n timeout client 60s\n timeout server 60s\n \
         timeout http-request 15s\n timeout http-keep-alive 75s\n{}{}{backends}",
        frontend(
            "tcp_front",
            "tcp.map",
            &format!(
                " bind :{}\n bind :{} defer-accept\n bind :{} ssl crt {} alpn h2,http/1.1\n",
                ports.tcp,
                ports.deferred,
                ports.tls,
                setting.certificate.file.display()
            )
        ),
        frontend(
            "unix_front",
            "unix.map",
            &format!(" bind :{}\n", ports.unix)
        ),
    );
    Haproxy {
        config,
        maps: [("tcp.map", map(Kind::Tcp)), ("unix.map", map(Kind::Unix))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports {
        tcp: 1,
        deferred: 2,
        unix: 3,
        tls: 4,
    };

    fn certificate() -> Certificate<'static> {
        Certificate {
            folder: Path::new("/tmp/x/pair"),
            file: Path::new("/tmp/x/pair/both.pem"),
        }
    }

    fn services() -> Vec<Service> {
        let service = |name: &str, host, kind, addresses: &[&str]| Service {
            name: name.to_owned(),
            host,
            addresses: addresses.iter().copied().map(str::to_owned).collect(),
            kind,
        };
        vec![
            service("tcp", HOST, Kind::Tcp, &["127.0.0.1:81", "127.0.0.1:82"]),
            service("unix", HOST, Kind::Unix, &["/run/a", "/run/b"]),
            service("shop", "shop.example", Kind::Other, &["127.0.0.1:83"]),
        ]
    }

    fn setting(services: &[Service]) -> Setting<'_> {
        Setting {
            ports: PORTS,
            workers: 2,
            folder: Path::new("/tmp/x"),
            descriptors: 20_000,
            is_root: true,
            services,
            certificate: certificate(),
        }
    }

    #[track_caller]
    fn assert_says(text: &str, all: &[&str]) {
        for wanted in all {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn nginx_balances_keeps_connections_and_never_writes_a_body_to_disk() {
        let text = nginx(&setting(&services()));
        let upstream =
            "upstream tcp { least_conn; server 127.0.0.1:81; server 127.0.0.1:82; keepalive 256;";
        assert_says(
            &text,
            &[
                upstream,
                "upstream unix { least_conn; server unix:/run/a; server unix:/run/b;",
                "worker_processes 2;",
                "worker_connections 10500;",
                "worker_rlimit_nofile 20000;",
                "access_log off;",
                "proxy_buffers 16 16k;",
                "proxy_max_temp_file_size 0;",
                "proxy_http_version 1.1;",
                "map $http_upgrade $kept { default \"\"; websocket upgrade; }",
                "proxy_set_header Connection $kept;",
                "ssl_certificate /tmp/x/pair/fullchain.pem; ssl_certificate_key /tmp/x/pair/privkey.pem;",
                "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
                "proxy_set_header X-Forwarded-Proto $scheme;",
                "proxy_set_header X-Forwarded-Host $http_host;",
            ],
        );
    }

    #[test]
    fn nginx_tells_hosts_apart_on_each_port() {
        let text = nginx(&setting(&services()));
        let proxied = |name: &str| format!("location / {{ proxy_pass http://{name}; }}");
        assert_says(
            &text,
            &[
                &format!(
                    "listen 1; listen 2 deferred; listen 4 ssl http2; server_name {HOST}; {}",
                    proxied("tcp")
                ),
                &format!("listen 3; server_name {HOST}; {}", proxied("unix")),
                &format!(
                    "listen 1; listen 2; listen 3; server_name shop.example; {}",
                    proxied("shop")
                ),
            ],
        );
    }

    #[test]
    fn haproxy_balances_reuses_connections_and_forwards_who_asked() {
        let text = haproxy(&setting(&services())).config;
        assert_says(
            &text,
            &[
                "nbthread 2\n",
                // HAProxy needs two descriptors for a connection, and some to spare.
                "maxconn 9900\n",
                "http-reuse always\n",
                "backend tcp\n balance leastconn\n option forwardfor\n",
                "set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n",
                "set-header X-Forwarded-Host %[req.hdr(host)]\n server s0 127.0.0.1:81\n server s1 127.0.0.1:82\n",
                "server s0 unix@/run/a\n server s1 unix@/run/b\n",
                " bind :1\n bind :2 defer-accept\n bind :4 ssl crt /tmp/x/pair/both.pem alpn h2,http/1.1\n",
            ],
        );
        assert!(!text.contains("log"), "expected no log of requests\n{text}");
    }

    #[test]
    fn haproxy_looks_hosts_up_in_a_map() {
        let Haproxy { config, maps } = haproxy(&setting(&services()));
        let lookup = |map| format!("use_backend %[req.hdr(host),lower,map_str(/tmp/x/{map})]\n");
        assert_says(&config, &[&lookup("tcp.map"), &lookup("unix.map")]);
        let [tcp, unix] = maps;
        assert_eq!(tcp, ("tcp.map", format!("{HOST} tcp\nshop.example shop\n")));
        assert_eq!(
            unix,
            ("unix.map", format!("{HOST} unix\nshop.example shop\n"))
        );
    }

    #[test]
    fn smoothserve_loads_its_configuration() {
        let with_tls = "1\ntls: {certificate: /tmp/x/pair, port: 4}";
        for (service, listen) in services().iter().zip([with_tls, "3", "[1, 3]"]) {
            let program = Path::new("/usr/bin/true");
            let text = smoothserve(service, PORTS, 4, program, certificate(), true);
            assert_says(
                &text,
                &[
                    &format!("server_name: {}\n", service.host),
                    &format!("port: {listen}\n"),
                    "instance_count: 4\n",
                ],
            );
        }
    }
}
