//! One file of `services/`: from its keys to a [`Service`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::fault::{Fault, Position, TOP};
use super::fields::{At, Fields, Report, nearest, shorten};
use super::raw::Node;
use super::source::Source;
use super::{Bind, Listen, Process, Ready, Rollout, Service, Site, value};

/// Every key that a file of `services/` may have.
pub const SERVICE_KEYS: &[&str] = &[
    "name",
    "enabled",
    "server_name",
    "port",
    "listen_address",
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
    "ready",
    "auto_restart",
    "watch_files",
    "delay_update_time",
    "delay_running_time",
    "start_timeout",
    "drain_timeout",
    "stop_timeout",
    "stop_signal",
    "rollout",
];

/// No service listens on more addresses and ports.
const MAX_LISTEN: usize = 256;

const DELAY_UPDATE_TIME: Duration = Duration::from_secs(1);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Signals by the names that people know, with and without `SIG`.
const SIGNALS: &[(&str, Signal)] = &[
    ("SIGTERM", Signal::TERM),
    ("SIGINT", Signal::INT),
    ("SIGQUIT", Signal::QUIT),
    ("SIGHUP", Signal::HUP),
    ("SIGUSR1", Signal::USR1),
    ("SIGUSR2", Signal::USR2),
    ("SIGALRM", Signal::ALARM),
    ("SIGABRT", Signal::ABORT),
    ("SIGPIPE", Signal::PIPE),
    ("SIGWINCH", Signal::WINCH),
    ("SIGKILL", Signal::KILL),
];

/// What a file says, before it is compared with the other files and with the machine.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) service: Service,
    /// Where the values stand.
    marks: BTreeMap<&'static str, Position>,
    pub(super) source: Source,
    /// In this file alone, and against the machine.
    pub(super) faults: Vec<Fault>,
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
        }),
        None => Err(faults),
    }
}

/// Goes through the keys of one file.
struct Reader<'s> {
    fields: Fields,
    /// Of the file; relative paths begin here.
    folder: PathBuf,
    marks: BTreeMap<&'static str, Position>,
    report: Report<'s>,
}

