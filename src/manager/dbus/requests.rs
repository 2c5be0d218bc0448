//! Commands that D-Bus callers send to the manager, and the job objects that result.

use zbus::message::Header;
use zbus::object_server::ObjectServer;
use zbus::{Connection, OwnedObjectPath};

use super::access::{Access, CallError};
use super::job_object::JobObject;
use super::paths::{job_path, path};
use crate::manager::handle::{Command, ManagerHandle};

/// Checks the caller and sends a command to the manager. Adds the objects of the new jobs before it
/// returns their paths, so that the caller finds them.
pub(super) async fn command(
    (access, handle): (Access, &ManagerHandle),
    command: Command,
    header: &Header<'_>,
    connection: &Connection,
) -> Result<Vec<OwnedObjectPath>, CallError> {
    access.check(connection, header).await?;
    let jobs = handle.command(command).await?;
    for &job in &jobs {
        add_job(connection.object_server(), access, handle, job).await?;
    }
    Ok(jobs.into_iter().map(|job| path(job_path(job))).collect())
}

/// Sends a command that makes exactly one job, and returns the path of that job.
pub(super) async fn one(
    who: (Access, &ManagerHandle),
    what: Command,
    header: &Header<'_>,
    connection: &Connection,
) -> Result<OwnedObjectPath, CallError> {
    let mut jobs = command(who, what, header, connection).await?;
    jobs.pop()
        .ok_or_else(|| zbus::Error::Failure("the command made no job".to_owned()).into())
}

/// Adds the object of a job unless it exists already.
pub(super) async fn add_job(
    server: &ObjectServer,
    access: Access,
    handle: &ManagerHandle,
    id: u32,
) -> zbus::Result<()> {
    server
        .at(job_path(id), JobObject::new(access, handle.clone(), id))
        .await?;
    Ok(())
}
