//! What the owner reads from disk, in threads of their own: the owner never waits for a file.
//!
//! A reading that takes longer than [`READ_TIME`] is left alone: it fails, and its thread ends when
//! its file system answers, with nobody to report to. If [`MOST_STUCK`] threads are left alone like
//! this, no reading begins until one of them has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::{self, CertificateFault, Config, Faults, ServiceConfig};
use crate::manager::process::deployment::Material;
use crate::manager::worker::certificates::ServiceCertificates;

/// The most time that a reading takes. Callers on D-Bus wait for 25 s, and systemd waits for 30 s
/// for a sign of life of a manager that starts.
const READ_TIME: Duration = Duration::from_secs(20);

/// The most threads that may wait for files although nobody needs them any more.
const MOST_STUCK: usize = 8;

/// What has to be read.
#[derive(Debug)]
pub(super) enum Reading {
    /// Nothing at all.
    Nothing,
    /// The configuration in a folder, and the files of all its services. If it has faults, only
    /// those are found.
    Configuration(PathBuf),
    /// The configuration in a folder as far as it has no faults, and the files of those services.
    Partial(PathBuf),
    /// The configuration in a folder, and the files of one service, as this configuration has it
    /// and as it was last applied.
    One(PathBuf, Arc<ServiceConfig>),
    /// The files of services.
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
    /// The certificate of the service, if it has one that can be read.
    pub(super) certificates: ServiceCertificates,
    /// Why the certificate cannot be read.
    pub(super) fault: Option<CertificateFault>,
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
}

/// What comes of a reading.
pub(super) type FilesOutcome = Result<Found, Unread>;

/// The number of threads that read although nobody waits for them any more.
static STUCK: AtomicUsize = AtomicUsize::new(0);

/// Reads in a thread of its own, within [`READ_TIME`].
async fn in_thread(subject: String, read: impl FnOnce() -> Found + Send + 'static) -> FilesOutcome {
    if STUCK.load(Ordering::Relaxed) >= MOST_STUCK {
        return Err(Unread::Stuck);
    }
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("files".to_owned())
        .spawn(move || {
            if sender.send(read()).is_err() {
                STUCK.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
    tokio::pin!(receiver);
    match tokio::time::timeout(READ_TIME, &mut receiver).await {
        Ok(found) => found.map_err(|_| std::io::Error::other("it has panicked").into()),
        Err(_) => {
            // Counted before the channel closes, so before the thread can take itself off.
            STUCK.fetch_add(1, Ordering::Relaxed);
            receiver.close();
            match receiver.try_recv() {
                Ok(found) => {
                    STUCK.fetch_sub(1, Ordering::Relaxed);
                    Ok(found)
                }
                Err(_) => Err(Unread::Slow(subject)),
            }
        }
    }
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
            Reading::Nothing => "nothing".to_owned(),
            Reading::Configuration(dir) | Reading::Partial(dir) | Reading::One(dir, _) => {
                format!("{} and the files of its services", dir.display())
            }
            Reading::Services(specs) | Reading::Certificates(specs) => files_of(specs),
        }
    }

    fn read(self) -> Found {
        match self {
            Reading::Nothing => Found::default(),
            Reading::Configuration(dir) => match config::load(&dir) {
                Ok(config) => Found::all(config, Faults::default()),
                Err(faults) => Found {
                    faults,
                    ..Found::default()
                },
            },
            Reading::Partial(dir) => {
                let (config, faults) = config::load_partial(&dir);
                Found::all(config, faults)
            }
            Reading::One(dir, spec) => {
                let mut found = match config::load(&dir) {
                    Ok(config) => Found {
                        config: Some(config),
                        ..Found::default()
                    },
                    Err(faults) => Found {
                        faults,
                        ..Found::default()
                    },
                };
                let config = found.config.as_ref();
                let new = config.and_then(|config| config.services.get(&spec.name));
                let new = new.filter(|new| **new != spec).cloned();
                let services = new.into_iter().chain([spec]);
                found.services = services.map(ServiceFiles::read).collect();
                found
            }
            Reading::Services(specs) => Found {
                services: specs.into_iter().map(ServiceFiles::read).collect(),
                ..Found::default()
            },
            Reading::Certificates(specs) => Found {
                services: specs
                    .into_iter()
                    .map(ServiceFiles::read_certificate)
                    .collect(),
                ..Found::default()
            },
        }
    }
}

impl Found {
    fn all(config: Config, faults: Faults) -> Found {
        let services = config.services.values().cloned();
        Found {
            services: services.map(ServiceFiles::read).collect(),
            config: Some(config),
            faults,
        }
    }

    /// Takes out what was found for a service with exactly this configuration.
    pub(super) fn take(&mut self, spec: &Arc<ServiceConfig>) -> Option<ServiceFiles> {
        let mut services = self.services.iter();
        let index = services.position(|files| files.spec == *spec)?;
        Some(self.services.swap_remove(index))
    }
}

impl ServiceFiles {
    fn read(spec: Arc<ServiceConfig>) -> ServiceFiles {
        let material = Some(Material::take(&spec));
        ServiceFiles {
            material,
            ..ServiceFiles::read_certificate(spec)
        }
    }

    fn read_certificate(spec: Arc<ServiceConfig>) -> ServiceFiles {
        let (certificates, fault) = match ServiceCertificates::read(&spec) {
            Ok(certificates) => (certificates, None),
            Err(fault) => (ServiceCertificates::default(), Some(fault)),
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
                "the files of shop could not be read within 20 s; look for a file system that does \
                 not answer"
            );
        }
        let error = slow().await.unwrap_err().to_string();
        assert!(error.starts_with("8 threads wait for files"), "{error}");
        // From here on, threads do what takes no time by the paused clock.
        tokio::time::resume();
        drop(hang);
        while STUCK.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        let read = in_thread("something".to_owned(), Found::default).await;
        assert!(read.unwrap().config.is_none());
    }
}
