//! One file of `services/`: from its keys to a [`ServiceConfig`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fault::{Fault, Position, TOP};
use super::fields::{At, Fields, Report, shorten};
use super::raw::Node;
use super::source::Source;
use super::{Bind, Listen, ProcessConfig, Rollout, ServiceConfig, Site, value};

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
    "queue_timeout",
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

/// No service listens on more addresses and ports.
const MAX_LISTEN: usize = 256;

const DELAY_UPDATE_TIME: Duration = Duration::from_secs(1);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const TUNNEL_DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a file says, before it is compared with the other files and with the machine.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) service: ServiceConfig,
    /// Where the values stand.
    marks: BTreeMap<&'static str, Position>,
    pub(super) source: Source,
    /// In this file alone.
    pub(super) faults: Vec<Fault>,
    /// What the machine lacks for it at the moment, such as its executable.
    pub(super) missing: Vec<Fault>,
}

impl Draft {
    /// Where a key's value stands; the top of the file if it is left out.
    pub(super) fn mark(&self, key: &str) -> Position {
        self.marks.get(key).copied().unwrap_or(TOP)
    }
}

/// Reads a file. Without a name, a port or an executable there is no draft, only faults.
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
    let Some(fields) = Fields::new(root, SERVICE_KEYS, &mut report) else {
        return Err(report.faults);
    };
    let mut reader = Reader {
        fields,
        folder: source.path.parent().unwrap_or(Path::new("/")).to_owned(),
        marks: BTreeMap::new(),
        report,
    };
    let service = reader.service(&source.path, notes);
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

/// Goes through the keys of one file.
pub(super) struct Reader<'s> {
    fields: Fields,
    /// Of the file; relative paths begin here.
    pub(super) folder: PathBuf,
    pub(super) marks: BTreeMap<&'static str, Position>,
    pub(super) report: Report<'s>,
}

