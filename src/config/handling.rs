//! The keys that say how requests are treated.

use std::time::Duration;

use super::fields::{At, Report, shorten};
use super::raw::Node;
use super::service::Reader;
use super::{TlsConfig, limits, value};
use crate::ipc::Handling;

impl Reader<'_> {
    /// All of them. `plain`: whether there are ports without TLS.
    pub(super) fn handling(&mut self, tls: Option<&TlsConfig>, plain: bool) -> Handling {
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
        handling.redirect_https = self.redirect_https(tls, plain);
        handling.hsts = self.hsts(tls);
        handling
    }

    fn redirect_https(&mut self, tls: Option<&TlsConfig>, plain: bool) -> Option<u16> {
        let redirect = self.get_at("redirect_https", value::boolean)?;
        if !redirect.value {
            return None;
        }
        match tls {
            _ if !plain => {
                let message = "`redirect_https` without `port`: nobody comes without TLS; add the port, or remove this";
                self.report.at(redirect.at, message);
                None
            }
            Some(tls) => tls.main_port(),
            None => {
                let message = "`redirect_https` without `tls`: there is nowhere to send anybody";
                self.report.at(redirect.at, message);
                None
            }
        }
    }

    fn hsts(&mut self, tls: Option<&TlsConfig>) -> Option<Duration> {
        let hsts = self.get_at("hsts", value::long_duration)?;
        if tls.is_none() {
            let message = "`hsts` without `tls`: browsers believe it only over TLS";
            self.report.at(hsts.at, message);
        }
        Some(hsts.value)
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
