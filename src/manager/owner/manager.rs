//! The state of the manager: the parts that it consists of, each of which owns its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use super::options::ManagerOptions;
use super::published::Published;
use super::services::Services;
use crate::config::Config;
use crate::log_level::LogLevel;
use crate::logging;
use crate::manager::event::{Event, News, Reports};
use crate::manager::host::notify::NotifySocket;
use crate::manager::host::supervision::Supervision;
use crate::manager::rollout::InstanceId;
use crate::manager::worker::Workers;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::Listeners;
use crate::manager::world::World;
use crate::status::Snapshot;
use crate::systemd::given::Given;
use crate::systemd::units::Units;
use crate::watch::Watcher;

/// The name under which systemd's store keeps the socket on which instances say that they are
/// ready.
const NOTIFY_SOCKET: &str = "notify";

/// How far the end of the manager has come. It only moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Nobody has asked the manager to end.
    Serving,
    /// The workers serve what they have accepted, with all instances still up.
    DrainingWorkers,
    /// The instances end; no worker needs them any more, but for their tunnels.
    StoppingInstances,
    /// The manager ends; everything else stays as it is for the next one.
    Leaving,
}

/// The whole state of the manager.
pub(super) struct Manager {
    /// The folder of `smoothserve.yaml`.
    pub(super) config_dir: PathBuf,
    /// The configuration that was last applied.
    pub(super) config: Arc<Config>,
    /// The log level of the command line, which comes before that of the configuration.
    given_log_level: Option<LogLevel>,
    /// The log level in force, of the manager and of its workers.
    pub(super) log_level: LogLevel,
    /// The services, those included that are removed and still drain.
    pub(super) services: Services,
    /// The listening sockets.
    pub(super) listeners: Listeners,
    /// The certificates of the services.
    pub(super) certificates: Rc<ServiceCertificates>,
    /// The proxy workers.
    pub(super) workers: Workers,
    /// What was last told to workers, readers and the next manager.
    pub(super) published: Published,
    /// What the services share.
    pub(super) world: World,
    /// Looks at the services' files.
    pub(super) watcher: Watcher,
    /// How far the end has come.
    pub(super) phase: Phase,
}

impl Manager {
    /// A manager without any service, which is connected to what systemd has given.
    pub(super) fn new(
        options: ManagerOptions,
        given: &mut Given,
        snapshots: watch::Sender<Arc<Snapshot>>,
        reports: Reports,
    ) -> anyhow::Result<Manager> {
        let watcher = watch_files(reports.clone()).context("cannot watch files")?;
        let supervision = Supervision::new(given.supervisor);
        let notify = match given.datagram_socket(NOTIFY_SOCKET) {
            Some(socket) => NotifySocket::adopt(socket),
            None => NotifySocket::bind(&options.run_dir),
        };
        let notify = notify.context("cannot make the notify socket")?;
        supervision.store(NOTIFY_SOCKET, notify.descriptor());
        receive_notifications(notify, reports.clone());
        let units = given.supervisor.map(|_| Units::of_this_process());
        let run_dir = options.run_dir;
        Ok(Manager {
            config_dir: options.config_dir,
            config: Arc::new(Config {
                default_user: String::new(),
                trusted_proxies: Vec::new(),
                forwarded: false,
                max_connections: None,
                log_level: None,
                services: BTreeMap::new(),
                notes: Vec::new(),
            }),
            log_level: options.log_level.clone().unwrap_or_default(),
            given_log_level: options.log_level,
            services: Services::default(),
            listeners: Listeners::new(given.tcp_sockets()),
            certificates: Rc::default(),
            workers: Workers::new(run_dir.clone(), units, reports.clone()),
            published: Published::new(&run_dir, snapshots),
            world: World::new(reports, supervision, units, run_dir),
            watcher,
            phase: Phase::Serving,
        })
    }

    /// Puts the log level into force that this configuration asks for, or the command line. The
    /// workers get it with the next table.
    pub(super) fn set_log_level(&mut self, config: &Config) {
        let given = self.given_log_level.as_ref();
        let level = given.or(config.log_level.as_ref());
        self.log_level = level.cloned().unwrap_or_default();
        logging::set_level(&self.log_level);
    }

    /// Brings news of an instance to its service.
    pub(super) fn hear(&mut self, id: InstanceId, news: News) {
        let owner = self.world.owners.get(&id);
        if let Some(service) = owner.and_then(|name| self.services.get_mut(name)) {
            service.hear(id, news, &mut self.world);
        }
    }
}

fn watch_files(reports: Reports) -> std::io::Result<Watcher> {
    let (watcher, mut changed) = Watcher::new()?;
    tokio::task::spawn_local(async move {
        while let Some(changed) = changed.recv().await {
            let _ = reports.send(Event::Changed(changed));
        }
    });
    Ok(watcher)
}

fn receive_notifications(socket: NotifySocket, reports: Reports) {
    tokio::task::spawn_local(async move {
        loop {
            match socket.ready().await {
                Ok(pid) => drop(reports.send(Event::SaidReady(pid))),
                Err(error) => {
                    return tracing::error!(error = %error, "cannot receive from the notify socket");
                }
            }
        }
    });
}
