//! The vocabulary in which smoothserve's state is shown: a [`Snapshot`] of services, instances and
//! jobs.
//!
//! The manager publishes snapshots, D-Bus carries them as JSON, and `smoothctl` reads them back.
//! The words in that JSON are an interface. Nothing here knows how the manager comes to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The whole state at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The whole state in one line: `3 services, 8/8 instances ready; rolling shop 2/3`.
    pub summary: String,
    /// The user number that smoothserve runs as.
    pub uid: u32,
    /// Whether the messages of smoothserve, and what the instances write, go to the journal.
    pub journal: bool,
    /// The services by name.
    pub services: BTreeMap<String, Arc<ServiceStatus>>,
    /// The running jobs by number, and for a minute those that have ended.
    pub jobs: BTreeMap<u32, Arc<JobStatus>>,
}

/// A service in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The state of the service in one word.
    pub state: ServiceState,
    /// The number of instances that are to run, 0 when the service was stopped.
    pub wanted: u32,
    /// The newest wanted generation. It grows with every deploy and restart.
    pub generation: u64,
    /// The file that describes the service.
    pub file: String,
    /// The addresses that the proxy listens on for the service: `[::]:8080`.
    pub listen: Vec<String>,
    /// The hosts and paths that the service serves: `a.example/api`.
    pub sites: Vec<String>,
    /// The instances in the order of slot and age.
    pub instances: Vec<InstanceStatus>,
    /// How many instances ended without being asked to, since smoothserve started.
    pub crashes: u32,
    /// How many requests the instances were chosen for, since smoothserve started.
    pub requests: u64,
    /// The last thing that went wrong, with its cause, and when.
    pub last_error: Option<LastError>,
    /// When the certificate in use expires, for a service with TLS.
    #[serde(default)]
    pub certificate_expires: Option<Moment>,
}

/// A time. JSON has it in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(#[serde(with = "seconds")] pub SystemTime);

impl ServiceStatus {
    /// Returns the number of instances that get requests.
    pub fn ready(&self) -> u32 {
        let ready = self
            .instances
            .iter()
            .filter(|instance| instance.state == InstanceState::Ready);
        ready.count() as u32
    }
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The time of the error. JSON has it in seconds since 1970.
    #[serde(with = "seconds")]
    pub at: SystemTime,
    /// What went wrong and why: the probe, the exit status, the last lines of stderr.
    pub message: String,
}

/// A service's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// The service is not wanted, and nothing of it runs.
    Stopped,
    /// The service is wanted, and no instance is ready yet.
    Starting,
    /// All wanted instances are ready.
    Running,
    /// Instances are being replaced.
    Rolling,
    /// Fewer instances than wanted are ready, and no rollout is the reason.
    Degraded,
    /// The service is not wanted, and instances are still draining or stopping.
    Stopping,
    /// The service is wanted, but no instance could be started.
    Failed,
}

/// An instance in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// The number of the instance, which no other instance ever has.
    pub id: u64,
    /// The slot of the instance: 1 to the number of instances.
    pub slot: u32,
    /// The generation of the service that the instance runs.
    pub generation: u64,
    /// The number of the instance's process; 0 in `backoff`.
    pub pid: u32,
    /// Where the instance listens: `127.0.0.1:9001` or a path.
    pub address: String,
    /// Where the instance is in its life.
    pub state: InstanceState,
    /// When the instance entered that state. JSON has it in seconds since 1970.
    #[serde(with = "seconds")]
    pub since: SystemTime,
    /// The number of requests in flight.
    pub in_flight: u32,
    /// The number of open tunnels to the instance.
    #[serde(default)]
    pub tunnels: u32,
    /// How many requests the instance was chosen for.
    pub requests: u64,
    /// Why the health check keeps requests away from the instance, if it does.
    pub fault: Option<String>,
}

/// The life of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// The process runs, but is not known to be ready.
    Starting,
    /// The instance gets requests.
    Ready,
    /// The instance gets no new requests and ends those it has.
    Draining,
    /// The instance was told to stop.
    Stopping,
    /// The instance crashed or could not start; another try follows.
    Backoff,
}

/// A job in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// What the job does.
    pub kind: JobKind,
    /// The service that the job is for; empty for a reload.
    pub service: String,
    /// How the job stands.
    pub state: JobState,
    /// What the job is doing at the moment, for people: `shop/2: waiting for readiness`.
    pub step: String,
    /// The number of instances that the job has brought where they are to be.
    pub done: u32,
    /// The number of instances that the job has to bring there.
    pub total: u32,
    /// Why the job failed.
    pub error: Option<String>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Apply the changes on disk.
    Reload,
    /// Start a service.
    Start,
    /// Stop a service.
    Stop,
    /// Replace the instances of a service.
    Restart,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// The job is being worked on.
    Running,
    /// The wanted state was reached.
    Done,
    /// The wanted state was not reached, see `error`.
    Failed,
    /// A command canceled the job.
    Canceled,
    /// A newer command wants the opposite for the same service.
    Superseded,
}

/// Times as seconds since 1970, with their fraction.
mod seconds {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a time.
    pub(super) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(
            time.duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64(),
        )
    }

    /// Reads a time.
    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        let since = Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)?;
        UNIX_EPOCH
            .checked_add(since)
            .ok_or_else(|| serde::de::Error::custom("a time out of range"))
    }
}
