//! Every key that the files of a configuration may have, and which others are told apart.

use super::elsewhere::{self, Elsewhere};

/// The keys that a mapping may have, and what is said about others.
pub(super) struct KeySet {
    /// Every key that the mapping may have.
    pub(super) known: &'static [&'static str],
    /// Keys that people know from other programs.
    pub(super) elsewhere: &'static [Elsewhere],
    /// Keys that belong elsewhere in the configuration, and whose they are and where.
    pub(super) misplaced: (&'static [&'static str], &'static str),
}

/// The keys of `smoothserve.yaml`.
pub(super) const GLOBAL_SET: &KeySet = &KeySet {
    known: GLOBAL_KEYS,
    elsewhere: elsewhere::OF_ALL,
    misplaced: (
        SERVICE_KEYS,
        "a service; move it to the file of the service",
    ),
};

/// The keys of a file of `services/`.
pub(super) const SERVICE_SET: &KeySet = &KeySet {
    known: SERVICE_KEYS,
    elsewhere: elsewhere::OF_SERVICES,
    misplaced: (GLOBAL_KEYS, "all services; move it to smoothserve.yaml"),
};

/// The keys below `tls`.
pub(super) const TLS_SET: &KeySet = &KeySet {
    known: TLS_KEYS,
    elsewhere: elsewhere::OF_TLS,
    misplaced: (SERVICE_KEYS, "the service; move it out of `tls`"),
};

/// Every key that `smoothserve.yaml` may have.
pub const GLOBAL_KEYS: &[&str] = &[
    "services_dir",
    "SubConfigDir",
    "default_user",
    "trusted_proxies",
    "forwarded",
    "max_connections",
    "proxy_memory_max",
    "log_level",
    "CommandPort",
    "ProxyAddr",
    "log",
];

/// Every key that a file of `services/` may have.
pub const SERVICE_KEYS: &[&str] = &[
    "name",
    "enabled",
    "server_name",
    "port",
    "tls",
    "redirect_https",
    "hsts",
    "listen_address",
    "proxy_protocol",
    "strip_prefix",
    "max_request_body",
    "response_timeout",
    "client_gone_timeout",
    "queue_timeout",
    "max_in_flight",
    "server_ip",
    "start_instance_port",
    "instance_count",
    "executable_path",
    "args",
    "environment",
    "environment_file",
    "working_directory",
    "user",
    "group",
    "bind",
    "upstream_protocol",
    "ready",
    "auto_restart",
    "watch_files",
    "watch_ignore",
    "delay_update_time",
    "delay_running_time",
    "start_timeout",
    "drain_timeout",
    "tunnel_drain_timeout",
    "stop_timeout",
    "stop_signal",
    "rollout",
    "memory_max",
    "memory_high",
    "cpu_quota",
    "tasks_max",
    "limit_nofile",
    "nice",
    "oom_score_adjust",
];

/// Every key below `tls`.
pub const TLS_KEYS: &[&str] = &["certificate", "key", "port"];
