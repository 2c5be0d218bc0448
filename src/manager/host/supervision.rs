//! What systemd is told of how the manager stands.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::systemd::supervisor::Supervisor;

/// Every heartbeat asks for this much more time, as long as something goes on that is allowed to take it.
const EXTENSION: Duration = Duration::from_secs(30);

/// What systemd knows, if there is one that wants to know.
#[derive(Debug)]
pub struct Supervision {
    supervisor: Option<Supervisor>,
    stage: SupervisionStage,
    status: String,
}

/// Where a service of `Type=notify` is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisionStage {
    /// Not all services have come up, or failed to, for the first time.
    Starting,
    /// As it should be.
    Up,
    /// A reload is under way.
    Reloading,
    /// Everything is being stopped.
    Stopping,
}

impl Supervision {
    /// Nothing is told to nobody.
    pub fn new(supervisor: Option<Supervisor>) -> Supervision {
        Supervision {
            supervisor,
            stage: SupervisionStage::Starting,
            status: String::new(),
        }
    }

    /// Where it was said to be last.
    pub fn stage(&self) -> SupervisionStage {
        self.stage
    }

    /// Tells what is new.
    pub fn tell(&mut self, stage: SupervisionStage, status: &str) {
        let is_new = self.stage != stage;
        self.stage = stage;
        let Some(supervisor) = self.supervisor else {
            return;
        };
        if self.status != status {
            self.status = status.to_owned();
            supervisor.status(status);
        }
        match stage {
            SupervisionStage::Up if is_new => supervisor.ready(),
            SupervisionStage::Reloading if is_new => supervisor.reloading(),
            SupervisionStage::Stopping if is_new => supervisor.stopping(),
            _ => {}
        }
    }

    /// The manager is not stuck; what takes long may take longer.
    pub fn beat(&self) {
        let Some(supervisor) = self.supervisor else {
            return;
        };
        supervisor.alive();
        if self.stage != SupervisionStage::Up {
            supervisor.extend(EXTENSION);
        }
    }

    /// Keeps a descriptor for the next manager.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if let Some(supervisor) = self.supervisor {
            supervisor.store(name, descriptor);
        }
    }

    /// Keeps it no longer.
    pub fn forget(&self, name: &str) {
        if let Some(supervisor) = self.supervisor {
            supervisor.forget(name);
        }
    }
}
