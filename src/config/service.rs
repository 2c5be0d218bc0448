//! A service: one file of `services/`, from its keys to a [`ServiceConfig`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Lack, Position, TOP, shorten};
use super::fields::{At, Fields, Report};
use super::handling::HandlingConfig;
use super::keys;
use super::listen::{Listen, overlap, plain_ports};
use super::process::{Bind, ProcessConfig};
use super::raw::Node;
use super::reader::Reader;
use super::site::Site;
use super::source::{Source, join};
use super::strip_prefix::StripPrefixConfig;
use super::tls::TlsConfig;
use super::value;
use super::written::Written;
use crate::walk::IgnoredNames;

/// One service, as its file describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// The name, which no other service has.
    pub name: String,
    /// The file that describes the service.
    pub file: PathBuf,
    /// When this file was written.
    #[serde(default)]
    pub written: Written,
    /// False: the service is known but not started.
    pub enabled: bool,
    /// The hosts and paths that the service serves, on every address of `listen`.
    pub sites: Vec<Site>,
    /// The certificate, if the service has one, and the ports that it is for.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// The prefix that is taken off the paths of requests.
    #[serde(default)]
    pub strip_prefix: StripPrefixConfig,
    /// Where the proxy listens for the service, with TLS or without.
    pub listen: Vec<Listen>,
    /// True: connections begin with a header of the PROXY protocol, by which a proxy in front says
    /// whose connections it passes on.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// What is done with its requests.
    #[serde(default)]
    pub handling: HandlingConfig,
    /// The number of instances, at least 1.
    pub instance_count: u16,
    /// What an instance runs, and how. A change of it replaces the instances; a change of any other
    /// field does not.
    pub process: ProcessConfig,
    /// True: smoothserve restarts the service when one of its files changes.
    pub auto_restart: bool,
    /// Absolute paths of files and folders that belong to the service, beside its executable and
    /// its own file.
    pub watch_files: Vec<PathBuf>,
    /// Names of files and folders in `watch_files` that are not watched.
    #[serde(default)]
    pub watch_ignore: IgnoredNames,
    /// How long the files must be quiet before an automatic restart.
    pub delay_update_time: Duration,
    /// The times that bound each state of an instance.
    #[serde(flatten)]
    pub times: Times,
    /// In which order old and new instances stop and start.
    pub rollout: Rollout,
}

/// The times that bound each state of an instance, in the order in which an instance goes through
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The least time between the start of an instance and its first request.
    pub delay_running_time: Duration,
    /// The time an instance has to become ready.
    pub start_timeout: Duration,
    /// The time requests have to end before a draining instance is stopped all the same.
    pub drain_timeout: Duration,
    /// The time an instance has to end its tunnels after the stop signal, before they are cut off.
    #[serde(default)]
    pub tunnel_drain_timeout: Duration,
    /// The time between the stop signal, or the end of the tunnels, and SIGKILL.
    pub stop_timeout: Duration,
}

/// In which order an old instance is stopped and the new one started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rollout {
    /// The new instance is ready before the old one drains.
    StartFirst,
    /// The old instance is gone before the new one starts, on the same port.
    InPlace,
}

impl ServiceConfig {
    /// Returns the words for all files that the service needs, for messages.
    pub fn files(&self) -> String {
        format!("the files of {}", self.name)
    }

    /// Returns true if the service has TLS on this port.
    pub fn has_tls_on(&self, port: u16) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.ports.contains(&port))
    }
}

const DELAY_UPDATE_TIME: Duration = Duration::from_secs(1);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const TUNNEL_DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A service read from its file alone, before it is compared with the other files and with the
/// machine.
#[derive(Debug)]
pub(super) struct Draft {
    /// The service, as far as its file is good.
    pub(super) service: ServiceConfig,
    /// Where the values of keys stand.
    marks: BTreeMap<&'static str, Position>,
    /// The text of the file.
    pub(super) source: Source,
    /// The faults of this file alone.
    pub(super) faults: Vec<Fault>,
    /// What the machine lacks for the service at the moment, such as its executable.
    pub(super) missing: Vec<Lack>,
}

