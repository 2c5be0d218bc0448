//! The state that the manager saves for the next manager.
//!
//! Under systemd, processes and descriptors outlive a manager; the state file says what they are.
//! The file is written completely, under a temporary name first, and before any process in it is
//! let go. So a process without an entry still waits in its launcher and ends by itself.
//!
//! A newer smoothserve reads the file of an older one, so every field that is added later needs a
//! default.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::manager::jobs::SavedJobs;
use crate::manager::rollout::InstanceId;
use crate::manager::routes::SavedOwnership;
use crate::manager::service::SavedService;
use crate::manager::worker::SavedWorker;
use crate::manager::worker::listeners::SavedListeners;

/// Everything that is saved. For writing, `C` and `S` are JSON texts, most of which are left from
/// the last time.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState<C = Arc<Config>, S = SavedService> {
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
    pub fn read(&self) -> io::Result<Option<SavedState>> {
        match std::fs::read(&self.path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
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
