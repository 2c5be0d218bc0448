//! A deployment: what the instances of one generation run, taken from the disk when the generation
//! was made.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::executable::OpenExecutable;
use crate::config::{EnvironmentFile, ProcessConfig, ServiceConfig};
use crate::fingerprint::{Effort, Fingerprint, Parts};

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
    /// The folder in which instances start, with all symlinks resolved. `None`: the folder of the
    /// executable.
    pub folder: Option<PathBuf>,
    /// The fingerprint in its first form.
    first_form: u64,
    /// The parts of the fingerprint. Unset: an earlier smoothserve has made this deployment.
    parts: RefCell<Option<Parts>>,
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
    /// The fingerprint in its first form, for an earlier smoothserve.
    content: u64,
    #[serde(default)]
    folder: Option<PathBuf>,
    #[serde(default)]
    parts: Option<Parts>,
}

/// An executable that was open, and is to be opened again by its path.
#[derive(Debug)]
pub struct ClosedExecutable {
    path: PathBuf,
    process: ProcessConfig,
}

impl ClosedExecutable {
    /// Opens the file that is at the path now. This may take any time.
    pub fn open(&self) -> io::Result<OpenExecutable> {
        OpenExecutable::open(&self.path, self.process.named_user())
    }
}

impl SavedDeployment {
    /// Returns the state of a deployment of which nothing is known but the settings with which its
    /// instances are stopped. It differs from whatever is on disk.
    pub fn unknown(process: &ProcessConfig, version: u64) -> SavedDeployment {
        SavedDeployment {
            version,
            process: process.clone(),
            executable: process.executable.clone(),
            known_as: None,
            environment_file: BTreeMap::new(),
            content: 0,
            folder: None,
            // Every version has at least an executable.
            parts: Some(Parts::default()),
        }
    }

    /// Returns the executable, to be opened again.
    pub fn closed_executable(&self) -> ClosedExecutable {
        ClosedExecutable {
            path: self.executable.clone(),
            process: self.process.clone(),
        }
    }

