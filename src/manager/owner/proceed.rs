//! How errands proceed: what each needs of the disk, and what is done with it.

use super::changes::{certificate_changed, files_changed};
use super::commands::{renew, running, stop};
use super::disk::{FilesOutcome, Found, Reading};
use super::errands::Errand;
use super::manager::{Manager, Phase};
use super::reload::{refused, reload, report_refusal};
use crate::manager::handle::CommandError;
use crate::status::JobKind;

/// Takes in what was found for the current errand, and carries the errand out.
pub(super) fn take_files(manager: &mut Manager, outcome: FilesOutcome) {
    if let Some(errand) = manager.errands.current.take() {
        errand.carry_out(manager, outcome);
    }
}

/// Begins the next errand if no other one is read for.
pub(super) fn proceed(manager: &mut Manager) {
    while let Some(errand) = manager.errands.next() {
        let reading = errand.reading(manager);
        if matches!(reading, Reading::Nothing) {
            errand.carry_out(manager, Ok(Found::default()));
            continue;
        }
        manager.errands.current = Some(errand);
        let outcomes = manager.errands.outcomes.clone();
        tokio::task::spawn_local(async move {
            // Sending fails only when the manager has ended.
            let _ = outcomes.send(reading.run().await);
        });
    }
}

impl Errand {
    /// Returns what has to be read now.
    fn reading(&self, manager: &Manager) -> Reading {
        if manager.phase != Phase::Serving {
            return Reading::Nothing;
        }
        let spec = |name: &String| {
            let service = manager.services.get(name);
            service
                .filter(|service| !service.is_removed())
                .map(|service| service.spec().clone())
        };
        match self {
            Errand::Reload(_) => Reading::Configuration(manager.config_dir.clone()),
            Errand::Renew(_, names, _) => {
                Reading::Services(names.iter().filter_map(spec).collect())
            }
            Errand::RestartAll(_) => {
                Reading::Services(running(manager).iter().filter_map(spec).collect())
            }
            Errand::Stop(..) => Reading::Nothing,
            Errand::FilesChanged(name) => match spec(name) {
                Some(spec) => Reading::One(manager.config_dir.clone(), spec),
                None => Reading::Nothing,
            },
            Errand::CertificateChanged(name) => {
                Reading::Certificates(spec(name).into_iter().collect())
            }
        }
    }

    /// Does what the errand is about, with what was found.
    fn carry_out(self, manager: &mut Manager, outcome: FilesOutcome) {
        let found = match outcome {
            _ if manager.phase != Phase::Serving => Err(CommandError::ShuttingDown),
            Ok(found) => Ok(found),
            Err(error) => Err(refused(error.to_string())),
        };
        match self {
            Errand::Reload(answer) => {
                let done = found.and_then(|found| reload(manager, found));
                let done = done.inspect_err(report_refusal).map(|job| vec![job]);
                if let Some(answer) = answer {
                    manager.errands.answer(answer, done);
                }
            }
            Errand::Renew(kind, names, answer) => {
                let done = found.and_then(|found| renew(manager, kind, names, found));
                manager.errands.answer(answer, done);
            }
            Errand::RestartAll(answer) => {
                let done = found.and_then(|found| {
                    let mut names = running(manager);
                    names
                        .retain(|name| found.services.iter().any(|files| files.spec.name == *name));
                    renew(manager, JobKind::Restart, names, found)
                });
                manager.errands.answer(answer, done);
            }
            Errand::Stop(name, answer) => {
                let done = found.and_then(|_| stop(manager, &name));
                manager.errands.answer(answer, done.map(|job| vec![job]));
            }
            Errand::FilesChanged(name) => match found {
                Ok(found) => files_changed(manager, &name, found),
                Err(error) => report_unread(&name, &error),
            },
            Errand::CertificateChanged(name) => match found {
                Ok(found) => certificate_changed(manager, &name, found),
                Err(error) => report_unread(&name, &error),
            },
        }
    }
}

fn report_unread(service: &str, error: &CommandError) {
    tracing::error!(service, error = %error, "changed files not applied");
}
