//! The message ids of the log events that people search for: each constant is the `MESSAGE_ID`
//! field in the journal. `systemd/smoothserve.catalog` explains each event. The meaning of an id
//! never changes.

/// smoothserve cannot start, or has to end because of an error.
pub const FAILED: &str = "52f90a956e874f0cb26bbd43855b4905";
/// smoothserve has started: each enabled service has a ready instance, or its instances have
/// failed.
pub const READY: &str = "7d1d5aec4e114263a2688572608025d7";
/// A new manager has taken over the workers and instances of the previous manager.
pub const TOOK_OVER: &str = "fc3ab854dd4c4562ba24665693ea2ced";
/// smoothserve was told to end and has ended.
pub const ENDED: &str = "6919888b58914a59b421c112d417a195";
/// A reload has applied all changes on disk.
pub const CONFIGURATION_APPLIED: &str = "ca28d387c505407a9b816eb646dda0f6";
/// The configuration on disk has faults, so smoothserve has not applied it.
pub const CONFIGURATION_REFUSED: &str = "a1561e2de49a45ceb28b954ae2aad233";
/// smoothserve cannot listen on a configured port.
pub const PORT_NOT_OPENED: &str = "19fa5fecb0f2422ba56a2a69da50ea73";
/// The instances of a service are being replaced by those of a new generation.
pub const ROLLOUT_STARTED: &str = "5023d8661f4d48e481dd8d2dd6fc025b";
/// All instances of a service run its newest generation and are ready.
pub const ROLLOUT_FINISHED: &str = "b77962139a974231ba9ec5550b167cb6";
/// smoothserve has given up a new generation, because an instance of it failed.
pub const ROLLOUT_ABORTED: &str = "5642b97e3c344d6e803252a438960b3c";
/// A service cannot be started at all, for example because its executable cannot be read.
pub const SERVICE_NOT_STARTED: &str = "271d39ded58941e0b62997e5340ae21b";
/// The last instance of a stopped service has ended.
pub const SERVICE_STOPPED: &str = "b95343288a5d4f1d8cb2561ebf3342fc";
/// An instance was not ready in time, or ended before it was ready.
pub const INSTANCE_FAILED: &str = "92b6d2bf028a4af1882a3564d1d4034d";
/// An instance that had been ready has ended, although smoothserve had not told it to stop.
pub const INSTANCE_CRASHED: &str = "3f16c74f50bb47598ba79ed036e96e28";
/// The health check keeps requests away from an instance.
pub const INSTANCE_UNHEALTHY: &str = "fd6a04e2dcae4869a670712e0339bd13";
/// A proxy worker has ended unexpectedly.
pub const WORKER_ENDED: &str = "6d3f9d7b628940678a9b4ef197ede74e";
/// A new proxy worker accepts connections, and the old worker drains.
pub const WORKER_REPLACED: &str = "ad78ada3dcca452a9d84001dc8f82368";
/// A certificate was replaced on disk, and clients get the new one.
pub const CERTIFICATE_RENEWED: &str = "594be86e6cb740b8a20bb4e88679f7bc";
/// The certificate files of a service have changed, and the new certificate cannot be used.
pub const CERTIFICATE_REFUSED: &str = "bce30c1944e44d88932ac2b4e8609938";
/// A certificate expires soon and should already have been renewed.
pub const CERTIFICATE_EXPIRES: &str = "56efeff9203c49ad9654866e132c6761";
