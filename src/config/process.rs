//! The keys that make a [`ProcessConfig`]: what runs, as whom, and how it is spoken to.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use rustix::process::Signal;

use super::fields::{At, Report, nearest, shorten};
use super::raw::Node;
use super::service::Reader;
use super::{Bind, ProcessConfig, Ready, value};
use crate::ipc::Protocol;

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

impl Reader<'_> {
    /// All of it; the executable is read before, since other keys begin at its folder.
    pub(super) fn process(&mut self, executable: PathBuf) -> ProcessConfig {
        let bind = self.bind();
        let environment_file = self.get_at("environment_file", value::text);
        let environment_file_optional = environment_file
            .as_ref()
            .is_some_and(|path| path.value.starts_with('-'));
        ProcessConfig {
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
            protocol: self.protocol(),
            ready: self.ready(),
            stop_signal: self.stop_signal(),
            limits: self.limits(),
        }
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

    fn protocol(&mut self) -> Protocol {
        let choices = |node: &Node, key: &str, report: &mut Report<'_>| {
            let choices = [("http1", Protocol::Http1), ("h2c", Protocol::H2c)];
            value::choice(node, key, report, &choices)
        };
        self.get("upstream_protocol", choices).unwrap_or_default()
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
            // SIGSTOP would leave the instance where it is; those above 31 are for programs that talk to themselves.
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
                self.report.at(at, message);
                default
            }
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
