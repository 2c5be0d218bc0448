//! Units of systemd: scopes and jobs, by its own D-Bus interface, see org.freedesktop.systemd1(5).
//!
//! Every question has a connection of its own and is asked again until there is an answer, so
//! neither a restart of the bus nor a re-execution of systemd does any harm. zbus cannot use
//! systemd's private socket, which would need no bus: the sender of the messages there is not a
//! unique name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::{
    Connection, DynamicType, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Type,
    Variant, fdo,
};

use crate::ancestry;
use crate::config::{Amount, ScopeLimits};

/// The slice of all that smoothserve starts. The manager and the workers are in this slice itself,
/// the instances of each service in one of its own below it.
pub const SLICE: &str = "smoothserve.slice";

/// The unit of the manager. What the manager starts is stopped after it.
pub const SERVICE: &str = "smoothserve.service";

/// The unit of the control socket. The socket units of the ports start and stop with it.
pub const SOCKETS: &str = "smoothserve.socket";

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Returns the name of the slice of a service's instances. journald notes the slice of whoever
/// writes a line, so this is how the lines of a service are found that nobody else can write.
///
/// The name is escaped as systemd-escape(1) does, because a `-` in a slice's name makes another
/// level.
pub fn service_slice(service: &str) -> String {
    let mut escaped = String::new();
    for (position, byte) in service.bytes().enumerate() {
        match byte {
            b'.' if position == 0 => escaped += "\\x2e",
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' => escaped.push(byte.into()),
            _ => escaped += &format!("\\x{byte:02x}"),
        }
    }
    format!("smoothserve-{escaped}.slice")
}

/// How long a question may take: as long as other clients of systemd wait. systemd does not answer
/// while it reloads its units, which takes seconds on a busy machine, or executes itself again.
const PATIENCE: Duration = Duration::from_secs(25);

/// How long systemd may take to say why it ends this process.
const REASON_TIME: Duration = Duration::from_secs(60);

/// How long `systemctl` may take.
const SYSTEMCTL_TIME: Duration = Duration::from_secs(10);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// The pause between two looks at whether a scope is gone.
const LOOK: Duration = Duration::from_secs(1);

/// The shortest stop timeout of a scope. To systemd, 0 is no limit.
const SHORTEST_STOP: Duration = Duration::from_millis(1);

/// The number of the signal SIGKILL.
const SIGKILL: i32 = 9;

/// The number of the signal SIGTERM.
const SIGTERM: i32 = 15;

/// The systemd whose units are meant: the system's for root, the user's for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Units {
    /// The system's, on the system bus.
    System,
    /// The user's, on the session bus.
    User,
}

/// Why systemd did not do something.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemd refused, or cannot be reached.
    #[error("systemd: {0}")]
    Bus(#[from] zbus::Error),
    /// systemd did not answer in time.
    #[error("systemd did not answer within {} s", PATIENCE.as_secs())]
    Late,
    /// The job that starts a scope did not succeed.
    #[error("systemd could not make {unit}: the job's result was {result:?}")]
    Job {
        /// The name of the scope.
        unit: String,
        /// The result, in systemd's own word.
        result: String,
    },
}

impl UnitError {
    /// Returns true for the error of systemd that has this name.
    fn is(&self, name: &str) -> bool {
        let UnitError::Bus(zbus::Error::MethodError(found, ..)) = self else {
            return false;
        };
        found.strip_prefix("org.freedesktop.systemd1.") == Some(name)
    }
}

/// A scope: a unit that holds processes which systemd did not start.
#[derive(Debug, Clone)]
pub struct Scope {
    units: Units,
    /// The full name of the unit.
    pub name: String,
}

impl Scope {
    /// Returns true if a process is in the scope.
    pub fn holds(&self, pid: u32) -> bool {
        // A line for each hierarchy, the path last, see cgroups(7).
        cgroups(pid)
            .lines()
            .filter_map(|line| line.rsplit_once('/'))
            .any(|(_, group)| group == self.name)
    }

    /// Returns the folder of the scope's cgroup, if process `pid` is there and the hierarchy is
    /// that of version 2.
    pub fn cgroup_of(&self, pid: u32) -> Option<PathBuf> {
        let groups = cgroups(pid);
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let folder = Path::new("/sys/fs/cgroup").join(path);
        let is_there = folder.ends_with(&self.name) && folder.join("cgroup.events").exists();
        is_there.then_some(folder)
    }

    /// Returns the numbers of all processes in the scope.
    pub fn pids(&self) -> BTreeSet<u32> {
        ancestry::all().filter(|pid| self.holds(*pid)).collect()
    }

