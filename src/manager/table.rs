//! Builds the worker's table from the services. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::certificates::Certificates;
use super::listeners::Listeners;
use crate::config;
use crate::ipc::{CertificateId, Endpoint, Host, Listener, ListenerId, Route, Service, Table};

/// One service as it goes into the table.
pub struct View<'a> {
    /// Its configuration.
    pub spec: &'a config::Service,
    /// False for a service that is being removed: it gets no requests, but its endpoints still drain.
    pub routed: bool,
    /// False for a stopped one.
    pub running: bool,
    /// Its instances, as far as the worker is concerned with them.
    pub endpoints: Vec<Endpoint>,
}

/// The table without its number. A service whose port could not be opened has no route on that port.
pub fn build<'a>(
    views: impl IntoIterator<Item = View<'a>>,
    listeners: &Listeners,
    certificates: &Certificates,
    config: &config::Config,
) -> Table {
    let mut routes: BTreeMap<ListenerId, Vec<Route>> = BTreeMap::new();
    let mut tls: BTreeMap<ListenerId, Vec<CertificateId>> = BTreeMap::new();
    let mut behind_proxies = BTreeSet::new();
    let mut services = Vec::new();
    for view in views {
        let service = services.len();
        let open = view
            .spec
            .listen
            .iter()
            .filter(|_| view.routed)
            .filter_map(|listen| Some((listen, listeners.get(listen)?)));
        for (listen, listener) in open {
            if view.spec.has_tls_on(listen.port) {
                // Even if there is none: then nobody gets a connection, rather than one without TLS.
                let ids = tls.entry(listener.id).or_default();
                add(ids, view.spec, certificates);
            }
            if view.spec.proxy_protocol {
                behind_proxies.insert(listener.id);
            }
            let sites = view.spec.sites.iter();
            routes
                .entry(listener.id)
                .or_default()
                .extend(sites.map(|site| Route {
                    host: site.host.clone(),
                    path: site.path.clone(),
                    strip: view.spec.strip_prefix.count(site),
                    service,
                }));
        }
        services.push(Service {
            name: view.spec.name.clone(),
            running: view.running,
            handling: view.spec.handling,
            endpoints: view.endpoints,
        });
    }
    let listeners = listeners
        .iter()
        .map(|(_, listener)| Listener {
            id: listener.id,
            address: listener.address,
            tls: tls.remove(&listener.id),
            proxy_protocol: behind_proxies.contains(&listener.id),
            routes: routes.remove(&listener.id).unwrap_or_default(),
        })
        .collect();
    Table {
        number: 0,
        trusted_proxies: config.trusted_proxies.clone(),
        forwarded: config.forwarded,
        max_connections: config.max_connections,
        listeners,
        services,
    }
}

/// The first is the default: that of the service for any host, or else of the first service.
fn add(ids: &mut Vec<CertificateId>, spec: &config::Service, certificates: &Certificates) {
    let Some(certificate) = certificates.get(spec) else {
        return;
    };
    let id = certificate.message.id;
    let is_default = spec.sites.iter().any(|site| site.host == Host::Any);
    let before = ids.iter().position(|known| *known == id);
    match (is_default, before) {
        (true, Some(index)) => ids[..=index].rotate_right(1),
        (true, None) => ids.insert(0, id),
        (false, Some(_)) => {}
        (false, None) => ids.push(id),
    }
}
