//! The work that the proxy does for every request, without system calls: what
//! `benches/instructions.rs` counts.

use crate::ipc::Route;
use crate::proxy::http::headers::{
    Persistence, RequestSender, delivery, request_id, write_request, write_response,
};
use crate::proxy::http::http1::{RequestHead, ResponseHead, Version, slots};
use crate::proxy::shared::router::Router;

/// A route table as a listener uses it.
#[derive(Debug)]
pub struct RouteTable(Router);

impl RouteTable {
    /// Makes a table of routes, each with the index of its service. `None` if two routes are for
    /// the same host and path.
    pub fn try_new(routes: &[(usize, Route)]) -> Option<RouteTable> {
        let mut router = Router::default();
        for (service, route) in routes {
            router.insert(*service, route).ok()?;
        }
        Some(RouteTable(router))
    }

    /// Returns the index of the service for a host without its port and a path without its query.
    pub fn find(&self, host: &[u8], path: &[u8]) -> Option<usize> {
        let found = self.0.find(host, path).ok()?;
        found.map(|found| found.service)
    }
}

/// Parses the head of a request and writes it for an instance. Returns false if the head is not
/// valid.
pub fn rewrite_request(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let mut slots = slots();
    let Ok(Some(head)) = RequestHead::parse(bytes, &mut slots) else {
        return false;
    };
    let sender = RequestSender {
        address: "192.0.2.1",
        secure: false,
        trusted: false,
        forwarded: false,
    };
    write_request(&head, sender, &request_id(&head, sender), out);
    true
}

/// Parses the head of a response and writes it for a client. Returns false if the head is not
/// valid.
pub fn rewrite_response(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let mut slots = slots();
    let Ok(Some(head)) = ResponseHead::parse(bytes, false, &mut slots) else {
        return false;
    };
    let version = Version::Http11;
    let framing = delivery(head.framing, version);
    write_response(&head, false, version, framing, Persistence::KeepAlive, out);
    true
}
