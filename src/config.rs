//! The configuration: `smoothserve.yaml` and one file a service, read into immutable, validated values.
//!
//! Nothing downstream checks these values again. [`load()`] is all or nothing: a configuration with any fault yields no
//! [`Config`], only the report of all its faults. [`load_partial`] is for the start, when the services that are good
//! shall run whatever the others are, and [`load_files`] for the boot, when there is no machine to compare them with yet.
//!
//! A file goes through these steps: bytes that are bounded text (`source`), a tree whose nodes know their positions
//! (`raw`), keys that are known and stand there once (`fields`), values that mean something (`value`, `site`), a
//! service (`service`) that this machine has all files and users for (`machine`) and that is not in the way of
//! another one (`conflict`).

mod conflict;
mod fault;
mod fields;
mod global;
mod handling;
#[cfg(test)]
mod hostile;
mod limits;
mod load;
mod machine;
mod process;
mod raw;
mod service;
mod site;
mod source;
mod strip_prefix;
mod tls;
mod value;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ipc::{Handling, Host, Protocol};

pub use conflict::{Conflict, conflicts};
pub use fault::{Fault, Faults, Position};
pub use global::GLOBAL_KEYS;
pub use limits::{Amount, Limits, Nofile, ProcessLimits, ScopeLimits};
pub use load::{check, load, load_files, load_partial};
pub use service::SERVICE_KEYS;
pub use strip_prefix::StripPrefix;
pub use tls::TLS_KEYS;

/// The port of https.
const HTTPS: u16 = 443;

/// The file beside the folder of services.
pub const FILE: &str = "smoothserve.yaml";

/// A path from a file, which begins at that file's folder. `..` stays, since a symlink may stand before it.
fn join(folder: &Path, path: &str) -> PathBuf {
    folder.join(path).components().collect()
}

/// A whole, valid configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Who runs services whose executable belongs to root and that name no user.
    pub default_user: String,
    /// Peers whose `X-Forwarded-*` headers, and whose headers of the PROXY protocol, are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether instances are told by `Forwarded`, too, who has sent a request.
    #[serde(default)]
    pub forwarded: bool,
    /// Client connections of each listener at a time. `None`: as many as there can be.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// By name.
    pub services: BTreeMap<String, Arc<ServiceConfig>>,
    /// Remarks that are no faults, such as keys that have no use any more; for the log, once.
    pub notes: Vec<String>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// Unique.
    pub name: String,
    /// The file that describes it.
    pub file: PathBuf,
    /// False: known, not started.
    pub enabled: bool,
    /// What requests it gets: every host and path on every listening address.
    pub sites: Vec<Site>,
    /// Its certificate, if it has one, and the ports that it is for.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// What of their paths its instances do not get.
    #[serde(default)]
    pub strip_prefix: StripPrefix,
    /// Where the proxy listens for it, with TLS or without.
    pub listen: Vec<Listen>,
    /// Whether a proxy in front says there whose connections it passes on.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// How its requests are treated.
    #[serde(default)]
    pub handling: Handling,
    /// How many instances run, at least 1.
    pub instance_count: u16,
    /// What runs. A change here means new instances; a change elsewhere does not.
    pub process: ProcessConfig,
    /// Restart by itself when one of its files changes.
    pub auto_restart: bool,
    /// Files and folders beside the executable and the service's file that belong to it, absolute.
    pub watch_files: Vec<PathBuf>,
    /// How long its files must be quiet before an automatic restart.
    pub delay_update_time: Duration,
    /// The least time between the start of an instance and its first request.
    pub delay_running_time: Duration,
    /// The time that an instance has to become ready.
    pub start_timeout: Duration,
    /// The time that requests have to end before an instance is stopped all the same.
    pub drain_timeout: Duration,
    /// The time that an instance has to end its tunnels after the stop signal, before they are cut off.
    #[serde(default)]
    pub tunnel_drain_timeout: Duration,
    /// The time between the stop signal, or the end of the tunnels, and SIGKILL.
    pub stop_timeout: Duration,
    /// How instances are replaced.
    pub rollout: Rollout,
}

/// A certificate with its key, and where clients are served with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsConfig {
    /// A file in PEM: the service's own certificate, then those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// A file in PEM.
    pub key: PathBuf,
    /// Those of the service's ports that have TLS.
    pub ports: Vec<u16>,
}

impl TlsConfig {
    /// For no port yet.
    pub fn new(certificate: PathBuf, key: PathBuf) -> TlsConfig {
        TlsConfig {
            certificate,
            key,
            ports: Vec::new(),
        }
    }

    /// The port that is not named in addresses, or else the first.
    pub fn main_port(&self) -> Option<u16> {
        let usual = self.ports.iter().find(|port| **port == HTTPS);
        usual.or(self.ports.first()).copied()
    }
}

impl ServiceConfig {
    /// Whether it has TLS on this port.
    pub fn has_tls_on(&self, port: u16) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.ports.contains(&port))
    }
}

/// A host and a path prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Site {
    /// The host.
    pub host: Host,
    /// `/`, or a prefix without a slash at its end.
    pub path: String,
}

/// An address that the proxy listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listen {
    /// `None`: all addresses, IPv4 and IPv6.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        SocketAddr::new(address, self.port).fmt(f)
    }
}

/// All that makes an instance what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessConfig {
    /// Absolute; symlinks are resolved at each start.
    pub executable: PathBuf,
    /// With `{port}`, `{instance}`, `{name}` and `{socket}` still to be filled in.
    pub args: Vec<String>,
    /// Literal values.
    pub environment: BTreeMap<String, String>,
    /// Lines of `KEY=value`, read at each start.
    pub environment_file: Option<PathBuf>,
    /// True: that file may be missing.
    pub environment_file_optional: bool,
    /// `None`: the folder of the executable.
    pub working_directory: Option<PathBuf>,
    /// `None`: the owner of the executable, if smoothserve runs as root.
    pub user: Option<String>,
    /// `None`: the main group of the user.
    pub group: Option<String>,
    /// The address that instances listen on, `server_ip`.
    pub address: IpAddr,
    /// Instance `n` prefers this port plus `n` − 1. `None`: ports are picked.
    pub start_instance_port: Option<u16>,
    /// How an instance listens.
    pub bind: Bind,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// How an instance shows that it is ready.
    pub ready: Ready,
    /// The signal that asks it to stop, as a number.
    pub stop_signal: i32,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
}

/// How an instance gets its listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// It listens on the port that it is told.
    Port,
    /// It listens on the path of a unix socket that it is told.
    Unix,
    /// It gets a listening socket as descriptor 3, by `LISTEN_FDS`.
    Inherit,
}

/// How an instance shows that it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// It accepts a connection.
    Tcp,
    /// `GET` of this path is answered with a status of 200 to 399.
    Http(String),
    /// It sends `READY=1` to `NOTIFY_SOCKET`.
    Notify,
}

/// How instances are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rollout {
    /// The new instance is ready before the old one drains.
    StartFirst,
    /// The old instance is gone before the new one starts, on the same port.
    InPlace,
}
