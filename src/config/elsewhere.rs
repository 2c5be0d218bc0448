//! Keys that people know from other programs, and what to write here instead.
//!
//! Somebody who comes from Docker Compose, PM2, Supervisor, systemd, nginx or Caddy tries the words
//! of these first. A key without a counterpart has an honest sentence that says what does its work.

/// Keys of other programs that mean the same.
pub(super) struct Elsewhere {
    /// The ways to write the key. Case, `_` and `-` make no difference.
    pub(super) keys: &'static [&'static str],
    /// The keys that it stands for here, which are not missing beside it.
    pub(super) means: &'static [&'static str],
    /// What to do about it, behind `unknown key …; `.
    pub(super) advice: &'static str,
}

/// Shortens the tables below.
const fn of(
    keys: &'static [&'static str],
    means: &'static [&'static str],
    advice: &'static str,
) -> Elsewhere {
    Elsewhere {
        keys,
        means,
        advice,
    }
}

/// Keys in the file of a service.
#[rustfmt::skip]
pub(super) const OF_SERVICES: &[Elsewhere] = &[
    // What runs.
    of(&["command", "cmd", "exec", "exec_start", "entrypoint", "run", "start", "program", "binary", "executable", "exe", "bin"],
       &["executable_path", "args"],
       "write the path of the program as `executable_path`, and its arguments as the list `args`"),
    of(&["script", "interpreter", "exec_interpreter", "interpreter_args", "node_args", "module", "app"],
       &["executable_path", "args"],
       "write the interpreter as `executable_path: /usr/bin/node`, and the script with its options as `args: [server.js]`"),
    of(&["arguments", "argv", "command_args", "exec_args", "parameters", "params", "options", "flags"],
       &["args"],
       "write the list `args: [\"--port\", \"{port}\"]`"),
    of(&["image", "build", "dockerfile", "container", "container_name", "volumes", "networks", "network_mode", "labels", "pull_policy", "platform"],
       &["executable_path"],
       "smoothserve runs programs, not containers; give the program itself as `executable_path`"),
    of(&["env", "envs", "env_vars", "variables", "vars"],
       &["environment"],
       "write `environment:`, and below it lines of `NAME: value`"),
    of(&["env_file", "dotenv", "env_path"],
       &["environment_file"],
       "write `environment_file: /srv/shop/.env`"),
    of(&["cwd", "chdir", "dir", "directory", "workdir", "working_dir", "pwd"],
       &["working_directory"],
       "write `working_directory: /srv/shop`"),
    of(&["uid", "run_as", "username", "owner", "run_as_user"],
       &["user"],
       "write the name of the user as `user: shop`"),
    of(&["gid", "groupname", "run_as_group"],
       &["group"],
       "write the name of the group as `group: shop`"),
    // How many instances, and where they listen.
    of(&["instances", "replicas", "workers", "processes", "numprocs", "scale", "concurrency", "count", "threads", "exec_mode", "cluster"],
       &["instance_count"],
       "write `instance_count: 3`; each instance is a process with a port of its own"),
    of(&["proxy_pass", "upstream", "upstreams", "backend", "backends", "reverse_proxy", "target", "targets", "servers", "proxy_to", "forward_to"],
       &["executable_path", "server_ip", "start_instance_port"],
       "smoothserve starts the instances itself and knows their ports; give the program as `executable_path`"),
    of(&["container_port", "internal_port", "target_port", "app_port", "upstream_port", "backend_port"],
       &["start_instance_port"],
       "smoothserve gives each instance a port of its own, as `{port}` in `args` and as PORT; to choose the first one, write `start_instance_port: 9000`"),
    of(&["socket", "unix_socket", "sock"],
       &["bind"],
       "write `bind: unix`; smoothserve gives each instance a path of its own, as `{socket}` in `args` and as SOCKET"),
    // Which requests.
    of(&["host", "hosts", "hostname", "hostnames", "domain", "domains", "domainname", "vhost", "virtual_host", "server_alias", "server_names", "site", "sites", "url", "base_url"],
       &["server_name"],
       "write the hosts as `server_name: \"shop.example, www.shop.example\"`"),
    of(&["location", "locations", "path", "paths", "path_prefix", "prefix", "route", "routes", "rule", "rules", "base_path", "context_path"],
       &["server_name"],
       "write the path behind the host, as in `server_name: shop.example/api`"),
    of(&["ports", "listen", "listen_port", "expose", "http_port", "bind_port", "port_http", "published_ports"],
       &["port"],
       "write the port for clients as `port: 80`, without the instances' own ones, and its addresses, if not all, as `listen_address`"),
    of(&["address", "bind_address", "listen_ip", "interface"],
       &["listen_address"],
       "write the address for clients as `listen_address`, or that of the instances as `server_ip`"),
    of(&["rewrite", "rewrites", "try_files", "index", "alias", "handle_path"],
       &[],
       "smoothserve does not rewrite paths; `strip_prefix: true` removes the path in `server_name`"),
    of(&["root", "document_root", "docroot", "webroot", "static", "static_files", "public", "public_dir", "file_server"],
       &["executable_path"],
       "smoothserve serves no files itself; start a program that does by `executable_path`, with this folder as its `working_directory`"),
    // TLS.
    of(&["ssl", "ssl_certificate", "ssl_certificate_key", "ssl_cert", "ssl_key", "certificate", "certificates", "cert", "certfile", "keyfile", "tls_cert", "tls_key", "https", "https_port", "port_https"],
       &["tls", "port"],
       "write `tls: {certificate: /etc/letsencrypt/live/shop.example}`, or both files as `tls: {certificate: …, key: …}`"),
    of(&["acme", "letsencrypt", "certbot", "auto_https", "autocert", "email"],
       &["tls", "port"],
       "smoothserve does not get certificates itself; let certbot do it, and name its folder: `tls: {certificate: /etc/letsencrypt/live/shop.example}`"),
    of(&["force_ssl", "force_https", "https_redirect", "ssl_redirect", "redirect_to_https", "http_redirect", "redirect"],
       &["redirect_https"],
       "write `redirect_https: true`"),
    of(&["http2", "h2", "http_version", "protocol", "grpc"],
       &["upstream_protocol"],
       "clients may always use HTTP/2; for instances that speak it, as gRPC does, write `upstream_protocol: h2c`"),
    of(&["websocket", "websockets", "ws", "upgrade"],
       &[],
       "WebSockets need no key; leave it out"),
    // What is done with requests.
    of(&["client_max_body_size", "max_body_size", "body_limit", "body_size", "max_upload_size", "limit_request_body", "request_body"],
       &["max_request_body"],
       "write `max_request_body: 10M`"),
    of(&["proxy_read_timeout", "proxy_send_timeout", "read_timeout", "write_timeout", "request_timeout", "idle_timeout"],
       &["response_timeout"],
       "write `response_timeout: 60s`"),
    of(&["timeout", "timeouts"],
       &[],
       "write which: `response_timeout`, `queue_timeout`, `start_timeout`, `drain_timeout` or `stop_timeout`"),
    of(&["proxy_connect_timeout", "connect_timeout", "keepalive_timeout", "retries", "proxy_next_upstream"],
       &[],
       "smoothserve tries other instances by itself, for as long as `queue_timeout` says"),
    of(&["max_connections", "maxconn", "max_conns", "max_requests", "limit_conn"],
       &["max_in_flight"],
       "write `max_in_flight: 200` for the requests of this service; `max_connections` is a key of smoothserve.yaml"),
    of(&["headers", "add_header", "add_headers", "proxy_set_header", "header_up", "header_down", "request_headers", "response_headers", "cors"],
       &[],
       "smoothserve adds no header fields of yours; instances get X-Forwarded-For, -Proto and -Host, and can send what they like"),
    of(&["gzip", "brotli", "zstd", "compress", "compression", "encode"],
       &[],
       "smoothserve does not compress; let the instances do it"),
    of(&["auth", "basic_auth", "auth_basic", "forward_auth", "allow", "deny", "ip_whitelist", "ip_allowlist"],
       &[],
       "smoothserve does not ask who a client is; let the instances do it"),
    of(&["rate_limit", "rate_limits", "limit_req", "throttle"],
       &[],
       "smoothserve does not count the requests of a client; `max_in_flight` bounds those of the service"),
    of(&["cache", "proxy_cache", "caching", "proxy_buffering"],
       &[],
       "smoothserve does not cache; let the instances send Cache-Control, which browsers follow"),
    of(&["balance", "lb_method", "lb_policy", "load_balancing", "load_balancer", "strategy", "weight", "least_conn", "ip_hash"],
       &[],
       "each request goes to the least busy instance; leave it out"),
    of(&["sticky", "sticky_sessions", "session_affinity", "affinity"],
       &[],
       "smoothserve does not tie clients to instances; keep sessions in a place that all instances share"),
    // Start, health and stop.
    of(&["ready_check", "readiness", "readiness_probe", "health", "healthcheck", "health_check_path", "health_uri", "health_path", "liveness", "liveness_probe", "startup_probe", "probe", "check"],
       &["ready"],
       "write `ready: http:/health`; smoothserve asks that path at the start and every two seconds"),
    of(&["wait_ready", "notify", "sd_notify", "type", "notify_access"],
       &["ready"],
       "if the program reports READY=1 itself, write `ready: notify`, else leave it out"),
    of(&["depends_on", "requires", "wants", "after", "before", "links", "part_of", "binds_to"],
       &[],
       "smoothserve does not order services; an instance that ends because something is missing is started again. To wait for another unit, give smoothserve.service an `After=`"),
    of(&["restart", "restart_policy", "autorestart", "restart_sec", "restart_delay", "startretries", "max_restarts", "respawn", "exp_backoff_restart_delay", "keepalive"],
       &[],
       "an instance that ends is always started again, so leave it out; `auto_restart: true` is for deploys, and replaces instances when their files change"),
    of(&["watch", "autoreload", "reload", "hot_reload", "watch_paths"],
       &["auto_restart", "watch_files"],
       "write `auto_restart: true`, and further files as `watch_files: [./config]`"),
    of(&["ignore_watch", "watch_exclude", "watch_options"],
       &["watch_ignore"],
       "write `watch_ignore: [node_modules, \"*.log\"]`"),
    of(&["autostart", "disabled", "disable", "active", "state", "profiles"],
       &["enabled"],
       "write `enabled: false` for a service that is not to run"),
    of(&["listen_timeout", "min_uptime", "startsecs", "timeout_start_sec", "start_period", "boot_timeout", "startup_timeout", "deploy_timeout"],
       &["start_timeout"],
       "write `start_timeout: 60s` for how long an instance may take to become ready, and `delay_running_time` for the least time"),
    of(&["kill_timeout", "stop_grace_period", "stopwaitsecs", "timeout_stop_sec", "grace_period", "graceful_timeout", "shutdown_timeout", "termination_grace_period_seconds"],
       &["stop_timeout", "drain_timeout"],
       "write `drain_timeout: 30s` for requests that have begun, and `stop_timeout: 10s` for the time from the stop signal to SIGKILL"),
    of(&["kill_signal", "signal", "reload_signal"],
       &["stop_signal"],
       "write `stop_signal: SIGTERM`"),
    of(&["exec_stop", "exec_reload", "exec_start_pre", "exec_start_post", "pre_start", "post_start", "pre_stop", "post_stop", "hooks"],
       &[],
       "smoothserve runs no further commands; call them in a script that ends with `exec`, and give that as `executable_path`"),
    of(&["cron", "cron_restart", "schedule", "runtime_max_sec"],
       &[],
       "smoothserve does nothing by the clock; a timer of systemd can run `smoothctl restart NAME`"),
    of(&["deploy", "update_config", "rolling_update", "rollback", "max_surge", "max_unavailable", "parallel"],
       &["rollout"],
       "instances are always replaced one by one, and a bad version is given up; for an old one that has to go first, write `rollout: in-place`"),
    // What an instance may use.
    of(&["max_memory_restart", "mem_limit", "memory", "memory_limit", "max_memory", "mem", "ram", "mem_reservation", "resources", "limits"],
       &["memory_max"],
       "write `memory_max: 512M`; an instance that needs more is killed and started again"),
    of(&["cpu", "cpus", "cpu_limit", "cpu_shares", "cpu_weight"],
       &["cpu_quota"],
       "write `cpu_quota: 150%` for one and a half CPUs"),
    of(&["ulimit", "ulimits", "rlimit", "nofile", "open_files", "max_open_files", "max_files"],
       &["limit_nofile"],
       "write `limit_nofile: 65536`"),
    of(&["pids_limit", "max_tasks", "max_processes", "limit_nproc"],
       &["tasks_max"],
       "write `tasks_max: 200`"),
    of(&["priority", "niceness"],
       &["nice"],
       "write `nice: 10`"),
    // What is written down.
    of(&["log", "logs", "logging", "log_file", "log_level", "error_file", "out_file", "error_log", "access_log", "stdout", "stderr", "stdout_logfile", "stderr_logfile", "standard_output", "standard_error", "log_date_format", "merge_logs"],
       &[],
       "what instances write goes to the journal, so leave it out; `smoothctl logs NAME` shows it"),
    of(&["description", "comment", "title", "version", "documentation", "namespace"],
       &[],
       "write a comment instead: `# …`"),
    of(&["services", "apps", "service", "server", "http", "unit"],
       &["name", "port", "executable_path"],
       "each service has a file of its own in services/, with its keys at the beginning of the lines"),
];

