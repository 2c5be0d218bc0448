//! `smoothserve.yaml`.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::fault::{Fault, Position};
use super::fields::{Fields, Report};
use super::load::Against;
use super::raw::Node;
use super::source::Source;
use super::{machine, raw, value};

/// Every key that `smoothserve.yaml` may have.
pub const GLOBAL_KEYS: &[&str] = &[
    "services_dir",
    "SubConfigDir",
    "default_user",
    "trusted_proxies",
    "forwarded",
    "max_connections",
    "CommandPort",
    "ProxyAddr",
    "log",
];

const UNUSED_KEYS: &[&str] = &["CommandPort", "ProxyAddr", "log"];

const DEFAULT_USER: &str = "www-data";

/// What `smoothserve.yaml` says.
#[derive(Debug)]
pub(super) struct Global {
    pub(super) services_dir: PathBuf,
    /// True: the file names the folder, so it has to exist.
    pub(super) services_dir_named: bool,
    pub(super) default_user: String,
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) forwarded: bool,
    pub(super) max_connections: Option<u32>,
}

impl Global {
    /// The defaults.
    pub(super) fn new(dir: &Path) -> Global {
        Global {
            services_dir: dir.join("services"),
            services_dir_named: false,
            default_user: DEFAULT_USER.to_owned(),
            trusted_proxies: Vec::new(),
            forwarded: false,
            max_connections: None,
        }
    }
}

/// Reads the file of a folder; without one, or where it is wrong, the defaults hold.
pub(super) fn read(dir: &Path, against: Against, notes: &mut Vec<String>) -> (Global, Vec<Fault>) {
    let mut global = Global::new(dir);
    let source = match Source::read(&dir.join(super::FILE)) {
        Ok(Some(source)) => source,
        Ok(None) => return (global, Vec::new()),
        Err(fault) => return (global, vec![fault]),
    };
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
    let Some(fields) = Fields::new(root, GLOBAL_KEYS, report) else {
        return;
    };
    let folders = [
        fields.get("services_dir", report, value::text),
        fields.get("SubConfigDir", report, value::text),
    ];
    if let [Some(_), Some(second)] = &folders {
        report.at(
            second.at,
            "`SubConfigDir` and `services_dir` are the same; keep one",
        );
    }
    if let Some(folder) = folders.into_iter().flatten().next() {
        global.services_dir = super::join(dir, &folder.value);
        global.services_dir_named = true;
        check_folder(&global.services_dir, folder.at, report);
    }
    if let Some(user) = fields.get("default_user", report, value::text) {
        let known = match against {
            Against::Machine => machine::known(machine::Database::Passwd, &user.value),
            Against::Nothing => Ok(()),
        };
        if let Err(message) = known {
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

fn check_folder(folder: &Path, at: Position, report: &mut Report<'_>) {
    let shown = folder.display();
    match folder.metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => report.at(at, format!("{shown} is no folder")),
        Err(error) => report.at(at, format!("the folder {shown} cannot be opened: {error}")),
    }
}
