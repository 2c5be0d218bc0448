//! Conflicts: what two services cannot both have, such as a name, a port or a site.

use super::listen::{Listen, extent, overlap};
use super::process::Bind;
use super::service::ServiceConfig;

/// A reason why two services cannot run beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The name of the service that came first.
    pub first: String,
    /// The name of the service that came later.
    pub second: String,
    /// The key of the later service that shows the conflict.
    pub key: &'static str,
    /// What is wrong and what to do about it, naming both files.
    pub message: String,
}

/// Compares each service with those before it. Services that are not enabled take no ports and no
/// hosts.
pub fn conflicts<'a>(services: impl IntoIterator<Item = &'a ServiceConfig>) -> Vec<Conflict> {
    let services: Vec<&ServiceConfig> = services.into_iter().collect();
    let mut conflicts = Vec::new();
    for (number, second) in services.iter().enumerate() {
        for first in &services[..number] {
            conflicts.extend(between(first, second));
        }
    }
    conflicts
}

/// Finds all conflicts between two services.
pub(super) fn between(first: &ServiceConfig, second: &ServiceConfig) -> Vec<Conflict> {
    let conflict = |(key, message): (&'static str, String)| Conflict {
        first: first.name.clone(),
        second: second.name.clone(),
        key,
        message,
    };
    if first.name == second.name {
        let message = format!(
            "the name `{}` is taken by {}; give each service a name of its own",
            first.name,
            first.file.display()
        );
        return vec![conflict(("name", message))];
    }
    if !(first.enabled && second.enabled) {
        return Vec::new();
    }
    [
        addresses(first, second),
        security(first, second),
        sites(first, second),
        proxy_protocol(first, second),
        ranges(first, second),
        proxy_in_range(first, second, "start_instance_port"),
        proxy_in_range(second, first, "port"),
    ]
    .into_iter()
    .flatten()
    .map(conflict)
    .collect()
}

/// Says why two services cannot listen beside each other on a port, if they cannot: their addresses
/// include one another, or connections begin differently. Whether they are enabled does not matter.
pub fn excludes(first: &ServiceConfig, second: &ServiceConfig) -> Option<String> {
    let finding = addresses(first, second)
        .or_else(|| security(first, second))
        .or_else(|| proxy_protocol(first, second));
    finding.map(|(_, message)| message)
}

/// Names a service and its file: `` `shop` (/etc/smoothserve/services/shop.yaml) ``.
fn named(service: &ServiceConfig) -> String {
    format!("`{}` ({})", service.name, service.file.display())
}

/// The key that shows a conflict, and the message about it.
type Finding = Option<(&'static str, String)>;

/// Finds a port on which one service listens on all addresses and the other only on some: the
/// kernel does not allow both.
fn addresses(first: &ServiceConfig, second: &ServiceConfig) -> Finding {
    let (a, b) = pairs(first, second)
        .find(|(a, b)| a.address != b.address && overlap(a.address, b.address))?;
    let key = if b.address.is_some() {
        "listen_address"
    } else {
        "port"
    };
    let place = |listen: &Listen| match listen.address {
        Some(address) if !address.is_unspecified() => format!("{address} only"),
        wide => extent(wide),
    };
    let message = format!(
        "port {} is taken on {} by {} and on {} by {}; give both a `listen_address` or neither",
        a.port,
        place(a),
        named(first),
        place(b),
        named(second)
    );
    Some((key, message))
}

/// Finds a port on which only one of the services has TLS: a port has TLS or has not, whatever a
/// client sends first.
fn security(first: &ServiceConfig, second: &ServiceConfig) -> Finding {
    let (_, b) = pairs(first, second)
        .find(|(a, b)| first.has_tls_on(a.port) != second.has_tls_on(b.port))?;
    let (key, with, without) = match second.has_tls_on(b.port) {
        true => ("tls", second, first),
        false => ("port", first, second),
    };
    let message = format!(
        "port {} has TLS for {} and none for {}; take another port for one",
        b.port,
        named(with),
        named(without)
    );
    Some((key, message))
}

/// Finds a host and path that would lead to both services on one listener.
fn sites(first: &ServiceConfig, second: &ServiceConfig) -> Finding {
    let (listen, _) = pairs(first, second).find(|(a, b)| a == b)?;
    let site = second
        .sites
        .iter()
        .find(|site| first.sites.binary_search(site).is_ok())?;
    let message = format!(
        "`{site}` on port {} leads to {} and to {}; change `server_name` or `port` of one",
        listen.port,
        named(first),
        named(second)
    );
    Some(("server_name", message))
}

/// Finds a listener with the PROXY protocol for one service only: that is decided before the proxy
/// knows which service a connection is for.
fn proxy_protocol(first: &ServiceConfig, second: &ServiceConfig) -> Finding {
    let (listen, _) = pairs(first, second).find(|(a, b)| a == b)?;
    let (with, without) = match (first.proxy_protocol, second.proxy_protocol) {
        (true, false) => (first, second),
        (false, true) => (second, first),
        _ => return None,
    };
    let message = format!(
        "port {} is with `proxy_protocol` for {} and without for {}; give it to both or neither",
        listen.port,
        named(with),
        named(without)
    );
    Some(("proxy_protocol", message))
}

/// Lists the listeners of both services that share a port.
fn pairs<'a>(
    first: &'a ServiceConfig,
    second: &'a ServiceConfig,
) -> impl Iterator<Item = (&'a Listen, &'a Listen)> {
    let same = |a: &'a Listen| {
        second
            .listen
            .iter()
            .filter(|b| a.port == b.port)
            .map(move |b| (a, b))
    };
    first.listen.iter().flat_map(same)
}

/// Returns the first and the last port that the instances of a service prefer.
fn range(service: &ServiceConfig) -> Option<(u16, u16)> {
    let start = service.process.start_instance_port?;
    let last = start.checked_add(service.instance_count - 1)?;
    (service.process.bind != Bind::Unix).then_some((start, last))
}

/// Finds ports that the instances of both services prefer.
fn ranges(first: &ServiceConfig, second: &ServiceConfig) -> Finding {
    let (a, b) = (range(first)?, range(second)?);
    if first.process.address != second.process.address || a.1 < b.0 || b.1 < a.0 {
        return None;
    }
    let message = format!(
        "the instances' ports, {}–{} of {} and {}–{} of {}, overlap; move one of them",
        a.0,
        a.1,
        named(first),
        b.0,
        b.1,
        named(second)
    );
    Some(("start_instance_port", message))
}

/// Finds a port on which the proxy listens for one service and which instances of the other prefer.
fn proxy_in_range(
    proxied: &ServiceConfig,
    instances: &ServiceConfig,
    key: &'static str,
) -> Finding {
    let (start, last) = range(instances)?;
    let taken = proxied.listen.iter().find(|listen| {
        (start..=last).contains(&listen.port)
            && overlap(listen.address, Some(instances.process.address))
    })?;
    let message = format!(
        "the proxy listens on port {} for {}, and the instances of {} have {start}–{last}; move one of them",
        taken.port,
        named(proxied),
        named(instances)
    );
    Some((key, message))
}
