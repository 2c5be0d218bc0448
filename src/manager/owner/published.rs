//! What was last told to the workers, to readers and to the next manager.
//!
//! There may be many services, of which a change concerns one. So what was made of the others is
//! used again, as long as nobody has touched them and all that it was made with, [`Ingredients`],
//! is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::watch;

use super::services::Services;
use super::state::{SavedState, StateFile};
use super::table;
use crate::config::Config;
use crate::ipc::{WireService, WireTable};
use crate::log_level::LogLevel;
use crate::manager::service::Service;
use crate::manager::worker::Workers;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::manager::worker::listeners::{Listeners, SavedListeners};
use crate::manager::world::World;
use crate::status::{JobStatus, ServiceStatus, Snapshot};
use crate::systemd::journal;

/// What was published last, and where to.
pub(super) struct Published {
    /// The table that was last sent, whole.
    table: Rc<WireTable>,
    /// What the parts of the services were made with.
    ingredients: Option<Ingredients>,
    /// The services' parts of the table.
    parts: BTreeMap<String, Arc<WireService>>,
    /// What is shown of the services.
    statuses: BTreeMap<String, Arc<ServiceStatus>>,
    /// What is saved of the services, as text.
    saved: BTreeMap<String, Rc<RawValue>>,
    /// The names of the services that differ from what is saved of them.
    unsaved: BTreeSet<String>,
    /// The configuration as text.
    saved_config: Option<Box<RawValue>>,
    state_file: StateFile,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// All that is published is made of these.
pub(super) struct Sources<'a> {
    /// The configuration that was last applied.
    pub(super) config: &'a Arc<Config>,
    /// The log level in force.
    pub(super) log_level: &'a LogLevel,
    /// All services.
    pub(super) services: &'a Services,
    /// The listening sockets.
    pub(super) listeners: &'a Listeners,
    /// The certificates of the services.
    pub(super) certificates: &'a Rc<ServiceCertificates>,
}

/// What all services are shown and routed with.
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
    /// Nothing was published yet.
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
        }
    }

    /// The table that was last made, whole; number 0 is none.
    pub(super) fn table(&self) -> &Rc<WireTable> {
        &self.table
    }

    /// Makes the next table the successor of the one with this number.
    pub(super) fn number_on_from(&mut self, number: u64) {
        Rc::make_mut(&mut self.table).number = number;
    }

    /// Reads what the last manager has saved, if one has.
    pub(super) fn read_state(&self) -> io::Result<Option<SavedState>> {
        self.state_file.read()
    }

    /// Removes what is saved: nothing is left to be taken over.
    pub(super) fn remove_state(&mut self) -> io::Result<()> {
        self.state_file.remove()
    }

    /// The names of the services of which something else may have to be published than was, or
    /// which are no more. `touched` are those that were changed themselves.
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
        // Even if nothing is in it, the first one is new: a worker serves once it has one.
        let is_first = self.table.number == 0;
        let log_level = Some(sources.log_level.to_string());
        if different.is_empty() && !is_first && log_level == self.table.log_level {
            return false;
        }
        let Sources {
            config,
            services,
            listeners,
            certificates,
            ..
        } = sources;
        for name in different {
            let service = services.get(name);
            let part = service.map(|service| table::part_of(service, listeners));
            replace(&mut self.parts, name, part);
        }
        let mut table = WireTable {
            number: self.table.number,
            since: 0,
            trusted_proxies: config.trusted_proxies.clone(),
            forwarded: config.forwarded,
            max_connections: config.max_connections,
            log_level,
            listeners: table::listeners(services.values(), listeners, certificates),
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

    /// Writes down all that the next manager has to know.
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
            next_id: world.next_id,
            last_job: world.jobs.last(),
            table: self.table.number,
            worker_generation: workers.last_generation(),
            workers: workers.save(),
            listeners: sources.listeners.save(),
            config,
            services: saved.clone(),
        })
    }

    /// Shows readers the state as it is now, if it differs from what they see.
    pub(super) fn show(
        &mut self,
        different: &BTreeSet<String>,
        sources: &Sources<'_>,
        summary: String,
        jobs: BTreeMap<u32, Arc<JobStatus>>,
    ) {
        for name in different {
            let service = sources.services.get(name).filter(|it| !it.is_removed());
            let status = service.map(|service| status_of(service, sources.certificates));
            replace(&mut self.statuses, name, status);
        }
        let snapshot = Snapshot {
            summary,
            uid: rustix::process::geteuid().as_raw(),
            journal: journal::is_behind(std::io::stderr()),
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

    /// Returns true if nothing has changed without being touched: each part is what would be made
    /// anew.
    pub(super) fn is_up_to_date(&self, sources: &Sources<'_>) -> bool {
        sources.services.iter().all(|(name, service)| {
            let part = table::part_of(service, sources.listeners);
            let status = || status_of(service, sources.certificates);
            let is_shown = service.is_removed() || *self.statuses[name] == status();
            let saved = self.saved.get(name);
            let saved = saved.filter(|_| !self.unsaved.contains(name));
            let text = || serde_json::to_string(&service.save()).unwrap_or_default();
            let is_saved = saved.is_none_or(|saved| saved.get() == text());
            *self.parts[name] == part && is_shown && is_saved
        })
    }
}

fn status_of(service: &Service, certificates: &ServiceCertificates) -> ServiceStatus {
    let certificate = certificates.get(service.spec());
    service.status(certificate.map(|certificate| certificate.not_after()))
}

/// Keeps what is the same, so that it is quick to compare.
fn replace<T: PartialEq>(known: &mut BTreeMap<String, Arc<T>>, name: &str, now: Option<T>) {
    match now {
        None => drop(known.remove(name)),
        Some(now) if known.get(name).is_some_and(|before| **before == now) => {}
        Some(now) => drop(known.insert(name.to_owned(), Arc::new(now))),
    }
}
