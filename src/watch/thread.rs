//! The thread that watches: its state and its loop. The top of src/watch.rs has the theory of
//! operation.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::inbox::{Batch, Inbox};
use super::kernel::{FolderIdentity, Kernel};
use super::places::Place;
use super::quiet::Changes;
use super::subject::{Changed, Lookup, Subject};
use crate::patience;

/// The shortest time from one lookup of the places to the next.
const RENEWAL: Duration = Duration::from_millis(100);

/// How often the manager is told to look at a service whose files cannot all be watched.
const POLL: Duration = Duration::from_secs(10);

/// How often the manager is told to look at a service with more files than are watched. Looking at
/// so many takes a while.
const COUNT_POLL: Duration = Duration::from_secs(60);

/// The state of the thread.
pub(super) struct Watching {
    inbox: Inbox,
    kernel: Kernel,
    services: Vec<Watched>,
    /// Who has an interest in a folder, by the path that the folder is watched by.
    interests: HashMap<PathBuf, Interest>,
    /// When stale places are looked up.
    renew_at: Option<Instant>,
    names: mpsc::Sender<Changed>,
}

impl Watching {
    /// Begins without any service.
    pub(super) fn new(inbox: Inbox, kernel: Kernel, names: mpsc::Sender<Changed>) -> Watching {
        Watching {
            inbox,
            kernel,
            services: Vec::new(),
            interests: HashMap::new(),
            renew_at: None,
            names,
        }
    }

    /// Runs until the inbox is closed or nobody listens any more.
    pub(super) fn run(mut self) {
        loop {
            let batch = self.inbox.take(self.next_time());
            if batch.closed {
                return;
            }
            self.receive(batch);
            let now = Instant::now();
            if self.renew_at.is_some_and(|at| at <= now) {
                self.renew();
            }
            if self.tell().is_err() {
                return;
            }
        }
    }

    /// Returns when there is something to do without an event.
    fn next_time(&self) -> Option<Instant> {
        let services = self.services.iter().flat_map(|service| {
            let due = service
                .changes
                .map(|changes| changes.due(service.subject.quiet));
            [due, service.poll.at, service.count_poll.at]
        });
        services.chain([self.renew_at]).flatten().min()
    }

    fn receive(&mut self, batch: Batch) {
        let now = Instant::now();
        if let Some(subjects) = batch.declared {
            self.declare(subjects, now);
        }
        for (path, structural) in &batch.events {
            self.event(path, *structural, now);
        }
        if batch.overflow {
            tracing::warn!("file events were lost, looking at all services");
            self.kernel.doubt(Path::new("/"));
            for service in &mut self.services {
                service.change(now, false);
                service.stale = true;
            }
        }
        let stale = self.services.iter().any(|service| service.stale);
        if stale && self.renew_at.is_none() {
            self.renew_at = Some(now + RENEWAL);
        }
    }

    /// Takes the declared subjects over: keeps those that are as before, and begins with the rest.
    fn declare(&mut self, subjects: Vec<Subject>, now: Instant) {
        let mut before: HashMap<Changed, Watched> = self
            .services
            .drain(..)
            .map(|service| (service.subject.what.clone(), service))
            .collect();
        for subject in subjects {
            let kept = before.remove(&subject.what);
            let kept = kept.filter(|service| service.subject == subject);
            self.services.push(kept.unwrap_or_else(|| Watched {
                subject,
                found: Lookup::default(),
                hangs: None,
                changes: Some(Changes::add(None, now, false)),
                stale: true,
                poll: RegularLook::every(POLL),
                count_poll: RegularLook::every(COUNT_POLL),
            }));
        }
        // The interests name services by number, so they are made anew even if nothing is stale.
        self.renew();
    }

