//! What the owner reads from disk, in threads of their own: the owner never waits for a file.
//!
//! The files of each service are read within a time of their own ([`patience`]), so a service whose
//! files do not answer has a fault, and the others have what was found for them.
//!
//! A reading that takes longer than [`READ_TIME`] is left alone: it fails, and its thread ends when
//! its file system answers, with nobody to report to. Each thread has one of [`PLACES`] until its
//! end. While all of them are taken by threads that were left alone, no reading begins.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::group::bound_together;
use crate::config::{self, CertificateFault, Config, Faults, Lack, ServiceConfig};
use crate::fingerprint::Effort;
use crate::manager::process::deployment::{ClosedExecutable, Material};
use crate::manager::process::executable::OpenExecutable;
use crate::manager::worker::certificates::ServiceCertificates;
use crate::patience::{self, Unanswered};

/// The most time that a reading takes. Callers on D-Bus wait for 25 s. A manager that takes over
/// reads twice before it is ready, and systemd waits for that for 90 s.
const READ_TIME: Duration = Duration::from_secs(24);

/// Services whose files hang or are slow delay a reading, but never make it fail.
const _: () = assert!(patience::LONGEST.as_secs() + 4 < READ_TIME.as_secs());

/// How many threads may wait for files. All but the newest were left alone.
pub(super) const MOST_STUCK: usize = 32;

/// The places of threads that wait for files.
static PLACES: Semaphore = Semaphore::const_new(MOST_STUCK);

/// What has to be read.
#[derive(Debug)]
pub(super) enum Reading {
    /// The configuration in a folder, and the files of all its services. If its files have faults,
    /// only those are found.
    Configuration(PathBuf),
    /// The configuration in a folder as far as it has no faults, and the files of those services.
    Partial(PathBuf),
    /// The configuration in a folder, and the files of one service, as this configuration has it
    /// and as it was last applied, and of the services that have changed together with it since
    /// the configuration that was last applied.
    One(PathBuf, Arc<ServiceConfig>, Arc<Config>),
    /// The files of services that their instances run.
    Services(Vec<Arc<ServiceConfig>>),
    /// The certificates of services.
    Certificates(Vec<Arc<ServiceConfig>>),
}

/// What was found on disk.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The configuration, as far as it has no faults, if it was to be read.
    pub(super) config: Option<Config>,
    /// The faults of the configuration.
    pub(super) faults: Faults,
    /// What the machine lacks for the services of the configuration, by name.
    pub(super) lacks: BTreeMap<String, Vec<Lack>>,
    /// The files of services.
    pub(super) services: Vec<ServiceFiles>,
}

/// What was found on disk for a service.
#[derive(Debug)]
pub(super) struct ServiceFiles {
    /// The configuration of the service.
    pub(super) spec: Arc<ServiceConfig>,
    /// What its instances would run. `None`: only its certificate was to be read.
    pub(super) material: Option<Material>,
    /// The certificate of the service, if it was to be read and can be.
    pub(super) certificates: ServiceCertificates,
    /// Why the certificate, or nothing at all, can be read.
    pub(super) fault: Option<FilesFault>,
}

/// Why something of a service cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesFault {
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    /// The files do not answer.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// The files were not read in time.
    #[error(
        "{0} could not be read within {seconds} s; look for a file system that does not answer",
        seconds = READ_TIME.as_secs()
    )]
    Slow(String),
    /// Too many earlier readings still wait for their files.
    #[error(
        "{MOST_STUCK} threads wait for files of earlier changes; look for a file system that does \
         not answer"
    )]
    Stuck,
    /// No thread could be started.
    #[error("cannot start a thread that reads files: {0}")]
    NoThread(#[from] std::io::Error),
    /// The thread has ended without a result.
    #[error("the thread that reads files has panicked")]
    Panicked,
}

/// What comes of a reading.
pub(super) type FilesOutcome = Result<Found, Unread>;

