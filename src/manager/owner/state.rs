//! What the manager writes down for the manager after it.
//!
//! Processes and descriptors outlive a manager under systemd; this file says what they are. It is
//! written whole, under another name first, before anything that it speaks of is let go: a process
//! without an entry is one that still waits in the launcher, and ends by itself.
//!
//! A newer smoothserve reads the file of an older one, so a field that is added later has a
//! default.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::manager::rollout::InstanceId;
use crate::manager::service::SavedService;
use crate::manager::worker::SavedWorker;
use crate::manager::worker::listeners::SavedListeners;

/// All that is saved. When it is written, its large parts are text already, most of them from
/// before.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState<C = Arc<Config>, S = SavedService> {
    /// The name of the next instance.
    pub next_id: InstanceId,
    /// The number of the last job.
    #[serde(default)]
    pub last_job: u32,
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
    /// The services by name; more than the configuration has while removed ones drain.
    pub services: BTreeMap<String, S>,
}

/// The file in which the state is saved.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    written: Vec<u8>,
}

impl StateFile {
    /// The state file of a run directory.
    pub fn new(run_dir: &Path) -> StateFile {
        StateFile {
            path: run_dir.join("state.json"),
            written: Vec::new(),
        }
    }

    /// Reads the saved state; `None` if there is none.
    pub fn read(&self) -> io::Result<Option<SavedState>> {
        match std::fs::read(&self.path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves the state, unless the file says so already.
    pub fn write<C: Serialize, S: Serialize>(
        &mut self,
        state: &SavedState<C, S>,
    ) -> io::Result<()> {
        let text = serde_json::to_vec(state)?;
        if text == self.written {
            return Ok(());
        }
        let new = self.path.with_extension("json.new");
        // Environments hold secrets.
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        // The directory is in memory, as the processes are: there is nothing that a sync could
        // save.
        std::fs::rename(&new, &self.path)?;
        self.written = text;
        Ok(())
    }

    /// Removes the file: nothing is left to be taken over.
    pub fn remove(&mut self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
