//! What was last sent to the workers, shown to readers and saved for the next manager.
//!
//! There may be many services, and a change usually concerns one of them. So what was built for the
//! other services is used again, as long as no code has touched them and the [`Ingredients`] that
//! it was built with are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::watch;

use super::services::Services;
use super::state::{FORMAT, FoundState, SavedState, StateFile};
use super::table;
use crate::config::Config;
use crate::ipc::{WireService, WireTable};
use crate::log_level::LogLevel;
use crate::manager::routes::Ownership;
use crate::manager::service::Service;
use crate::manager::worker::Workers;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::{Listeners, SavedListeners};
use crate::manager::world::World;
use crate::status::{JobStatus, Moment, ProxyStatus, ServiceStatus, SettingsStatus, Snapshot};
use crate::systemd::journal;

/// What was published last, and the places where it is published.
pub(super) struct Published {
    /// The last complete table that was sent.
    table: Rc<WireTable>,
    /// What all services' parts were built with.
    ingredients: Option<Ingredients>,
    /// The part of each service in the table.
    parts: BTreeMap<String, Arc<WireService>>,
    /// The status of each service in the snapshot.
    statuses: BTreeMap<String, Arc<ServiceStatus>>,
    /// The saved state of each service, as JSON.
    saved: BTreeMap<String, Rc<RawValue>>,
    /// The names of the services whose saved state is out of date.
    unsaved: BTreeSet<String>,
    /// The saved configuration, as JSON.
    saved_config: Option<Box<RawValue>>,
    state_file: StateFile,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// The user number of the manager.
    uid: u32,
    /// Whether the manager's own messages go to the journal.
    journal: bool,
}

/// The state of the manager from which everything that is published is built.
pub(super) struct Sources<'a> {
    /// The configuration that was last applied.
    pub(super) config: &'a Arc<Config>,
    /// The log level in force.
    pub(super) log_level: &'a LogLevel,
    /// All services.
    pub(super) services: &'a Services,
    /// The owners of all sites.
    pub(super) routes: &'a Ownership,
    /// The services that run what they ran.
    pub(super) held: &'a BTreeSet<String>,
    /// The listening sockets.
    pub(super) listeners: &'a Listeners,
    /// The certificates of the services.
    pub(super) certificates: &'a Rc<ServiceCertificates>,
}

/// The inputs, besides a service itself, from which its part of the table and its status are built.
struct Ingredients {
    config: Arc<Config>,
    certificates: Rc<ServiceCertificates>,
    listeners: SavedListeners,
}

impl Ingredients {
    fn of(sources: &Sources<'_>) -> Ingredients {
        Ingredients {
            config: sources.config.clone(),
            certificates: sources.certificates.clone(),
            listeners: sources.listeners.save(),
        }
    }
}

impl PartialEq for Ingredients {
    fn eq(&self, other: &Ingredients) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
            && Rc::ptr_eq(&self.certificates, &other.certificates)
            && self.listeners == other.listeners
    }
}

impl Published {
    /// Makes the state before anything was published.
    pub(super) fn new(run_dir: &Path, snapshots: watch::Sender<Arc<Snapshot>>) -> Published {
        Published {
            table: Rc::default(),
            ingredients: None,
            parts: BTreeMap::new(),
            statuses: BTreeMap::new(),
            saved: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            saved_config: None,
            state_file: StateFile::new(run_dir),
            snapshots,
            uid: rustix::process::geteuid().as_raw(),
            journal: journal::is_behind(std::io::stderr()),
        }
    }

    /// Returns the last complete table. Its number is 0 before the first table is built.
    pub(super) fn table(&self) -> &Rc<WireTable> {
        &self.table
    }

    /// Makes the next table the successor of table `number`.
    pub(super) fn number_on_from(&mut self, number: u64) {
        Rc::make_mut(&mut self.table).number = number;
    }

    /// Reads the state that the last manager has saved, if there is one.
    pub(super) fn read_state(&self) -> io::Result<Option<FoundState>> {
        self.state_file.read()
    }

    /// Removes the saved state, because nothing is left for another manager to take over.
    pub(super) fn remove_state(&mut self) -> io::Result<()> {
        self.state_file.remove()
    }

    /// Returns the names of the services that may have to be published again, or that were removed.
    /// `touched` names the services that were changed themselves.
    pub(super) fn note_differences(
        &mut self,
        touched: BTreeSet<String>,
        sources: &Sources<'_>,
    ) -> BTreeSet<String> {
        let ingredients = Ingredients::of(sources);
        let different = match &self.ingredients {
            Some(before) if *before == ingredients => touched,
            _ => {
                self.ingredients = Some(ingredients);
                self.saved_config = None;
                let all = sources.services.keys().cloned();
                all.chain(touched).collect()
            }
        };
        self.unsaved.extend(different.iter().cloned());
        different
    }

