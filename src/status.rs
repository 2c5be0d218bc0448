//! The vocabulary in which smoothserve's state is shown: a [`Snapshot`] of services, instances and jobs.
//!
//! The manager publishes snapshots, D-Bus carries them as JSON, and `smoothctl` reads them back. The words in that JSON are
//! an interface. Nothing here knows how the manager comes to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The whole state at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// One line that sums it up: `3 services, 8/8 instances ready; rolling shop 2/3`.
    pub summary: String,
    /// Whom smoothserve runs as.
    pub uid: u32,
    /// Its messages, and what its instances write, go to the journal.
    pub journal: bool,
    /// By name.
    pub services: BTreeMap<String, Arc<ServiceStatus>>,
    /// Running jobs, and for a minute those that have ended.
    pub jobs: BTreeMap<u32, Arc<JobStatus>>,
}

/// A service in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// In one word.
    pub state: ServiceState,
    /// What is asked for: how many instances are to run, 0 when stopped.
    pub wanted: u32,
    /// Counts the versions of the service that were rolled out, the newest wanted one.
    pub generation: u64,
    /// The file that describes it.
    pub file: String,
    /// The addresses that the proxy listens on for it, `[::]:8080`.
    pub listen: Vec<String>,
    /// Its hosts and paths, `a.example/api`.
    pub sites: Vec<String>,
    /// In the order of slot and age.
    pub instances: Vec<InstanceStatus>,
    /// Instances that ended without being asked to, since smoothserve started.
    pub crashes: u32,
    /// Requests that its instances were chosen for, since smoothserve started.
    pub requests: u64,
    /// The last thing that went wrong, with its cause, and when.
    pub last_error: Option<LastError>,
    /// When the certificate that is in use ends, of a service with TLS.
    #[serde(default)]
    pub certificate_expires: Option<Moment>,
}

/// A time; in JSON in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(#[serde(with = "seconds")] pub SystemTime);

impl ServiceStatus {
    /// Instances that get requests.
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
    /// When; in JSON in seconds since 1970.
    #[serde(with = "seconds")]
    pub at: SystemTime,
    /// What, and why: the probe, the exit status, the last lines of stderr.
    pub message: String,
}

/// A service's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Not wanted, nothing runs.
    Stopped,
    /// Wanted, no instance is ready yet.
    Starting,
    /// All wanted instances are ready.
    Running,
    /// Instances are being replaced.
    Rolling,
    /// Fewer instances than wanted are ready, and no rollout is the reason.
    Degraded,
    /// Not wanted, instances are still draining or stopping.
    Stopping,
    /// Wanted, but no instance could be started.
    Failed,
}

/// An instance in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Names it for ever.
    pub id: u64,
    /// 1 to the number of instances.
    pub slot: u32,
    /// The generation of the service that it runs.
    pub generation: u64,
    /// Its process; 0 in `backoff`.
    pub pid: u32,
    /// `127.0.0.1:9001` or a path.
    pub address: String,
    /// Its state.
    pub state: InstanceState,
    /// When it entered that state; in JSON in seconds since 1970.
    #[serde(with = "seconds")]
    pub since: SystemTime,
    /// Requests that it is working on.
    pub in_flight: u32,
    /// Tunnels to it.
    #[serde(default)]
    pub tunnels: u32,
    /// Requests that it was chosen for.
    pub requests: u64,
    /// Why the health check holds it out of the balance.
    pub fault: Option<String>,
}

/// The life of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Its process runs, its readiness was not seen.
    Starting,
    /// It gets requests.
    Ready,
    /// It gets no new requests and ends those it has.
    Draining,
    /// It was told to stop.
    Stopping,
    /// It crashed or could not start; another try follows.
    Backoff,
}

/// A job in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// What it does.
    pub kind: JobKind,
    /// The service; empty for a reload.
    pub service: String,
    /// How it stands.
    pub state: JobState,
    /// What it is doing at the moment, for people: `shop/2: waiting for readiness`.
    pub step: String,
    /// Instances that it has brought where they are to be.
    pub done: u32,
    /// Of how many.
    pub total: u32,
    /// Why it failed.
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
    /// It is being worked on.
    Running,
    /// The wanted state was reached.
    Done,
    /// It was not, see `error`.
    Failed,
    /// Cancelled by a command.
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
