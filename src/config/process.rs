//! The process of an instance: what runs, as whom, how it becomes ready, and how the proxy speaks
//! to it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::fault::shorten;
use super::fields::{At, Report, nearest};
use super::limits::Limits;
use super::raw::Node;
use super::reader::Reader;
use super::source::join;
use super::value;
use crate::trust::{self, FileFault, NamedUser};

/// What an instance of a service runs, and how. A change of any field replaces the instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessConfig {
    /// The absolute path of the program. Symlinks are resolved at each start.
    pub executable: PathBuf,
    /// The arguments, with `{port}`, `{instance}`, `{name}` and `{socket}` still to be filled in.
    pub args: Vec<String>,
    /// Environment variables with literal values.
    pub environment: BTreeMap<String, String>,
    /// A file with lines of `KEY=value`, read at each start.
    pub environment_file: Option<PathBuf>,
    /// True: the environment file may be missing.
    pub environment_file_optional: bool,
    /// Where an instance starts. `None`: in the folder of the executable's path.
    pub working_directory: Option<PathBuf>,
    /// The user to run as. `None`: the owner of the executable, if smoothserve runs as root.
    pub user: Option<String>,
    /// The group to run as. `None`: the main group of the user.
    pub group: Option<String>,
    /// The IP address that instances listen on, `server_ip`.
    pub address: IpAddr,
    /// Instance `n` prefers this port plus `n` − 1. `None`: smoothserve picks free ports.
    pub start_instance_port: Option<u16>,
    /// How an instance gets its listening socket.
    pub bind: Bind,
    /// The protocol that the proxy speaks to instances.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// How an instance shows that it is ready.
    pub ready: Ready,
    /// The number of the signal that asks an instance to stop.
    pub stop_signal: i32,
    /// What an instance may use.
    #[serde(default)]
    pub limits: Limits,
}

/// How an instance gets its listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// The instance listens on the port that it is told.
    Port,
    /// The instance listens on the path of a unix socket that it is told.
    Unix,
    /// The instance gets a listening socket as descriptor 3, by `LISTEN_FDS`.
    Inherit,
}

/// How an instance shows that it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// The instance accepts a connection.
    Tcp,
    /// `GET` of this path is answered with a status of 200 to 399.
    Http(String),
    /// The instance sends `READY=1` to `NOTIFY_SOCKET`.
    Notify,
}

/// The protocol that the proxy speaks to the instances of a service, `upstream_protocol`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 from the first byte, without TLS.
    H2c,
}

/// The `PATH` of instances that run as another user than the manager, unless the service's file
/// sets one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The only argument of instances with a port of their own, unless the service's file has `args`.
pub const DEFAULT_ARGUMENT: &str = "-port={port}";

/// The most bytes of an environment file.
const LONGEST_ENVIRONMENT_FILE: u64 = 1 << 20;

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

/// Returns the text that the bytes of an environment file are.
fn text_of(bytes: Vec<u8>) -> Result<String, FileFault> {
    let line_after = |before: &[u8]| 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    // No variable can have a NUL. Whoever tried to set such a one would have to say which.
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err(FileFault::Nul(line_after(&bytes[..at])));
    }
    String::from_utf8(bytes).map_err(|error| {
        let text = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        FileFault::NotUtf8(line_after(text))
    })
}

impl ProcessConfig {
    /// Returns the user that the service's file names.
    pub(crate) fn named_user(&self) -> Option<NamedUser<'_>> {
        let group = self.group.as_deref();
        self.user.as_deref().map(|user| NamedUser { user, group })
    }

    /// Returns the folder in which an instance starts, as the service's file gives it: the working
    /// directory, or else the folder of the executable.
    pub(crate) fn folder(&self) -> &Path {
        let folder = self.executable.parent().unwrap_or(Path::new("/"));
        self.working_directory.as_deref().unwrap_or(folder)
    }

    /// Returns the `PATH` of instances, with these variables of the environment file.
    pub(crate) fn search_path(&self, environment_file: &BTreeMap<String, String>) -> OsString {
        let variables = [environment_file, &self.environment].into_iter();
        let mut given = variables.filter_map(|variables| variables.get("PATH"));
        match given.next() {
            Some(path) => path.into(),
            None if rustix::process::geteuid().is_root() => DEFAULT_PATH.into(),
            None => std::env::var_os("PATH").unwrap_or_default(),
        }
    }

    /// Reads the text of the environment file. `None`: there is none, which is fine.
    pub(crate) fn read_environment_file(&self) -> Result<Option<String>, FileFault> {
        let Some(path) = &self.environment_file else {
            return Ok(None);
        };
        match trust::read(path, LONGEST_ENVIRONMENT_FILE, self.named_user()) {
            Ok(bytes) => text_of(bytes).map(Some),
            Err(fault) if self.environment_file_optional && fault.is_missing() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Reads the keys of a service's file that describe its process. The executable is read before,
    /// since paths of other keys begin at its folder.
    pub(super) fn read(reader: &mut Reader<'_>, executable: PathBuf) -> ProcessConfig {
        let bind = bind(reader);
        let environment_file = reader.get_at("environment_file", value::path);
        let environment_file_optional = environment_file
            .as_ref()
            .is_some_and(|path| path.value.starts_with('-'));
        ProcessConfig {
            executable,
            args: args(reader, bind),
            environment: reader
                .get("environment", value::environment)
                .unwrap_or_default(),
            environment_file: environment_file.map(|path| {
                let path = path.value.strip_prefix('-').unwrap_or(&path.value);
                join(&reader.folder, path)
            }),
            environment_file_optional,
            working_directory: reader.path("working_directory"),
            user: reader.get("user", value::text),
            group: reader.get("group", value::text),
            address: server_ip(reader),
            start_instance_port: reader.get("start_instance_port", value::port),
            bind,
            protocol: protocol(reader),
            ready: ready(reader),
            stop_signal: stop_signal(reader),
            limits: Limits::read(reader),
        }
    }
}

fn server_ip(reader: &mut Reader<'_>) -> IpAddr {
    let default = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(At { at, value }) = reader.get_at("server_ip", value::address) else {
        return default;
    };
    let address = value.to_canonical();
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || broadcast {
        reader.report.at(
            at,
            format!("`server_ip` is {address}; give the one address that the instances listen on"),
        );
    }
    address
}

fn bind(reader: &mut Reader<'_>) -> Bind {
    let choices = |node: &Node, key: &str, report: &mut Report<'_>| {
        let choices = [
            ("port", Bind::Port),
            ("unix", Bind::Unix),
            ("inherit", Bind::Inherit),
        ];
        value::choice(node, key, report, &choices)
    };
    reader.get("bind", choices).unwrap_or(Bind::Port)
}

