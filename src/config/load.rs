//! The whole configuration: from a folder to a [`Config`] and the report of all its faults.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::conflict::between;
use super::fault::{Fault, Faults, Lack};
use super::global::{self, Global};
use super::machine::{self, Against, Runner};
use super::raw;
use super::service::{self, Draft, ServiceConfig};
use super::source::Source;
use super::written::Written;
use crate::log_level::LogLevel;

/// The folder of the configuration if the command line names no other one.
pub const CONFIG_DIR: &str = "/etc/smoothserve";

/// The most services of one server; more files than that are a mistake.
const MAX_FILES: usize = 1000;

/// A whole, valid configuration: `smoothserve.yaml` and all services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The path of `smoothserve.yaml`, which may be missing.
    #[serde(default)]
    pub file: PathBuf,
    /// When this file was written.
    #[serde(default)]
    pub written: Written,
    /// The user of services whose executable belongs to root and that name no user.
    pub default_user: String,
    /// Peers whose `X-Forwarded-*` headers, and whose headers of the PROXY protocol, are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// True: `Forwarded`, too, tells instances who has sent a request.
    #[serde(default)]
    pub forwarded: bool,
    /// The most client connections of each listener at a time. `None`: as many as there can be.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// How many bytes of memory the proxy may use before it takes measures. `None`: half of what
    /// there is.
    pub proxy_memory_max: Option<u64>,
    /// Which messages are logged, unless the command line or the environment sets a level. `None`:
    /// the default.
    #[serde(default)]
    pub log_level: Option<LogLevel>,
    /// The services by name.
    pub services: BTreeMap<String, Arc<ServiceConfig>>,
    /// Remarks that are no faults, such as keys without any use; the manager logs them once.
    pub notes: Vec<String>,
}

/// What was read from a folder.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The services whose files have no faults. Of two services that collide, the one whose file
    /// comes first by name is there.
    pub config: Config,
    /// The faults of the files themselves.
    pub faults: Faults,
    /// What the machine lacks for services that are in `config`, by name.
    pub lacks: BTreeMap<String, Vec<Lack>>,
}

impl LoadedConfig {
    /// Returns the configuration, and all faults with all that the machine lacks.
    fn with_all_faults(self) -> (Config, Faults) {
        let lacks = self.lacks.into_values().flatten().map(|lack| lack.fault);
        let faults = self.faults.iter().cloned().chain(lacks);
        (self.config, Faults::new(faults.collect()))
    }
}

/// Reads the whole configuration in a folder, or reports all its faults, and all that the machine
/// lacks for it.
pub fn load(dir: &Path) -> Result<Config, Faults> {
    match load_partial(dir) {
        (config, faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(faults),
    }
}

/// Reads the services of a folder that have no faults, and reports all faults. A service that only
/// lacks something on the machine, such as its executable, is read, too: what it lacks may still
/// appear. Of two services that collide, the one whose file comes first by name is kept.
pub fn load_partial(dir: &Path) -> (Config, Faults) {
    load_apart(dir).with_all_faults()
}

/// Reads a folder as [`load_partial`] does, and keeps what the machine lacks apart from the faults
/// of the files: the state of the machine may concern one service only.
pub fn load_apart(dir: &Path) -> LoadedConfig {
    load_against(Against::Machine(runner_of(dir)), dir)
}

/// Reads a folder as [`load_partial`] does, but looks at nothing beside the configuration files
/// themselves: early at boot there are no addresses, perhaps no executables, and nobody to ask for
/// users.
pub fn load_files(dir: &Path) -> (Config, Faults) {
    load_against(Against::Nothing, dir).with_all_faults()
}

fn load_against(against: Against, dir: &Path) -> LoadedConfig {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let mut notes = Vec::new();
    if let Err(error) = std::fs::read_dir(&dir) {
        let faults = vec![whole(&dir, format!("the folder cannot be opened: {error}"))];
        return LoadedConfig {
            config: config(Global::new(&dir), Vec::new(), notes),
            faults: Faults::new(faults),
            lacks: BTreeMap::new(),
        };
    }
    let mut lacks = BTreeMap::new();
    let (global, mut faults) = global::read(&dir, against, &mut notes);
    let files = service_files(&global, &mut notes).unwrap_or_else(|fault| {
        faults.push(fault);
        Vec::new()
    });
    let mut drafts = Vec::new();
    for file in files {
        match read_service(&file, &global, against, &mut notes) {
            Ok(draft) => drafts.push(draft),
            Err(found) => faults.extend(found),
        }
    }
    let good = select(drafts, &mut faults, &mut lacks);
    LoadedConfig {
        config: config(global, good, notes),
        faults: Faults::new(faults),
        lacks,
    }
}

/// Returns who runs smoothserve with the configuration in a folder. An ordinary user who checks the
/// configuration of the system does not run it.
fn runner_of(dir: &Path) -> Runner {
    let is_of_system = dir
        .canonicalize()
        .is_ok_and(|dir| dir == Path::new(CONFIG_DIR));
    match rustix::process::geteuid().is_root() || is_of_system {
        true => Runner::Root,
        false => Runner::Myself,
    }
}

/// Describes what a folder's configuration holds, or reports its faults, for `smoothserve check`.
pub fn check(dir: &Path) -> Result<String, Faults> {
    let config = load(dir)?;
    let services = config.services.len();
    let enabled = config.services.values().filter(|service| service.enabled);
    let instances: u32 = enabled
        .map(|service| u32::from(service.instance_count))
        .sum();
    let plural = |count: u32| if count == 1 { "" } else { "s" };
    let mut text = format!(
        "{}: {services} service{}, {instances} instance{}, no faults\n",
        dir.display(),
        plural(services as u32),
        plural(instances),
    );
    for service in config.services.values() {
        let sites: Vec<String> = service.sites.iter().map(ToString::to_string).collect();
        let listen: Vec<String> = service.listen.iter().map(ToString::to_string).collect();
        let state = if service.enabled {
            format!("× {}", service.instance_count)
        } else {
            "not enabled".to_owned()
        };
        let (name, sites, listen) = (&service.name, sites.join(", "), listen.join(", "));
        text.push_str(&format!("  {name}: {sites} on {listen}, {state}\n"));
    }
    let services = config.services.values();
    let unwatched = services.filter_map(|service| machine::unwatched(service));
    for note in config.notes.iter().cloned().chain(unwatched) {
        text.push_str(&format!("note: {note}\n"));
    }
    Ok(text)
}

fn config(global: Global, drafts: Vec<Draft>, notes: Vec<String>) -> Config {
    let services: BTreeMap<_, _> = drafts
        .into_iter()
        .map(|draft| (draft.service.name.clone(), Arc::new(draft.service)))
        .collect();
    Config {
        file: global.file,
        written: global.written,
        default_user: global.default_user,
        trusted_proxies: global.trusted_proxies,
        forwarded: global.forwarded,
        max_connections: global.max_connections,
        proxy_memory_max: global.proxy_memory_max,
        log_level: global.log_level,
        services,
        notes,
    }
}

fn whole(path: &Path, message: String) -> Fault {
    Fault {
        file: path.to_owned(),
        position: None,
        message,
        source_line: None,
    }
}

/// Lists the files `*.yaml` and `*.yml` by name, without hidden ones, which editors leave behind.
fn service_files(global: &Global, notes: &mut Vec<String>) -> Result<Vec<PathBuf>, Fault> {
    let folder = &global.services_dir;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // A fault of a folder that `smoothserve.yaml` names was reported there.
        Err(_) if global.services_dir_named => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::NotFound && !folder.is_symlink() => {
            notes.push(format!(
                "{}: no such folder, so there are no services",
                folder.display()
            ));
            return Ok(Vec::new());
        }
        Err(error) => {
            return Err(whole(
                folder,
                format!("the folder cannot be opened: {error}"),
            ));
        }
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| whole(folder, format!("cannot be listed: {error}")))?;
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let yaml = matches!(
            path.extension().and_then(OsStr::to_str),
            Some("yaml" | "yml")
        );
        if yaml && !hidden {
            files.push(path);
        }
    }
    if files.len() > MAX_FILES {
        let message = format!("holds {} services; {MAX_FILES} is the limit", files.len());
        return Err(whole(folder, message));
    }
    files.sort();
    Ok(files)
}

