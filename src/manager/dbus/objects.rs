//! The objects: the manager, a service, a job.

use std::time::{SystemTime, UNIX_EPOCH};

use zbus::OwnedObjectPath;
use zbus::message::Header;
use zbus::object_server::{ObjectServer, SignalEmitter};
use zbus::{Connection, interface};

use super::access::{Access, Error};
use crate::manager::status::{
    Command, CommandError, Failure, Handle, InstanceStatus, JobStatus, ServiceStatus, Snapshot,
};

/// The path of the manager.
pub(super) const MANAGER_PATH: &str = "/org/smoothserve1";

/// `/org/smoothserve1/service/<name>`, the name escaped as systemd escapes unit names in paths.
pub(super) fn service_path(name: &str) -> String {
    let escaped: String = name
        .bytes()
        .enumerate()
        .map(|(position, byte)| match byte {
            b'0'..=b'9' if position == 0 => format!("_{byte:02x}"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("_{byte:02x}"),
        })
        .collect();
    format!("{MANAGER_PATH}/service/{escaped}")
}

/// `/org/smoothserve1/job/<n>`
pub(super) fn job_path(id: u32) -> String {
    format!("{MANAGER_PATH}/job/{id}")
}

pub(super) fn path(path: String) -> OwnedObjectPath {
    OwnedObjectPath::try_from(path).expect("made of allowed characters")
}

/// Adds the object of a job, if it is not there already.
pub(super) async fn add_job(
    server: &ObjectServer,
    access: Access,
    handle: &Handle,
    id: u32,
) -> zbus::Result<()> {
    server
        .at(job_path(id), JobObject::new(access, handle.clone(), id))
        .await?;
    Ok(())
}

/// Sends a command for a caller, and makes sure that the jobs' objects are there before the answer names them.
async fn command(
    (access, handle): (Access, &Handle),
    command: Command,
    header: &Header<'_>,
    connection: &Connection,
) -> Result<Vec<OwnedObjectPath>, Error> {
    access.check(connection, header).await?;
    let jobs = handle.command(command).await?;
    for &job in &jobs {
        add_job(connection.object_server(), access, handle, job).await?;
    }
    Ok(jobs.into_iter().map(|job| path(job_path(job))).collect())
}

async fn one(
    who: (Access, &Handle),
    what: Command,
    header: &Header<'_>,
    connection: &Connection,
) -> Result<OwnedObjectPath, Error> {
    let mut jobs = command(who, what, header, connection).await?;
    jobs.pop()
        .ok_or_else(|| zbus::Error::Failure("the command made no job".to_owned()).into())
}

/// `org.smoothserve1.Manager`
pub(super) struct ManagerObject {
    access: Access,
    handle: Handle,
}

impl ManagerObject {
    pub(super) fn new(access: Access, handle: Handle) -> ManagerObject {
        ManagerObject { access, handle }
    }

    fn snapshot(&self) -> std::sync::Arc<Snapshot> {
        self.handle.snapshots().borrow().clone()
    }

    fn configured(&self, name: String) -> Result<String, Error> {
        match self.snapshot().services.contains_key(&name) {
            true => Ok(name),
            false => Err(CommandError::NoSuchService(name).into()),
        }
    }
}

#[interface(name = "org.smoothserve1.Manager")]
impl ManagerObject {
    #[zbus(out_args("job"))]
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Reload,
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("services"))]
    fn list_services(&self) -> Vec<(String, String, u32, u32, OwnedObjectPath)> {
        let snapshot = self.snapshot();
        let services = snapshot.services.iter().map(|(name, service)| {
            (
                name.clone(),
                word(&service.state),
                ready(service),
                service.wanted,
                path(service_path(name)),
            )
        });
        services.collect()
    }

    #[zbus(out_args("service"))]
    fn get_service(&self, name: String) -> Result<OwnedObjectPath, Error> {
        self.configured(name).map(|name| path(service_path(&name)))
    }

    #[zbus(out_args("job"))]
    async fn start_service(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Start(name),
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("job"))]
    async fn stop_service(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Stop(name),
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("job"))]
    async fn restart_service(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Restart(name),
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("jobs"))]
    async fn restart_all(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<OwnedObjectPath>, Error> {
        command(
            (self.access, &self.handle),
            Command::RestartAll,
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("json"))]
    fn dump(&self) -> Result<String, Error> {
        serde_json::to_string(&*self.snapshot())
            .map_err(|error| zbus::Error::Failure(error.to_string()).into())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property)]
    fn status(&self) -> String {
        self.snapshot().summary.clone()
    }

    #[zbus(signal)]
    pub(super) async fn job_new(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        service: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    pub(super) async fn job_removed(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        service: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// `org.smoothserve1.Service`
pub(super) struct ServiceObject {
    access: Access,
    handle: Handle,
    name: String,
}

/// An instance as D-Bus shows it; the order is that of `docs/dbus.md`.
pub(super) type Instance = (u64, u32, u64, u32, String, String, u64, String);

impl ServiceObject {
    pub(super) fn new(access: Access, handle: Handle, name: String) -> ServiceObject {
        ServiceObject {
            access,
            handle,
            name,
        }
    }

    /// Reads something of the newest snapshot; a service that has just been removed has defaults only.
    fn read<T: Default>(&self, read: impl FnOnce(&ServiceStatus) -> T) -> T {
        let snapshots = self.handle.snapshots();
        let snapshot = snapshots.borrow();
        snapshot
            .services
            .get(&self.name)
            .map(|service| read(service))
            .unwrap_or_default()
    }
}

#[interface(name = "org.smoothserve1.Service")]
impl ServiceObject {
    #[zbus(out_args("job"))]
    async fn start(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Start(self.name.clone()),
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("job"))]
    async fn stop(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Stop(self.name.clone()),
            &header,
            connection,
        )
        .await
    }

    #[zbus(out_args("job"))]
    async fn restart(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        one(
            (self.access, &self.handle),
            Command::Restart(self.name.clone()),
            &header,
            connection,
        )
        .await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.name.clone()
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|service| word(&service.state))
    }

    #[zbus(property)]
    fn wanted(&self) -> u32 {
        self.read(|service| service.wanted)
    }

    #[zbus(property)]
    fn ready(&self) -> u32 {
        self.read(ready)
    }

    #[zbus(property)]
    fn generation(&self) -> u64 {
        self.read(|service| service.generation)
    }

    #[zbus(property)]
    fn file(&self) -> String {
        self.read(|service| service.file.clone())
    }

    #[zbus(property)]
    fn listen(&self) -> Vec<String> {
        self.read(|service| service.listen.clone())
    }

    #[zbus(property)]
    fn sites(&self) -> Vec<String> {
        self.read(|service| service.sites.clone())
    }

    #[zbus(property)]
    fn instances(&self) -> Vec<Instance> {
        self.read(|service| service.instances.iter().map(instance).collect())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn load(&self) -> Vec<(u64, u32, u32, u64)> {
        self.read(|service| service.instances.iter().map(load).collect())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn requests(&self) -> u64 {
        self.read(|service| service.requests)
    }

    #[zbus(property)]
    fn crashes(&self) -> u32 {
        self.read(|service| service.crashes)
    }

    #[zbus(property)]
    fn certificate_expires(&self) -> u64 {
        self.read(|service| {
            let expires = service.certificate_expires;
            expires.map_or(0, |expires| microseconds(expires.0))
        })
    }

    #[zbus(property)]
    fn last_error(&self) -> (u64, String) {
        self.read(|service| service.last_error.as_ref().map(failure).unwrap_or_default())
    }
}

/// `org.smoothserve1.Job`
pub(super) struct JobObject {
    access: Access,
    handle: Handle,
    id: u32,
}

impl JobObject {
    pub(super) fn new(access: Access, handle: Handle, id: u32) -> JobObject {
        JobObject { access, handle, id }
    }

    fn read<T: Default>(&self, read: impl FnOnce(&JobStatus) -> T) -> T {
        let snapshots = self.handle.snapshots();
        let snapshot = snapshots.borrow();
        let job = snapshot.jobs.get(&self.id);
        job.map(|job| read(job)).unwrap_or_default()
    }
}

#[interface(name = "org.smoothserve1.Job")]
impl JobObject {
    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        command(
            (self.access, &self.handle),
            Command::Cancel(self.id),
            &header,
            connection,
        )
        .await
        .map(drop)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> u32 {
        self.id
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> String {
        self.read(|job| word(&job.kind))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn service(&self) -> String {
        self.read(|job| job.service.clone())
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|job| word(&job.state))
    }

    #[zbus(property)]
    fn step(&self) -> String {
        self.read(|job| job.step.clone())
    }

    #[zbus(property)]
    fn done(&self) -> u32 {
        self.read(|job| job.done)
    }

    #[zbus(property)]
    fn total(&self) -> u32 {
        self.read(|job| job.total)
    }

    #[zbus(property)]
    fn error(&self) -> String {
        self.read(|job| job.error.clone().unwrap_or_default())
    }
}

pub(super) fn ready(service: &ServiceStatus) -> u32 {
    service.ready()
}

pub(super) fn instance(instance: &InstanceStatus) -> Instance {
    (
        instance.id,
        instance.slot,
        instance.generation,
        instance.pid,
        instance.address.clone(),
        word(&instance.state),
        microseconds(instance.since),
        instance.fault.clone().unwrap_or_default(),
    )
}

fn load(instance: &InstanceStatus) -> (u64, u32, u32, u64) {
    let InstanceStatus {
        id,
        in_flight,
        tunnels,
        requests,
        ..
    } = *instance;
    (id, in_flight, tunnels, requests)
}

fn failure(failure: &Failure) -> (u64, String) {
    (microseconds(failure.at), failure.message.clone())
}

fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// The word that a value has in JSON as well.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("not a word: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_does() {
        assert_eq!(service_path("shop"), "/org/smoothserve1/service/shop");
        assert_eq!(
            service_path("1.a-b_c"),
            "/org/smoothserve1/service/_31_2ea_2db_5fc"
        );
    }
}
