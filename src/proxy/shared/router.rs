//! Finds the service of a host and a path. Pure, shared by all threads.
//!
//! Of all routes that match, the one with the longest host wins, and among routes with the same
//! host the one with the longest path: an exact host before any `*.host`, a longer `*.host` before
//! a shorter one, `_` last. The cost of a lookup does not depend on the number of routes, and a
//! stranger cannot make it grow: a part of a host or a path that is longer than the longest one in
//! any route is never hashed.
//!
//! A router is changed by making a changed copy, which costs little more than what is different:
//! see [`Hosts`].

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::ipc::{Host, Route};

/// The routes of one listener.
#[derive(Debug, Clone, Default)]
pub(crate) struct Router {
    exact: Hosts,
    subdomains: Hosts,
    longest_subdomain: usize,
    any: Paths,
}

/// Where a request is routed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The index of the service in the table.
    pub(crate) service: usize,
    /// How many bytes at the beginning of the path are stripped before an instance gets the
    /// request.
    pub(crate) strip: usize,
}

/// All hosts with their paths, divided into parts. Copies share each part until one of them changes
/// it.
#[derive(Debug, Clone, Default)]
struct Hosts {
    hasher: RandomState,
    /// Either [`PARTS`] parts, or none if there are no hosts.
    parts: Vec<Arc<Part>>,
}

type Part = HashTable<(Box<[u8]>, Paths)>;

/// The number of parts of a router: high enough that a change copies little, low enough that a
/// listener with one host stays small.
const PARTS: usize = 64;

/// The path prefixes of one host, in little memory because there may be many hosts.
#[derive(Debug, Clone, Default)]
struct Paths {
    /// The destination of `/`, which is the only prefix of most hosts.
    root: Option<Destination>,
    others: Option<Box<Prefixes>>,
}

/// The prefixes of a host other than `/`, without a slash at the end.
#[derive(Debug, Clone, Default)]
struct Prefixes {
    destinations: HashMap<Box<[u8]>, Destination>,
    longest: usize,
}

/// Why a route cannot be inserted: another route has the same host and path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two routes for {host:?} {path:?}")]
pub(crate) struct Clash {
    host: Host,
    path: String,
}

impl Router {
    /// Inserts a route to the service of this index.
    pub(crate) fn insert(&mut self, service: usize, route: &Route) -> Result<(), Clash> {
        let paths = match &route.host {
            Host::Exact(host) => self.exact.entry(host.as_bytes()),
            Host::Subdomain(host) => {
                self.longest_subdomain = self.longest_subdomain.max(host.len());
                self.subdomains.entry(host.as_bytes())
            }
            Host::Any => &mut self.any,
        };
        match paths.insert(service, route) {
            true => Ok(()),
            false => Err(Clash {
                host: route.host.clone(),
                path: route.path.clone(),
            }),
        }
    }

    /// Removes a route; a route that is not in the router is ignored.
    pub(crate) fn remove(&mut self, route: &Route) {
        let path = prefix(route);
        match &route.host {
            Host::Exact(host) => self.exact.remove(host.as_bytes(), path),
            Host::Subdomain(host) => self.subdomains.remove(host.as_bytes(), path),
            Host::Any => self.any.remove(path),
        }
    }

    /// Finds the destination of a request for a host without its port, in any case, and a path
    /// without its query.
    pub(crate) fn find(&self, host: &[u8], path: &[u8]) -> Option<Destination> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        if host.iter().any(u8::is_ascii_uppercase) {
            self.find_lower_case(&host.to_ascii_lowercase(), path)
        } else {
            self.find_lower_case(host, path)
        }
    }

    fn find_lower_case(&self, host: &[u8], path: &[u8]) -> Option<Destination> {
        self.exact
            .get(host)
            .and_then(|paths| paths.find(path))
            .or_else(|| self.find_subdomain(host, path))
            .or_else(|| self.any.find(path))
    }

    fn find_subdomain(&self, host: &[u8], path: &[u8]) -> Option<Destination> {
        if self.longest_subdomain == 0 {
            return None;
        }
        let first = host.len().saturating_sub(self.longest_subdomain + 1);
        (first.max(1)..host.len())
            .filter(|&dot| host[dot] == b'.')
            .find_map(|dot| self.subdomains.get(&host[dot + 1..])?.find(path))
    }
}

