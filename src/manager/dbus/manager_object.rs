//! The D-Bus object of the manager.

use zbus::OwnedObjectPath;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, interface};

use super::access::{Access, CallError};
use super::paths::{path, service_path};
use super::requests::Requests;
use super::values::word;
use crate::manager::handle::{Command, CommandError, ManagerHandle};

/// The D-Bus object of the manager, with the interface `org.smoothserve1.Manager`.
pub(super) struct ManagerObject {
    requests: Requests,
}

impl ManagerObject {
    /// Makes the object of the manager. `access` says how callers are identified.
    pub(super) fn new(access: Access, handle: ManagerHandle) -> ManagerObject {
        ManagerObject {
            requests: Requests::new(access, handle),
        }
    }

    /// Emits `JobNew`: a job of `service` has begun.
    pub(super) async fn announce_new_job(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        service: &str,
    ) -> zbus::Result<()> {
        ManagerObject::job_new(emitter, job, service).await
    }

    /// Emits `JobRemoved`: a job of `service` has ended with `result`.
    pub(super) async fn announce_ended_job(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        service: &str,
        result: &str,
    ) -> zbus::Result<()> {
        ManagerObject::job_removed(emitter, job, service, result).await
    }

    fn configured(&self, name: String) -> Result<String, CallError> {
        match self.requests.snapshot().services.contains_key(&name) {
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
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Reload, &header, connection)
            .await
    }

    #[zbus(out_args("services"))]
    fn list_services(&self) -> Vec<(String, String, u32, u32, OwnedObjectPath)> {
        let snapshot = self.requests.snapshot();
        let services = snapshot.services.iter().map(|(name, service)| {
            (
                name.clone(),
                word(&service.state),
                service.ready(),
                service.wanted,
                path(service_path(name)),
            )
        });
        services.collect()
    }

    #[zbus(out_args("service"))]
    fn get_service(&self, name: String) -> Result<OwnedObjectPath, CallError> {
        self.configured(name).map(|name| path(service_path(&name)))
    }

    #[zbus(out_args("job"))]
    async fn start_service(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Start(name), &header, connection)
            .await
    }

    #[zbus(out_args("job"))]
    async fn stop_service(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Stop(name), &header, connection)
            .await
    }

    #[zbus(out_args("job"))]
    async fn restart_service(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Restart(name), &header, connection)
            .await
    }

    #[zbus(out_args("jobs"))]
    async fn restart_all(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<OwnedObjectPath>, CallError> {
        self.requests
            .jobs(Command::RestartAll, &header, connection)
            .await
    }

    #[zbus(out_args("json"))]
    fn dump(&self) -> Result<String, CallError> {
        serde_json::to_string(&*self.requests.snapshot())
            .map_err(|error| zbus::Error::Failure(error.to_string()).into())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property)]
    fn status(&self) -> String {
        self.requests.snapshot().summary.clone()
    }

    #[zbus(signal)]
    async fn job_new(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        service: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        job: OwnedObjectPath,
        service: &str,
        result: &str,
    ) -> zbus::Result<()>;
}