impl Draft {
    /// Returns where the value of a key stands, or the top of the file if the key is left out.
    pub(super) fn mark(&self, key: &str) -> Position {
        self.marks.get(key).copied().unwrap_or(TOP)
    }
}

/// Reads the file of a service. Without a name, a port or an executable there is no draft, only
/// faults.
pub(super) fn read(
    source: Source,
    root: Option<Node>,
    notes: &mut Vec<String>,
) -> Result<Draft, Vec<Fault>> {
    let mut report = Report::new(&source);
    let Some(root) = root else {
        report.whole("is empty; a service has at least `name`, `port` and `executable_path`");
        return Err(report.faults);
    };
    let Some(fields) = Fields::new(root, keys::SERVICE_SET, &mut report) else {
        return Err(report.faults);
    };
    let mut reader = Reader::new(&source, fields, report);
    let service = service(&mut reader, &source, notes);
    let Reader { marks, report, .. } = reader;
    let faults = report.faults;
    match service {
        Some(service) => Ok(Draft {
            service,
            marks,
            source,
            faults,
            missing: Vec::new(),
        }),
        None => Err(faults),
    }
}

/// Reads all keys of a file. Every key is read before anything is given up, so that every fault is
/// reported.
fn service(
    reader: &mut Reader<'_>,
    source: &Source,
    notes: &mut Vec<String>,
) -> Option<ServiceConfig> {
    let file = &source.path;
    let name = name(reader);
    let ports = plain_ports(reader);
    let executable = reader.path_needed("executable_path");
    let enabled = reader.get("enabled", value::boolean).unwrap_or(true);
    let sites = Site::read_all(reader);
    let mut ports = ports.unwrap_or_default();
    let tls = TlsConfig::read(reader, &ports);
    let has_plain = !ports.is_empty();
    ports.extend(tls.iter().flat_map(|tls| &tls.ports));
    let strip_prefix = StripPrefixConfig::read(reader, &sites);
    let listen = Listen::read(reader, &ports);
    let proxy_protocol = reader.get("proxy_protocol", value::boolean);
    let handling = HandlingConfig::read(reader, tls.as_ref(), has_plain);
    let instance_count = reader.get("instance_count", value::count).unwrap_or(1);
    let auto_restart = reader.get("auto_restart", value::boolean).unwrap_or(false);
    let delay_update_time = reader.get("delay_update_time", value::duration);
    let (delay_running_time, start_timeout) = start_times(reader);
    let drain_timeout = reader.get("drain_timeout", value::duration);
    let tunnel_drain_timeout = reader.get("tunnel_drain_timeout", value::duration);
    let stop_timeout = reader.get("stop_timeout", value::duration);
    let rollout = rollout(reader);
    let base = executable
        .as_deref()
        .and_then(Path::parent)
        .map_or_else(|| reader.folder.clone(), Path::to_owned);
    let watch_files = watch_files(reader, &base);
    let watch_ignore = watch_ignore(reader);
    let process = ProcessConfig::read(reader, executable.clone().unwrap_or_default());
    check_range(reader, &process, instance_count, &listen, file, notes);
    executable?;
    Some(ServiceConfig {
        name: name?,
        file: file.to_owned(),
        written: source.written,
        enabled,
        sites,
        tls,
        strip_prefix,
        listen: if listen.is_empty() {
            return None;
        } else {
            listen
        },
        proxy_protocol: proxy_protocol.unwrap_or(false),
        handling,
        instance_count,
        process,
        auto_restart,
        watch_files,
        watch_ignore,
        delay_update_time: delay_update_time.unwrap_or(DELAY_UPDATE_TIME),
        times: Times {
            delay_running_time,
            start_timeout,
            drain_timeout: drain_timeout.unwrap_or(DRAIN_TIMEOUT),
            tunnel_drain_timeout: tunnel_drain_timeout.unwrap_or(TUNNEL_DRAIN_TIMEOUT),
            stop_timeout: stop_timeout.unwrap_or(STOP_TIMEOUT),
        },
        rollout,
    })
}

