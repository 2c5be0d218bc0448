//! How errands proceed: what each needs of the disk, and what is done with it.

use std::collections::BTreeSet;

use super::changes::{certificate_changed, files_changed};
use super::commands::{renew, restart, running, stop};
use super::disk::{FilesOutcome, Found, Reading};
use super::errands::Errand;
use super::from_workers::look_at_unix_sockets;
use super::manager::{Manager, Phase};
use super::reload::{refused, reload, report_refusal};
use crate::manager::handle::CommandError;

/// Takes in what was found for an errand, and carries the errand out.
pub(super) fn take_files(manager: &mut Manager, (number, outcome): (u64, FilesOutcome)) {
    if let Some(errand) = manager.errands.end(number) {
        errand.carry_out(manager, outcome);
    }
}

/// Begins all errands that need not wait for others.
pub(super) fn proceed(manager: &mut Manager) {
    while let Some(errand) = manager.errands.next() {
        let Some(reading) = errand.reading(manager) else {
            errand.carry_out(manager, Ok(Found::default()));
            continue;
        };
        let number = manager.errands.begin(errand);
        let outcomes = manager.errands.outcomes.clone();
        tokio::task::spawn_local(async move {
            // Sending fails only when the manager has ended.
            let _ = outcomes.send((number, reading.run().await));
        });
    }
}

impl Errand {
    /// Returns what has to be read now, or `None` if the errand needs no files.
    fn reading(&self, manager: &Manager) -> Option<Reading> {
        if manager.phase != Phase::Serving {
            return None;
        }
        let spec = |name: &String| {
            let service = manager.services.get(name);
            service
                .filter(|service| !service.is_removed())
                .map(|service| service.spec().clone())
        };
        let folder = || manager.config_dir.clone();
        match self {
            Errand::Reload(_) => Some(Reading::Configuration(folder())),
            Errand::Renew(_, name, _) => Some(Reading::Services(spec(name).into_iter().collect())),
            Errand::RestartAll(_) => {
                let specs = running(manager).iter().filter_map(spec).collect();
                Some(Reading::Services(specs))
            }
            Errand::Stop(..) => None,
            Errand::FilesChanged(name) => {
                Some(Reading::One(folder(), spec(name)?, manager.config.clone()))
            }
            Errand::CertificateChanged(name) => Some(Reading::Certificates(vec![spec(name)?])),
        }
    }

    /// Does what the errand is about, with what was found. A manager that ends does nothing of it.
    fn carry_out(self, manager: &mut Manager, outcome: FilesOutcome) {
        if manager.phase != Phase::Serving {
            if let Some(answer) = self.answer() {
                let late = Err(CommandError::ShuttingDown);
                manager.errands.answer(answer, late);
            }
            return;
        }
        let found = outcome.map_err(|error| refused(error.to_string()));
        match self {
            Errand::Reload(answer) => {
                let done = found.and_then(|found| reload(manager, found));
                let done = done.inspect_err(report_refusal).map(|job| vec![job]);
                if let Some(answer) = answer {
                    manager.errands.answer(answer, done);
                }
            }
            Errand::Renew(kind, name, answer) => {
                let done = found.and_then(|found| renew(manager, kind, &name, found));
                manager.errands.answer(answer, done);
            }
            Errand::RestartAll(answer) => {
                let done = found.map(|found| {
                    let read = found.services.iter().map(|files| &files.spec.name);
                    let read: BTreeSet<&String> = read.collect();
                    let mut names = running(manager);
                    names.retain(|name| read.contains(name));
                    restart(manager, names, found)
                });
                manager.errands.answer(answer, done);
            }
            Errand::Stop(name, answer) => {
                let done = stop(manager, &name).map(|job| vec![job]);
                manager.errands.answer(answer, done);
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
        look_at_unix_sockets(manager);
    }
}

fn report_unread(service: &str, error: &dyn std::fmt::Display) {
    tracing::error!(service, error = %error, "changed files not applied");
}
