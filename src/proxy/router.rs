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

/// The path prefixes of one host, without a slash at the end, so that `/` is the empty one.
#[derive(Debug, Default)]
struct Paths {
    services: HashMap<Box<[u8]>, usize>,
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
            if !paths.insert(&route.path, route.service) {
                return Err(Clash {
                    host: route.host.clone(),
                    path: route.path.clone(),
                });
            }
        }
        Ok(router)
    }

    /// The service for a host without its port, in any case, and a path without its query.
    pub(crate) fn find(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        if host.iter().any(u8::is_ascii_uppercase) {
            self.find_lower_case(&host.to_ascii_lowercase(), path)
        } else {
            self.find_lower_case(host, path)
        }
    }

    fn find_lower_case(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        self.exact
            .get(host)
            .and_then(|paths| paths.find(path))
            .or_else(|| self.find_subdomain(host, path))
            .or_else(|| self.any.find(path))
    }

    fn find_subdomain(&self, host: &[u8], path: &[u8]) -> Option<usize> {
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
    fn insert(&mut self, path: &str, service: usize) -> bool {
        let path = key(path.trim_end_matches('/'));
        self.longest = self.longest.max(path.len());
        self.services.insert(path, service).is_none()
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        if self.longest > 0 {
            let last = path.len().min(self.longest);
            let found = (1..=last)
                .rev()
                .filter(|&end| end == path.len() || path[end] == b'/')
                .find_map(|end| self.services.get(&path[..end]));
            if let Some(&service) = found {
                return Some(service);
            }
        }
        self.services.get(&b""[..]).copied()
    }
}

fn key(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}
