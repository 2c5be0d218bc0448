//! What a service's file says is done with its requests and responses: body limits, timeouts,
//! redirects.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::shorten;
use super::fields::{At, Report};
use super::limits::parse_size;
use super::raw::Node;
use super::reader::Reader;
use super::tls::TlsConfig;
use super::value;

/// What is done with the requests of a service before and while an instance has them.
///
/// A saved state that leaves a field out means its default, so that a manager understands the state
/// of an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandlingConfig {
    /// The most bytes that the body of a request may have. `None`: any number, since the body is
    /// passed on as it comes.
    pub max_request_body: Option<u64>,
    /// How long an instance may keep a request or the rest of a response waiting.
    pub response_timeout: Duration,
    /// How long a request without a response keeps an instance from draining once its client sends
    /// nothing more.
    pub client_gone_timeout: Duration,
    /// How long a request may wait for an instance that takes it.
    pub queue_timeout: Duration,
    /// The most requests of the service that are in flight at a time. `None`: as many as the worker
    /// has room for.
    pub max_in_flight: Option<u32>,
    /// The port with TLS that requests without TLS are redirected to. `None`: no redirect.
    pub redirect_https: Option<u16>,
    /// How long browsers are told to use TLS only (`Strict-Transport-Security`). `None`: the header
    /// is not sent.
    pub hsts: Option<Duration>,
}

impl Default for HandlingConfig {
    fn default() -> HandlingConfig {
        HandlingConfig {
            max_request_body: None,
            response_timeout: Duration::from_secs(60),
            client_gone_timeout: Duration::from_secs(5),
            queue_timeout: Duration::from_secs(10),
            max_in_flight: None,
            redirect_https: None,
            hsts: None,
        }
    }
}

impl HandlingConfig {
    /// Reads the keys of a service's file that say how requests are treated. `has_plain`: the
    /// service has ports without TLS.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        tls: Option<&TlsConfig>,
        has_plain: bool,
    ) -> HandlingConfig {
        let mut handling = HandlingConfig::default();
        if let Some(most) = reader.get("max_request_body", body) {
            handling.max_request_body = most;
        }
        if let Some(At { at, value: limit }) = reader.get_at("response_timeout", value::duration) {
            if limit.is_zero() {
                let message = "`response_timeout` is 0; no instance responds in no time";
                reader.report.at(at, message);
            }
            handling.response_timeout = limit;
        }
        if let Some(limit) = reader.get("client_gone_timeout", value::duration) {
            handling.client_gone_timeout = limit;
        }
        if let Some(limit) = reader.get("queue_timeout", value::duration) {
            handling.queue_timeout = limit;
        }
        if let Some(most) = reader.get("max_in_flight", in_flight) {
            handling.max_in_flight = most;
        }
        handling.redirect_https = redirect_https(reader, tls, has_plain);
        handling.hsts = hsts(reader, tls);
        handling
    }
}

/// Reads `redirect_https` and returns the port to redirect to.
fn redirect_https(
    reader: &mut Reader<'_>,
    tls: Option<&TlsConfig>,
    has_plain: bool,
) -> Option<u16> {
    let redirect = reader.get_at("redirect_https", value::boolean)?;
    if !redirect.value {
        return None;
    }
    match tls {
        _ if !has_plain && reader.key("port").is_none() => {
            let message = "`redirect_https` without `port`: nobody comes without TLS; add the port, or remove this";
            reader.report.at(redirect.at, message);
            None
        }
        Some(tls) => tls.main_port(),
        // What is wrong with `tls` was said there.
        None if reader.key("tls").is_some() => None,
        None => {
            let message = "`redirect_https` without `tls`: there is nowhere to send anybody";
            reader.report.at(redirect.at, message);
            None
        }
    }
}

fn hsts(reader: &mut Reader<'_>, tls: Option<&TlsConfig>) -> Option<Duration> {
    let hsts = reader.get_at("hsts", value::long_duration)?;
    if tls.is_none() && reader.key("tls").is_none() {
        let message = "`hsts` without `tls`: browsers believe it only over TLS";
        reader.report.at(hsts.at, message);
    }
    Some(hsts.value)
}

/// Reads a number of requests: `200`, or `auto` for as many as there is room for.
fn in_flight(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Option<u32>> {
    let text = value::text(node, key, report)?;
    if text == "auto" {
        return Some(None);
    }
    value::number(node.at, &text, key, 1..=1_000_000, report).map(Some)
}

/// Reads the size of a body: `10M`, or `none` for no limit.
fn body(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Option<u64>> {
    let text = value::text(node, key, report)?;
    if text == "none" {
        return Some(None);
    }
    let size = parse_size(&text);
    if size.is_none() {
        let shown = shorten(&text);
        let message = format!("`{key}` is `{shown}`; give a size such as 10M or 1.5G, or none");
        report.at(node.at, message);
    }
    size.map(Some)
}
