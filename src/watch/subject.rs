//! Subjects: what is watched for a service, and what the manager is told about a change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kernel::FolderIdentity;
use super::places::{self, Place};
use crate::config::{ProcessConfig, ServiceConfig};
use crate::fingerprint::{interpreters_of, is_data, named_by_arguments};
use crate::patience::{self, Unanswered};
use crate::walk::{IgnoredNames, MOST_WATCHED, WalkBounds};

/// How long a certificate and its key must be quiet: they are replaced one after the other.
const CERTIFICATE_QUIET: Duration = Duration::from_secs(1);

/// What may have changed of a service. Each variant holds the service's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Changed {
    /// The file of the service, its executable, or what it watches.
    Files(String),
    /// The certificate of the service, or the key.
    Certificate(String),
}

impl Changed {
    /// Returns the name of the service.
    pub(super) fn service(&self) -> &str {
        match self {
            Changed::Files(name) | Changed::Certificate(name) => name,
        }
    }
}

/// Files that are watched for one service, and reported to the manager together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    /// What is told when one of the files may have changed.
    pub(super) what: Changed,
    /// What instances run, for the executable and its interpreters.
    process: Option<ProcessConfig>,
    files: Vec<PathBuf>,
    /// Folders that stand for all that is in them, or files.
    trees: Vec<PathBuf>,
    /// Names that are not watched in these folders.
    ignored: IgnoredNames,
    /// Paths of which only the way that leads there counts, and the file, if it is one.
    ways: Vec<PathBuf>,
    /// How long the files must be quiet.
    pub(super) quiet: Duration,
}

/// What was found for a subject.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Where a change would show.
    pub(super) places: BTreeSet<Place>,
    /// Which folder is at the path of each place, or why that is not known.
    pub(super) folders: BTreeMap<PathBuf, io::Result<FolderIdentity>>,
    /// Which files are too many to be watched, if there are any.
    pub(super) unwatched: Option<String>,
}

impl Subject {
    /// Makes the subject of a service's own files, for a restart when they change.
    pub(super) fn files(service: &ServiceConfig) -> Subject {
        let mut files = vec![service.file.clone()];
        files.extend(service.process.environment_file.clone());
        // Of what the service writes itself, only the way there counts.
        let way = |path: PathBuf| match is_data(&path, service) {
            true => path.parent().map(Path::to_owned),
            false => Some(path),
        };
        let named = named_by_arguments(service).into_iter();
        let mut ways: Vec<PathBuf> = named.filter_map(way).collect();
        ways.extend(service.process.working_directory.clone());
        Subject {
            what: Changed::Files(service.name.clone()),
            process: Some(service.process.clone()),
            files,
            trees: service.watch_files.clone(),
            ignored: service.watch_ignore.clone(),
            ways,
            quiet: service.delay_update_time,
        }
    }

    /// Makes the subject of a service's certificate. `None`: the service has none.
    pub(super) fn certificate(service: &ServiceConfig) -> Option<Subject> {
        let tls = service.tls.as_ref()?;
        Some(Subject {
            what: Changed::Certificate(service.name.clone()),
            process: None,
            files: vec![tls.certificate.clone(), tls.key.clone()],
            trees: Vec::new(),
            ignored: IgnoredNames::default(),
            ways: Vec::new(),
            quiet: CERTIFICATE_QUIET,
        })
    }

    /// Looks up where a change of the files would show now. Fails if the files do not answer.
    pub(super) fn look_up(&self) -> Result<Lookup, Unanswered> {
        let what = match &self.what {
            Changed::Files(name) => format!("what is watched for {name}"),
            Changed::Certificate(name) => format!("the certificate of {name}"),
        };
        let subject = self.clone();
        patience::within(&what, move || {
            let (places, unwatched) = subject.places();
            let folders: BTreeSet<&PathBuf> = places.iter().map(|place| &place.folder).collect();
            let identify = |folder: &PathBuf| (folder.clone(), FolderIdentity::of(folder));
            let folders = folders.into_iter().map(identify).collect();
            Lookup {
                places,
                folders,
                unwatched,
            }
        })
    }

    fn places(&self) -> (BTreeSet<Place>, Option<String>) {
        let mut places = BTreeSet::new();
        if let Some(process) = &self.process {
            places::of_executable(&process.executable, &mut places);
            for interpreter in interpreters_of(process) {
                places::of_file(&interpreter, &mut places);
            }
        }
        for file in &self.files {
            places::of_file(file, &mut places);
        }
        for way in &self.ways {
            places::of_way(way, &mut places);
        }
        let mut bounds = WalkBounds::entries(MOST_WATCHED);
        for tree in &self.trees {
            places::of_tree(tree, &self.ignored, &mut bounds, &mut places);
        }
        (places, bounds.stopped.map(|stop| stop.unwatched()))
    }
}
