//! `strip_prefix`: the part of a request's path that instances do not get.

use serde::{Deserialize, Serialize};

use super::fields::{At, Report, shorten};
use super::raw::Node;
use super::reader::Reader;
use super::site::{Site, parse_path};
use super::value;

/// The prefix that is taken off the paths of requests before an instance gets them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StripPrefix {
    /// None: instances get the whole path.
    #[default]
    Nothing,
    /// The path of the site that the request is for, as in `server_name`.
    Path,
    /// This prefix, for the sites whose path begins with it.
    Prefix(String),
}

impl StripPrefix {
    /// Reads `strip_prefix`, and reports one that fits none of the service's sites.
    pub(super) fn read(reader: &mut Reader<'_>, sites: &[Site]) -> StripPrefix {
        let Some(At { at, value: strip }) = reader.get_at("strip_prefix", strip_prefix) else {
            return StripPrefix::Nothing;
        };
        if strip != StripPrefix::Nothing && sites.iter().all(|site| strip.count(site) == 0) {
            let message = "`strip_prefix`: no `server_name` has such a path; give it one, as `example.org/api`";
            reader.report.at(at, message);
        }
        strip
    }

    /// Returns how many bytes of the path of this site are taken off.
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

/// Reads `true`, `false` or `/prefix`.
fn strip_prefix(node: &Node, key: &str, report: &mut Report<'_>) -> Option<StripPrefix> {
    let text = value::text(node, key, report)?;
    let why = if text.starts_with('/') {
        match parse_path(&text) {
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
