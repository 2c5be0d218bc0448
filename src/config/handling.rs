//! The keys that say how requests are treated.

use super::fields::{At, Report, shorten};
use super::raw::Node;
use super::service::Reader;
use super::{limits, value};
use crate::ipc::Handling;

impl Reader<'_> {
    /// All of them.
    pub(super) fn handling(&mut self) -> Handling {
        let mut handling = Handling::default();
        if let Some(most) = self.get("max_request_body", body) {
            handling.max_request_body = most;
        }
        if let Some(At { at, value: limit }) = self.get_at("response_timeout", value::duration) {
            if limit.is_zero() {
                let message = "`response_timeout` is 0; no instance responds in no time";
                self.report.at(at, message);
            }
            handling.response_timeout = limit;
        }
        if let Some(limit) = self.get("queue_timeout", value::duration) {
            handling.queue_timeout = limit;
        }
        handling
    }
}

/// `10M`, or `none` for no limit.
fn body(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Option<u64>> {
    let text = value::text(node, key, report)?;
    if text == "none" {
        return Some(None);
    }
    let size = limits::parse_size(&text);
    if size.is_none() {
        let shown = shorten(&text);
        let message = format!("`{key}` is `{shown}`; give a size such as 10M or 1.5G, or none");
        report.at(node.at, message);
    }
    size.map(Some)
}
