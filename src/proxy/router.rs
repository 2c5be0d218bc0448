//! Finds the service of a host and a path. Pure, immutable, shared by all threads.
//!
//! Of all routes that match, the one with the longest host wins, and of those with the same host the one with the
//! longest path: an exact host before any `*.host`, a longer `*.host` before a shorter one, `_` last. The cost of a
//! lookup does not depend on the number of routes, and what a stranger sends cannot make it grow: no part of a host or
//! a path is hashed that is longer than the longest one known.

use std::collections::HashMap;

use crate::ipc::{Host, Route};

/// The routes of one listener.
#[derive(Debug, Default)]
pub(crate) struct Router {
    exact: HashMap<Box<[u8]>, Paths>,
    subdomains: HashMap<Box<[u8]>, Paths>,
    longest_subdomain: usize,
    any: Paths,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The index of the service.
    pub(crate) service: usize,
    /// How much of the path it does not get.
    pub(crate) strip: usize,
}

/// The path prefixes of one host, without a slash at the end.
#[derive(Debug, Default)]
struct Paths {
    /// For `/`, the only one that most hosts have.
    root: Option<Destination>,
    others: HashMap<Box<[u8]>, Destination>,
    longest: usize,
}

/// Two routes say different things about the same host and path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two routes for {host:?} {path:?}")]
pub(crate) struct Clash {
    host: Host,
    path: String,
}

impl Router {
    /// Arranges the routes.
    pub(crate) fn try_new(routes: &[Route]) -> Result<Router, Clash> {
        let mut router = Router::default();
        for route in routes {
            let paths = match &route.host {
                Host::Exact(host) => router.exact.entry(key(host)).or_default(),
                Host::Subdomain(host) => {
                    router.longest_subdomain = router.longest_subdomain.max(host.len());
                    router.subdomains.entry(key(host)).or_default()
                }
                Host::Any => &mut router.any,
            };
            if !paths.insert(route) {
                return Err(Clash {
                    host: route.host.clone(),
                    path: route.path.clone(),
                });
            }
        }
        Ok(router)
    }

    /// Where a request goes that is for a host without its port, in any case, and a path without its query.
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
        if self.subdomains.is_empty() {
            return None;
        }
        let first = host.len().saturating_sub(self.longest_subdomain + 1);
        (first.max(1)..host.len())
            .filter(|&dot| host[dot] == b'.')
            .find_map(|dot| self.subdomains.get(&host[dot + 1..])?.find(path))
    }
}

impl Paths {
    fn insert(&mut self, route: &Route) -> bool {
        let path = route.path.trim_end_matches('/');
        self.longest = self.longest.max(path.len());
        let destination = Destination {
            service: route.service,
            strip: route.strip.min(path.len()),
        };
        let before = match path {
            "" => self.root.replace(destination),
            path => self.others.insert(key(path), destination),
        };
        before.is_none()
    }

    fn find(&self, path: &[u8]) -> Option<Destination> {
        if self.longest > 0 {
            let last = path.len().min(self.longest);
            let found = (1..=last)
                .rev()
                .filter(|&end| end == path.len() || path[end] == b'/')
                .find_map(|end| self.others.get(&path[..end]));
            if let Some(&destination) = found {
                return Some(destination);
            }
        }
        self.root
    }
}

fn key(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(host: Host, path: &str, service: usize) -> Route {
        Route {
            host,
            path: path.to_owned(),
            strip: 0,
            service,
        }
    }

    fn exact(host: &str) -> Host {
        Host::Exact(host.to_owned())
    }

    fn subdomain(host: &str) -> Host {
        Host::Subdomain(host.to_owned())
    }

    #[test]
    fn the_longest_host_then_the_longest_path_wins() {
        let router = Router::try_new(&[
            route(Host::Any, "/", 0),
            route(subdomain("example"), "/", 1),
            route(subdomain("b.example"), "/", 2),
            route(exact("a.b.example"), "/api", 3),
            route(exact("a.b.example"), "/api/v2", 4),
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
        let router = Router::try_new(&[route(exact("a.example"), "/api", 0)]).unwrap();
        assert_eq!(router.find(b"a.example", b"/"), None);
        assert_eq!(router.find(b"b.example", b"/api"), None);
        assert_eq!(Router::default().find(b"a.example", b"/"), None);
    }

    #[test]
    fn two_routes_for_the_same_are_refused() {
        let routes = [
            route(exact("a.example"), "/api", 0),
            route(exact("a.example"), "/api/", 1),
        ];
        assert!(Router::try_new(&routes).is_err());
    }

    /// Looks at every route.
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
        let ranked = routes
            .iter()
            .filter_map(|route| Some((rank(route)?, route)));
        ranked
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, route)| route.service)
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

    proptest! {
        #[test]
        fn finds_what_a_search_through_all_routes_finds(
            routes in proptest::collection::vec((host(), path()), 0..12),
            host in "[aAbB.]{0,9}",
            path in path(),
        ) {
            let mut seen = std::collections::HashSet::new();
            let routes: Vec<Route> = routes
                .into_iter()
                .filter(|(host, path)| {
                    seen.insert((host.clone(), path.trim_end_matches('/').to_owned()))
                })
                .enumerate()
                .map(|(service, (host, path))| route(host, &path, service))
                .collect();
            let router = Router::try_new(&routes).unwrap();
            prop_assert_eq!(
                router.find(host.as_bytes(), path.as_bytes()).map(|found| found.service),
                find_naively(&routes, &host, &path)
            );
        }
    }
}
