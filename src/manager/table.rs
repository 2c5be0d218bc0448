//! Builds the worker's table from the services. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::listeners::Listeners;
use crate::config;
use crate::ipc::{Endpoint, Listener, ListenerId, Route, Service, Table};

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
    config: &config::Config,
) -> Table {
    let mut routes: BTreeMap<ListenerId, Vec<Route>> = BTreeMap::new();
    let mut behind_proxies = BTreeSet::new();
    let mut services = Vec::new();
    for view in views {
        let service = services.len();
        let open = view
            .spec
            .listen
            .iter()
            .filter(|_| view.routed)
            .filter_map(|listen| listeners.get(listen));
        for listener in open {
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