/// Reads in a thread of its own, within [`READ_TIME`].
async fn in_thread<T: Send + 'static>(
    subject: String,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unread> {
    let place = PLACES.try_acquire().map_err(|_| Unread::Stuck)?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("files".to_owned())
        .spawn(move || {
            let found = read();
            drop(place);
            // Sending fails if it has taken too long, and then nobody needs it any more.
            let _ = sender.send(found);
        })?;
    match tokio::time::timeout(READ_TIME, receiver).await {
        Ok(found) => found.map_err(|_| Unread::Panicked),
        Err(_) => Err(Unread::Slow(subject)),
    }
}

/// Opens executables again that nobody has open any more: those of each subject, by their names.
/// Those that are not opened in time are left out, or have an error.
pub(super) async fn open_again(
    closed: Vec<(String, Vec<(String, ClosedExecutable)>)>,
) -> BTreeMap<String, io::Result<OpenExecutable>> {
    let open = move || {
        let mut opened = BTreeMap::new();
        for (subject, closed) in closed {
            for (name, executable) in closed {
                let result = patience::within(&subject, move || executable.open());
                let result = result.unwrap_or_else(|error| Err(io::Error::other(error)));
                opened.insert(name, result);
            }
        }
        opened
    };
    let opened = in_thread("executables".to_owned(), open).await;
    opened.unwrap_or_else(|error| {
        tracing::error!(error = %error, "executables not opened again");
        BTreeMap::new()
    })
}

impl Reading {
    /// Reads what is wanted, without making the owner wait.
    pub(super) async fn run(self) -> FilesOutcome {
        in_thread(self.subject(), move || self.read()).await
    }

    /// Says what is read.
    fn subject(&self) -> String {
        let files_of = |specs: &[Arc<ServiceConfig>]| {
            let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            format!("the files of {}", names.join(", "))
        };
        match self {
            Reading::Configuration(dir) | Reading::Partial(dir) | Reading::One(dir, ..) => {
                format!("{} and the files of its services", dir.display())
            }
            Reading::Services(specs) | Reading::Certificates(specs) => files_of(specs),
        }
    }

    fn read(self) -> Found {
        let mut lacks = BTreeMap::new();
        let (config, faults) = match &self {
            Reading::Configuration(dir) | Reading::One(dir, ..) => {
                let loaded = config::load_apart(dir);
                lacks = loaded.lacks;
                let is_good = loaded.faults.is_empty();
                (is_good.then_some(loaded.config), loaded.faults)
            }
            Reading::Partial(dir) => {
                let (config, faults) = config::load_partial(dir);
                (Some(config), faults)
            }
            Reading::Services(_) | Reading::Certificates(_) => (None, Faults::default()),
        };
        let effort = Effort::begin();
        let with_files = |spec| ServiceFiles::read(spec, effort);
        let configured = config.as_ref().map(|config| &config.services);
        let services = match self {
            Reading::Configuration(_) | Reading::Partial(_) => {
                let specs = configured.into_iter().flat_map(|specs| specs.values());
                specs.cloned().map(with_files).collect()
            }
            Reading::One(_, spec, applied) => {
                let group = config
                    .as_ref()
                    .map(|config| bound_together(&applied, config, &spec.name));
                let new = configured.into_iter().flat_map(|specs| specs.values());
                let new = new.filter(|new| group.iter().any(|group| group.contains(&new.name)));
                let mut specs: Vec<Arc<ServiceConfig>> = new.cloned().collect();
                if !specs.contains(&spec) {
                    specs.push(spec);
                }
                specs.into_iter().map(with_files).collect()
            }
            Reading::Services(specs) => {
                let specs = specs.into_iter();
                let material = |spec| ServiceFiles::read_material(spec, effort);
                specs.map(material).collect()
            }
            Reading::Certificates(specs) => {
                let specs = specs.into_iter();
                specs.map(ServiceFiles::read_certificate).collect()
            }
        };
        Found {
            config,
            faults,
            lacks,
            services,
        }
    }
}

