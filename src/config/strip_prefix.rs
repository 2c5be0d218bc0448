//! `strip_prefix`: what of a path is not for the instance to know.

use serde::{Deserialize, Serialize};

use super::fields::{At, Report, shorten};
use super::raw::Node;
use super::service::Reader;
use super::{Site, site, value};

/// What is taken away from the beginning of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StripPrefix {
    /// Nothing.
    #[default]
    Nothing,
    /// The path of the site that the request is for.
    Path,
    /// This, from the requests for sites whose path begins with it.
    Prefix(String),
}

impl StripPrefix {
    /// How many bytes of the path of this site are taken away.
    pub fn count(&self, site: &Site) -> usize {
        match self {
            StripPrefix::Nothing => 0,
            StripPrefix::Path => site.path.trim_end_matches('/').len(),
            StripPrefix::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                match site.path.strip_prefix(prefix) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => prefix.len(),
                    _ => 0,
                }
            }
        }
    }
}

impl Reader<'_> {
    pub(super) fn strip_prefix(&mut self, sites: &[Site]) -> StripPrefix {
        let Some(At { at, value: strip }) = self.get_at("strip_prefix", strip_prefix) else {
            return StripPrefix::Nothing;
        };
        if strip != StripPrefix::Nothing && sites.iter().all(|site| strip.count(site) == 0) {
            let message = "`strip_prefix`: no `server_name` has such a path; give it one, as `example.org/api`";
            self.report.at(at, message);
        }
        strip
    }
}

/// `true`, `false` or `/prefix`.
fn strip_prefix(node: &Node, key: &str, report: &mut Report<'_>) -> Option<StripPrefix> {
    let text = value::text(node, key, report)?;
    let why = if text.starts_with('/') {
        match site::parse_path(&text) {
            Ok(prefix) => return Some(StripPrefix::Prefix(prefix)),
            Err(why) => why,
        }
    } else {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => return Some(StripPrefix::Path),
            "false" | "no" | "off" => return Some(StripPrefix::Nothing),
            _ => "give `true`, `false`, or a path such as /api".to_owned(),
        }
    };
    let shown = shorten(&text);
    report.at(node.at, format!("`{key}` is `{shown}`; {why}"));
    None
}
