//! What all services share and change: the numbers of instances, their ports, the jobs, the way to
//! systemd.

use std::collections::HashMap;
use std::path::PathBuf;

use tokio::sync::oneshot;

use super::event::{Event, News, Reports};
use super::host::ports::Ports;
use super::host::supervision::Supervision;
use super::jobs::Jobs;
use super::process::executable::{OpenExecutable, stored_name};
use super::rollout::InstanceId;
use crate::systemd::units::Units;

/// What the services share. It is lent to a service whenever that is to do something.
pub struct World {
    /// The number of the next instance.
    pub next_id: InstanceId,
    /// The jobs of all services.
    pub jobs: Jobs,
    /// The ports of all instances.
    pub ports: Ports,
    /// The names of the services that instances belong to.
    pub owners: HashMap<InstanceId, String>,
    /// Where tasks report to.
    pub reports: Reports,
    /// The permits of launchers that may go on once it is written down that they are there.
    pub permits: Vec<oneshot::Sender<()>>,
    /// The systemd that supervises this process, if one does.
    pub supervision: Supervision,
    /// The systemd that puts processes into scopes of their own, so that they outlive the manager.
    /// `None`: they do not.
    pub units: Option<Units>,
    /// The folder for sockets and state.
    pub run_dir: PathBuf,
    /// The user of services that name none and whose executable belongs to root.
    pub default_user: String,
}

impl World {
    /// A world without services.
    pub fn new(
        reports: Reports,
        supervision: Supervision,
        units: Option<Units>,
        run_dir: PathBuf,
    ) -> World {
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
            default_user: String::new(),
        }
    }

    /// A function that brings news of the instance `id` to the owner of the state.
    pub fn reporter(&self, id: InstanceId) -> impl Fn(News) + Clone + 'static {
        let reports = self.reports.clone();
        move |news| {
            // Without a manager there is nobody left who wants to know.
            let _ = reports.send(Event::Instance(id, news));
        }
    }

    /// Has systemd keep the executable of a generation open for the next manager.
    pub fn keep_executable(&self, service: &str, generation: u64, executable: &OpenExecutable) {
        let name = stored_name(service, generation);
        self.supervision.store(&name, executable.descriptor());
    }

    /// Has systemd close the executable of a generation that nothing is started with any more.
    pub fn forget_executable(&self, service: &str, generation: u64) {
        self.supervision.forget(&stored_name(service, generation));
    }
}
