//! Notifications to systemd about the state of the manager.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::systemd::supervisor::Supervisor;

/// The extra time that each heartbeat asks of systemd while the manager starts, reloads or stops.
const EXTENSION: Duration = Duration::from_secs(30);

/// The notifications to systemd, if systemd supervises the manager. Remembers what systemd was told
/// last.
#[derive(Debug)]
pub struct Supervision {
    supervisor: Option<Supervisor>,
    stage: SupervisionStage,
    status: String,
}

/// The stage of a `Type=notify` service, as systemd sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisionStage {
    /// At least one service has neither come up nor failed since the start.
    Starting,
    /// All services are up.
    Up,
    /// A reload is under way.
    Reloading,
    /// The manager drains and stops all services.
    Stopping,
}

impl Supervision {
    /// Makes the notifier. It has told `supervisor` nothing yet; without a supervisor it does
    /// nothing.
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

    /// Tells systemd the stage and the status text if they have changed.
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

    /// Tells systemd that the manager is alive, and asks for more time if the manager starts,
    /// reloads or stops.
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

    /// Has systemd close the descriptor that it stores under this name.
    pub fn forget(&self, name: &str) {
        if let Some(supervisor) = self.supervisor {
            supervisor.forget(name);
        }
    }
}