impl Reader<'_> {
    fn service(&mut self, file: &Path, notes: &mut Vec<String>) -> Option<ServiceConfig> {
        // Every key is read before anything is given up, so that every fault is reported.
        let name = self.name();
        let ports = self.ports();
        let executable = self.path_needed("executable_path");
        let enabled = self.get("enabled", value::boolean).unwrap_or(true);
        let sites = self.sites();
        let mut ports = ports.unwrap_or_default();
        let tls = self.tls(&ports);
        let has_plain = !ports.is_empty();
        ports.extend(tls.iter().flat_map(|tls| &tls.ports));
        let strip_prefix = self.strip_prefix(&sites);
        let listen = self.listen(&ports);
        let proxy_protocol = self.get("proxy_protocol", value::boolean);
        let handling = self.handling(tls.as_ref(), has_plain);
        let instance_count = self.get("instance_count", value::count).unwrap_or(1);
        let auto_restart = self.get("auto_restart", value::boolean).unwrap_or(false);
        let delay_update_time = self.get("delay_update_time", value::duration);
        let (delay_running_time, start_timeout) = self.start_times();
        let drain_timeout = self.get("drain_timeout", value::duration);
        let tunnel_drain_timeout = self.get("tunnel_drain_timeout", value::duration);
        let stop_timeout = self.get("stop_timeout", value::duration);
        let rollout = self.rollout();
        let base = executable
            .as_deref()
            .and_then(Path::parent)
            .map_or_else(|| self.folder.clone(), Path::to_owned);
        let watch_files = self.watch_files(&base);
        let process = self.process(executable.clone().unwrap_or_default());
        self.check_range(&process, instance_count, &listen, file, notes);
        executable?;
        Some(ServiceConfig {
            name: name?,
            file: file.to_owned(),
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
            delay_update_time: delay_update_time.unwrap_or(DELAY_UPDATE_TIME),
            delay_running_time,
            start_timeout,
            drain_timeout: drain_timeout.unwrap_or(DRAIN_TIMEOUT),
            tunnel_drain_timeout: tunnel_drain_timeout.unwrap_or(TUNNEL_DRAIN_TIMEOUT),
            stop_timeout: stop_timeout.unwrap_or(STOP_TIMEOUT),
            rollout,
        })
    }

    /// The value of a key, marked with where it stands.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        meaning: super::fields::Meaning<T>,
    ) -> Option<T> {
        self.get_at(key, meaning).map(|found| found.value)
    }

    pub(super) fn get_at<T>(
        &mut self,
        key: &'static str,
        meaning: super::fields::Meaning<T>,
    ) -> Option<At<T>> {
        let found = self.fields.get(key, &mut self.report, meaning)?;
        self.marks.insert(key, found.at);
        Some(found)
    }

    fn need<T>(&mut self, key: &'static str, meaning: super::fields::Meaning<T>) -> Option<At<T>> {
        let found = self.fields.need(key, &mut self.report, meaning)?;
        self.marks.insert(key, found.at);
        Some(found)
    }

    fn name(&mut self) -> Option<String> {
        let At { at, value: name } = self.need("name", value::text)?;
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
        self.report.at(at, format!("`name` is `{shown}`; {fault}"));
        None
    }

    fn ports(&mut self) -> Option<Vec<u16>> {
        // With TLS it may be the only kind of port.
        let ports = match self.fields.key("tls") {
            Some(_) => self.get_at("port", value::ports)?.value,
            None => self.need("port", value::ports)?.value,
        };
        let mut seen: Vec<u16> = ports.iter().map(|port| port.value).collect();
        seen.sort_unstable();
        seen.dedup();
        Some(seen)
    }

    /// Every address with every port.
    fn listen(&mut self, ports: &[u16]) -> Vec<Listen> {
        let mut addresses = Vec::new();
        for At { at, value: address } in self
            .get("listen_address", value::addresses)
            .unwrap_or_default()
        {
            // The proxy's socket on `::` takes IPv4 as well, which is what leaving the key out means.
            let address = Some(address.to_canonical()).filter(|a| *a != IpAddr::from([0u16; 8]));
            if address.is_some_and(|address| address.is_multicast()) {
                self.report
                    .at(at, "a multicast address takes no connections");
            }
            let wider = addresses
                .iter()
                .find(|other| **other != address && super::conflict::overlap(**other, address));
            if let Some(wider) = wider {
                let (wider, this) = (
                    super::conflict::extent(*wider),
                    super::conflict::extent(address),
                );
                self.report.at(
                    at,
                    format!(
                        "`listen_address` has {wider} and {this}; one includes the other, keep one"
                    ),
                );
            } else if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            addresses.push(None);
        }
        let mut listen: Vec<Listen> = addresses
            .iter()
            .flat_map(|&address| ports.iter().map(move |&port| Listen { address, port }))
            .collect();
        listen.sort_unstable();
        if listen.len() > MAX_LISTEN {
            let at = self.fields.key("port").unwrap_or(TOP);
            let count = listen.len();
            self.report.at(
                at,
                format!("the proxy would listen on {count} addresses and ports; {MAX_LISTEN} is the limit"),
            );
            listen.truncate(MAX_LISTEN);
        }
        listen
    }

    fn sites(&mut self) -> Vec<Site> {
        let Some(words) = self.get("server_name", value::words) else {
            return vec![Site {
                host: crate::ipc::Host::Any,
                path: "/".to_owned(),
            }];
        };
        let mut sites = Vec::new();
        for At { at, value: text } in words {
            match Site::parse(&text) {
                Ok(site) => sites.push(site),
                Err(why) => self.report.at(at, format!("`server_name`: {why}")),
            }
        }
        sites.sort();
        sites.dedup();
        sites
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.get(key, value::text)?;
        Some(super::join(&self.folder, &path))
    }

    fn path_needed(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.need(key, value::text)?.value;
        Some(super::join(&self.folder, &path))
    }

    fn watch_files(&mut self, base: &Path) -> Vec<PathBuf> {
        let files = self.get("watch_files", value::strings).unwrap_or_default();
        files
            .iter()
            .map(|file| super::join(base, &file.value))
            .collect()
    }

    fn rollout(&mut self) -> Rollout {
        let choices = |node: &Node, key: &str, report: &mut Report<'_>| {
            let choices = [
                ("start-first", Rollout::StartFirst),
                ("in-place", Rollout::InPlace),
            ];
            value::choice(node, key, report, &choices)
        };
        self.get("rollout", choices).unwrap_or(Rollout::StartFirst)
    }

    /// `delay_running_time` and `start_timeout`, which has to leave time behind the delay.
    fn start_times(&mut self) -> (Duration, Duration) {
        let delay = self
            .get("delay_running_time", value::duration)
            .unwrap_or_default();
        let Some(At { at, value: timeout }) = self.get_at("start_timeout", value::duration) else {
            return (delay, START_TIMEOUT + delay);
        };
        if timeout.is_zero() {
            self.report
                .at(at, "`start_timeout` is 0; no instance starts in no time");
        } else if timeout <= delay {
            self.report.at(
                at,
                format!(
                    "`start_timeout` ({timeout:?}) has to be longer than `delay_running_time` ({delay:?})"
                ),
            );
        }
        (delay, timeout)
    }

    /// The ports of the instances have to exist, and not be those of the proxy.
    fn check_range(
        &mut self,
        process: &ProcessConfig,
        count: u16,
        listen: &[Listen],
        file: &Path,
        notes: &mut Vec<String>,
    ) {
        let Some(start) = process.start_instance_port else {
            return;
        };
        let at = self.fields.key("start_instance_port");
        let at = self.marks.get("start_instance_port").copied().or(at);
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
            self.report.at(
                at,
                format!("{count} instances from port {start} on would end at port {last}; the last one is 65535"),
            );
            return;
        }
        let own = listen.iter().find(|listen| {
            super::conflict::overlap(listen.address, Some(process.address))
                && (u32::from(start)..=last).contains(&u32::from(listen.port))
        });
        if let Some(own) = own {
            self.report.at(
                at,
                format!(
                    "the instances' ports, {start}–{last}, include {}, where the proxy listens; move one of them",
                    own.port
                ),
            );
        }
    }
}