fn protocol(reader: &mut Reader<'_>) -> UpstreamProtocol {
    let choices = |node: &Node, key: &str, report: &mut Report<'_>| {
        let choices = [
            ("http1", UpstreamProtocol::Http1),
            ("h2c", UpstreamProtocol::H2c),
        ];
        value::choice(node, key, report, &choices)
    };
    reader.get("upstream_protocol", choices).unwrap_or_default()
}

fn args(reader: &mut Reader<'_>, bind: Bind) -> Vec<String> {
    let Some(args) = reader.get("args", value::arguments) else {
        // A service that is told its socket by the environment needs no argument.
        return match bind {
            Bind::Port => vec![DEFAULT_ARGUMENT.to_owned()],
            Bind::Unix | Bind::Inherit => Vec::new(),
        };
    };
    for arg in &args {
        for word in placeholders(&arg.value) {
            if let Err(why) = check_placeholder(word, bind) {
                reader.report.at_part(arg.at, &format!("{{{word}}}"), why);
            }
        }
    }
    args.into_iter().map(|arg| arg.value).collect()
}

fn ready(reader: &mut Reader<'_>) -> Ready {
    let Some(At { at, value: text }) = reader.get_at("ready", value::text) else {
        return Ready::Tcp;
    };
    let path = text
        .strip_prefix("http")
        .filter(|rest| !rest.starts_with('s'));
    let path = path.map(|rest| rest.strip_prefix(':').unwrap_or(rest));
    match (text.as_str(), path) {
        ("tcp", _) => return Ready::Tcp,
        ("notify", _) => return Ready::Notify,
        (_, Some("")) => return Ready::Http("/".to_owned()),
        (_, Some(path)) if is_path(path) => return Ready::Http(path.to_owned()),
        _ => {}
    }
    let message = match meant_ready(&text) {
        Some(advice) => format!("`ready` is `{}`; {advice}", shorten(&text)),
        None => value::not_a_choice("ready", &text, &["tcp", "http:/path", "notify"]),
    };
    reader.report.at(at, message);
    Ready::Tcp
}

/// Returns true for the path of a request.
fn is_path(text: &str) -> bool {
    let visible = text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    text.starts_with('/') && !text.starts_with("//") && visible
}

/// Says what to write instead of a check that is written as in other programs: a path alone, an
/// address, a port.
fn meant_ready(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let scheme = ["http://", "https://"]
        .iter()
        .find(|scheme| lower.starts_with(**scheme));
    let path = match scheme {
        Some(scheme) => {
            let rest = &text[scheme.len()..];
            Some(rest.find('/').map_or("/", |slash| &rest[slash..]))
        }
        None => {
            let rest = lower
                .starts_with("http")
                .then(|| text[4..].trim_start_matches('s'));
            Some(
                rest.map_or(text, |rest| rest.trim_start_matches(':'))
                    .trim(),
            )
        }
    };
    if let Some(path) = path.filter(|path| is_path(path)) {
        return Some(format!(
            "write the path alone: `http:{}`; each instance is asked on its own port, without TLS",
            shorten(path)
        ));
    }
    let port = lower
        .rsplit(':')
        .next()
        .and_then(|port| port.parse::<u16>().ok());
    if port.is_some() {
        let advice =
            "each instance has a port of its own; write `tcp`, or a path as in `http:/health`";
        return Some(advice.to_owned());
    }
    match lower.as_str() {
        "sd_notify" | "systemd" => Some("write `notify`".to_owned()),
        _ if lower.starts_with("http") => Some("give a path, as in `http:/health`".to_owned()),
        _ => None,
    }
}

fn stop_signal(reader: &mut Reader<'_>) -> i32 {
    let default = Signal::TERM.as_raw();
    let Some(At { at, value: text }) = reader.get_at("stop_signal", value::text) else {
        return default;
    };
    let upper = text.to_ascii_uppercase();
    let named = |(name, _): &&(&str, Signal)| *name == upper || name[3..] == upper;
    if let Some((_, signal)) = SIGNALS.iter().find(named) {
        return signal.as_raw();
    }
    match text.parse::<i32>() {
        // SIGSTOP would only suspend the instance; programs use signals above 31 for purposes of
        // their own.
        Ok(number) if (1..=31).contains(&number) && number != Signal::STOP.as_raw() => number,
        _ => {
            let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
            let message = match nearest(&text, &names) {
                Some(_) => value::not_a_choice("stop_signal", &text, &names),
                None => format!(
                    "`stop_signal` is `{}`; give a name such as SIGTERM, SIGINT, SIGQUIT, or its number",
                    shorten(&text)
                ),
            };
            reader.report.at(at, message);
            default
        }
    }
}

/// Finds the words in braces, such as `{port}`. Other braces, as in JSON, are text.
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
}