fn name(reader: &mut Reader<'_>) -> Option<String> {
    let At { at, value: name } = reader.need("name", value::text)?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fault = if !name.chars().all(good) {
        "use letters, digits, `.`, `_` and `-`"
    } else if name.starts_with(['.', '-']) {
        "begin with a letter or a digit"
    } else if name.len() > 64 {
        "use at most 64 characters"
    } else if name == "all" {
        "that word stands for all services in commands; take another"
    } else {
        return Some(name);
    };
    let shown = shorten(&name);
    reader
        .report
        .at(at, format!("`name` is `{shown}`; {fault}"));
    None
}

fn watch_files(reader: &mut Reader<'_>, base: &Path) -> Vec<PathBuf> {
    let files = reader.get("watch_files", value::paths).unwrap_or_default();
    files.iter().map(|file| join(base, &file.value)).collect()
}

/// Reads `watch_ignore`: names, not paths.
fn watch_ignore(reader: &mut Reader<'_>) -> IgnoredNames {
    let Some(names) = reader.get("watch_ignore", value::strings) else {
        return IgnoredNames::default();
    };
    for name in &names {
        if name.value.contains('/') {
            let shown = shorten(&name.value);
            reader.report.at(
                name.at,
                format!("`watch_ignore` has `{shown}`; give names without folders, as in `node_modules` or `*.log`"),
            );
        }
    }
    IgnoredNames::new(names.into_iter().map(|name| name.value).collect())
}

fn rollout(reader: &mut Reader<'_>) -> Rollout {
    let choices = |node: &Node, key: &str, report: &mut Report<'_>| {
        let choices = [
            ("start-first", Rollout::StartFirst),
            ("in-place", Rollout::InPlace),
        ];
        value::choice(node, key, report, &choices)
    };
    reader
        .get("rollout", choices)
        .unwrap_or(Rollout::StartFirst)
}

/// Reads `delay_running_time` and `start_timeout`; the second has to be longer than the first.
fn start_times(reader: &mut Reader<'_>) -> (Duration, Duration) {
    let delay = reader
        .get("delay_running_time", value::duration)
        .unwrap_or_default();
    let Some(At { at, value: timeout }) = reader.get_at("start_timeout", value::duration) else {
        return (delay, START_TIMEOUT + delay);
    };
    if timeout.is_zero() {
        reader
            .report
            .at(at, "`start_timeout` is 0; no instance starts in no time");
    } else if timeout <= delay {
        reader.report.at(
            at,
            format!(
                "`start_timeout` ({timeout:?}) has to be longer than `delay_running_time` ({delay:?})"
            ),
        );
    }
    (delay, timeout)
}

/// Checks the ports that the instances prefer: they have to exist, and must not be the proxy's.
fn check_range(
    reader: &mut Reader<'_>,
    process: &ProcessConfig,
    count: u16,
    listen: &[Listen],
    file: &Path,
    notes: &mut Vec<String>,
) {
    let Some(start) = process.start_instance_port else {
        return;
    };
    let at = reader.key("start_instance_port");
    let at = reader.marks.get("start_instance_port").copied().or(at);
    let at = at.unwrap_or(TOP);
    if process.bind == Bind::Unix {
        notes.push(format!(
            "{}:{}: start_instance_port has no use with `bind: unix`",
            file.display(),
            at.line
        ));
        return;
    }
    let last = u32::from(start) + u32::from(count) - 1;
    if last > u32::from(u16::MAX) {
        reader.report.at(
            at,
            format!("{count} instances from port {start} on would end at port {last}; the last one is 65535"),
        );
        return;
    }
    let own = listen.iter().find(|listen| {
        overlap(listen.address, Some(process.address))
            && (u32::from(start)..=last).contains(&u32::from(listen.port))
    });
    if let Some(own) = own {
        reader.report.at(
            at,
            format!(
                "the instances' ports, {start}–{last}, include {}, where the proxy listens; move one of them",
                own.port
            ),
        );
    }
}