    /// Sends SIGKILL to all processes in the scope.
    pub async fn kill(&self) {
        self.log(self.units.kill(&self.name, SIGKILL).await);
    }

    /// Sends SIGTERM to all processes in the scope. Unlike a stop of the scope, this does not wait
    /// until smoothserve itself has stopped, if that is on its way.
    pub async fn terminate(&self) {
        self.log(self.units.kill(&self.name, SIGTERM).await);
    }

    /// Stops what is left in the scope. systemd removes a scope by itself once it is empty.
    pub async fn stop(&self) {
        self.log(self.units.stop(&self.name).await);
    }

    /// Stops what is left in the scope, and waits until nothing is. systemd kills what is left
    /// after the scope's stop timeout, and gives the scope up after another one.
    pub async fn end(&self) {
        let body = (self.name.as_str(), "replace");
        loop {
            match self.units.run_job("StopUnit", &body).await {
                Err(UnitError::Late) if self.is_there().await => {}
                result => return self.log(gone_is_fine(result.map(drop))),
            }
        }
    }

    /// Waits until nothing is left in the scope, without stopping anything.
    pub async fn ended(&self) {
        while self.is_there().await {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn is_there(&self) -> bool {
        let found = self.units.list(&self.name).await;
        found.is_ok_and(|names| !names.is_empty())
    }

    fn log(&self, result: Result<(), UnitError>) {
        if let Err(error) = result {
            tracing::error!(unit = self.name, error = %error, "scope not stopped");
        }
    }
}

/// Returns the cgroups of a process as `/proc` has them; empty if there is no such process.
fn cgroups(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

impl Units {
    /// Returns the systemd that has started this process, which is supervised.
    pub fn of_this_process() -> Units {
        match rustix::process::geteuid().is_root() {
            true => Units::System,
            false => Units::User,
        }
    }

    /// Puts a process into a new scope of its own in a slice, with limits for all that will be in
    /// it, and with the time after which systemd kills what it has told to stop. Returns when the
    /// process is there.
    pub async fn start_scope(
        &self,
        unit: &str,
        slice: &str,
        description: &str,
        pid: u32,
        limits: &ScopeLimits,
        stop_timeout: Option<Duration>,
    ) -> Result<Scope, UnitError> {
        let mut properties = vec![
            ("Slice", Variant::from(slice)),
            ("Description", Variant::from(description)),
            // At shutdown, systemd stops in the reverse order: first the manager, then the scope.
            ("Before", Variant::from(vec![SERVICE])),
        ];
        properties.extend(resources(limits));
        properties.extend(stop_timeout.map(|timeout| {
            let timeout = timeout.max(SHORTEST_STOP).as_micros();
            let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
            ("TimeoutStopUSec", Variant::from(timeout))
        }));
        self.make_scope(unit, pid, properties).await
    }

    /// Puts a process that keeps the sockets of `ports`, which are socket units, into a new scope
    /// of its own. The scope stops with [`SOCKETS`], and before the units of the ports start. It is
    /// not ordered before or after smoothserve's own unit, since it would then have to wait until
    /// that has stopped.
    pub async fn start_port_scope(
        &self,
        unit: &str,
        pid: u32,
        ports: &[&str],
    ) -> Result<Scope, UnitError> {
        let properties = vec![
            ("Slice", Variant::from(SLICE)),
            ("Description", Variant::from("open ports of smoothserve")),
            ("Before", Variant::from(ports.to_vec())),
            ("PartOf", Variant::from(vec![SOCKETS])),
        ];
        self.make_scope(unit, pid, properties).await
    }

    async fn make_scope(
        &self,
        unit: &str,
        pid: u32,
        mut properties: Vec<(&str, Variant<'_>)>,
    ) -> Result<Scope, UnitError> {
        properties.push(("PIDs", Variant::from(vec![pid])));
        properties.push(("CollectMode", Variant::from("inactive-or-failed")));
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (unit, "fail", properties, auxiliary);
        let scope = self.scope(unit);
        match self.run_job("StartTransientUnit", &body).await {
            Ok(result) if result == "done" => Ok(scope),
            Ok(result) => Err(UnitError::Job {
                unit: unit.to_owned(),
                result,
            }),
            // The first answer was lost, when systemd executed itself again.
            Err(error) if error.is("UnitExists") && scope.holds(pid) => Ok(scope),
            Err(error) => Err(error),
        }
    }

    /// Calls a method that makes a job, and waits for the result of the job.
    async fn run_job<B>(&self, method: &str, body: &B) -> Result<String, UnitError>
    where
        B: Serialize + DynamicType,
    {
        let attempts = async {
            loop {
                match self.try_job(method, body).await {
                    Err(error) if is_passing(&error) => tokio::time::sleep(PAUSE).await,
                    result => return Ok(result?),
                }
            }
        };
        tokio::time::timeout(PATIENCE, attempts)
            .await
            .map_err(|_| UnitError::Late)?
    }

    async fn try_job<B>(&self, method: &str, body: &B) -> zbus::Result<String>
    where
        B: Serialize + DynamicType,
    {
        let connection = self.connect().await?;
        // Before the question, so that the answer is not missed.
        let rule = format!(
            "type='signal',sender='{DESTINATION}',interface='{MANAGER}',member='JobRemoved'"
        );
        let rule = MatchRule::try_from(rule.as_str())?;
        let mut removals = MessageStream::for_match_rule(rule, &connection, None).await?;
        connection
            .call_method(
                Some(DESTINATION),
                MANAGER_PATH,
                Some(MANAGER),
                "Subscribe",
                &(),
            )
            .await?;
        let reply = connection
            .call_method(Some(DESTINATION), MANAGER_PATH, Some(MANAGER), method, body)
            .await?;
        let job: OwnedObjectPath = reply.body().deserialize()?;
        while let Some(removal) = removals.next().await {
            let removal = removal?;
            let (_, removed, _, result): (u32, OwnedObjectPath, String, String) =
                removal.body().deserialize()?;
            if removed == job {
                return Ok(result);
            }
        }
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        Err(zbus::Error::InputOutput(lost.into()))
    }

    /// Returns the scope of this name, which an earlier process may have started.
    pub fn scope(&self, unit: &str) -> Scope {
        Scope {
            units: *self,
            name: unit.to_owned(),
        }
    }

    /// Asks a unit to start. Fails if another job is in the way, such as a stop.
    pub async fn start(&self, unit: &str) -> Result<(), UnitError> {
        let job: Result<OwnedObjectPath, UnitError> = self.ask("StartUnit", &(unit, "fail")).await;
        job.map(drop)
    }

    /// Makes a unit that has failed one that has not.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), UnitError> {
        gone_is_fine(self.ask("ResetFailedUnit", &(unit,)).await)
    }

    /// Returns true if a unit is active, and no job is about to change this.
    pub async fn is_to_stay(&self, unit: &str) -> Result<bool, UnitError> {
        let path: OwnedObjectPath = self.ask("LoadUnit", &(unit,)).await?;
        let interface = "org.freedesktop.systemd1.Unit";
        let state: String = self.property(&path, interface, "ActiveState").await?;
        let (job, _): (u32, OwnedObjectPath) = self.property(&path, interface, "Job").await?;
        Ok(state == "active" && job == 0)
    }

    /// Asks a unit to stop, with all that is in it. One that is gone has stopped.
    pub async fn stop(&self, unit: &str) -> Result<(), UnitError> {
        let job: Result<OwnedObjectPath, UnitError> =
            self.ask("StopUnit", &(unit, "replace")).await;
        gone_is_fine(job.map(drop))
    }

    /// Stops a unit, and waits until it has stopped. One that is gone has stopped.
    pub async fn stop_and_wait(&self, unit: &str) -> Result<(), UnitError> {
        let job = self.run_job("StopUnit", &(unit, "replace")).await;
        gone_is_fine(job.map(drop))
    }

    async fn kill(&self, unit: &str, signal: i32) -> Result<(), UnitError> {
        gone_is_fine(self.ask("KillUnit", &(unit, "all", signal)).await)
    }

    /// Lists the names of the loaded units that match a pattern.
    pub async fn list(&self, pattern: &str) -> Result<BTreeSet<String>, UnitError> {
        self.list_in(&[], pattern).await
    }

    /// Lists the names of the units that match a pattern and are in one of these states, such as
    /// `active` or `failed`.
    pub async fn list_in(
        &self,
        states: &[&str],
        pattern: &str,
    ) -> Result<BTreeSet<String>, UnitError> {
        // Name, description, load, active and sub state, the unit it follows, path; then the
        // number, the type and the path of its job.
        type Row = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let rows: Vec<Row> = self
            .ask("ListUnitsByPatterns", &(states, vec![pattern]))
            .await?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    /// Returns true if the unit of this process is being stopped only to be started again.
    ///
    /// The answer decides about everything that runs, so it is asked for until it is there, and by
    /// `systemctl`, which needs no bus.
    pub async fn is_restarting(&self) -> Result<bool, UnitError> {
        let asked = async {
            loop {
                match self.own_job().await {
                    Some(kind) => return kind == "restart",
                    None => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        let asked = tokio::time::timeout(REASON_TIME, asked).await;
        asked.map_err(|_| UnitError::Late)
    }

    /// Returns the kind of the job of this process's unit, which is empty if there is no job;
    /// `None` if systemd has not answered.
    async fn own_job(&self) -> Option<String> {
        let groups = cgroups(std::process::id());
        let names = groups.lines().filter_map(|line| line.rsplit_once('/'));
        let mut names = names.map(|(_, name)| name);
        let unit = names.find(|name| name.ends_with(".service"))?;
        let mut systemctl = tokio::process::Command::new("systemctl");
        if *self == Units::User {
            systemctl.arg("--user");
        }
        systemctl
            .args(["list-jobs", "--plain", "--no-legend", unit])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(SYSTEMCTL_TIME, systemctl.output()).await;
        let output = output.ok()?.ok().filter(|output| output.status.success())?;
        // The number of the job, the unit, the kind of the job, and its state.
        let text = String::from_utf8_lossy(&output.stdout);
        let kind = text.split_ascii_whitespace().nth(2);
        Some(kind.unwrap_or_default().to_owned())
    }

    async fn property<T>(
        &self,
        path: &OwnedObjectPath,
        interface: &str,
        name: &str,
    ) -> Result<T, UnitError>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let value: OwnedVariant = self
            .call(
                path.as_str(),
                "org.freedesktop.DBus.Properties",
                "Get",
                &(interface, name),
            )
            .await?;
        let value = T::try_from(value).map_err(Into::<zbus::Error>::into)?;
        Ok(value)
    }

    async fn ask<B, R>(&self, method: &str, body: &B) -> Result<R, UnitError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call(MANAGER_PATH, MANAGER, method, body).await
    }

    /// Asks again until systemd is there to answer.
    async fn call<B, R>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<R, UnitError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let attempts = async {
            loop {
                let attempt = async {
                    let connection = self.connect().await?;
                    let reply = connection
                        .call_method(Some(DESTINATION), path, Some(interface), method, body)
                        .await?;
                    reply.body().deserialize()
                };
                match attempt.await {
                    Err(error) if is_passing(&error) => tokio::time::sleep(PAUSE).await,
                    result => return Ok(result?),
                }
            }
        };
        tokio::time::timeout(PATIENCE, attempts)
            .await
            .map_err(|_| UnitError::Late)?
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        match self {
            Units::System => Connection::system().await,
            Units::User => Connection::session().await,
        }
    }
}

/// Makes the properties of a unit that are its limits, see org.freedesktop.systemd1(5).
fn resources(limits: &ScopeLimits) -> Vec<(&'static str, Variant<'static>)> {
    // systemd knows how much the machine has, which may be less than the kernel says.
    let amount = |property, scale, amount| match amount {
        Amount::Absolute(number) => (property, Variant::from(number)),
        Amount::Share(share) => (scale, Variant::from(fraction(share))),
        Amount::Infinity => (property, Variant::from(u64::MAX)),
    };
    let memory_max = limits
        .memory_max
        .map(|max| amount("MemoryMax", "MemoryMaxScale", max));
    let memory_high = limits
        .memory_high
        .map(|high| amount("MemoryHigh", "MemoryHighScale", high));
    let tasks_max = limits
        .tasks_max
        .map(|max| amount("TasksMax", "TasksMaxScale", max));
    // A hundredth of a percent of a second is 100 µs.
    let cpu_quota = limits
        .cpu_quota
        .map(|share| ("CPUQuotaPerSecUSec", Variant::from(u64::from(share) * 100)));
    let all = [memory_max, memory_high, cpu_quota, tasks_max];
    all.into_iter().flatten().collect()
}

/// Scales hundredths of a percent, 100 % at most, as systemd does: the greatest 32-bit number is
/// the whole.
fn fraction(share: u32) -> u32 {
    let scaled = (u64::from(share) * u64::from(u32::MAX) + 5_000) / 10_000;
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

/// Returns true for an error that passes, since the bus, or systemd on it, is about to come back.
fn is_passing(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) | zbus::Error::Handshake(_) => true,
        zbus::Error::FDO(error) => match &**error {
            fdo::Error::ZBus(error) => is_passing(error),
            fdo::Error::Disconnected(_)
            | fdo::Error::NameHasNoOwner(_)
            | fdo::Error::NoReply(_)
            | fdo::Error::ServiceUnknown(_)
            | fdo::Error::TimedOut(_) => true,
            _ => false,
        },
        _ => false,
    }
}

/// Takes the error that a unit does not exist for success.
fn gone_is_fine(result: Result<(), UnitError>) -> Result<(), UnitError> {
    match result {
        Err(error) if error.is("NoSuchUnit") => Ok(()),
        result => result,
    }
}
