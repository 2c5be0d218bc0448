//! The state that the manager saves for the next manager.
//!
//! Under systemd, processes and descriptors outlive a manager; the state file says what they are.
//! The file is written completely, under a temporary name first, and before any process in it is
//! let go. So a process without an entry still waits in its launcher and ends by itself.
//!
//! The file has a format. A manager continues from a file whose format is not newer than its own,
//! so every field that is added needs a default. Of any other file it takes what [`FrozenState`]
//! says, which is in the files of all builds, and makes the rest anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Listen};
use crate::manager::jobs::SavedJobs;
use crate::manager::rollout::InstanceId;
use crate::manager::routes::SavedOwnership;
use crate::manager::service::{FrozenService, SavedService};
use crate::manager::worker::SavedWorker;
use crate::manager::worker::listeners::SavedListeners;

/// The format of the file. It has to be raised with a change that an older build would take for
/// something else, or could not read at all. Files without a format have format 0.
pub const FORMAT: u32 = 1;

/// Everything that is saved. For writing, `C` and `S` are JSON texts, most of which are left from
/// the last time.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState<C = Arc<Config>, S = SavedService> {
    /// The format of the file, see [`FORMAT`].
    #[serde(default)]
    pub format: u32,
    /// The number of the next instance.
    pub next_id: InstanceId,
    /// The number of the last job.
    #[serde(default)]
    pub last_job: u32,
    /// The jobs that run or have ended a short time ago.
    #[serde(default)]
    pub jobs: SavedJobs,
    /// The owners of all sites. `None`, from an earlier version: each service has its own.
    #[serde(default)]
    pub routes: Option<SavedOwnership>,
    /// The services that run what they ran, because their newest configuration could not be
    /// applied.
    #[serde(default)]
    pub held: BTreeSet<String>,
    /// The number of the last table.
    pub table: u64,
    /// The generation of the last worker that was started.
    pub worker_generation: u32,
    /// The workers, oldest first.
    pub workers: Vec<SavedWorker>,
    /// The listening sockets.
    pub listeners: SavedListeners,
    /// The configuration as it was last applied.
    pub config: C,
    /// The services by name, including removed services that still drain.
    pub services: BTreeMap<String, S>,
}

/// The frozen part of a [`SavedState`], which every build finds in the state of every other one:
/// the processes that run, and the numbers that must not be used again. No field of it may be
/// renamed or removed, or get another meaning.
#[derive(Debug, Deserialize)]
pub struct FrozenState {
    #[serde(default)]
    format: u32,
    next_id: InstanceId,
    last_job: u32,
    table: u64,
    worker_generation: u32,
    workers: Vec<SavedWorker>,
    listeners: FrozenListeners,
    services: BTreeMap<String, FrozenService>,
}

#[derive(Debug, Deserialize)]
struct FrozenListeners {
    last_id: u32,
}

impl FrozenState {
    /// Returns a state in which the instances of the configured services run something unknown, and
    /// in which the ports of `config` are open. What belongs to other services is left out, so that
    /// it is ended like everything that nobody knows.
    pub fn with_configuration(mut self, config: Config) -> SavedState {
        let specs = config.services.values();
        let services = specs.clone().filter_map(|spec| {
            let frozen = self.services.remove(&spec.name)?;
            let service = frozen.with_unknown_content(spec.clone());
            Some((spec.name.clone(), service))
        });
        let services = services.collect();
        let enabled = specs.filter(|spec| spec.enabled);
        let listens: BTreeSet<Listen> = enabled.flat_map(|spec| spec.listen.clone()).collect();
        SavedState {
            format: FORMAT,
            next_id: self.next_id,
            last_job: self.last_job,
            jobs: SavedJobs::default(),
            routes: None,
            held: BTreeSet::new(),
            table: self.table,
            worker_generation: self.worker_generation,
            workers: self.workers,
            listeners: SavedListeners::above(self.listeners.last_id, listens.into_iter()),
            config: Arc::new(config),
            services,
        }
    }
}

/// What a manager finds of the state of the last one.
#[derive(Debug)]
pub enum FoundState {
    /// Everything.
    Whole(Box<SavedState>),
    /// What every build finds. The text says why this is all.
    Frozen(FrozenState, String),
}

impl FoundState {
    fn parse(text: &[u8]) -> serde_json::Result<FoundState> {
        let why = match serde_json::from_slice::<SavedState>(text) {
            Ok(state) if state.format <= FORMAT => return Ok(FoundState::Whole(state.into())),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let state: FrozenState = serde_json::from_slice(text)?;
        let why = match why {
            Some(error) if state.format <= FORMAT => error.to_string(),
            _ => format!(
                "it has format {}, and this build knows {FORMAT}",
                state.format
            ),
        };
        Ok(FoundState::Frozen(state, why))
    }
}

/// The file that holds the saved state.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    written: Vec<u8>,
}

