//! The status types: a [`Snapshot`] shows all services, instances and jobs at one moment.
//!
//! The manager publishes snapshots, D-Bus carries them as JSON, and `smoothctl` reads them back.
//! The names in this JSON are a public interface.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The state of all services and jobs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// A summary of the state in one line: `3 services, 8/8 instances ready; rolling shop 2/3`.
    pub summary: String,
    /// The user number that smoothserve runs as.
    pub uid: u32,
    /// Whether the messages of smoothserve and the output of instances go to the journal.
    pub journal: bool,
    /// The file of the settings for all services.
    #[serde(default)]
    pub settings: SettingsStatus,
    /// The client connections of the proxy and its bounds.
    #[serde(default)]
    pub proxy: ProxyStatus,
    /// The services by name.
    pub services: BTreeMap<String, Arc<ServiceStatus>>,
    /// The jobs by number: all that run, and those that have ended within the last minute.
    pub jobs: BTreeMap<u32, Arc<JobStatus>>,
}

/// The file `smoothserve.yaml` in a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsStatus {
    /// The path of the file.
    pub file: String,
    /// When the file was written, as it was when smoothserve read what it has applied; `None` if
    /// there was no file.
    pub file_written: Option<Moment>,
}

/// The proxy in a snapshot: all its workers together. The counters begin with each worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Open client connections.
    pub connections: u32,
    /// How many client connections there may be.
    pub most_connections: u32,
    /// Requests that wait for others to end, because too many are in flight.
    pub waiting: u32,
    /// How many requests were refused with 503 after such a wait, or without one.
    pub refused_requests: u64,
    /// How many connections were refused because their client had too many.
    pub refused_connections: u64,
    /// How many idle client connections were closed to make room for others.
    pub closed_idle: u64,
    /// How many bytes of memory are in use, in whole MiB.
    #[serde(default)]
    pub memory: u64,
    /// How many bytes of memory may be in use.
    #[serde(default)]
    pub most_memory: u64,
    /// What is done to need less memory, in words; `None` if enough is left.
    #[serde(default)]
    pub overload: Option<String>,
    /// How many streams of HTTP/2 were refused because their connection held too much memory.
    #[serde(default)]
    pub refused_streams: u64,
    /// How many busy client connections were closed because they held most of the memory.
    #[serde(default)]
    pub closed_largest: u64,
}

/// A service in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The state of the service in one word.
    pub state: ServiceState,
    /// The number of instances that should run, 0 if the service was stopped.
    pub wanted: u32,
    /// The newest generation that was asked for. It grows with every deploy and restart.
    pub generation: u64,
    /// The file that describes the service.
    pub file: String,
    /// When that file was written, as it was when smoothserve read what it has applied.
    #[serde(default)]
    pub file_written: Option<Moment>,
    /// The addresses that the proxy listens on for the service: `[::]:8080`.
    pub listen: Vec<String>,
    /// The addresses on which it should listen and does not, because another program has the port,
    /// for example.
    #[serde(default)]
    pub not_listening: Vec<String>,
    /// The hosts and paths that the service serves: `a.example/api`.
    pub sites: Vec<String>,
    /// The instances, ordered by slot and age.
    pub instances: Vec<InstanceStatus>,
    /// How many ready instances have ended without being told to stop, since smoothserve started.
    pub crashes: u32,
    /// How many requests the instances were chosen for, since smoothserve started.
    pub requests: u64,
    /// The last error of the service, with its cause and time.
    pub last_error: Option<LastError>,
    /// When the certificate in use expires. Only a service with TLS has one.
    #[serde(default)]
    pub certificate_expires: Option<Moment>,
    /// What people should know about the files of the service, such as that they are too many to be
    /// watched.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// Whether the service is no longer configured, and runs only for the sites in `keeps`.
    #[serde(default)]
    pub removed: bool,
    /// The sites that the service answers for until the services that are to have them are ready,
    /// by the names of those services.
    #[serde(default)]
    pub keeps: BTreeMap<String, Vec<String>>,
    /// The change on disk that was not applied, until it is applied or gone.
    #[serde(default)]
    pub refused_change: Option<RefusedChange>,
}

/// A change on disk that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedChange {
    /// When the change was refused. JSON has it in seconds since 1970.
    pub at: Moment,
    /// Why the change was refused, and what to do about it.
    pub message: String,
}

/// How many sites are named before the others are only counted.
const NAMED_SITES: usize = 3;

/// Says which sites a service keeps, and until when: `keeps shop.example until web is ready`.
pub fn kept_in_words(keeps: &BTreeMap<String, Vec<String>>) -> String {
    let each = keeps.iter().map(|(awaited, sites)| {
        let mut named = sites[..sites.len().min(NAMED_SITES)].join(", ");
        if sites.len() > NAMED_SITES {
            named += &format!(" and {} more", sites.len() - NAMED_SITES);
        }
        format!("keeps {named} until {awaited} is ready")
    });
    each.collect::<Vec<_>>().join(", ")
}

