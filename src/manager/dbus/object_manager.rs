//! The standard interface by which a client gets all objects at once, and learns of those that come
//! and go. It belongs to the object of the manager.

use std::collections::HashMap;

use zbus::fdo::ManagedObjects;
use zbus::names::InterfaceName;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::{Connection, ObjectServer, OwnedObjectPath, OwnedVariant, interface};

use super::access::Access;
use super::job_object::JobObject;
use super::paths::{job_path, path, service_path};
use super::service_object::ServiceObject;
use crate::bus::MANAGER_PATH;
use crate::manager::handle::ManagerHandle;
use crate::status::Snapshot;

/// The properties of an object, by interface.
type Shown = HashMap<InterfaceName<'static>, HashMap<String, OwnedVariant>>;

/// Lists the objects of all services and jobs.
pub(super) struct ObjectManager {
    access: Access,
    handle: ManagerHandle,
}

impl ObjectManager {
    /// Makes the list of the objects that come from the snapshots of `handle`.
    pub(super) fn new(access: Access, handle: ManagerHandle) -> ObjectManager {
        ObjectManager { access, handle }
    }

    fn service(&self, name: &str) -> (OwnedObjectPath, ServiceObject) {
        let object = ServiceObject::new(self.access.clone(), self.handle.clone(), name.to_owned());
        (path(service_path(name)), object)
    }

    fn job(&self, id: u32) -> (OwnedObjectPath, JobObject) {
        let object = JobObject::new(self.access.clone(), self.handle.clone(), id);
        (path(job_path(id)), object)
    }
}

#[interface(name = "org.freedesktop.DBus.ObjectManager")]
impl ObjectManager {
    #[zbus(out_args("objpath_interfaces_and_properties"))]
    async fn get_managed_objects(
        &self,
        #[zbus(object_server)] server: &ObjectServer,
        #[zbus(connection)] connection: &Connection,
    ) -> zbus::fdo::Result<ManagedObjects> {
        let snapshot = self.handle.snapshots().borrow().clone();
        let mut all = ManagedObjects::new();
        let mut add = |path: OwnedObjectPath, shown: Shown| {
            let shown = shown.into_iter().map(|(name, all)| (name.into(), all));
            all.insert(path, shown.collect());
        };
        for name in snapshot.services.keys() {
            let (path, object) = self.service(name);
            add(
                path.clone(),
                shown(&object, &path, server, connection).await?,
            );
        }
        for &id in snapshot.jobs.keys() {
            let (path, object) = self.job(id);
            add(
                path.clone(),
                shown(&object, &path, server, connection).await?,
            );
        }
        Ok(all)
    }

    #[zbus(signal)]
    async fn interfaces_added(
        emitter: &SignalEmitter<'_>,
        object_path: OwnedObjectPath,
        interfaces_and_properties: Shown,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn interfaces_removed(
        emitter: &SignalEmitter<'_>,
        object_path: OwnedObjectPath,
        interfaces: Vec<InterfaceName<'static>>,
    ) -> zbus::Result<()>;
}

/// Returns the interface of an object with its properties.
async fn shown<T: Interface>(
    object: &T,
    path: &OwnedObjectPath,
    server: &ObjectServer,
    connection: &Connection,
) -> zbus::fdo::Result<Shown> {
    let emitter = SignalEmitter::new(connection, path.clone())?;
    let all = object.get_all(server, connection, None, &emitter).await?;
    Ok(HashMap::from([(T::name(), all)]))
}

/// Announces the objects that the later of two snapshots has and the earlier has not.
pub(super) async fn announce_new(
    connection: &Connection,
    before: &Snapshot,
    now: &Snapshot,
) -> zbus::Result<()> {
    let server = connection.object_server();
    let object = server.interface::<_, ObjectManager>(MANAGER_PATH).await?;
    let (all, emitter) = (object.get().await, object.signal_emitter());
    for name in now.services.keys() {
        if !before.services.contains_key(name) {
            let (path, object) = all.service(name);
            let shown = shown(&object, &path, server, connection).await?;
            ObjectManager::interfaces_added(emitter, path, shown).await?;
        }
    }
    for &id in now.jobs.keys() {
        if !before.jobs.contains_key(&id) {
            let (path, object) = all.job(id);
            let shown = shown(&object, &path, server, connection).await?;
            ObjectManager::interfaces_added(emitter, path, shown).await?;
        }
    }
    Ok(())
}

/// Announces that the object of a service or job has gone.
pub(super) async fn announce_gone<T: Interface>(
    connection: &Connection,
    path: OwnedObjectPath,
) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, MANAGER_PATH)?;
    ObjectManager::interfaces_removed(&emitter, path, vec![T::name()]).await
}
