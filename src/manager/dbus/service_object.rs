//! The D-Bus object of a service.

use std::collections::BTreeMap;

use zbus::OwnedObjectPath;
use zbus::message::Header;
use zbus::{Connection, interface};

use super::access::{Access, CallError};
use super::requests::Requests;
use super::values::{InstanceTuple, failure, instance, load, microseconds, report, word};
use crate::manager::handle::{Command, ManagerHandle};
use crate::status::ServiceStatus;

/// The D-Bus object of a service, with the interface `org.smoothserve1.Service`.
pub(super) struct ServiceObject {
    requests: Requests,
    name: String,
}

impl ServiceObject {
    /// Makes the object of the service with this name. `access` says how callers are identified.
    pub(super) fn new(access: Access, handle: ManagerHandle, name: String) -> ServiceObject {
        ServiceObject {
            requests: Requests::new(access, handle),
            name,
        }
    }

    /// Reads a value of this service from the newest snapshot. Returns the default value if the
    /// service has just been removed.
    fn read<T: Default>(&self, read: impl FnOnce(&ServiceStatus) -> T) -> T {
        self.requests
            .snapshot()
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
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Start(self.name.clone()), &header, connection)
            .await
    }

    #[zbus(out_args("job"))]
    async fn stop(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Stop(self.name.clone()), &header, connection)
            .await
    }

    #[zbus(out_args("job"))]
    async fn restart(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        self.requests
            .job(Command::Restart(self.name.clone()), &header, connection)
            .await
    }

    #[zbus(out_args("time", "report"))]
    async fn get_last_error_report(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u64, String), CallError> {
        self.requests.check_reader(&header, connection).await?;
        Ok(self.read(|service| service.last_error.as_ref().map(report).unwrap_or_default()))
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
        self.read(ServiceStatus::ready)
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
    fn instances(&self) -> Vec<InstanceTuple> {
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
    fn removed(&self) -> bool {
        self.read(|service| service.removed)
    }

    #[zbus(property)]
    fn keeps(&self) -> BTreeMap<String, Vec<String>> {
        self.read(|service| service.keeps.clone())
    }

    #[zbus(property)]
    fn refused_change(&self) -> (u64, String) {
        self.read(|service| {
            let refused = service.refused_change.as_ref();
            let tuple = refused.map(|it| (microseconds(it.at.0), it.message.clone()));
            tuple.unwrap_or_default()
        })
    }

    #[zbus(property)]
    fn last_error(&self) -> (u64, String) {
        self.read(|service| service.last_error.as_ref().map(failure).unwrap_or_default())
    }
}
