//! The global file, `smoothserve.yaml`.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::fault::{Fault, Position, shorten};
use super::fields::{Fields, Report};
use super::keys;
use super::limits::parse_size;
use super::machine::{Against, Database, known};
use super::raw::{self, Node, Value};
use super::source::{Source, join};
use super::value;
use super::written::Written;
use crate::log_level::{LogLevel, LogLevelError};

/// The name of the global file, which is beside the folder of services.
const FILE: &str = "smoothserve.yaml";

/// Keys of an older version, which are accepted and have no effect.
const UNUSED_KEYS: &[&str] = &["CommandPort", "ProxyAddr", "log"];

/// The least that `proxy_memory_max` may be.
const LEAST_MEMORY: u64 = 32 << 20;

/// The value of `default_user` if the file does not set it.
const DEFAULT_USER: &str = "www-data";

/// The settings of `smoothserve.yaml`.
#[derive(Debug)]
pub(super) struct Global {
    /// The path of the file, which may be missing.
    pub(super) file: PathBuf,
    /// When the file was written.
    pub(super) written: Written,
    /// The folder of the services' files.
    pub(super) services_dir: PathBuf,
    /// True: the file names the folder, so it has to exist.
    pub(super) services_dir_named: bool,
    /// The user of services whose executable belongs to root and that name no user.
    pub(super) default_user: String,
    /// Peers whose `X-Forwarded-*` and PROXY headers are trusted.
    pub(super) trusted_proxies: Vec<IpNet>,
    /// True: `Forwarded`, too, tells instances who has sent a request.
    pub(super) forwarded: bool,
    /// The most client connections of each listener at a time.
    pub(super) max_connections: Option<u32>,
    /// How many bytes of memory the proxy may use before it takes measures.
    pub(super) proxy_memory_max: Option<u64>,
    /// Which messages are logged.
    pub(super) log_level: Option<LogLevel>,
}

impl Global {
    /// Makes the settings of a folder without a global file.
    pub(super) fn new(dir: &Path) -> Global {
        Global {
            file: dir.join(FILE),
            written: Written::default(),
            services_dir: dir.join("services"),
            services_dir_named: false,
            default_user: DEFAULT_USER.to_owned(),
            trusted_proxies: Vec::new(),
            forwarded: false,
            max_connections: None,
            proxy_memory_max: None,
            log_level: None,
        }
    }
}

/// Reads the global file of a folder. Without the file, and for keys with a fault, the defaults
/// hold.
pub(super) fn read(dir: &Path, against: Against, notes: &mut Vec<String>) -> (Global, Vec<Fault>) {
    let mut global = Global::new(dir);
    let source = match Source::read(&global.file) {
        Ok(Some(source)) => source,
        Ok(None) => return (global, Vec::new()),
        Err(fault) => return (global, vec![fault]),
    };
    global.written = source.written;
    match raw::parse(&source) {
        Ok(root) => {
            let mut report = Report::new(&source);
            fill(&mut global, root, dir, against, &mut report, notes);
            let faults = report.faults;
            (global, faults)
        }
        Err(fault) => (global, vec![fault]),
    }
}

fn fill(
    global: &mut Global,
    root: Option<Node>,
    dir: &Path,
    against: Against,
    report: &mut Report<'_>,
    notes: &mut Vec<String>,
) {
    let Some(root) = root else {
        return;
    };
    let Some(fields) = Fields::new(root, keys::GLOBAL_SET, report) else {
        return;
    };
    let folders = [
        fields.get("services_dir", report, value::path),
        fields.get("SubConfigDir", report, value::path),
    ];
    if let [Some(_), Some(second)] = &folders {
        report.at(
            second.at,
            "`SubConfigDir` and `services_dir` are the same; keep one",
        );
    }
    if let Some(folder) = folders.into_iter().flatten().next() {
        global.services_dir = join(dir, &folder.value);
        global.services_dir_named = true;
        check_folder(&global.services_dir, folder.at, report);
    }
    if let Some(user) = fields.get("default_user", report, value::text) {
        let found = match against {
            Against::Machine(_) => known(Database::Passwd, &user.value),
            Against::Nothing => Ok(()),
        };
        if let Err(message) = found {
            report.at(user.at, format!("`default_user`: {message}"));
        } else if user.value == "root" {
            report.at(
                user.at,
                "`default_user` is root; services run as root only where their own `user` says so",
            );
        } else {
            global.default_user = user.value;
        }
    }
    if let Some(networks) = fields.get("trusted_proxies", report, value::networks) {
        global.trusted_proxies = networks.value;
    }
    if let Some(forwarded) = fields.get("forwarded", report, value::boolean) {
        global.forwarded = forwarded.value;
    }
    let connections = fields.get("max_connections", report, |node, key, report| {
        let text = value::text(node, key, report)?;
        value::number(node.at, &text, key, 1..=10_000_000, report)
    });
    global.max_connections = connections.map(|most| most.value);
    let memory = fields.get("proxy_memory_max", report, memory);
    global.proxy_memory_max = memory.map(|most| most.value);
    let level = fields.get("log_level", report, |node, key, report| {
        if matches!(node.value, Value::List(_) | Value::Map(_)) {
            let kind = node.kind();
            let message = format!(
                "`{key}` is {kind}; write a level, or directives with commas between them, as in \
                 `{key}: info,h2=debug`"
            );
            report.at(node.at, message);
            return None;
        }
        let text = value::text(node, key, report)?;
        let level: Result<LogLevel, _> = text.parse();
        let refuse = |error: LogLevelError| {
            report.at_part(node.at, error.part(), format!("`{key}`: {error}"));
        };
        level.map_err(refuse).ok()
    });
    global.log_level = level.map(|level| level.value);
    let unused: Vec<&str> = UNUSED_KEYS
        .iter()
        .copied()
        .filter(|key| fields.key(key).is_some())
        .collect();
    if !unused.is_empty() {
        notes.push(format!(
            "{}: {}: not used: control is D-Bus, logs are the journal",
            report.source.path.display(),
            unused.join(", ")
        ));
    }
}

/// Reads how much memory the proxy may use: `512M`.
fn memory(node: &Node, key: &str, report: &mut Report<'_>) -> Option<u64> {
    let text = value::text(node, key, report)?;
    let wrong = match parse_size(&text) {
        Some(bytes) if bytes < LEAST_MEMORY => "the proxy needs at least 32M",
        Some(bytes) => return Some(bytes),
        None => "give a size such as 512M or 1.5G",
    };
    let shown = shorten(&text);
    report.at(node.at, format!("`{key}` is `{shown}`; {wrong}"));
    None
}

fn check_folder(folder: &Path, at: Position, report: &mut Report<'_>) {
    let shown = folder.display();
    match folder.metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => report.at(at, format!("{shown} is no folder")),
        Err(error) => report.at(at, format!("the folder {shown} cannot be opened: {error}")),
    }
}
