//! What the instances of one generation run: the content of the disk at the moment when the
//! generation was made.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::environment;
use super::executable::OpenExecutable;
use crate::config::{ProcessConfig, ServiceConfig};
use crate::fingerprint::Fingerprint;

/// What the instances of one generation run.
#[derive(Debug)]
pub struct Deployment {
    /// The version, which is equal for generations of the same content.
    pub version: u64,
    /// How instances are run.
    pub process: ProcessConfig,
    /// The executable, held open so that it can be started again when the path holds something
    /// else.
    pub executable: OpenExecutable,
    /// What `environment_file` sets.
    pub environment_file: BTreeMap<String, String>,
    /// The digest of the fingerprint.
    content: u64,
}

/// What is kept of a deployment for the next manager, beside the descriptor of its executable.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedDeployment {
    version: u64,
    process: ProcessConfig,
    executable: PathBuf,
    environment_file: BTreeMap<String, String>,
    content: u64,
}

impl Deployment {
    /// Takes what is on disk now as a deployment.
    pub fn take(spec: &ServiceConfig, version: u64) -> io::Result<Deployment> {
        // The fingerprint comes first: of a change in between, the next look sees that it is not
        // what was taken.
        let fingerprint = Fingerprint::take(spec);
        Ok(Deployment {
            version,
            process: spec.process.clone(),
            executable: OpenExecutable::open(&spec.process.executable)?,
            environment_file: read_environment_file(&spec.process)?,
            content: fingerprint.digest(),
        })
    }

    /// Returns what the next manager has to know of the deployment.
    pub fn save(&self) -> SavedDeployment {
        SavedDeployment {
            version: self.version,
            process: self.process.clone(),
            executable: self.executable.path.clone(),
            environment_file: self.environment_file.clone(),
            content: self.content,
        }
    }

    /// Goes on from what was saved. Without the descriptor, the executable that is at the path now
    /// has to do.
    pub fn restore(saved: SavedDeployment, executable: Option<OwnedFd>) -> io::Result<Deployment> {
        Ok(Deployment {
            version: saved.version,
            executable: match executable {
                Some(file) => OpenExecutable::opened(saved.executable, file)?,
                None => OpenExecutable::open(&saved.executable)?,
            },
            process: saved.process,
            environment_file: saved.environment_file,
            content: saved.content,
        })
    }

    /// Returns true if a deployment of `process` with what is on disk now would be the same.
    pub fn is(&self, process: &ProcessConfig, now: &Fingerprint) -> bool {
        self.process == *process && self.content == now.digest()
    }

    /// Returns true if instances of both deployments are the same.
    pub fn same_content(&self, other: &Deployment) -> bool {
        self.process == other.process && self.content == other.content
    }
}

fn read_environment_file(process: &ProcessConfig) -> io::Result<BTreeMap<String, String>> {
    match &process.environment_file {
        None => Ok(BTreeMap::new()),
        Some(path) => {
            let missing_is_fine = process.environment_file_optional && !path.exists();
            if missing_is_fine {
                return Ok(BTreeMap::new());
            }
            let text = std::fs::read(path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            Ok(environment::parse_file(&String::from_utf8_lossy(&text)))
        }
    }
}
