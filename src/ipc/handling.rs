//! What a worker does with the requests and responses of a service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a worker does with the requests of a service before and while an instance has them. A
/// message that leaves a field out means its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handling {
    /// The most bytes that the body of a request may have. `None`: any number, since the body is
    /// passed on as it comes.
    pub max_request_body: Option<u64>,
    /// How long an instance may keep a request or the rest of a response waiting.
    pub response_timeout: Duration,
    /// How long a request without a response keeps an instance from draining once its client sends
    /// nothing more.
    pub client_gone_timeout: Duration,
    /// How long a request may wait for an instance that takes it.
    pub queue_timeout: Duration,
    /// The most requests of the service that are in flight at a time, in the whole worker. `None`:
    /// as many as the worker has room for.
    pub max_in_flight: Option<u32>,
    /// The port with TLS that requests without TLS are redirected to. `None`: no redirect.
    pub redirect_https: Option<u16>,
    /// How long browsers are told to use TLS only (`Strict-Transport-Security`). `None`: the header
    /// is not sent.
    pub hsts: Option<Duration>,
}

impl Default for Handling {
    fn default() -> Handling {
        Handling {
            max_request_body: None,
            response_timeout: Duration::from_secs(60),
            client_gone_timeout: Duration::from_secs(5),
            queue_timeout: Duration::from_secs(10),
            max_in_flight: None,
            redirect_https: None,
            hsts: None,
        }
    }
}
