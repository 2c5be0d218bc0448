//! The D-Bus signals that announce the differences between one snapshot and the next.

use zbus::Connection;
use zbus::object_server::ObjectServer;

use super::job_object::JobObject;
use super::manager_object::ManagerObject;
use super::paths::{job_path, path, service_path};
use super::service_object::ServiceObject;
use super::values::{instance, word};
use crate::bus::MANAGER_PATH;
use crate::status::{JobState, JobStatus, ServiceStatus, Snapshot};

/// Emits the signals for the differences between two snapshots.
pub(super) async fn announce(
    connection: &Connection,
    before: &Snapshot,
    now: &Snapshot,
) -> zbus::Result<()> {
    let server = connection.object_server();
    let manager = server.interface::<_, ManagerObject>(MANAGER_PATH).await?;
    let emitter = manager.signal_emitter();
    if before.summary != now.summary {
        manager.get().await.status_changed(emitter).await?;
    }
    for (name, service) in &now.services {
        if let Some(old) = before.services.get(name).filter(|old| *old != service) {
            announce_service(server, name, old, service).await?;
        }
    }
    for (&id, job) in &now.jobs {
        let old = before.jobs.get(&id);
        match old {
            None => {
                ManagerObject::announce_new_job(emitter, path(job_path(id)), &job.service).await?
            }
            Some(old) if old == job => {}
            Some(old) => announce_job(server, id, old, job).await?,
        }
        let was_running = old.is_none_or(|old| old.state == JobState::Running);
        if was_running && job.state != JobState::Running {
            ManagerObject::announce_ended_job(
                emitter,
                path(job_path(id)),
                &job.service,
                &word(&job.state),
            )
            .await?;
        }
    }
    Ok(())
}

async fn announce_service(
    server: &ObjectServer,
    name: &str,
    old: &ServiceStatus,
    new: &ServiceStatus,
) -> zbus::Result<()> {
    let object = server
        .interface::<_, ServiceObject>(service_path(name))
        .await?;
    let (service, emitter) = (object.get().await, object.signal_emitter());
    if old.state != new.state {
        service.state_changed(emitter).await?;
    }
    if old.wanted != new.wanted {
        service.wanted_changed(emitter).await?;
    }
    if old.ready() != new.ready() {
        service.ready_changed(emitter).await?;
    }
    if old.generation != new.generation {
        service.generation_changed(emitter).await?;
    }
    if old.file != new.file {
        service.file_changed(emitter).await?;
    }
    if old.listen != new.listen {
        service.listen_changed(emitter).await?;
    }
    if old.sites != new.sites {
        service.sites_changed(emitter).await?;
    }
    if !old
        .instances
        .iter()
        .map(instance)
        .eq(new.instances.iter().map(instance))
    {
        service.instances_changed(emitter).await?;
    }
    if old.crashes != new.crashes {
        service.crashes_changed(emitter).await?;
    }
    if old.certificate_expires != new.certificate_expires {
        service.certificate_expires_changed(emitter).await?;
    }
    if old.last_error != new.last_error {
        service.last_error_changed(emitter).await?;
    }
    if old.removed != new.removed {
        service.removed_changed(emitter).await?;
    }
    if old.keeps != new.keeps {
        service.keeps_changed(emitter).await?;
    }
    if old.refused_change != new.refused_change {
        service.refused_change_changed(emitter).await?;
    }
    Ok(())
}

async fn announce_job(
    server: &ObjectServer,
    id: u32,
    old: &JobStatus,
    new: &JobStatus,
) -> zbus::Result<()> {
    let object = server.interface::<_, JobObject>(job_path(id)).await?;
    let (job, emitter) = (object.get().await, object.signal_emitter());
    if old.step != new.step {
        job.step_changed(emitter).await?;
    }
    if old.done != new.done {
        job.done_changed(emitter).await?;
    }
    if old.total != new.total {
        job.total_changed(emitter).await?;
    }
    if old.error != new.error {
        job.error_changed(emitter).await?;
    }
    if old.changes != new.changes {
        job.changes_changed(emitter).await?;
    }
    if old.state != new.state {
        job.state_changed(emitter).await?;
    }
    Ok(())
}
