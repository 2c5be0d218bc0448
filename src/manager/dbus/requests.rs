//! Commands that D-Bus callers send to the manager, and the job objects that result.

use std::sync::Arc;

use zbus::message::Header;
use zbus::object_server::ObjectServer;
use zbus::{Connection, OwnedObjectPath};

use super::access::{Access, CallError};
use super::job_object::JobObject;
use super::paths::{job_path, path};
use crate::manager::handle::{Command, ManagerHandle};
use crate::status::Snapshot;

/// The way of a D-Bus caller to the manager. `access` says how callers are identified.
pub(super) struct Requests {
    access: Access,
    handle: ManagerHandle,
}

impl Requests {
    /// Makes the way to the manager behind `handle`.
    pub(super) fn new(access: Access, handle: ManagerHandle) -> Requests {
        Requests { access, handle }
    }

    /// Returns the newest snapshot.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.handle.snapshots().borrow().clone()
    }

    /// Checks the caller and sends a command that makes any number of jobs. Adds their objects
    /// before it returns their paths, so that the caller finds them.
    pub(super) async fn jobs(
        &self,
        command: Command,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<Vec<OwnedObjectPath>, CallError> {
        self.access.check(connection, header).await?;
        let jobs = self.handle.command(command).await?;
        for &job in &jobs {
            add_job(connection.object_server(), &self.access, &self.handle, job).await?;
        }
        Ok(jobs.into_iter().map(|job| path(job_path(job))).collect())
    }

    /// Returns an error if the caller may not read what instances have written.
    pub(super) async fn check_reader(
        &self,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<(), CallError> {
        let in_journal = self.snapshot().journal;
        self.access
            .check_reader(connection, header, in_journal)
            .await
    }

    /// Sends a command that makes exactly one job, and returns the path of that job.
    pub(super) async fn job(
        &self,
        command: Command,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<OwnedObjectPath, CallError> {
        let mut jobs = self.jobs(command, header, connection).await?;
        jobs.pop()
            .ok_or_else(|| zbus::Error::Failure("the command made no job".to_owned()).into())
    }
}

/// Adds the object of a job unless it exists already.
pub(super) async fn add_job(
    server: &ObjectServer,
    access: &Access,
    handle: &ManagerHandle,
    id: u32,
) -> zbus::Result<()> {
    server
        .at(
            job_path(id),
            JobObject::new(access.clone(), handle.clone(), id),
        )
        .await?;
    Ok(())
}