    /// Takes a stored descriptor of the executable.
    pub fn opened_executable(&self, file: OwnedFd) -> io::Result<OpenExecutable> {
        OpenExecutable::opened(self.executable.clone(), file)
    }
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
    pub fn take(spec: &ServiceConfig, effort: Effort) -> Material {
        // The fingerprint is taken first: if the files change in between, the next comparison with
        // the disk finds a difference.
        let fingerprint = Fingerprint::take(spec, effort);
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
            folder: material.fingerprint.folder.clone(),
            first_form: material.fingerprint.first_form().unwrap_or_default(),
            parts: RefCell::new(Some(material.fingerprint.parts)),
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
            content: self.first_form,
            folder: self.folder.clone(),
            parts: self.parts.borrow().clone(),
        }
    }

    /// Restores a deployment from its saved state, with its executable.
    pub fn restore(saved: SavedDeployment, executable: io::Result<OpenExecutable>) -> Deployment {
        let lost = |error| OpenExecutable::lost(saved.executable.clone(), &error);
        let mut executable = executable.unwrap_or_else(lost);
        if let Some(known_as) = saved.known_as {
            executable.known_as = known_as;
        }
        Deployment {
            version: saved.version,
            executable,
            process: saved.process,
            environment_file: saved.environment_file,
            folder: saved.folder,
            first_form: saved.content,
            parts: RefCell::new(saved.parts),
        }
    }

    /// Returns true if a deployment of `process` with what is on disk now would equal this one.
    pub fn is(&self, process: &ProcessConfig, now: &Fingerprint) -> bool {
        self.changes(process, now).is_empty()
    }

    /// Returns the names of what would be different in a deployment of `process` with what is on
    /// disk now.
    pub fn changes(&self, process: &ProcessConfig, now: &Fingerprint) -> Vec<String> {
        let mut changes = match &*self.parts.borrow() {
            Some(parts) => parts.changes(&now.parts),
            // What the first form cannot say is taken to be unchanged: an upgrade replaces nothing.
            None => match now.first_form() {
                Some(form) if form != self.first_form => vec!["the files".to_owned()],
                _ => Vec::new(),
            },
        };
        // What was lost has to be deployed again.
        if changes.is_empty() && self.executable.descriptor().is_err() {
            changes.push("the executable".to_owned());
        }
        if self.process != *process {
            changes.push("the service's file".to_owned());
        }
        changes
    }

    /// Returns true if instances of both deployments run the same content.
    pub fn same_content(&self, other: &Deployment) -> bool {
        let is_same = match (&*self.parts.borrow(), &*other.parts.borrow()) {
            (Some(one), Some(other)) => one.changes(other).is_empty(),
            _ => self.first_form == other.first_form,
        };
        is_same && self.process == other.process
    }

    /// Returns true if some parts of this deployment are not known: an earlier smoothserve has made
    /// it, or they could not be read in time.
    pub fn lacks_parts(&self) -> bool {
        !self
            .parts
            .borrow()
            .as_ref()
            .is_some_and(Parts::are_complete)
    }

    /// Takes those of these parts that are not known for what the deployment consists of.
    pub fn adopt(&self, parts: &Parts) {
        // Parts that are known stay.
        match &mut *self.parts.borrow_mut() {
            Some(known) => known.complete(parts),
            none => *none = Some(parts.clone()),
        }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_deployment_of_an_earlier_version_equals_what_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("conf/services")).unwrap();
        fs::create_dir_all(path("view")).unwrap();
        for name in ["app", "view/page", "server.js"] {
            fs::write(path(name), name).unwrap();
        }
        fs::set_permissions(path("app"), PermissionsExt::from_mode(0o755)).unwrap();
        let file = "name: x\nport: 80\nexecutable_path: ../../app\nargs: [server.js]\n\
                    watch_files: [view]\n";
        fs::write(path("conf/services/x.yaml"), file).unwrap();
        let config = crate::config::load(&path("conf")).unwrap();
        let spec = config.services["x"].clone();
        let take = || Material::take(&spec, Effort::begin());
        let deployment = Deployment::new(&spec.process, 1, take()).unwrap();

        let mut saved = serde_json::to_value(deployment.save()).unwrap();
        let fields = saved.as_object_mut().unwrap();
        for new in ["parts", "folder"] {
            fields.remove(new).unwrap();
        }
        let restore = || {
            let saved: SavedDeployment = serde_json::from_value(saved.clone()).unwrap();
            let executable = saved.closed_executable().open();
            Deployment::restore(saved, executable)
        };
        let is = |deployment: &Deployment| deployment.is(&spec.process, &take().fingerprint);
        let old = restore();
        assert!(old.lacks_parts() && is(&old));
        assert!(old.same_content(&deployment));
        let saved_again = serde_json::from_value(saved.clone()).unwrap();
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let lost = Deployment::restore(saved_again, Err(missing));
        assert_eq!(
            lost.changes(&spec.process, &take().fingerprint),
            ["the executable"]
        );
        assert!(lost.executable.descriptor().is_err());
        // What earlier versions have not compared is no difference, before it is adopted.
        fs::write(path("server.js"), "new").unwrap();
        assert!(is(&old));
        old.adopt(&take().fingerprint.parts);
        assert!(is(&old) && !old.lacks_parts());
        fs::write(path("server.js"), "newer").unwrap();
        assert!(!is(&old));
        let changes = old.changes(&spec.process, &take().fingerprint);
        assert_eq!(
            changes,
            [format!(
                "{} (args)",
                path("conf/services/../../server.js").display()
            )]
        );
        // What they have compared still is.
        let old = restore();
        fs::write(path("view/page"), "new").unwrap();
        assert!(!is(&old));

        // A part that could not be read is taken from the next look that has it.
        fs::write(path("view/page"), "old").unwrap();
        let late = Material::take(&spec, Effort::over());
        let blind = Deployment::new(&spec.process, 2, late).unwrap();
        assert!(blind.lacks_parts() && is(&blind));
        blind.adopt(&take().fingerprint.parts);
        fs::write(path("view/page"), "newest").unwrap();
        assert!(!blind.lacks_parts() && !is(&blind));
    }
}
