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
}

/// A message from a worker to the manager. The manager trusts none of it: every message is bounded
/// in size and in number, and one that does not fit the state of its endpoint is ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first message on every connection.
    Hello {
        /// `CARGO_PKG_VERSION` of the worker.
        version: ShortText,
        /// Whether the worker can connect to instances on unix sockets. Older workers, which do not
        /// say it, can.
        #[serde(default = "yes")]
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
    /// The steady health check took an active endpoint out of the balance or put it back.
    Health {
        /// The endpoint.
        endpoint: EndpointId,
        /// `None`: healthy again. Otherwise the last failure, in words.
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
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_do_not_say_so_can_connect_to_unix_sockets() {
        let older: FromWorker = serde_json::from_str(r#"{"Hello":{"version":"0.1.0"}}"#).unwrap();
        let FromWorker::Hello { unix_sockets, .. } = older else {
            panic!("{older:?}");
        };
        assert!(unix_sockets);
    }
}
