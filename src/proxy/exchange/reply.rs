//! What the download needs to know about a request, and what is known about a response after its
//! delivery.

use std::time::Duration;

use crate::proxy::http::headers::Persistence;
use crate::proxy::http::http1::Version;
use crate::proxy::policy::compiled::ResponsePolicy;

/// The facts about a request that decide how its response is delivered.
#[derive(Debug)]
pub(crate) struct Reply {
    /// True if the request was `HEAD`, so the response has no body.
    pub(crate) to_head: bool,
    /// True if the client is a trusted proxy.
    pub(crate) to_trusted: bool,
    /// The version of HTTP that the client speaks.
    pub(crate) version: Version,
    /// True if the client means to send another request on this connection.
    pub(crate) keep_alive: bool,
    /// What the policy of the service says about the response, if the service has one.
    pub(crate) policy: Option<ResponsePolicy>,
}

/// A response that the client has received completely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeliveredResponse {
    /// What the response has told the client about the future of the connection.
    pub(crate) persistence: Persistence,
    /// True if the instance takes another request on the same connection.
    pub(crate) instance_keeps_alive: bool,
    /// True if the instance has asked for an identity that then belongs to the connection.
    pub(crate) binds_connection: bool,
    /// How long the instance waits for another request, if it has announced that.
    pub(crate) keep_alive_timeout: Option<Duration>,
    /// True if the instance has sent nothing after the response.
    pub(crate) is_clean: bool,
    /// True if this response never has a body, whatever its head announces. Some programs send one
    /// nevertheless.
    pub(crate) has_no_body: bool,
}
