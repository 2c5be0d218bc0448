//! The environment of an instance.

use std::collections::BTreeMap;
use std::path::Path;

use super::identity::UserIdentity;
use crate::config::DEFAULT_PATH;
use crate::launch::inherited_environment;

/// Returns the environment that an instance starts from: the manager's own environment if the
/// instance runs as the same user, otherwise only what a login of the instance's user would set.
pub fn base(identity: &UserIdentity) -> BTreeMap<String, String> {
    if identity.credentials.is_none() {
        return inherited_environment();
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut base = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), text(&identity.home)),
        ("SHELL".to_owned(), text(&identity.shell)),
        ("USER".to_owned(), identity.name.clone()),
        ("LOGNAME".to_owned(), identity.name.clone()),
    ]);
    let locale = inherited_environment()
        .into_iter()
        .filter(|(key, _)| matches!(key.as_str(), "LANG" | "TZ"));
    base.extend(locale);
    base
}

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
