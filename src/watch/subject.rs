//! Subjects: what is watched for a service, and what the manager is told about a change.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::places::{self, Place};
use crate::config::ServiceConfig;

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
    executable: Option<PathBuf>,
    files: Vec<PathBuf>,
    /// How long the files must be quiet.
    pub(super) quiet: Duration,
}

impl Subject {
    /// Makes the subject of a service's own files, for a restart when they change.
    pub(super) fn files(service: &ServiceConfig) -> Subject {
        let mut files = vec![service.file.clone()];
        files.extend(service.process.environment_file.clone());
        files.extend(service.watch_files.iter().cloned());
        Subject {
            what: Changed::Files(service.name.clone()),
            executable: Some(service.process.executable.clone()),
            files,
            quiet: service.delay_update_time,
        }
    }

    /// Makes the subject of a service's certificate. `None`: the service has none.
    pub(super) fn certificate(service: &ServiceConfig) -> Option<Subject> {
        let tls = service.tls.as_ref()?;
        Some(Subject {
            what: Changed::Certificate(service.name.clone()),
            executable: None,
            files: vec![tls.certificate.clone(), tls.key.clone()],
            quiet: CERTIFICATE_QUIET,
        })
    }

    /// Looks up where a change of the files would show now.
    pub(super) fn places(&self) -> BTreeSet<Place> {
        let mut places = BTreeSet::new();
        if let Some(executable) = &self.executable {
            places::of_executable(executable, &mut places);
        }
        for file in &self.files {
            places::of_file(file, &mut places);
        }
        places
    }
}
