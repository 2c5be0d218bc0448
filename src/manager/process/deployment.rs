//! A deployment: what the instances of one generation run, taken from the disk when the generation
//! was made.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::executable::OpenExecutable;
use crate::config::{EnvironmentFile, ProcessConfig, ServiceConfig};
use crate::fingerprint::Fingerprint;

/// What the instances of one generation run.
#[derive(Debug)]
pub struct Deployment {
    /// The version, which is equal for generations of the same content.
    pub version: u64,
    /// The settings with which instances are run.
    pub process: ProcessConfig,
    /// The executable. It is held open, so that it can be started again after the file at its path
    /// was replaced.
    pub executable: OpenExecutable,
    /// The variables that `environment_file` sets.
    pub environment_file: BTreeMap<String, String>,
    /// The digest of the fingerprint.
    content: u64,
}

/// The state of a deployment that is saved for the next manager. systemd stores the descriptor of
/// the executable.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedDeployment {
    version: u64,
    process: ProcessConfig,
    executable: PathBuf,
    /// The path by which the program knows itself. Earlier versions have not saved it.
    #[serde(default)]
    known_as: Option<PathBuf>,
    environment_file: BTreeMap<String, String>,
    content: u64,
}

/// What is on disk for a deployment of a service at one moment.
#[derive(Debug)]
pub struct Material {
    /// The state of all files of the service.
    pub fingerprint: Fingerprint,
    executable: io::Result<OpenExecutable>,
    environment_file: io::Result<BTreeMap<String, String>>,
}

impl Material {
    /// Takes what is on disk now. This reads files, so it may take any time.
    pub fn take(spec: &ServiceConfig) -> Material {
        // The fingerprint is taken first: if the files change in between, the next comparison with
        // the disk finds a difference.
        let fingerprint = Fingerprint::take(spec);
        Material {
            fingerprint,
            executable: OpenExecutable::open(&spec.process.executable, spec.process.named_user()),
            environment_file: read_environment_file(&spec.process),
        }
    }
}

impl Deployment {
    /// Makes a deployment of what was found on disk, unless something is missing or must not be
    /// used.
    pub fn new(
        process: &ProcessConfig,
        version: u64,
        material: Material,
    ) -> io::Result<Deployment> {
        Ok(Deployment {
            version,
            process: process.clone(),
            executable: material.executable?,
            environment_file: material.environment_file?,
            content: material.fingerprint.digest(),
        })
    }

    /// Returns the state that the next manager needs to restore the deployment.
    pub fn save(&self) -> SavedDeployment {
        SavedDeployment {
            version: self.version,
            process: self.process.clone(),
            executable: self.executable.path.clone(),
            known_as: Some(self.executable.known_as.clone()),
            environment_file: self.environment_file.clone(),
            content: self.content,
        }
    }

    /// Restores a deployment from its saved state. If the stored descriptor is missing, the file
    /// that is at the path now is used.
    pub fn restore(saved: SavedDeployment, executable: Option<OwnedFd>) -> io::Result<Deployment> {
        let mut executable = match executable {
            Some(file) => OpenExecutable::opened(saved.executable, file)?,
            None => OpenExecutable::open(&saved.executable, saved.process.named_user())?,
        };
        if let Some(known_as) = saved.known_as {
            executable.known_as = known_as;
        }
        Ok(Deployment {
            version: saved.version,
            executable,
            process: saved.process,
            environment_file: saved.environment_file,
            content: saved.content,
        })
    }

    /// Returns true if a deployment of `process` with what is on disk now would equal this one.
    pub fn is(&self, process: &ProcessConfig, now: &Fingerprint) -> bool {
        self.process == *process && self.content == now.digest()
    }

    /// Returns true if instances of both deployments run the same content.
    pub fn same_content(&self, other: &Deployment) -> bool {
        self.process == other.process && self.content == other.content
    }
}

fn read_environment_file(process: &ProcessConfig) -> io::Result<BTreeMap<String, String>> {
    let shown = |error: io::Error| {
        let path = process.environment_file.as_deref().unwrap_or(Path::new(""));
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    match process.read_environment_file() {
        Ok(None) => Ok(BTreeMap::new()),
        Ok(Some(text)) => Ok(EnvironmentFile::parse(&text).variables),
        Err(fault) => Err(shown(fault.into())),
    }
}
