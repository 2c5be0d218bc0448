//! The control socket: what the manager and a proxy worker say to each other.
//!
//! The manager sends numbered, declarative tables: a whole one first on every connection, and from
//! then on what is different in the next one. The worker answers with acknowledgements, probe
//! results, idleness and counts. Sending a whole table again is harmless, so after any interruption
//! both sides just go on.
//!
//! These types belong to neither side. The manager compiles the configuration into them, and a
//! worker compiles them into what its threads share. The messages have a version ([`MESSAGES`]),
//! and managers and workers of different versions have only the part in [`frozen`] in common.
//!
//! # Quiescence
//! An endpoint goes `Active → Draining` in some table. The worker reports [`FromWorker::Idle`] for
//! it when every worker thread uses that table or a newer one, has closed its idle upstream
//! connections to the endpoint, and has no request in flight on it. From then on no connection to
//! the instance is open or can be opened, so stopping the instance cannot lose a request. Only
//! tunnels may be left: no new one can begin, and an earlier [`FromWorker::Counts`] has told their
//! number.

mod bounds;
mod certificate;
mod channel;
#[cfg(any(test, feature = "internals"))]
pub mod check;
mod endpoint;
mod frames;
mod frozen;
mod handling;
mod message;
mod short_text;
mod table;

pub use bounds::{BoundCounts, Overload};
pub use certificate::{CertificateId, Secret, WireCertificate};
pub use channel::{Channel, ChannelError, MessageReceiver, MessageSender};
pub use endpoint::{
    Address, EndpointCounts, EndpointId, EndpointState, HealthCheck, Probe, Protocol, WireEndpoint,
};
pub use frames::{FrameError, WireMessage};
pub use frozen::{MESSAGES, ManagerReader, WorkerReader};
pub use handling::Handling;
pub use message::{FromWorker, ToWorker};
pub use short_text::ShortText;
pub use table::{Host, ListenerId, Route, WireListener, WireService, WireTable};