impl Reader<'_> {
    fn service(&mut self, file: &Path, notes: &mut Vec<String>) -> Option<Service> {
        // Every key is read before anything is given up, so that every fault is reported.
        let name = self.name();
        let ports = self.ports();
        let executable = self.path_needed("executable_path");
        let enabled = self.get("enabled", value::boolean).unwrap_or(true);
        let sites = self.sites();
        let listen = self.listen(&ports.unwrap_or_default());
        let instance_count = self.get("instance_count", value::count).unwrap_or(1);
        let auto_restart = self.get("auto_restart", value::boolean).unwrap_or(false);
        let delay_update_time = self.get("delay_update_time", value::duration);
        let (delay_running_time, start_timeout) = self.start_times();
        let drain_timeout = self.get("drain_timeout", value::duration);
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
        Some(Service {
            name: name?,
            file: file.to_owned(),
            enabled,
            sites,
            listen: if listen.is_empty() {
                return None;
            } else {
                listen
            },
            instance_count,
            process,
            auto_restart,
            watch_files,
            delay_update_time: delay_update_time.unwrap_or(DELAY_UPDATE_TIME),
            delay_running_time,
            start_timeout,
            drain_timeout: drain_timeout.unwrap_or(DRAIN_TIMEOUT),
            stop_timeout: stop_timeout.unwrap_or(STOP_TIMEOUT),
            rollout,
        })
    }

    fn process(&mut self, executable: PathBuf) -> Process {
        let bind = self.bind();
        let environment_file = self.get_at("environment_file", value::text);
        let environment_file_optional = environment_file
            .as_ref()
            .is_some_and(|path| path.value.starts_with('-'));
        Process {
            executable,
            args: self.args(bind),
            environment: self
                .get("environment", value::environment)
                .unwrap_or_default(),
            environment_file: environment_file.map(|path| {
                let path = path.value.strip_prefix('-').unwrap_or(&path.value);
                super::join(&self.folder, path)
            }),
            environment_file_optional,
            working_directory: self.path("working_directory"),
            user: self.get("user", value::text),
            group: self.get("group", value::text),
            address: self.server_ip(),
            start_instance_port: self.get("start_instance_port", value::port),
            bind,
            ready: self.ready(),
            stop_signal: self.stop_signal(),
        }
    }

    /// The value of a key, marked with where it stands.
    fn get<T>(&mut self, key: &'static str, meaning: super::fields::Meaning<T>) -> Option<T> {
        self.get_at(key, meaning).map(|found| found.value)
    }

    fn get_at<T>(
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
        let ports = self.need("port", value::ports)?.value;
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

    fn server_ip(&mut self) -> IpAddr {
        let default = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Some(At { at, value }) = self.get_at("server_ip", value::address) else {
            return default;
        };
        let address = value.to_canonical();
        let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
        if address.is_unspecified() || address.is_multicast() || broadcast {
            self.report.at(
                at,
                format!(
                    "`server_ip` is {address}; give the one address that the instances listen on"
                ),
            );
        }
        address
    }

    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
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

    fn bind(&mut self) -> Bind {
        let choices = |node: &Node, key: &str, report: &mut Report<'_>| {
            let choices = [
                ("port", Bind::Port),
                ("unix", Bind::Unix),
                ("inherit", Bind::Inherit),
            ];
            value::choice(node, key, report, &choices)
        };
        self.get("bind", choices).unwrap_or(Bind::Port)
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

    fn args(&mut self, bind: Bind) -> Vec<String> {
        let Some(args) = self.get("args", value::arguments) else {
            // A service that is told its socket by the environment needs no argument.
            return match bind {
                Bind::Port => vec!["-port={port}".to_owned()],
                Bind::Unix | Bind::Inherit => Vec::new(),
            };
        };
        for arg in &args {
            for word in placeholders(&arg.value) {
                if let Err(why) = check_placeholder(word, bind) {
                    self.report.at_part(arg.at, &format!("{{{word}}}"), why);
                }
            }
        }
        args.into_iter().map(|arg| arg.value).collect()
    }

    fn ready(&mut self) -> Ready {
        let Some(At { at, value: text }) = self.get_at("ready", value::text) else {
            return Ready::Tcp;
        };
        if let Some(path) = text
            .strip_prefix("http:")
            .or_else(|| text.strip_prefix("http"))
        {
            let visible = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            if path.is_empty() {
                return Ready::Http("/".to_owned());
            } else if path.starts_with('/') && !path.starts_with("//") && visible {
                return Ready::Http(path.to_owned());
            }
        }
        match text.as_str() {
            "tcp" => return Ready::Tcp,
            "notify" => return Ready::Notify,
            _ if text.starts_with("http") => self.report.at(
                at,
                format!(
                    "`ready` is `{}`; give a path, as in `http:/health`",
                    shorten(&text)
                ),
            ),
            _ => {
                let words = ["tcp", "http:/path", "notify"];
                let message = value::not_a_choice("ready", &text, &words);
                self.report.at(at, message);
            }
        }
        Ready::Tcp
    }

    fn stop_signal(&mut self) -> i32 {
        let default = Signal::TERM.as_raw();
        let Some(At { at, value: text }) = self.get_at("stop_signal", value::text) else {
            return default;
        };
        let upper = text.to_ascii_uppercase();
        let named = |(name, _): &&(&str, Signal)| *name == upper || name[3..] == upper;
        if let Some((_, signal)) = SIGNALS.iter().find(named) {
            return signal.as_raw();
        }
        match text.parse::<i32>() {
            // SIGSTOP would leave the instance where it is.
            Ok(number) if (1..=64).contains(&number) && number != Signal::STOP.as_raw() => number,
            _ => {
                let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
                let message = match nearest(&text, &names) {
                    Some(_) => value::not_a_choice("stop_signal", &text, &names),
                    None => format!(
                        "`stop_signal` is `{}`; give a name such as SIGTERM, SIGINT, SIGQUIT, or its number",
                        shorten(&text)
                    ),
                };
                self.report.at(at, message);
                default
            }
        }
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
        process: &Process,
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

/// The words in braces, `{port}`. Other braces, as in JSON, are text.
fn placeholders(arg: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    arg.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}').map(|(inner, _)| inner))
        .filter(move |inner| !inner.is_empty() && inner.chars().all(word))
}

fn check_placeholder(word: &str, bind: Bind) -> Result<(), String> {
    match (word, bind) {
        ("name" | "instance", _)
        | ("port", Bind::Port | Bind::Inherit)
        | ("socket", Bind::Unix) => Ok(()),
        ("port", Bind::Unix) => {
            Err("with `bind: unix` there is no `{port}`; use `{socket}`".to_owned())
        }
        ("socket", Bind::Port | Bind::Inherit) => Err(
            "there is a `{socket}` only with `bind: unix`; add that, or use `{port}`".to_owned(),
        ),
        _ => {
            let known = ["port", "instance", "name", "socket"];
            let shown = shorten(word);
            Err(match nearest(word, &known) {
                Some(near) => {
                    format!("unknown placeholder `{{{shown}}}`; did you mean `{{{near}}}`?")
                }
                None => format!(
                    "unknown placeholder `{{{shown}}}`; there are {{port}}, {{instance}}, {{name}} and {{socket}}"
                ),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    #[test]
    fn finds_placeholders_and_leaves_other_braces_alone() {
        let found = |arg| placeholders(arg).collect::<Vec<_>>();
        assert_eq!(found("-port={port}"), ["port"]);
        assert_eq!(found("{name}-{instance}"), ["name", "instance"]);
        assert_eq!(found("{prot}{"), ["prot"]);
        assert_eq!(found("{{port}}"), ["port"]);
        for plain in ["", "{}", "{", "}", "{\"a\": 1}", "{a b}", "{a,b}"] {
            assert!(found(plain).is_empty(), "{plain}");
        }
    }

    #[test]
    fn placeholders_belong_to_a_bind() {
        assert!(check_placeholder("port", Bind::Port).is_ok());
        assert!(check_placeholder("port", Bind::Inherit).is_ok());
        assert!(check_placeholder("socket", Bind::Unix).is_ok());
        assert!(
            check_placeholder("port", Bind::Unix)
                .unwrap_err()
                .contains("{socket}")
        );
        assert!(
            check_placeholder("socket", Bind::Port)
                .unwrap_err()
                .contains("bind: unix")
        );
        assert!(
            check_placeholder("prot", Bind::Port)
                .unwrap_err()
                .contains("did you mean `{port}`")
        );
        assert!(
            check_placeholder("method", Bind::Port)
                .unwrap_err()
                .contains("there are {port}")
        );
    }

    /// What a file means, without the machine around it. Every fault has to stand somewhere in the file.
    fn read_text(bytes: &[u8]) -> Result<Draft, Vec<Fault>> {
        let source = Source::decode(Path::new("/x/x.yaml"), bytes.to_vec()).map_err(|f| vec![f])?;
        let lines = source.text.split(['\n', '\r']).count();
        let root = super::super::raw::parse(&source).map_err(|fault| vec![fault]);
        let draft = root.and_then(|root| read(source, root, &mut Vec::new()));
        let faults = match &draft {
            Ok(draft) => &draft.faults,
            Err(faults) => faults,
        };
        for fault in faults {
            if let Some(at) = fault.position {
                assert!((1..=lines).contains(&at.line), "{fault}");
                assert!(at.column >= 1, "{fault}");
            }
            let shown = fault.to_string();
            assert!(shown.lines().count() <= 3, "{shown}");
        }
        draft
    }

    const EVERY_KEY: &str = include_str!("../../services/example.yaml");

    #[test]
    fn the_example_has_every_key() {
        let draft = read_text(EVERY_KEY.as_bytes()).unwrap();
        assert_eq!(draft.faults, []);
        for key in SERVICE_KEYS {
            let line = |line: &str| {
                line.trim_start_matches("# ")
                    .starts_with(&format!("{key}:"))
            };
            assert!(EVERY_KEY.lines().any(line), "{key}");
        }
    }

    /// Large texts, made to be slow. The test is that it ends.
    #[test]
    fn no_large_file_takes_long() {
        let begin = "name: x\nport: 80\nexecutable_path: x\n";
        let fill = |head: &str, part: &str| {
            let rest = 256 * 1024;
            let text = format!("{begin}{head}{}", part.repeat(rest / part.len()));
            read_text(text.as_bytes())
        };
        for (head, part) in [
            ("", "zebra: 1\n"),
            ("", "? a\n"),
            ("", "#"),
            ("server_name: ", "a,"),
            ("server_name: [", "a:1,"),
            ("server_name:\n", "- a:1\n"),
            ("args: ", "{a}"),
            ("args: [", "'{a}{a}{a}',"),
            ("environment:\n", " - a\n"),
            ("environment: {", "a: b,"),
            ("user: ", "a\n  "),
            ("user: \"", "\\n"),
            ("user: |\n", " a\n"),
            ("log: ", "a "),
            ("user: ", "&a "),
            ("user: ", "!a "),
            ("a: ", "a: "),
            ("", "\t"),
            ("", "\"a\": "),
        ] {
            let read = fill(head, part);
            assert!(
                !matches!(&read, Ok(draft) if draft.faults.len() > 100),
                "{head}{part}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..300)) {
            let _ = read_text(&bytes);
        }

        #[test]
        fn no_yaml_like_text_does_harm(text in "[-a:?,#&*!|>'\"%@`{}\\[\\]<0 \\\\\n\t\r~.é]{0,80}") {
            let _ = read_text(text.as_bytes());
        }

        #[test]
        fn no_typing_error_does_harm(
            edits in vec((any::<Index>(), 0..4_usize, "[-a:,#&*!|>'\"{}\\[\\]0 \n\t~]"), 1..6)
        ) {
            let mut text: Vec<char> = EVERY_KEY.replace("# ", "").chars().collect();
            for (place, removed, added) in edits {
                let start = place.index(text.len());
                let end = (start + removed).min(text.len());
                text.splice(start..end, added.chars());
            }
            let text: String = text.into_iter().collect();
            let _ = read_text(text.as_bytes());
        }
    }
}
