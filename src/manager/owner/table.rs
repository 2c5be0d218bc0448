//! Builds the services' parts of the workers' table. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{HandlingConfig, HostPattern, ServiceConfig};
use crate::ipc::{CertificateId, Handling, Host, ListenerId, Route, WireListener, WireService};
use crate::manager::routes::{Entrance, Ownership};
use crate::manager::service::Service;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::Listeners;

/// Builds the part of a service in the table, with the routes of the sites that it owns. A service
/// whose port could not be opened has no route on that port.
pub fn part_of(service: &Service, ownership: &Ownership, listeners: &Listeners) -> WireService {
    let spec = service.spec();
    let routes = ownership.of(&spec.name).iter().filter_map(|owned| {
        Some(Route {
            listener: listeners.get(&owned.entrance.listen)?.id,
            host: host(&owned.site.host),
            path: owned.site.path.clone(),
            strip: owned.strip,
        })
    });
    WireService {
        name: spec.name.clone(),
        running: service.is_running(),
        handling: handling(spec.handling),
        routes: routes.collect(),
        endpoints: service.endpoints(),
    }
}

/// Converts the request settings of a service's file into the form that workers get.
fn handling(config: HandlingConfig) -> Handling {
    let HandlingConfig {
        max_request_body,
        response_timeout,
        client_gone_timeout,
        queue_timeout,
        max_in_flight,
        redirect_https,
        hsts,
    } = config;
    Handling {
        max_request_body,
        response_timeout,
        client_gone_timeout,
        queue_timeout,
        max_in_flight,
        redirect_https,
        hsts,
    }
}

/// Converts the host pattern of a site into the form that workers get.
fn host(pattern: &HostPattern) -> Host {
    match pattern {
        HostPattern::Exact(host) => Host::Exact(host.clone()),
        HostPattern::Subdomain(parent) => Host::Subdomain(parent.clone()),
        HostPattern::Any => Host::Any,
    }
}

/// Builds the listeners of the table, each with the certificates of all services on it.
pub fn listeners<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    ownership: &Ownership,
    listeners: &Listeners,
    certificates: &ServiceCertificates,
) -> Vec<WireListener> {
    let mut tls: BTreeMap<ListenerId, Vec<CertificateId>> = BTreeMap::new();
    let mut behind_proxies = BTreeSet::new();
    for service in services {
        let spec = service.spec();
        for (entrance, listener) in open_entrances(service, ownership, listeners) {
            if entrance.tls {
                // A TLS listener without any certificate stays in the table, so that its
                // connections fail instead of being served without TLS.
                let ids = tls.entry(listener).or_default();
                add(ids, spec, certificates);
            }
            if entrance.proxy_protocol {
                behind_proxies.insert(listener);
            }
        }
    }
    let passing = listeners.passing().map(|listener| WireListener {
        id: listener.id,
        address: listener.address,
        tls: None,
        proxy_protocol: false,
        passing: true,
    });
    let listeners = listeners.iter().map(|listener| WireListener {
        id: listener.id,
        address: listener.address,
        tls: tls.remove(&listener.id),
        proxy_protocol: behind_proxies.contains(&listener.id),
        passing: false,
    });
    listeners.chain(passing).collect()
}

/// Returns the entrances that a service has, or is to have, with their listeners. A service that
/// was removed has those of the sites that it keeps.
fn open_entrances(
    service: &Service,
    ownership: &Ownership,
    listeners: &Listeners,
) -> Vec<(Entrance, ListenerId)> {
    let spec = service.spec();
    let owned = ownership.of(&spec.name).iter();
    let mut entrances: BTreeSet<Entrance> = owned.map(|owned| owned.entrance.clone()).collect();
    if service.is_routed() {
        let own = Entrance::all_of(spec);
        entrances.extend(own.filter(|entrance| ownership.has_entrance(entrance)));
    }
    let open = entrances.into_iter().filter_map(|entrance| {
        let listener = listeners.get(&entrance.listen)?.id;
        Some((entrance, listener))
    });
    open.collect()
}

/// Adds the certificate of a service to those of a listener. The first in the list is the default:
/// the certificate of the service for any host, otherwise that of the first service.
fn add(ids: &mut Vec<CertificateId>, spec: &ServiceConfig, certificates: &ServiceCertificates) {
    let Some(certificate) = certificates.get(spec) else {
        return;
    };
    let id = CertificateId(certificate.digest);
    let is_default = spec.sites.iter().any(|site| site.host == HostPattern::Any);
    let before = ids.iter().position(|known| *known == id);
    match (is_default, before) {
        (true, Some(index)) => ids[..=index].rotate_right(1),
        (true, None) => ids.insert(0, id),
        (false, Some(_)) => {}
        (false, None) => ids.push(id),
    }
}