/// A point in time. JSON has it in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(#[serde(with = "seconds")] pub SystemTime);

impl ServiceStatus {
    /// Returns the number of instances of this service that are ready and healthy.
    pub fn ready(&self) -> u32 {
        let ready = self
            .instances
            .iter()
            .filter(|it| it.state == InstanceState::Ready && it.fault.is_none());
        ready.count() as u32
    }
}

/// An error of a service, with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The time of the error. JSON has it in seconds since 1970.
    #[serde(with = "seconds")]
    pub at: SystemTime,
    /// What went wrong and why, for example the failed probe or the exit status. Never contains
    /// output of an instance, because everybody may read it.
    pub message: String,
    /// Whether `report` also has the last lines that the instance has written.
    #[serde(default)]
    pub has_output: bool,
    /// The message, followed by the last lines that the instance has written.
    #[serde(skip)]
    pub report: FailureReport,
}

/// The text of an error with the last lines that instances have written. Output may contain
/// secrets, so a report is no part of the JSON, and only callers who may read the journal or
/// control the services get it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FailureReport(Arc<str>);

impl FailureReport {
    /// Makes a report of a message and of the lines that the instance has written.
    pub fn new(message: &str, output: &[String]) -> FailureReport {
        let mut report = message.to_owned();
        for line in output {
            report += &format!("\n  {line}");
        }
        FailureReport(report.into())
    }

    /// Joins the reports of several failures.
    pub fn join<'a>(reports: impl Iterator<Item = &'a str>) -> FailureReport {
        let reports: Vec<&str> = reports.collect();
        FailureReport(reports.join("\n").into())
    }

    /// Returns the text of the report. The caller must know that the reader may see it.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FailureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FailureReport({} bytes)", self.0.len())
    }
}

/// The state of a service in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// The service should not run, and no instance runs.
    Stopped,
    /// The service should run, and no instance is ready yet.
    Starting,
    /// All wanted instances are ready and healthy.
    Running,
    /// Instances are being replaced.
    Rolling,
    /// Fewer instances than wanted are ready and healthy, for another reason than a rollout.
    Degraded,
    /// The service should not run, and instances are still draining or stopping.
    Stopping,
    /// The service should run, but no instance could be started.
    Failed,
}

/// An instance in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// The number of the instance. No other instance ever has the same number.
    pub id: u64,
    /// The slot of the instance: 1 to the number of instances.
    pub slot: u32,
    /// The generation of the service that the instance runs.
    pub generation: u64,
    /// The process number of the instance, 0 in the state `backoff`.
    pub pid: u32,
    /// Where the instance listens: `127.0.0.1:9001` or a path.
    pub address: String,
    /// The state of the instance.
    pub state: InstanceState,
    /// When the instance entered its state. JSON has it in seconds since 1970.
    #[serde(with = "seconds")]
    pub since: SystemTime,
    /// The number of requests in flight.
    pub in_flight: u32,
    /// The number of open tunnels to the instance.
    #[serde(default)]
    pub tunnels: u32,
    /// How many requests the instance was chosen for in total.
    pub requests: u64,
    /// Why the health check keeps requests away from the instance, or `None` if the instance is
    /// healthy.
    pub fault: Option<String>,
}

/// The state of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// The process runs, but has not shown that it is ready.
    Starting,
    /// The instance gets requests.
    Ready,
    /// The instance gets no new requests and finishes those it has.
    Draining,
    /// The instance was told to stop.
    Stopping,
    /// The instance crashed or could not start, and is started again after a pause.
    Backoff,
}

/// A job in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// What the job does.
    pub kind: JobKind,
    /// The service of the job; empty for a reload.
    pub service: String,
    /// The state of the job.
    pub state: JobState,
    /// What the job is doing at the moment, as text for people: `shop/2: waiting for readiness`.
    pub step: String,
    /// The number of instances that have reached the state that the job wants.
    pub done: u32,
    /// The number of instances that the job has to bring into that state.
    pub total: u32,
    /// Why the job failed, if it did. Never contains output of an instance.
    pub error: Option<String>,
    /// What the job has done, service by service: `shop: 3 instances replaced`. Empty until the job
    /// has ended, and for commands about one service.
    #[serde(default)]
    pub changes: Vec<String>,
    /// The error, followed by the last lines that the failed instances have written.
    #[serde(skip)]
    pub report: FailureReport,
}

/// The kind of a job.
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

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// The job is still at work.
    Running,
    /// All services of the job have reached the state that it wants.
    Done,
    /// A service has not reached the state that the job wants; `error` says why.
    Failed,
    /// A command canceled the job.
    Canceled,
    /// A newer command wants the opposite for the same service.
    Superseded,
}

/// Writes and reads a time as seconds since 1970, with fractions.
mod seconds {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a time as seconds since 1970.
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

    /// Reads a time from seconds since 1970.
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