impl Hosts {
    fn get(&self, host: &[u8]) -> Option<&Paths> {
        if self.parts.is_empty() {
            return None;
        }
        let hash = self.hasher.hash_one(host);
        let found = self.parts[part(hash)].find(hash, |(name, _)| **name == *host);
        found.map(|(_, paths)| paths)
    }

    /// Returns the paths of a host. A host that is not there is inserted without paths.
    fn entry(&mut self, host: &[u8]) -> &mut Paths {
        self.parts.resize_with(PARTS, Arc::default);
        let hash = self.hasher.hash_one(host);
        let part = Arc::make_mut(&mut self.parts[part(hash)]);
        let hasher = |(name, _): &(Box<[u8]>, Paths)| self.hasher.hash_one(&**name);
        let entry = part.entry(hash, |(name, _)| **name == *host, hasher);
        let entry = entry.or_insert_with(|| (host.into(), Paths::default()));
        &mut entry.into_mut().1
    }

    fn remove(&mut self, host: &[u8], path: &[u8]) {
        if self.parts.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one(host);
        let part = Arc::make_mut(&mut self.parts[part(hash)]);
        if let Ok(mut entry) = part.find_entry(hash, |(name, _)| **name == *host) {
            let (_, paths) = entry.get_mut();
            paths.remove(path);
            if paths.is_empty() {
                entry.remove();
            }
        }
    }
}