fn read_service(
    file: &Path,
    global: &Global,
    against: Against,
    notes: &mut Vec<String>,
) -> Result<Draft, Vec<Fault>> {
    let source = match Source::read(file) {
        Ok(Some(source)) => source,
        Ok(None) => {
            return Err(vec![whole(
                file,
                "has just been removed; try again".to_owned(),
            )]);
        }
        Err(fault) => return Err(vec![fault]),
    };
    let root = raw::parse(&source).map_err(|fault| vec![fault])?;
    let mut draft = service::read(source, root, notes)?;
    if draft.service.proxy_protocol && global.trusted_proxies.is_empty() {
        let line = draft.mark("proxy_protocol").line;
        notes.push(format!(
            "{}:{line}: `proxy_protocol` without `trusted_proxies`: all connections are refused",
            file.display()
        ));
    }
    let missing = match against {
        Against::Machine(runner) => machine::missing(&draft.service, &global.default_user, runner),
        Against::Nothing => Vec::new(),
    };
    if matches!(against, Against::Machine(_)) {
        for (key, message) in machine::remarks(&draft.service, &global.default_user) {
            let at = draft.mark(key);
            notes.push(format!("{}:{}: {message}", file.display(), at.line));
        }
    }
    for ((key, message), hinders) in missing {
        let at = draft.mark(key);
        if draft.service.enabled {
            let fault = draft.source.fault(at, message);
            draft.missing.push(Lack { fault, hinders });
        } else {
            notes.push(format!("{}:{}: {message}", file.display(), at.line));
        }
    }
    Ok(draft)
}

/// Keeps the drafts without a fault that do not collide with one that was kept before them. A draft
/// with a fault of its own takes nothing from others, but what it collides with is reported all the
/// same. A draft that lost to another one is not compared with those behind it.
fn select(
    drafts: Vec<Draft>,
    faults: &mut Vec<Fault>,
    lacks: &mut BTreeMap<String, Vec<Lack>>,
) -> Vec<Draft> {
    let mut good: Vec<bool> = Vec::new();
    let mut standing: Vec<&Draft> = Vec::new();
    let mut standing_good: Vec<bool> = Vec::new();
    for draft in &drafts {
        let mut lost = false;
        for (before, before_good) in standing.iter().zip(&standing_good) {
            for conflict in between(&before.service, &draft.service) {
                let at = draft.mark(conflict.key);
                faults.push(draft.source.fault(at, conflict.message));
                lost |= before_good;
            }
        }
        let kept = !lost && draft.faults.is_empty();
        good.push(kept);
        if !lost {
            standing.push(draft);
            standing_good.push(kept);
        }
    }
    let mut selected = Vec::new();
    for (mut draft, good) in drafts.into_iter().zip(good) {
        let missing = std::mem::take(&mut draft.missing);
        if good {
            if !missing.is_empty() {
                lacks.insert(draft.service.name.clone(), missing);
            }
            selected.push(draft);
        } else {
            faults.extend(missing.into_iter().map(|lack| lack.fault));
            faults.extend(draft.faults);
        }
    }
    selected
}