    /// Notes that something happened to a path.
    fn event(&mut self, path: &Path, structural: bool, now: Instant) {
        let mut hit: Vec<(usize, bool)> = Vec::new();
        // The folder itself was moved, removed or got other permissions.
        if let Some(interest) = self.interests.get(path) {
            hit.extend(interest.everything.iter().map(|number| (*number, false)));
            hit.extend(interest.names.values().flatten());
        }
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name())
            && let Some(interest) = self.interests.get(folder)
        {
            hit.extend(interest.everything.iter().map(|number| (*number, false)));
            hit.extend(interest.names.get(name).into_iter().flatten());
        }
        if hit.is_empty() {
            return;
        }
        if structural {
            self.kernel.doubt(path);
        }
        for (number, executable) in hit {
            let service = &mut self.services[number];
            service.change(now, executable);
            service.stale |= structural;
        }
    }

    /// Looks up stale places and moves the watches.
    fn renew(&mut self) {
        self.renew_at = None;
        patience::renew();
        let now = Instant::now();
        for service in self.services.iter_mut().filter(|service| service.stale) {
            service.stale = false;
            let found = match service.subject.look_up() {
                Ok(found) => found,
                Err(unanswered) => {
                    // The places stay as they were, and are looked up again with the next poll.
                    service.hangs = Some(unanswered.to_string());
                    continue;
                }
            };
            let answers_again = service.hangs.take().is_some();
            if answers_again || found.places != service.found.places {
                service.change(now, false);
                // Until nothing new is found.
                service.stale = true;
            }
            service.found = found;
        }
        let mut outcomes = self.watch_places();
        for (number, service) in self.services.iter().enumerate() {
            if let Some(error) = &service.hangs {
                outcomes.insert(number, Outcome::Failed(error.clone()));
            }
        }
        for (number, service) in self.services.iter_mut().enumerate() {
            let outcome = outcomes.get(&number);
            if let Some(Outcome::Moved) = outcome {
                service.change(now, false);
                service.stale = true;
            }
            let failed = match outcome {
                Some(Outcome::Failed(error)) => Some(error.as_str()),
                Some(Outcome::Moved) | None => None,
            };
            let name = service.subject.what.service();
            service.poll.go_on(failed, name, now);
            let too_many = service.found.unwatched.as_deref();
            service.count_poll.go_on(too_many, name, now);
        }
        if self.services.iter().any(|service| service.stale) {
            self.renew_at = Some(now + RENEWAL);
        }
    }

    /// Watches the folders of all places and no others, and notes who is interested in them.
    /// Returns for which services that has changed something or did not work.
    fn watch_places(&mut self) -> HashMap<usize, Outcome> {
        let mut folders: BTreeMap<&Path, Vec<(usize, &Place)>> = BTreeMap::new();
        let mut identities: HashMap<&Path, &io::Result<FolderIdentity>> = HashMap::new();
        for (number, service) in self.services.iter().enumerate() {
            // A folder of a service that hangs is perhaps not there any more, or hangs itself.
            if service.hangs.is_none() {
                let folders = service.found.folders.iter();
                identities.extend(folders.map(|(folder, identity)| (folder.as_path(), identity)));
            }
            for place in &service.found.places {
                folders
                    .entry(&place.folder)
                    .or_default()
                    .push((number, place));
            }
        }
        let mut outcomes: HashMap<usize, Outcome> = HashMap::new();
        let mut interests: HashMap<PathBuf, Interest> = HashMap::new();
        // A bind mount shows a folder at two paths, but the kernel knows only one watch of it.
        let mut known: HashMap<FolderIdentity, PathBuf> = HashMap::new();
        for (folder, places) in folders {
            let identity = identities.get(folder);
            let path = match identity {
                Some(Ok(identity)) => known.entry(*identity).or_insert_with(|| folder.to_owned()),
                Some(Err(_)) | None => folder,
            };
            let failed = |kind: io::ErrorKind, error: String| match kind {
                // A folder that has gone in the meantime leads elsewhere next time.
                io::ErrorKind::NotFound => Outcome::Moved,
                _ => Outcome::Failed(format!("{}: {error}", folder.display())),
            };
            let outcome = match identity {
                Some(Ok(identity)) => match self.kernel.watch(path, *identity) {
                    Ok(is_new) => is_new.then_some(Outcome::Moved),
                    Err(error) => Some(failed(error.kind(), error.to_string())),
                },
                Some(Err(error)) => Some(failed(error.kind(), error.to_string())),
                // The watch stays as it is.
                None => None,
            };
            if let Some(outcome) = outcome {
                note(&mut outcomes, &places, &outcome);
            }
            let interest = interests.entry(path.to_owned()).or_default();
            for (number, place) in places {
                interest.add(number, place);
            }
        }
        self.kernel.keep(&interests);
        self.interests = interests;
        if self.kernel.take_lost() {
            for number in 0..self.services.len() {
                outcomes.entry(number).or_insert(Outcome::Moved);
            }
        }
        outcomes
    }

    /// Tells the manager the services whose quiet time is over. Fails if nobody listens any more.
    fn tell(&mut self) -> Result<(), mpsc::error::SendError<Changed>> {
        let now = Instant::now();
        let mut polled = false;
        for service in &mut self.services {
            let due = service
                .changes
                .is_some_and(|changes| changes.due(service.subject.quiet) <= now);
            let poll = service.poll.take_due(now);
            service.stale |= poll;
            polled |= poll;
            let count_poll = service.count_poll.take_due(now);
            // While changes are seen, their own time is the right one.
            if due || (poll || count_poll) && service.changes.is_none() {
                service.changes = None;
                self.names.blocking_send(service.subject.what.clone())?;
            }
        }
        if polled && self.renew_at.is_none() {
            self.renew_at = Some(now + RENEWAL);
        }
        Ok(())
    }
}