/// Chooses the part of a host, by bits of the hash that the small table of the part does not use.
fn part(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

impl Paths {
    /// Inserts a route. Returns false if there was one for the same path.
    fn insert(&mut self, service: usize, route: &Route) -> bool {
        let path = prefix(route);
        let destination = Destination {
            service,
            strip: route.strip.min(path.len()),
        };
        let before = match path {
            b"" => self.root.replace(destination),
            path => {
                let others = self.others.get_or_insert_default();
                others.longest = others.longest.max(path.len());
                others.destinations.insert(path.into(), destination)
            }
        };
        before.is_none()
    }

    fn remove(&mut self, path: &[u8]) {
        match (path, &mut self.others) {
            (b"", _) => self.root = None,
            (path, Some(others)) => drop(others.destinations.remove(path)),
            (_, None) => {}
        }
        let others = self.others.take();
        self.others = others.filter(|others| !others.destinations.is_empty());
    }

    fn is_empty(&self) -> bool {
        self.root.is_none() && self.others.is_none()
    }

    fn find(&self, path: &[u8]) -> Option<Destination> {
        let longer = self.others.as_ref().and_then(|others| others.find(path));
        longer.or(self.root)
    }
}

impl Prefixes {
    fn find(&self, path: &[u8]) -> Option<Destination> {
        let last = path.len().min(self.longest);
        (1..=last)
            .rev()
            .filter(|&end| end == path.len() || path[end] == b'/')
            .find_map(|end| self.destinations.get(&path[..end]).copied())
    }
}

/// Returns the path of a route, without a slash at the end.
fn prefix(route: &Route) -> &[u8] {
    route.path.trim_end_matches('/').as_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::ipc::ListenerId;

    fn route(host: Host, path: &str) -> Route {
        Route {
            listener: ListenerId(1),
            host,
            path: path.to_owned(),
            strip: 0,
        }
    }

    /// Makes a router in which each route leads to a service of its own.
    fn router(routes: &[Route]) -> Result<Router, Clash> {
        let mut router = Router::default();
        for (service, route) in routes.iter().enumerate() {
            router.insert(service, route)?;
        }
        Ok(router)
    }

    fn exact(host: &str) -> Host {
        Host::Exact(host.to_owned())
    }

    fn subdomain(host: &str) -> Host {
        Host::Subdomain(host.to_owned())
    }

    #[test]
    fn the_longest_host_then_the_longest_path_wins() {
        let router = router(&[
            route(Host::Any, "/"),
            route(subdomain("example"), "/"),
            route(subdomain("b.example"), "/"),
            route(exact("a.b.example"), "/api"),
            route(exact("a.b.example"), "/api/v2"),
        ])
        .unwrap();
        for (host, path, service) in [
            ("a.b.example", "/api", 3),
            ("a.b.example", "/api/", 3),
            ("A.B.Example.", "/api/v1", 3),
            ("a.b.example", "/api/v2", 4),
            ("a.b.example", "/api/v2/x", 4),
            ("a.b.example", "/api/v22", 3),
            ("a.b.example", "/apix", 2),
            ("x.a.b.example", "/api", 2),
            ("b.example", "/", 1),
            ("example", "/", 0),
            (".example", "/", 0),
            ("", "*", 0),
        ] {
            let found = router.find(host.as_bytes(), path.as_bytes());
            let destination = Destination { service, strip: 0 };
            assert_eq!(found, Some(destination), "{host} {path}");
        }
    }

    #[test]
    fn what_no_route_matches_has_no_service() {
        let router = router(&[route(exact("a.example"), "/api")]).unwrap();
        assert_eq!(router.find(b"a.example", b"/"), None);
        assert_eq!(router.find(b"b.example", b"/api"), None);
        assert_eq!(Router::default().find(b"a.example", b"/"), None);
    }

    #[test]
    fn two_routes_for_the_same_are_refused() {
        let routes = [
            route(exact("a.example"), "/api"),
            route(exact("a.example"), "/api/"),
        ];
        assert!(router(&routes).is_err());
    }

    /// Finds the best route by comparing all of them.
    fn find_naively(routes: &[Route], host: &str, path: &str) -> Option<usize> {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let rank = |route: &Route| {
            let host_rank = match &route.host {
                Host::Exact(pattern) => (pattern == host).then_some((2, 0)),
                Host::Subdomain(pattern) => host
                    .strip_suffix(pattern.as_str())
                    .filter(|labels| labels.len() > 1 && labels.ends_with('.'))
                    .map(|_| (1, pattern.len())),
                Host::Any => Some((0, 0)),
            };
            let prefix = route.path.trim_end_matches('/');
            let rest = path.strip_prefix(prefix)?;
            let on_border = prefix.is_empty() || rest.is_empty() || rest.starts_with('/');
            Some((host_rank?, on_border.then_some(prefix.len())?))
        };
        let ranked = routes.iter().enumerate();
        let ranked = ranked.filter_map(|(index, route)| Some((rank(route)?, index)));
        ranked.max().map(|(_, index)| index)
    }

    fn host_name() -> impl Strategy<Value = String> {
        proptest::collection::vec("[ab]{1,2}", 1..4).prop_map(|labels| labels.join("."))
    }

    fn host() -> impl Strategy<Value = Host> {
        prop_oneof![
            3 => host_name().prop_map(Host::Exact),
            3 => host_name().prop_map(Host::Subdomain),
            1 => Just(Host::Any),
        ]
    }

    fn path() -> impl Strategy<Value = String> {
        proptest::collection::vec("[xy]{0,2}", 0..4)
            .prop_map(|segments| format!("/{}", segments.join("/")))
    }

    /// Makes routes of which no two have the same host and path.
    fn routes() -> impl Strategy<Value = Vec<Route>> {
        let pairs = proptest::collection::vec((host(), path()), 0..12);
        pairs.prop_map(|pairs| {
            let mut seen = HashSet::new();
            let routes = pairs.into_iter().map(|(host, path)| route(host, &path));
            routes
                .filter(|route| seen.insert((route.host.clone(), prefix(route).to_owned())))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_search_through_all_routes_finds(
            routes in routes(),
            host in "[aAbB.]{0,9}",
            path in path(),
        ) {
            let router = router(&routes).unwrap();
            prop_assert_eq!(
                router.find(host.as_bytes(), path.as_bytes()).map(|found| found.service),
                find_naively(&routes, &host, &path)
            );
        }

        #[test]
        fn a_changed_copy_finds_what_one_made_anew_finds(
            before in routes(),
            after in routes(),
            asked in proptest::collection::vec(("[ab.]{0,9}", path()), 0..20),
        ) {
            let original = router(&before).unwrap();
            let mut copy = original.clone();
            before.iter().for_each(|route| copy.remove(route));
            for (service, route) in after.iter().enumerate() {
                copy.insert(service, route).unwrap();
            }
            for (router, routes) in [(original, before), (copy, after)] {
                for (host, path) in &asked {
                    let found = router.find(host.as_bytes(), path.as_bytes());
                    let found = found.map(|found| found.service);
                    prop_assert_eq!(found, find_naively(&routes, host, path));
                }
            }
        }
    }
}
