//! Finds the service of a host and a path. Pure, shared by all threads.
//!
//! Of all routes that match, the one with the longest host wins, and among routes with the same
//! host the one with the longest path: an exact host before any `*.host`, a longer `*.host` before
//! a shorter one, `_` last. The cost of a lookup does not depend on the number of routes, and a
//! stranger cannot make it grow: a part of a host or a path that is longer than the longest one in
//! any route is never hashed.
//!
//! A path is compared as instances may read it ([`path`]), but only where it matters: a host of
//! which one route has all paths gets every path as it is.
//!
//! A router is changed by making a changed copy, which costs little more than what is different:
//! see [`Hosts`].

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::ipc::{Host, Route};
use crate::proxy::http::http1::Refusal;
use crate::proxy::http::path::{self, Readings};

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
    /// How many bytes at the beginning of the decoded path are stripped before an instance gets the
    /// request.
    pub(crate) strip: usize,
}

/// Where a request is routed to, and what of its path an instance gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    /// The index of the service in the table.
    pub(crate) service: usize,
    /// How many bytes at the beginning of the path are stripped.
    pub(crate) strip: usize,
    /// The path that the instance gets instead of the one that was sent, before it is stripped.
    pub(crate) rewritten: Option<Vec<u8>>,
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
        let path = prefix(route);
        let strip =
            path::decoded(&route.path.as_bytes()[..route.strip.min(route.path.len())]).len();
        let destination = Destination {
            service,
            strip: strip.min(path.len()),
        };
        let paths = match &route.host {
            Host::Exact(host) => self.exact.entry(host.as_bytes()),
            Host::Subdomain(host) => {
                self.longest_subdomain = self.longest_subdomain.max(host.len());
                self.subdomains.entry(host.as_bytes())
            }
            Host::Any => &mut self.any,
        };
        match paths.insert(path, destination) {
            true => Ok(()),
            false => Err(Clash {
                host: route.host.clone(),
                path: route.path.clone(),
            }),
        }
    }

    /// Removes a route; a route that is not in the router is ignored.
    pub(crate) fn remove(&mut self, route: &Route) {
        let path = &prefix(route);
        match &route.host {
            Host::Exact(host) => self.exact.remove(host.as_bytes(), path),
            Host::Subdomain(host) => self.subdomains.remove(host.as_bytes(), path),
            Host::Any => self.any.remove(path),
        }
    }

    /// Finds the destination of a request for a host without its port, in any case, and a path
    /// without its query. A path that could lead to several destinations, depending on who reads
    /// it, is refused.
    pub(crate) fn find(&self, host: &[u8], path: &[u8]) -> Result<Option<Routed>, Refusal> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        if host.iter().any(u8::is_ascii_uppercase) {
            self.find_readings(&host.to_ascii_lowercase(), path)
        } else {
            self.find_readings(host, path)
        }
    }

    fn find_readings(&self, host: &[u8], path: &[u8]) -> Result<Option<Routed>, Refusal> {
        let mut candidates = self.candidates(host);
        let first = candidates.next().unwrap_or(&self.any);
        if first.others.is_none() || path::is_plain(path) {
            // A host that has only `/` needs none of the hosts after it.
            let found = first.find(path);
            let found = found.or_else(|| candidates.find_map(|paths| paths.find(path)));
            return Ok(found.map(|found| Routed {
                service: found.service,
                strip: found.strip,
                rewritten: None,
            }));
        }
        let readings = Readings::of(path)?;
        let found = self.find_reading(host, &readings.resolved());
        for merged in readings.merged().into_iter().flatten() {
            if self.find_reading(host, &merged) != found {
                return Err(Refusal::Bad(
                    "readers of the path would differ about its service",
                ));
            }
        }
        Ok(found.map(|found| {
            // What is stripped stands at the beginning, if there are no dot segments.
            let rewritten = match found.strip {
                0 => None,
                _ => readings.without_dots(),
            };
            let text = rewritten.as_deref().unwrap_or(path);
            Routed {
                service: found.service,
                strip: path::encoded_length(text, found.strip),
                rewritten,
            }
        }))
    }

    fn find_reading(&self, host: &[u8], path: &[u8]) -> Option<Destination> {
        self.candidates(host).find_map(|paths| paths.find(path))
    }

    /// Returns the paths of this host, of the hosts that it is a subdomain of, and of any host, in
    /// the order in which they are asked.
    fn candidates<'a>(&'a self, host: &'a [u8]) -> impl Iterator<Item = &'a Paths> {
        let exact = self.exact.get(host).into_iter();
        exact.chain(self.subdomains(host)).chain([&self.any])
    }

    /// Returns the paths of the hosts that this host is a subdomain of, the longest host first.
    fn subdomains<'a>(&'a self, host: &'a [u8]) -> impl Iterator<Item = &'a Paths> {
        let first = match self.longest_subdomain {
            0 => host.len(),
            longest => host.len().saturating_sub(longest + 1).max(1),
        };
        (first..host.len())
            .filter(|&dot| host[dot] == b'.')
            .filter_map(|dot| self.subdomains.get(&host[dot + 1..]))
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
    /// Inserts a decoded path. Returns false if it was there.
    fn insert(&mut self, path: Vec<u8>, destination: Destination) -> bool {
        let before = match path.is_empty() {
            true => self.root.replace(destination),
            false => {
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

/// Returns the decoded path of a route, without a slash at the end.
fn prefix(route: &Route) -> Vec<u8> {
    path::decoded(route.path.trim_end_matches('/').as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::ipc::ListenerId;
    use crate::proxy::http::path::tests::{any_path, seen};

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
            assert_eq!(found(&router, host, path), Some(service), "{host} {path}");
        }
    }

    fn found(router: &Router, host: &str, path: &str) -> Option<usize> {
        let found = router.find(host.as_bytes(), path.as_bytes());
        found.unwrap().map(|found| found.service)
    }

    #[test]
    fn a_path_is_routed_as_an_instance_reads_it() {
        let router = router(&[
            route(exact("a.example"), "/"),
            route(exact("a.example"), "/api"),
            route(exact("a.example"), "/caf%C3%A9"),
            route(exact("b.example"), "/"),
            route(exact("c.example"), "/x"),
            route(subdomain("example"), "/"),
        ])
        .unwrap();
        for (path, service) in [
            ("/%61pi", Some(1)),
            ("/%61%70%69/x", Some(1)),
            ("/x/../api/y", Some(1)),
            ("/./api", Some(1)),
            ("/../api", Some(1)),
            ("/api/../x", Some(0)),
            ("/api/..", Some(0)),
            ("/api/../api", Some(1)),
            ("/api//x", Some(1)),
            ("/apix//y", Some(0)),
            ("/api%20x", Some(0)),
            ("/caf\u{e9}/x", Some(2)),
            ("/caf%c3%A9/x", Some(2)),
            // What no proxy can know.
            ("/API", Some(0)),
            ("/api;x/y", Some(0)),
            // Readers differ about these.
            ("//api", None),
            ("/x//../api", None),
            ("/api%2fx", None),
            ("/x%2f..%2fapi", None),
            ("/%2e%2e/api", None),
            ("/x\\..\\api", None),
            ("/..;/api", None),
            ("/%zz", None),
        ] {
            let result = router.find(b"a.example", path.as_bytes()).ok();
            let result = result.map(|found| found.unwrap().service);
            assert_eq!(result, service, "{path}");
            // Whoever has all paths of a host gets all of them.
            assert_eq!(found(&router, "b.example", path), Some(3), "{path}");
            assert_eq!(found(&router, "d.example", path), Some(5), "{path}");
        }
        // A host whose other paths another route serves is routed by path, too.
        assert_eq!(found(&router, "c.example", "/y/%7e"), Some(5));
        assert!(router.find(b"c.example", b"/y%2f").is_err());
    }

    #[test]
    fn what_is_stripped_is_the_prefix_however_it_is_written() {
        let mut router = Router::default();
        let api = Route {
            strip: "/a%20b".len(),
            ..route(Host::Any, "/a%20b/c")
        };
        router.insert(0, &api).unwrap();
        for (path, rest) in [
            ("/a%20b/c", "/c"),
            ("/%61%20b/c/d", "/c/d"),
            ("/x/../a%20b/./c/%64", "/c/%64"),
            ("/a%20b/c//d", "/c//d"),
        ] {
            let found = router.find(b"", path.as_bytes()).unwrap().unwrap();
            let text = found.rewritten.unwrap_or_else(|| path.into());
            assert_eq!(&text[found.strip..], rest.as_bytes(), "{path}");
        }
    }

    #[test]
    fn two_routes_for_the_same_decoded_path_are_refused() {
        let routes = [route(Host::Any, "/api"), route(Host::Any, "/%61pi")];
        assert!(router(&routes).is_err());
    }

    #[test]
    fn what_no_route_matches_has_no_service() {
        let router = router(&[route(exact("a.example"), "/api")]).unwrap();
        assert_eq!(found(&router, "a.example", "/"), None);
        assert_eq!(found(&router, "b.example", "/api"), None);
        assert_eq!(found(&Router::default(), "a.example", "/"), None);
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
            if let Ok(found) = router.find(host.as_bytes(), path.as_bytes()) {
                let found = found.map(|found| found.service);
                prop_assert_eq!(found, find_naively(&routes, &host, &path));
            }
        }

        /// Whatever service is chosen, no other one has the path as an instance sees it: decoded,
        /// without dot segments, and with or without empty segments.
        #[test]
        fn no_reader_sees_the_path_of_another_service(
            routes in routes(),
            host in "[ab.]{0,9}",
            path in any_path(),
        ) {
            let router = router(&routes).unwrap();
            let by_path = routes.iter().any(|route| prefix(route) != b"");
            if let Ok(found) = router.find(host.as_bytes(), path.as_bytes())
                && by_path
            {
                let found = found.map(|found| found.service);
                let merged = |path: &str| {
                    let mut parts: Vec<&str> = path.split('/').collect();
                    let last = parts.pop().unwrap();
                    parts.retain(|part| !part.is_empty());
                    parts.push(last);
                    format!("/{}", parts.join("/"))
                };
                let views = [seen(&path), merged(&seen(&path)), seen(&merged(&path))];
                let name = host.strip_suffix('.').unwrap_or(&host).as_bytes();
                let first = router.candidates(name).next();
                let sensitive = first.is_some_and(|paths| paths.others.is_some());
                for view in views {
                    if sensitive {
                        prop_assert_eq!(found, find_naively(&routes, &host, &view), "{}", view);
                    }
                }
                if !sensitive {
                    prop_assert!(found.is_none_or(|found| prefix(&routes[found]) == b""));
                }
            }
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
                    if let Ok(found) = router.find(host.as_bytes(), path.as_bytes()) {
                        let found = found.map(|found| found.service);
                        prop_assert_eq!(found, find_naively(&routes, host, path));
                    }
                }
            }
        }
    }
}
