//! The D-Bus object of a job.

use zbus::message::Header;
use zbus::{Connection, interface};

use super::access::{Access, CallError};
use super::values::word;
use crate::manager::handle::{Command, ManagerHandle};
use crate::status::JobStatus;

/// The D-Bus object of a job, with the interface `org.smoothserve1.Job`.
pub(super) struct JobObject {
    access: Access,
    handle: ManagerHandle,
    id: u32,
}

impl JobObject {
    /// Makes the object of the job with this number. `access` says how callers are identified.
    pub(super) fn new(access: Access, handle: ManagerHandle, id: u32) -> JobObject {
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
    ) -> Result<(), CallError> {
        self.access.check(connection, &header).await?;
        self.handle.command(Command::Cancel(self.id)).await?;
        Ok(())
    }

    #[zbus(out_args("report"))]
    async fn get_error_report(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, CallError> {
        let in_journal = self.handle.snapshots().borrow().journal;
        let access = &self.access;
        access.check_reader(connection, &header, in_journal).await?;
        Ok(self.read(|job| job.report.text().to_owned()))
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

    #[zbus(property)]
    fn changes(&self) -> Vec<String> {
        self.read(|job| job.changes.clone())
    }
}