/// A subject with what the thread knows of it.
#[derive(Debug)]
struct Watched {
    subject: Subject,
    /// What was found by the last lookup that succeeded.
    found: Lookup,
    /// Why the last lookup has failed.
    hangs: Option<String>,
    /// Changes that were seen and that the manager does not know of yet.
    changes: Option<Changes>,
    /// True: the places have to be looked up anew.
    stale: bool,
    /// When to tell the manager about the subject without an event, since not all of its places can
    /// be watched.
    poll: RegularLook,
    /// When to tell the manager about the subject without an event, since it has too many files.
    count_poll: RegularLook,
}

/// A look at a subject that is repeated as long as there is a reason for it.
#[derive(Debug)]
struct RegularLook {
    every: Duration,
    at: Option<Instant>,
}

impl RegularLook {
    fn every(every: Duration) -> RegularLook {
        RegularLook { every, at: None }
    }

    /// Begins, goes on, or ends if there is no reason any more. A new reason is logged.
    fn go_on(&mut self, reason: Option<&str>, service: &str, now: Instant) {
        self.at = match (reason, self.at) {
            (None, _) => None,
            (Some(_), Some(at)) => Some(at),
            (Some(error), None) => {
                let seconds = self.every.as_secs();
                tracing::warn!(
                    service,
                    error,
                    seconds,
                    "cannot watch all files, looking at them regularly"
                );
                Some(now + self.every)
            }
        };
    }

    /// Returns true if the look is due. Then the next one is due later.
    fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.at.is_some_and(|at| at <= now);
        if is_due {
            self.at = Some(now + self.every);
        }
        is_due
    }
}

/// Who wants to know about which names in a folder.
#[derive(Debug, Default)]
struct Interest {
    /// By name: the numbers of services, each with true if the name is on the way to the
    /// executable.
    names: HashMap<OsString, Vec<(usize, bool)>>,
    /// The numbers of services that want to know about every name.
    everything: Vec<usize>,
}

impl Watched {
    fn change(&mut self, now: Instant, executable: bool) {
        self.changes = Some(Changes::add(self.changes, now, executable));
    }
}

impl Interest {
    fn add(&mut self, number: usize, place: &Place) {
        match &place.name {
            None => self.everything.push(number),
            Some(name) => {
                let names = self.names.entry(name.clone()).or_default();
                names.push((number, place.executable));
            }
        }
    }
}

/// What came of watching the folders of a service.
#[derive(Debug, Clone)]
enum Outcome {
    /// A folder is watched only from now on.
    Moved,
    /// A folder cannot be watched.
    Failed(String),
}

/// Notes an outcome for all services that have a place in the folder. A failure counts for more
/// than a move, which the next look repeats.
fn note(outcomes: &mut HashMap<usize, Outcome>, places: &[(usize, &Place)], outcome: &Outcome) {
    for (number, _) in places {
        match outcome {
            Outcome::Moved => {
                outcomes.entry(*number).or_insert(Outcome::Moved);
            }
            Outcome::Failed(_) => {
                outcomes.insert(*number, outcome.clone());
            }
        }
    }
}
