//! What the download needs to know of a request, and what is known of a response once the client
//! has it.

use std::time::Duration;

use crate::proxy::http::headers::Persistence;
use crate::proxy::http::http1::Version;
use crate::proxy::policy::compiled::ResponsePolicy;

/// What of a request decides how its response is delivered.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The request was `HEAD`, so the response has no body.
    pub(crate) to_head: bool,
    /// The version of HTTP that the client speaks.
    pub(crate) version: Version,
    /// The client means to send another request.
    pub(crate) keep_alive: bool,
    /// What the policy of the service says about the response, if the service has one.
    pub(crate) policy: Option<ResponsePolicy>,
}

/// A response that the client has got whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeliveredResponse {
    /// What the client was told about the connection after the response.
    pub(crate) persistence: Persistence,
    /// The instance means to take another request on the same connection.
    pub(crate) instance_keeps_alive: bool,
    /// How long the instance waits for another request, if it says so.
    pub(crate) keep_alive_timeout: Option<Duration>,
    /// The instance has sent nothing after the response.
    pub(crate) is_clean: bool,
}
