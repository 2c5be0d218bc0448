//! What all services share and change: the numbers of instances, their ports, the jobs, and the
//! connection to systemd.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::oneshot;

use super::event::{Event, News, Reports};
use super::host::ports::Ports;
use super::host::supervision::Supervision;
use super::jobs::Jobs;
use super::process::executable::{OpenExecutable, stored_name};
use super::process::socket_folders::SocketFolders;
use super::rollout::InstanceId;
use crate::run_dir;
use crate::systemd::units::Units;

/// What all services share. A service borrows it whenever the service has something to do.
pub struct World {
    /// The number of the next instance.
    pub next_id: InstanceId,
    /// The jobs of all services.
    pub jobs: Jobs,
    /// The ports of all instances.
    pub ports: Ports,
    /// The name of the service that each instance belongs to.
    pub owners: HashMap<InstanceId, String>,
    /// The channel on which tasks report events.
    pub reports: Reports,
    /// The permits of launchers. A permit is sent once the state file names the launcher's process.
    pub permits: Vec<oneshot::Sender<()>>,
    /// The notifications to systemd, if systemd supervises this process.
    pub supervision: Supervision,
    /// The connection to systemd that gives each process its own scope, so that it outlives the
    /// manager. `None`: processes end with the manager.
    pub units: Option<Units>,
    /// The folder for sockets and state.
    pub run_dir: PathBuf,
    /// The folders for the unix sockets of instances.
    pub socket_folders: SocketFolders,
    /// The user for services without `user` whose executable belongs to root.
    pub default_user: String,
    /// Until when a worker that gets no tables may send requests to any instance.
    pub drains_until: Option<Instant>,
    /// True if such workers have to end soon, because an instance drains whose successor can start
    /// only after that.
    pub hurries_workers: bool,
}

impl World {
    /// Makes a world without services.
    pub fn new(
        reports: Reports,
        supervision: Supervision,
        units: Option<Units>,
        run_dir: PathBuf,
    ) -> World {
        let instances = run_dir::instances(&run_dir);
        World {
            next_id: 1,
            jobs: Jobs::default(),
            ports: Ports::default(),
            owners: HashMap::new(),
            reports,
            permits: Vec::new(),
            supervision,
            units,
            run_dir,
            socket_folders: SocketFolders::new(instances, units.is_some()),
            default_user: String::new(),
            drains_until: None,
            hurries_workers: false,
        }
    }

    /// Returns a function that reports news of instance `id` to the owner of the state.
    pub fn reporter(&self, id: InstanceId) -> impl Fn(News) + Clone + 'static {
        let reports = self.reports.clone();
        move |news| {
            // Sending fails only when the manager has ended, and then nobody needs the news.
            let _ = reports.send(Event::Instance(id, news));
        }
    }

    /// Has systemd keep the executable of a generation open for the next manager.
    pub fn keep_executable(&self, service: &str, generation: u64, executable: &OpenExecutable) {
        let name = stored_name(service, generation);
        if let Ok(file) = executable.descriptor() {
            self.supervision.store(&name, file);
        }
    }

    /// Has systemd close the executable of a generation that no slot can be started from any more.
    pub fn forget_executable(&self, service: &str, generation: u64) {
        self.supervision.forget(&stored_name(service, generation));
    }
}
