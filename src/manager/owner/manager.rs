//! The state of the manager, made of parts that each own their own data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use super::errands::Errands;
use super::options::ManagerOptions;
use super::published::Published;
use super::services::Services;
use crate::config::Config;
use crate::log_level::LogLevel;
use crate::logging;
use crate::manager::event::{Event, News, Reports};
use crate::manager::host::supervision::Supervision;
use crate::manager::rollout::InstanceId;
use crate::manager::routes::Ownership;
use crate::manager::worker::Workers;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::Listeners;
use crate::manager::world::World;
use crate::status::Snapshot;
use crate::systemd::given::Given;
use crate::systemd::units::Units;
use crate::watch::Watcher;

/// The phase of the manager's end. It only moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Nobody has asked the manager to end.
    Serving,
    /// The workers finish the connections that they have accepted, while all instances are still
    /// up.
    DrainingWorkers,
    /// The instances are told to stop. Workers need them only for tunnels.
    StoppingInstances,
    /// The manager ends alone. Workers and instances keep running for the next manager.
    Leaving,
}

/// The whole state of the manager.
pub(super) struct Manager {
    /// The folder of `smoothserve.yaml`.
    pub(super) config_dir: PathBuf,
    /// The configuration that was last applied.
    pub(super) config: Arc<Config>,
    /// The log level of the command line, which overrides that of the configuration.
    given_log_level: Option<LogLevel>,
    /// The log level in force, for the manager and its workers.
    pub(super) log_level: LogLevel,
    /// All services, including removed services that still drain.
    pub(super) services: Services,
    /// The owners of all sites, wanted and actual.
    pub(super) routes: Ownership,
    /// The services that run what they ran, because their newest configuration could not be
    /// applied.
    pub(super) held: BTreeSet<String>,
    /// The listening sockets.
    pub(super) listeners: Listeners,
    /// The certificates of the services.
    pub(super) certificates: Rc<ServiceCertificates>,
    /// The proxy workers.
    pub(super) workers: Workers,
    /// What was last sent to workers, shown to readers and saved for the next manager.
    pub(super) published: Published,
    /// What all services share.
    pub(super) world: World,
    /// Watches the files of the services for changes.
    pub(super) watcher: Watcher,
    /// What waits for files.
    pub(super) errands: Errands,
    /// How far the end of the manager has come.
    pub(super) phase: Phase,
}

impl Manager {
    /// Makes a manager without services, with the sockets and descriptors that systemd has passed.
    pub(super) fn new(
        options: ManagerOptions,
        given: &mut Given,
        snapshots: watch::Sender<Arc<Snapshot>>,
        reports: Reports,
        errands: Errands,
    ) -> anyhow::Result<Manager> {
        let watcher = watch_files(reports.clone()).context("cannot watch files")?;
        let supervision = Supervision::new(given.supervisor);
        let units = given.supervisor.map(|_| Units::of_this_process());
        let run_dir = options.run_dir;
        Ok(Manager {
            config_dir: options.config_dir,
            config: Arc::new(Config {
                file: Default::default(),
                written: Default::default(),
                default_user: String::new(),
                trusted_proxies: Vec::new(),
                forwarded: false,
                max_connections: None,
                proxy_memory_max: None,
                log_level: None,
                services: BTreeMap::new(),
                notes: Vec::new(),
            }),
            log_level: options.log_level.clone().unwrap_or_default(),
            given_log_level: options.log_level,
            services: Services::default(),
            routes: Ownership::default(),
            held: BTreeSet::new(),
            listeners: Listeners::new(given.tcp_sockets()),
            certificates: Rc::default(),
            workers: Workers::new(run_dir.clone(), units, reports.clone()),
            published: Published::new(&run_dir, snapshots),
            world: World::new(reports, supervision, units, run_dir),
            watcher,
            errands,
            phase: Phase::Serving,
        })
    }

    /// Puts a log level into force: that of the command line if there is one, otherwise that of
    /// `config`. The workers get the level with the next table.
    pub(super) fn set_log_level(&mut self, config: &Config) {
        let given = self.given_log_level.as_ref();
        let is_new = config.log_level.is_some() && config.log_level != self.config.log_level;
        if is_new && given.is_some() && given != config.log_level.as_ref() {
            tracing::warn!(
                "log_level in smoothserve.yaml has no effect, because --log-level or RUST_LOG is set"
            );
        }
        let level = given.or(config.log_level.as_ref());
        self.log_level = level.cloned().unwrap_or_default();
        logging::set_level(&self.log_level);
    }

    /// Passes a report about an instance to its service.
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
