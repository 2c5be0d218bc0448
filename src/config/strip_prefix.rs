//! `strip_prefix`: the part of a request's path that instances do not get.

use serde::{Deserialize, Serialize};

use super::fault::shorten;
use super::fields::{At, Report};
use super::raw::Node;
use super::reader::Reader;
use super::site::{Site, parse_path};
use super::value;

/// The prefix that is taken off the paths of requests before an instance gets them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StripPrefixConfig {
    /// None: instances get the whole path.
    #[default]
    Nothing,
    /// The path of the site that the request is for, as in `server_name`.
    Path,
    /// This prefix, for the sites whose path begins with it.
    Prefix(String),
}

impl StripPrefixConfig {
    /// Reads `strip_prefix`, and reports one that fits none of the service's sites.
    pub(super) fn read(reader: &mut Reader<'_>, sites: &[Site]) -> StripPrefixConfig {
        let Some(At { at, value: strip }) = reader.get_at("strip_prefix", strip_prefix) else {
            return StripPrefixConfig::Nothing;
        };
        if strip != StripPrefixConfig::Nothing && sites.iter().all(|site| strip.count(site) == 0) {
            let message = "`strip_prefix`: no `server_name` has such a path; give it one, as `example.org/api`";
            reader.report.at(at, message);
        }
        strip
    }

    /// Returns how many bytes of the path of this site are taken off.
    pub fn count(&self, site: &Site) -> usize {
        match self {
            StripPrefixConfig::Nothing => 0,
            StripPrefixConfig::Path => site.path.trim_end_matches('/').len(),
            StripPrefixConfig::Prefix(prefix) => {
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
fn strip_prefix(node: &Node, key: &str, report: &mut Report<'_>) -> Option<StripPrefixConfig> {
    let text = value::text(node, key, report)?;
    let why = if text.starts_with('/') {
        match parse_path(&text) {
            Ok(prefix) => return Some(StripPrefixConfig::Prefix(prefix)),
            Err(why) => why,
        }
    } else {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => return Some(StripPrefixConfig::Path),
            "false" | "no" | "off" => return Some(StripPrefixConfig::Nothing),
            _ => "give `true`, `false`, or a path such as /api".to_owned(),
        }
    };
    let shown = shorten(&text);
    report.at(node.at, format!("`{key}` is `{shown}`; {why}"));
    None
}
