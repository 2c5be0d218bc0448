//! A map of routes: who owns which sites, and who answers a request by that.
//!
//! Of all sites that match a request, the one with the longest host wins, and among sites with the
//! same host the one with the longest path. Two maps are compared at *points*: one for each set of
//! requests between which neither map makes a difference. These are all sites of both maps, and
//! each of their hosts with each path of a pattern that includes the host.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{HostPattern, Listen, ServiceConfig, Site};

/// The way by which requests come in. Sites of different entrances have nothing to do with each
/// other, and a port has TLS, or the PROXY protocol, for all of its services or for none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entrance {
    /// The address and the port.
    pub listen: Listen,
    /// True: connections begin with a TLS handshake.
    pub tls: bool,
    /// True: connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

impl Entrance {
    /// Returns the entrances of a service.
    pub fn all_of(spec: &ServiceConfig) -> impl Iterator<Item = Entrance> {
        spec.listen.iter().map(|&listen| Entrance {
            listen,
            tls: spec.has_tls_on(listen.port),
            proxy_protocol: spec.proxy_protocol,
        })
    }

    /// Returns true if connections may come in by either of two entrances, and begin in the same
    /// way.
    fn is_near(&self, other: &Entrance) -> bool {
        let begins = |entrance: &Entrance| (entrance.tls, entrance.proxy_protocol);
        self.listen.overlaps(&other.listen) && begins(self) == begins(other)
    }
}

/// The owner of a site.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SiteOwner {
    /// The name of the service.
    pub service: String,
    /// How many bytes of the site's path, from its beginning, the service's instances do not get.
    pub strip: usize,
}

/// The owners of all sites of an entrance.
pub(super) type SiteMap = BTreeMap<Site, SiteOwner>;

/// The owners of all sites, by their entrances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteMap {
    entrances: BTreeMap<Entrance, SiteMap>,
}

impl RouteMap {
    /// Adds the sites of a service, except those that are in the map already, and those on an
    /// address that has another entrance in the map.
    pub fn add(&mut self, spec: &ServiceConfig) {
        for entrance in Entrance::all_of(spec) {
            if self.has_other(&entrance) {
                continue;
            }
            for site in &spec.sites {
                let owner = SiteOwner {
                    service: spec.name.clone(),
                    strip: spec.strip_prefix.count(site),
                };
                self.insert(entrance.clone(), site.clone(), owner);
            }
        }
    }

    /// Adds a site unless the map has it.
    pub(super) fn insert(&mut self, entrance: Entrance, site: Site, owner: SiteOwner) {
        let sites = self.entrances.entry(entrance).or_default();
        sites.entry(site).or_insert(owner);
    }

    /// Replaces all sites of an entrance.
    pub(super) fn set(&mut self, entrance: Entrance, sites: SiteMap) {
        self.entrances.insert(entrance, sites);
    }

    /// Returns the sites that the clients of an entrance have found until now. If the map does not
    /// have the entrance, but others of its port with an address that includes its address, or that
    /// is included there, these are its clients' ways until now.
    pub(super) fn before(&self, entrance: &Entrance) -> Cow<'_, SiteMap> {
        if let Some(sites) = self.entrances.get(entrance) {
            return Cow::Borrowed(sites);
        }
        let near = self.entrances.iter();
        let near = near.filter(|(other, _)| other.is_near(entrance));
        let mut sites = SiteMap::new();
        for (site, owner) in near.flat_map(|(_, sites)| sites) {
            // Each address has its own owner then, and only one of them can keep the site.
            let known = sites.entry(site.clone());
            known.or_insert_with(|| owner.clone());
        }
        Cow::Owned(sites)
    }

    /// Returns true if the map has an entrance, be it without sites.
    pub(super) fn has(&self, entrance: &Entrance) -> bool {
        self.entrances.contains_key(entrance)
    }

    /// Returns all entrances with their sites.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Entrance, &SiteMap)> {
        self.entrances.iter()
    }

    fn has_other(&self, entrance: &Entrance) -> bool {
        let mut known = self.entrances.keys();
        known.any(|known| known.listen == entrance.listen && known != entrance)
    }
}

/// Returns what `sites` has for a request for this host and path, or for all requests of a point.
pub(super) fn answering<'a, T>(sites: &'a BTreeMap<Site, T>, point: &Site) -> Option<&'a T> {
    if sites.is_empty() {
        return None;
    }
    let mut site = point.clone();
    for host in including(&point.host) {
        site.host = host;
        for path in prefixes(&point.path) {
            path.clone_into(&mut site.path);
            if let Some(owner) = sites.get(&site) {
                return Some(owner);
            }
        }
    }
    None
}

/// Returns the points at which both maps have to be compared. A point comes behind all points that
/// include it.
pub(super) fn points(one: &SiteMap, other: &SiteMap) -> Vec<Site> {
    let mut paths: BTreeMap<&HostPattern, BTreeSet<&str>> = BTreeMap::new();
    for site in one.keys().chain(other.keys()) {
        paths.entry(&site.host).or_default().insert(&site.path);
    }
    let mut hosts: Vec<&HostPattern> = paths.keys().copied().collect();
    hosts.sort_by_key(|host| match host {
        HostPattern::Any => (0, 0),
        HostPattern::Subdomain(parent) => (1, parent.len()),
        HostPattern::Exact(_) => (2, 0),
    });
    let mut points = Vec::new();
    for host in hosts {
        let hosts = including(host);
        let paths = hosts.filter_map(|host| paths.get(&host)).flatten();
        let paths: BTreeSet<&str> = paths.copied().collect();
        // A prefix is smaller than what it begins.
        points.extend(paths.into_iter().map(|path| Site {
            host: host.clone(),
            path: path.to_owned(),
        }));
    }
    points
}

/// Returns the host patterns that include this one, from itself to the widest.
fn including(host: &HostPattern) -> impl Iterator<Item = HostPattern> {
    let name = match host {
        HostPattern::Exact(name) | HostPattern::Subdomain(name) => name.as_str(),
        HostPattern::Any => "",
    };
    let parents = name.match_indices('.').filter(|(dot, _)| *dot > 0);
    let parents = parents.map(|(dot, _)| HostPattern::Subdomain(name[dot + 1..].to_owned()));
    let own = (*host != HostPattern::Any).then(|| host.clone());
    own.into_iter().chain(parents).chain([HostPattern::Any])
}

/// Returns the path prefixes that include this one, from itself to `/`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let own = (path != "/").then_some(path);
    let slashes = path.rmatch_indices('/').filter(|(slash, _)| *slash > 0);
    let shorter = slashes.map(|(slash, _)| &path[..slash]);
    own.into_iter().chain(shorter).chain(["/"])
}
