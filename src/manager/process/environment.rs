//! The environment of an instance.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use super::identity::UserIdentity;
use crate::config::DEFAULT_PATH;
use crate::launch::inherited_environment;

/// Returns the environment that an instance starts from. If the instance runs as the manager's own
/// user, that is the manager's environment, as a service of `systemctl --user` has that of its
/// manager. Otherwise it is what a service of systemd with `User=` has.
pub fn base(identity: &UserIdentity) -> BTreeMap<String, String> {
    let inherited = inherited_environment();
    if identity.credentials.is_none() {
        return inherited;
    }
    let mut base: BTreeMap<String, String> = inherited
        .into_iter()
        .filter(|(key, _)| is_about_the_machine(key))
        .collect();
    base.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
    base.extend(login(identity));
    base
}

/// Returns true for variables that say where the machine is and what language it speaks.
fn is_about_the_machine(key: &str) -> bool {
    matches!(key, "LANG" | "LANGUAGE" | "TZ") || key.starts_with("LC_")
}

/// Returns the variables of a user, as systemd sets them: a home folder that is none, and a shell
/// that only says that nobody may log in, are left out. Programs start what `SHELL` names.
fn login(identity: &UserIdentity) -> impl Iterator<Item = (String, String)> {
    let is_home = identity.home.is_absolute() && identity.home != Path::new("/");
    let shell = identity.shell.file_name().and_then(OsStr::to_str);
    let is_shell = shell.is_some_and(|name| !NO_SHELLS.contains(&name));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let variables = [
        ("HOME", is_home.then(|| text(&identity.home))),
        ("SHELL", is_shell.then(|| text(&identity.shell))),
        ("USER", Some(identity.name.clone())),
        ("LOGNAME", Some(identity.name.clone())),
    ];
    let given = variables.into_iter();
    given.filter_map(|(key, value)| Some((key.to_owned(), value?)))
}

/// The names of programs that are in the place of a shell for users who may not log in.
const NO_SHELLS: [&str; 3] = ["nologin", "false", "true"];

/// The values of the placeholders in `args`, such as `{port}`.
#[derive(Debug, Clone, Default)]
pub struct Placeholders {
    /// The value of `{port}`.
    pub port: Option<u16>,
    /// The value of `{instance}`.
    pub instance: u32,
    /// The value of `{name}`.
    pub name: String,
    /// The value of `{socket}`.
    pub socket: Option<String>,
}

impl Placeholders {
    /// Replaces the placeholders in an argument. An unknown placeholder stays as it is; the
    /// configuration has already refused it.
    pub fn fill(&self, argument: &str) -> String {
        let mut filled = argument
            .replace("{instance}", &self.instance.to_string())
            .replace("{name}", &self.name);
        if let Some(port) = self.port {
            filled = filled.replace("{port}", &port.to_string());
        }
        if let Some(socket) = &self.socket {
            filled = filled.replace("{socket}", socket);
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_login_has_no_shell_and_one_without_a_home_no_home() {
        let of = |home: &str, shell: &str| {
            let identity = UserIdentity {
                credentials: None,
                name: "ada".into(),
                home: home.into(),
                shell: shell.into(),
            };
            let names = login(&identity).map(|(key, _)| key);
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("/home/ada", "/bin/bash"), "HOME SHELL USER LOGNAME");
        for shell in ["/usr/sbin/nologin", "/bin/false", "/sbin/nologin", ""] {
            assert_eq!(of("/home/ada", shell), "HOME USER LOGNAME", "{shell}");
        }
        for home in ["/", "", "home"] {
            assert_eq!(of(home, "/bin/sh"), "SHELL USER LOGNAME", "{home}");
        }
    }

    #[test]
    fn places_are_filled_in() {
        let places = Placeholders {
            port: Some(9001),
            instance: 2,
            name: "shop".into(),
            socket: None,
        };
        assert_eq!(
            places.fill("-addr=:{port}/{name}-{instance}"),
            "-addr=:9001/shop-2"
        );
    }
}
