//! What systemd is told of how the manager stands.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::systemd::supervisor::Supervisor;

/// How much more time each heartbeat asks of systemd, as long as the manager starts, reloads or
/// stops.
const EXTENSION: Duration = Duration::from_secs(30);

/// What systemd was told last, if systemd supervises the manager.
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
    /// All services are up.
    Up,
    /// A reload is under way.
    Reloading,
    /// Everything is being stopped.
    Stopping,
}

impl Supervision {
    /// Makes the way to a supervisor that was told nothing yet. Without one nothing is ever told.
    pub fn new(supervisor: Option<Supervisor>) -> Supervision {
        Supervision {
            supervisor,
            stage: SupervisionStage::Starting,
            status: String::new(),
        }
    }

    /// Returns the stage that systemd was told last.
    pub fn stage(&self) -> SupervisionStage {
        self.stage
    }

    /// Tells systemd the stage and the status, as far as they are new.
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

    /// Tells systemd that the manager is not stuck, and asks for time if something is under way.
    pub fn beat(&self) {
        let Some(supervisor) = self.supervisor else {
            return;
        };
        supervisor.alive();
        if self.stage != SupervisionStage::Up {
            supervisor.extend(EXTENSION);
        }
    }

    /// Has systemd keep a descriptor for the next manager.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if let Some(supervisor) = self.supervisor {
            supervisor.store(name, descriptor);
        }
    }

    /// Has systemd close the descriptor that it keeps under this name.
    pub fn forget(&self, name: &str) {
        if let Some(supervisor) = self.supervisor {
            supervisor.forget(name);
        }
    }
}