    /// Builds the next table. Returns false if it is the same as the last one.
    pub(super) fn build_table(
        &mut self,
        different: &BTreeSet<String>,
        sources: &Sources<'_>,
    ) -> bool {
        // The first table is new even if it is empty, because a worker serves only once it has a
        // table.
        let is_first = self.table.number == 0;
        let log_level = Some(sources.log_level.to_string());
        if different.is_empty() && !is_first && log_level == self.table.log_level {
            return false;
        }
        let Sources {
            config,
            services,
            routes,
            listeners,
            certificates,
            ..
        } = sources;
        for name in different {
            let service = services.get(name);
            let part = service.map(|service| table::part_of(service, routes, listeners));
            replace(&mut self.parts, name, part);
        }
        let mut table = WireTable {
            number: self.table.number,
            since: 0,
            trusted_proxies: config.trusted_proxies.clone(),
            forwarded: config.forwarded,
            max_connections: config.max_connections,
            max_memory: config.proxy_memory_max,
            log_level,
            listeners: table::listeners(services.values(), routes, listeners, certificates),
            services: self.parts.values().cloned().collect(),
            removed: Vec::new(),
        };
        let is_new = is_first || table != *self.table;
        if is_new {
            table.number += 1;
            self.table = table.into();
        }
        is_new
    }

    /// Saves everything that the next manager has to know.
    pub(super) fn write_state(
        &mut self,
        sources: &Sources<'_>,
        workers: &Workers,
        world: &World,
    ) -> io::Result<()> {
        let saved = &mut self.saved;
        for name in std::mem::take(&mut self.unsaved) {
            match sources.services.get(&name) {
                Some(service) => drop(saved.insert(name, to_raw_value(&service.save())?.into())),
                None => drop(saved.remove(&name)),
            }
        }
        let config = match &mut self.saved_config {
            Some(config) => config,
            none => none.insert(to_raw_value(sources.config)?),
        };
        self.state_file.write(&SavedState {
            format: FORMAT,
            next_id: world.next_id,
            last_job: world.jobs.last(),
            jobs: world.jobs.save(),
            routes: Some(sources.routes.save()),
            held: sources.held.clone(),
            table: self.table.number,
            worker_generation: workers.last_generation(),
            workers: workers.save(),
            listeners: sources.listeners.save(),
            config,
            services: saved.clone(),
        })
    }

    /// Publishes a new snapshot if it differs from the last one.
    pub(super) fn show(
        &mut self,
        different: &BTreeSet<String>,
        sources: &Sources<'_>,
        summary: String,
        proxy: ProxyStatus,
        jobs: BTreeMap<u32, Arc<JobStatus>>,
    ) {
        for name in different {
            let service = sources.services.get(name).filter(|it| it.is_shown());
            let status = service.map(|service| status_of(service, sources));
            replace(&mut self.statuses, name, status);
        }
        let settings = SettingsStatus {
            file: sources.config.file.display().to_string(),
            file_written: sources.config.written.0.map(Moment),
        };
        let snapshot = Snapshot {
            summary,
            uid: self.uid,
            journal: self.journal,
            settings,
            proxy,
            services: self.statuses.clone(),
            jobs,
        };
        self.snapshots.send_if_modified(|current| {
            let modified = **current != snapshot;
            if modified {
                *current = Arc::new(snapshot);
            }
            modified
        });
    }

    /// Returns true if all kept parts equal what would be built now. Otherwise some code has
    /// changed a service without marking it as touched.
    pub(super) fn is_up_to_date(&self, sources: &Sources<'_>) -> bool {
        sources.services.iter().all(|(name, service)| {
            let part = table::part_of(service, sources.routes, sources.listeners);
            let status = || status_of(service, sources);
            let is_shown = !service.is_shown() || *self.statuses[name] == status();
            let saved = self.saved.get(name);
            let saved = saved.filter(|_| !self.unsaved.contains(name));
            let text = || serde_json::to_string(&service.save()).unwrap_or_default();
            let is_saved = saved.is_none_or(|saved| saved.get() == text());
            *self.parts[name] == part && is_shown && is_saved
        })
    }
}

fn status_of(service: &Service, sources: &Sources<'_>) -> ServiceStatus {
    let certificate = sources.certificates.get(service.spec());
    let expires = certificate.map(|certificate| certificate.not_after());
    service.status(sources.listeners, expires)
}

/// Replaces the known value only if `now` differs, so that equal values stay the same `Arc` and
/// compare quickly.
fn replace<T: PartialEq>(known: &mut BTreeMap<String, Arc<T>>, name: &str, now: Option<T>) {
    match now {
        None => drop(known.remove(name)),
        Some(now) if known.get(name).is_some_and(|before| **before == now) => {}
        Some(now) => drop(known.insert(name.to_owned(), Arc::new(now))),
    }
}
