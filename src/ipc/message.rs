//! The messages of both directions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bounds::BoundCounts;
use super::certificate::WireCertificate;
use super::endpoint::{EndpointCounts, EndpointId};
use super::short_text::ShortText;
use super::table::{ListenerId, WireTable};

/// A message from the manager to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// A listening socket, sent with its file descriptor before the first table that names it.
    Listener(ListenerId),
    /// A certificate with its key, sent before the first table that names it. A worker forgets a
    /// certificate that the table it takes does not name.
    Certificate(WireCertificate),
    /// The table to use from now on.
    Table(WireTable),
    /// Accept nothing more, serve what was accepted, then exit with status 0.
    Drain {
        /// How long idle client connections may wait for their next request, which is answered with
        /// `Connection: close`, before they are closed.
        idle: Duration,
        /// After this time whatever is left is cut off, unless there are tunnels.
        limit: Duration,
        /// After this time tunnels are cut off, too.
        #[serde(default)]
        tunnels: Duration,
    },
    /// A question that the worker answers with [`FromWorker::Pong`] of the same number once every
    /// thread has seen it.
    Ping(u64),
    /// What a manager says that speaks another version of the messages. Nobody sends it.
    #[serde(skip)]
    NotUnderstood,
}

/// A message from a worker to the manager. The manager trusts none of it: every message is bounded
/// in size and in number, and one that does not fit the state of its endpoint is ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first message on every connection.
    Hello {
        /// `CARGO_PKG_VERSION` of the worker.
        version: ShortText,
        /// The version of the messages that the worker speaks, see [`MESSAGES`](super::MESSAGES).
        messages: u32,
        /// Whether the worker can connect to instances on unix sockets.
        unix_sockets: bool,
    },
    /// All threads use the table of this number.
    Acknowledged(u64),
    /// The worker cannot use the table of this number, and goes on with the one before. The next
    /// table has to be whole.
    Refused(u64),
    /// The answer of one probe of an endpoint that is [`Probing`](super::EndpointState::Probing):
    /// sent for the first success and for each failure before it.
    Probed {
        /// The endpoint.
        endpoint: EndpointId,
        /// The failure, as a person wants to read it: `connect to 127.0.0.1:9001: connection
        /// refused`, `GET /health: status 503`.
        result: Result<(), ShortText>,
    },
    /// The health check took an active endpoint out of the balance or put it back, or has reached
    /// the first decision that the manager wants to know ([`Report`](super::HealthCheck::Report)).
    Health {
        /// The endpoint.
        endpoint: EndpointId,
        /// `None`: healthy. Otherwise the last failure, in words.
        fault: Option<ShortText>,
    },
    /// A draining endpoint has become quiescent.
    Idle(EndpointId),
    /// The draining worker has nothing left but tunnels.
    OnlyTunnels,
    /// Counters, sent at most five times a second and only while they change.
    Counts {
        /// Open client connections.
        connections: u32,
        /// The state of the worker's bounds.
        #[serde(default)]
        bounds: BoundCounts,
        /// The counts of all endpoints of the table.
        endpoints: Vec<EndpointCounts>,
    },
    /// No thread is stuck: all have seen the ping of this number.
    Pong(u64),
    /// What a worker says that speaks another version of the messages. Nobody sends it.
    #[serde(skip)]
    NotUnderstood,
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::ipc::{
        Address, CertificateId, EndpointState, Handling, HealthCheck, Host, MESSAGES, Overload,
        Probe, Protocol, Route, Secret, WireEndpoint, WireListener, WireService,
    };

    /// What `MESSAGES` stands for.
    const MESSAGES_OF_THIS_VERSION: &str = include_str!("messages.txt");

    /// Returns every message of the manager, with every field. A new field has to be named here.
    fn to_worker() -> Vec<ToWorker> {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let endpoint = |address, protocol, state, probe, check| WireEndpoint {
            id: EndpointId(1),
            address,
            protocol,
            state,
            probe,
            check,
        };
        let endpoints = vec![
            endpoint(
                Address::Tcp(address),
                Protocol::Http1,
                EndpointState::Probing,
                Probe::Connect,
                HealthCheck::Steady,
            ),
            endpoint(
                Address::Unix("/s".into()),
                Protocol::H2c,
                EndpointState::Active,
                Probe::Http("/".to_owned()),
                HealthCheck::Close,
            ),
            endpoint(
                Address::Tcp(address),
                Protocol::Http1,
                EndpointState::Draining,
                Probe::Connect,
                HealthCheck::Report,
            ),
            endpoint(
                Address::Tcp(address),
                Protocol::Http1,
                EndpointState::Cut,
                Probe::Connect,
                HealthCheck::Steady,
            ),
        ];
        let hosts = [
            Host::Exact("a.example".to_owned()),
            Host::Subdomain("example".to_owned()),
            Host::Any,
        ];
        let routes = hosts.map(|host| Route {
            listener: ListenerId(1),
            host,
            path: "/".to_owned(),
            strip: 0,
        });
        let service = WireService {
            name: "shop".to_owned(),
            running: true,
            handling: Handling {
                max_request_body: Some(1),
                max_in_flight: Some(1),
                hsts: Some(Duration::from_secs(1)),
                ..Handling::default()
            },
            routes: routes.into(),
            endpoints,
        };
        let table = WireTable {
            number: 2,
            since: 1,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            forwarded: true,
            max_connections: Some(1),
            max_memory: Some(1),
            log_level: Some("info".to_owned()),
            listeners: vec![WireListener {
                id: ListenerId(1),
                address,
                tls: Some(vec![CertificateId([0; 32])]),
                proxy_protocol: true,
                passing: true,
            }],
            services: vec![service.into()],
            removed: vec!["blog".to_owned()],
        };
        let certificate = WireCertificate {
            id: CertificateId([0; 32]),
            names: vec!["a.example".to_owned()],
            chain: vec![vec![1]],
            key: Secret(vec![2]),
        };
        vec![
            ToWorker::Listener(ListenerId(1)),
            ToWorker::Certificate(certificate),
            ToWorker::Table(table),
            ToWorker::Drain {
                idle: Duration::ZERO,
                limit: Duration::ZERO,
                tunnels: Duration::ZERO,
            },
            ToWorker::Ping(1),
        ]
    }

    /// Returns every message of a worker, with every field.
    fn from_worker() -> Vec<FromWorker> {
        let endpoint = EndpointId(1);
        let counts = EndpointCounts {
            id: endpoint,
            in_flight: 0,
            tunnels: 0,
            requests: 0,
            failures: 0,
        };
        let hello = FromWorker::Hello {
            version: "0.1.0".into(),
            messages: MESSAGES,
            unix_sockets: true,
        };
        let counts = Overload::STEPS.map(|overload| FromWorker::Counts {
            connections: 0,
            bounds: BoundCounts {
                overload,
                ..BoundCounts::default()
            },
            endpoints: vec![counts],
        });
        let rest = [
            FromWorker::Acknowledged(1),
            FromWorker::Refused(1),
            FromWorker::Probed {
                endpoint,
                result: Ok(()),
            },
            FromWorker::Probed {
                endpoint,
                result: Err("no".into()),
            },
            FromWorker::Health {
                endpoint,
                fault: Some("no".into()),
            },
            FromWorker::Idle(endpoint),
            FromWorker::OnlyTunnels,
            FromWorker::Pong(1),
        ];
        [hello].into_iter().chain(counts).chain(rest).collect()
    }

    #[test]
    fn the_messages_of_a_released_version_never_change() {
        // A new message has to be added above.
        let variants = |message: &ToWorker| match message {
            ToWorker::Listener(_)
            | ToWorker::Certificate(_)
            | ToWorker::Table(_)
            | ToWorker::Drain { .. }
            | ToWorker::Ping(_)
            | ToWorker::NotUnderstood => 6,
        };
        assert_eq!(to_worker().len() + 1, variants(&to_worker()[0]));
        let line = |json: serde_json::Result<String>| json.unwrap() + "\n";
        let mut messages = format!("version {MESSAGES}\n");
        messages.extend(to_worker().iter().map(|it| line(serde_json::to_string(it))));
        messages.extend(
            from_worker()
                .iter()
                .map(|it| line(serde_json::to_string(it))),
        );
        assert!(
            messages == MESSAGES_OF_THIS_VERSION,
            "the messages between managers and workers have changed. Raise MESSAGES in \
             src/ipc/frozen.rs if a release has its present value, and put this into \
             src/ipc/messages.txt:\n{messages}"
        );
    }
}
