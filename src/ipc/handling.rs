//! How the requests of a service are treated.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a service's file may say about its requests. A message that leaves something out means the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handling {
    /// Bytes that the body of a request may have. `None`: any number, as it is passed on as it comes.
    pub max_request_body: Option<u64>,
    /// How long an instance may keep a request or the rest of a response waiting.
    pub response_timeout: Duration,
    /// How long a request may wait for an instance that takes it.
    pub queue_timeout: Duration,
    /// The port with TLS that requests without it are sent to.
    pub redirect_https: Option<u16>,
    /// For how long browsers are told to come with TLS only.
    pub hsts: Option<Duration>,
}

impl Default for Handling {
    fn default() -> Handling {
        Handling {
            max_request_body: None,
            response_timeout: Duration::from_secs(60),
            queue_timeout: Duration::from_secs(10),
            redirect_https: None,
            hsts: None,
        }
    }
}
