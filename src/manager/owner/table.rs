//! Builds the services' parts of the workers' table. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{HandlingConfig, HostPattern, Listen, ServiceConfig};
use crate::ipc::{CertificateId, Handling, Host, ListenerId, Route, WireListener, WireService};
use crate::manager::service::Service;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::Listeners;

/// Builds the part of a service in the table. A service whose port could not be opened has no route
/// on that port.
pub fn part_of(service: &Service, listeners: &Listeners) -> WireService {
    let spec = service.spec();
    let open = open_ports(service, listeners);
    let routes = open.flat_map(|(_, listener)| {
        spec.sites.iter().map(move |site| Route {
            listener,
            host: host(&site.host),
            path: site.path.clone(),
            strip: spec.strip_prefix.count(site),
        })
    });
    WireService {
        name: spec.name.clone(),
        running: service.is_wanted(),
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
    listeners: &Listeners,
    certificates: &ServiceCertificates,
) -> Vec<WireListener> {
    let mut tls: BTreeMap<ListenerId, Vec<CertificateId>> = BTreeMap::new();
    let mut behind_proxies = BTreeSet::new();
    for service in services {
        let spec = service.spec();
        for (listen, listener) in open_ports(service, listeners) {
            if spec.has_tls_on(listen.port) {
                // A TLS listener without any certificate stays in the table, so that its
                // connections fail instead of being served without TLS.
                let ids = tls.entry(listener).or_default();
                add(ids, spec, certificates);
            }
            if spec.proxy_protocol {
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

/// Returns the listeners on which a service has routes. A service that gets no requests has none,
/// even while its instances drain.
fn open_ports<'a>(
    service: &'a Service,
    listeners: &'a Listeners,
) -> impl Iterator<Item = (Listen, ListenerId)> {
    let ports = service.spec().listen.iter();
    ports
        .filter(|_| service.is_routed())
        .filter_map(|listen| Some((*listen, listeners.get(listen)?.id)))
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