/// Keys below `tls`.
#[rustfmt::skip]
pub(super) const OF_TLS: &[Elsewhere] = &[
    of(&["cert", "crt", "certfile", "fullchain", "chain", "ssl_certificate", "pem"],
       &["certificate"],
       "write `certificate: /etc/letsencrypt/live/shop.example/fullchain.pem`"),
    of(&["keyfile", "privkey", "private_key", "ssl_certificate_key"],
       &["key"],
       "write `key: /etc/letsencrypt/live/shop.example/privkey.pem`"),
    of(&["acme", "letsencrypt", "certbot", "email", "auto"],
       &["certificate"],
       "smoothserve does not get certificates itself; let certbot do it, and name its folder as `certificate`"),
    of(&["protocols", "min_version", "max_version", "versions", "ciphers", "cipher_suites", "ssl_protocols", "ssl_ciphers"],
       &[],
       "smoothserve speaks TLS 1.2 and 1.3 with safe ciphers; leave it out"),
    of(&["client_ca", "ca", "client_auth", "mtls", "verify_client"],
       &[],
       "smoothserve does not ask clients for certificates"),
    of(&["hosts", "domains", "sni", "server_name"],
       &[],
       "the hosts are those of `server_name` of the service; leave it out"),
];

/// Keys in `smoothserve.yaml`.
#[rustfmt::skip]
pub(super) const OF_ALL: &[Elsewhere] = &[
    of(&["include", "include_dir", "conf_dir", "config_dir", "services_folder", "sites_enabled"],
       &["services_dir"],
       "write `services_dir: ./services`"),
    of(&["user", "www_user", "run_as"],
       &["default_user"],
       "write `default_user: www-data`; a service's own user is the key `user` in its file"),
    of(&["real_ip", "set_real_ip_from", "real_ip_header", "trust_proxy", "trusted_ips"],
       &["trusted_proxies"],
       "write `trusted_proxies: [10.0.0.0/8]`"),
    of(&["worker_connections", "maxconn", "connections", "connection_limit"],
       &["max_connections"],
       "write `max_connections: 20000`"),
    of(&["workers", "worker_processes", "threads"],
       &[],
       "the proxy has a thread for each CPU; leave it out"),
    of(&["memory", "memory_limit", "memory_max", "mem_limit"],
       &["proxy_memory_max"],
       "write `proxy_memory_max: 512M` for the memory of the proxy; that of instances is `memory_max` in the file of a service"),
    of(&["verbosity", "debug", "verbose", "rust_log"],
       &["log_level"],
       "write `log_level: debug`"),
    of(&["services", "apps", "sites", "servers"],
       &[],
       "each service has a file of its own in the folder `services_dir`"),
    of(&["pid", "pidfile", "daemon", "daemonize"],
       &[],
       "smoothserve stays in the foreground, as systemd wants it; leave it out"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::keys::{self, KeySet};

    #[test]
    fn a_key_stands_in_its_table_once_and_is_no_key_of_ours() {
        for KeySet {
            known, elsewhere, ..
        } in [keys::SERVICE_SET, keys::TLS_SET, keys::GLOBAL_SET]
        {
            let mut seen = BTreeSet::new();
            for entry in *elsewhere {
                for key in entry.keys {
                    let plain = key.replace('_', "");
                    assert!(
                        key.chars()
                            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                        "{key}"
                    );
                    assert!(seen.insert(plain.clone()), "{key} stands there twice");
                    assert!(!known.contains(key), "{key} is a key of ours");
                }
            }
        }
    }

    #[test]
    fn advice_names_keys_that_there_are() {
        let all: BTreeSet<&str> = [keys::SERVICE_SET, keys::TLS_SET, keys::GLOBAL_SET]
            .iter()
            .flat_map(|keys| keys.known)
            .copied()
            .collect();
        let no_keys = [
            "smoothctl",
            "#",
            "exec",
            "After=",
            "{port}",
            "{socket}",
            "NAME",
        ];
        for KeySet {
            known, elsewhere, ..
        } in [keys::SERVICE_SET, keys::TLS_SET, keys::GLOBAL_SET]
        {
            for entry in *elsewhere {
                for means in entry.means {
                    assert!(known.contains(means), "{means}");
                }
                for quoted in entry.advice.split('`').skip(1).step_by(2) {
                    let word = quoted.split([' ', ':']).next().unwrap();
                    let is_known = all.contains(word) || no_keys.contains(&word);
                    assert!(is_known, "`{quoted}` in {:?}", entry.advice);
                }
            }
        }
    }
}