impl Found {
    /// Takes out what was found for a service with exactly this configuration.
    pub(super) fn take(&mut self, spec: &Arc<ServiceConfig>) -> Option<ServiceFiles> {
        let mut services = self.services.iter();
        let index = services.position(|files| files.spec == *spec)?;
        Some(self.services.swap_remove(index))
    }
}

impl ServiceFiles {
    /// Reads the files of a service with `read`, unless they do not answer.
    fn within_time(
        spec: Arc<ServiceConfig>,
        read: impl FnOnce(Arc<ServiceConfig>) -> ServiceFiles + Send + 'static,
    ) -> ServiceFiles {
        let again = spec.clone();
        let read = patience::within(&spec.files(), move || read(again));
        read.unwrap_or_else(|unanswered| ServiceFiles {
            spec,
            material: None,
            certificates: ServiceCertificates::default(),
            fault: Some(unanswered.into()),
        })
    }

    fn read(spec: Arc<ServiceConfig>, effort: Effort) -> ServiceFiles {
        ServiceFiles::within_time(spec, move |spec| ServiceFiles {
            material: Some(Material::take(&spec, effort.of_next_service())),
            ..ServiceFiles::certificate(spec)
        })
    }

    fn read_certificate(spec: Arc<ServiceConfig>) -> ServiceFiles {
        ServiceFiles::within_time(spec, ServiceFiles::certificate)
    }

    fn read_material(spec: Arc<ServiceConfig>, effort: Effort) -> ServiceFiles {
        ServiceFiles::within_time(spec, move |spec| ServiceFiles::material(spec, effort))
    }

    fn material(spec: Arc<ServiceConfig>, effort: Effort) -> ServiceFiles {
        ServiceFiles {
            material: Some(Material::take(&spec, effort.of_next_service())),
            certificates: ServiceCertificates::default(),
            fault: None,
            spec,
        }
    }

    fn certificate(spec: Arc<ServiceConfig>) -> ServiceFiles {
        let (certificates, fault) = match ServiceCertificates::read(&spec) {
            Ok(certificates) => (certificates, None),
            Err(fault) => (ServiceCertificates::default(), Some(fault.into())),
        };
        ServiceFiles {
            spec,
            material: None,
            certificates,
            fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_after_a_slow_one_has_time_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("conf/services")).unwrap();
        std::fs::create_dir_all(path("view")).unwrap();
        std::fs::write(path("view/page"), "old").unwrap();
        let view = path("view");
        let view = view.display();
        let file =
            format!("name: x\nport: 80\nexecutable_path: /bin/true\nwatch_files: [{view}]\n");
        std::fs::write(path("conf/services/x.yaml"), file).unwrap();
        let config = config::load(&path("conf")).unwrap();
        let spec = &config.services["x"];
        let parts = || {
            let files = ServiceFiles::read(spec.clone(), Effort::over());
            files.material.unwrap().fingerprint.parts
        };
        let before = parts();
        assert!(before.are_complete());
        std::fs::write(path("view/page"), "newer").unwrap();
        assert_eq!(before.changes(&parts()).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_do_not_answer_fail_one_errand_and_a_few_threads_are_left_to_them() {
        let (hang, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let slow = || {
            let gate = gate.clone();
            in_thread("the files of shop".to_owned(), move || {
                // Returns when the other end is dropped.
                let _ = gate.lock().map(|gate| gate.recv());
                Found::default()
            })
        };
        for _ in 0..MOST_STUCK {
            let error = slow().await.unwrap_err().to_string();
            assert_eq!(
                error,
                "the files of shop could not be read within 24 s; look for a file system that does \
                 not answer"
            );
        }
        let error = slow().await.unwrap_err().to_string();
        assert!(error.starts_with("32 threads wait for files"), "{error}");
        // From here on, threads do what takes no time by the paused clock.
        tokio::time::resume();
        drop(hang);
        while PLACES.available_permits() < MOST_STUCK {
            std::thread::yield_now();
        }
        let read = in_thread("something".to_owned(), Found::default).await;
        assert!(read.unwrap().config.is_none());
    }
}