impl StateFile {
    /// Returns the state file of a run directory.
    pub fn new(run_dir: &Path) -> StateFile {
        StateFile {
            path: run_dir.join("state.json"),
            written: Vec::new(),
        }
    }

    /// Reads the saved state, or returns `None` if there is no file.
    pub fn read(&self) -> io::Result<Option<FoundState>> {
        match std::fs::read(&self.path) {
            Ok(text) => Ok(Some(FoundState::parse(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the state unless the file already has it.
    pub fn write<C: Serialize, S: Serialize>(
        &mut self,
        state: &SavedState<C, S>,
    ) -> io::Result<()> {
        let text = serde_json::to_vec(state)?;
        if text == self.written {
            return Ok(());
        }
        let new = self.path.with_extension("json.new");
        // Only the owner may read the file, because environments can contain secrets.
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        // The run directory is in memory, as the processes are, so there is no need to sync it.
        std::fs::rename(&new, &self.path)?;
        self.written = text;
        Ok(())
    }

    /// Removes the file, because nothing is left for another manager to take over.
    pub fn remove(&mut self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of a build before formats, with a service `shop`.
    const FORMAT_0: &[u8] = include_bytes!("../../../tests/fixtures/state/format-0.json");

    fn parse(state: &serde_json::Value) -> FoundState {
        FoundState::parse(state.to_string().as_bytes()).unwrap()
    }

    fn format_0() -> serde_json::Value {
        serde_json::from_slice(FORMAT_0).unwrap()
    }

    #[test]
    fn the_state_of_an_older_build_is_continued() {
        let FoundState::Whole(state) = FoundState::parse(FORMAT_0).unwrap() else {
            panic!("it is whole");
        };
        assert_eq!(state.format, 0);
        assert!(state.services.contains_key("shop"));
        assert_eq!(state.workers.len(), 1);
    }

    #[test]
    fn of_the_state_of_a_newer_build_the_frozen_part_is_found() {
        let mut state = format_0();
        state["format"] = 1000.into();
        let FoundState::Frozen(_, why) = parse(&state) else {
            panic!("it is not this build's");
        };
        assert_eq!(why, "it has format 1000, and this build knows 1");
        for unknown in ["config", "jobs", "routes", "held"] {
            state[unknown] = "x".into();
        }
        let service = &mut state["services"]["shop"];
        let rest = ["spec", "deployments", "removed", "crashes", "last_error"];
        for unknown in rest {
            service[unknown] = "x".into();
        }
        service["core"]["target"] = "x".into();
        service["core"]["instances"][0]["stage"] = "x".into();
        let FoundState::Frozen(found, _) = parse(&state) else {
            panic!("it is not this build's");
        };
        assert!(found.services.contains_key("shop"));
        // Without its format, it is a state that this build cannot read.
        state["format"] = FORMAT.into();
        assert!(matches!(parse(&state), FoundState::Frozen(..)));
        state["services"]["shop"]["instances"] = "x".into();
        assert!(FoundState::parse(state.to_string().as_bytes()).is_err());
    }

    #[test]
    fn the_instances_of_a_newer_build_stay_those_of_their_services() {
        let folder = tempfile::tempdir().unwrap();
        let services = folder.path().join("services");
        std::fs::create_dir(&services).unwrap();
        let shop = "name: shop\nport: 8080\nexecutable_path: /bin/true\n";
        std::fs::write(services.join("shop.yaml"), shop).unwrap();
        let config = crate::config::load(folder.path()).unwrap();
        let saved = format_0();
        let mut state = saved.clone();
        state["format"] = 1000.into();
        let FoundState::Frozen(found, _) = parse(&state) else {
            panic!("it is not this build's");
        };
        let made = found.with_configuration(config);
        let made = serde_json::to_value(&made).unwrap();
        assert_eq!(made["workers"], saved["workers"]);
        let shop = |state: &serde_json::Value| state["services"]["shop"].clone();
        assert_eq!(shop(&made)["instances"], shop(&saved)["instances"]);
        let generation = &shop(&saved)["last_generation"];
        for instance in shop(&made)["core"]["instances"].as_array().unwrap() {
            assert_eq!(&instance["target"]["generation"], generation);
            assert_eq!(instance["stage"], "Ready");
        }
        let above = saved["listeners"]["last_id"].as_u64();
        assert!(made["listeners"]["last_id"].as_u64() > above);
    }
}
