//! The thread that watches: its state and its loop. The top of src/watch.rs has the theory of
//! operation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::inbox::{Batch, Inbox};
use super::kernel::{FolderIdentity, Kernel};
use super::places::Place;
use super::quiet::Changes;
use super::subject::{Changed, Subject};

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
            [due, service.poll_at, service.count_poll_at]
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
                places: BTreeSet::new(),
                changes: Some(Changes::add(None, now, false)),
                stale: true,
                poll_at: None,
                unwatched: None,
                count_poll_at: None,
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
        let now = Instant::now();
        for service in self.services.iter_mut().filter(|service| service.stale) {
            service.stale = false;
            let (places, unwatched) = service.subject.places();
            service.unwatched = unwatched;
            if places != service.places {
                service.places = places;
                service.change(now, false);
                // Until nothing new is found.
                service.stale = true;
            }
        }
        let outcomes = self.watch_places();
        for (number, service) in self.services.iter_mut().enumerate() {
            let outcome = outcomes.get(&number);
            let too_many = service.unwatched.as_deref();
            service.count_poll_at = match (too_many, service.count_poll_at) {
                (None, _) => None,
                (Some(_), Some(at)) => Some(at),
                (Some(error), None) => {
                    let (service, seconds) = (service.subject.what.service(), COUNT_POLL.as_secs());
                    tracing::warn!(
                        service,
                        error,
                        seconds,
                        "cannot watch all files, looking at them regularly"
                    );
                    Some(now + COUNT_POLL)
                }
            };
            if let Some(Outcome::Moved) = outcome {
                service.change(now, false);
                service.stale = true;
            }
            service.poll_at = match (outcome, service.poll_at) {
                (Some(Outcome::Failed(_)), Some(at)) => Some(at),
                (Some(Outcome::Failed(error)), None) => {
                    let (service, seconds) = (service.subject.what.service(), POLL.as_secs());
                    tracing::warn!(service, %error, seconds, "cannot watch all files, looking at them regularly");
                    Some(now + POLL)
                }
                (Some(Outcome::Moved) | None, _) => None,
            };
        }
        if self.services.iter().any(|service| service.stale) {
            self.renew_at = Some(now + RENEWAL);
        }
    }

    /// Watches the folders of all places and no others, and notes who is interested in them.
    /// Returns for which services that has changed something or did not work.
    fn watch_places(&mut self) -> HashMap<usize, Outcome> {
        let mut folders: BTreeMap<&Path, Vec<(usize, &Place)>> = BTreeMap::new();
        for (number, service) in self.services.iter().enumerate() {
            for place in &service.places {
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
            let identity = FolderIdentity::of(folder);
            let path = match &identity {
                Ok(identity) => known.entry(*identity).or_insert_with(|| folder.to_owned()),
                Err(_) => folder,
            };
            match identity.and_then(|identity| self.kernel.watch(path, identity)) {
                Ok(false) => {}
                // A folder that has gone in the meantime leads elsewhere next time.
                Ok(true) => note(&mut outcomes, &places, &Outcome::Moved),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    note(&mut outcomes, &places, &Outcome::Moved);
                }
                Err(error) => {
                    let failed = Outcome::Failed(format!("{}: {error}", folder.display()));
                    note(&mut outcomes, &places, &failed);
                }
            }
            let interest = interests.entry(path.to_owned()).or_default();
            for (number, place) in places {
                interest.add(number, place);
            }
        }
        self.kernel.keep(&interests);
        self.interests = interests;
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
            let poll = service.poll_at.is_some_and(|at| at <= now);
            if poll {
                service.poll_at = Some(now + POLL);
                service.stale = true;
                polled = true;
            }
            let count_poll = service.count_poll_at.is_some_and(|at| at <= now);
            if count_poll {
                service.count_poll_at = Some(now + COUNT_POLL);
            }
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
    places: BTreeSet<Place>,
    /// Changes that were seen and that the manager does not know of yet.
    changes: Option<Changes>,
    /// True: the places have to be looked up anew.
    stale: bool,
    /// When to tell the manager about the subject without an event, since not all of its places can
    /// be watched.
    poll_at: Option<Instant>,
    /// Why not all files are watched, if they are too many.
    unwatched: Option<String>,
    /// When to tell the manager about the subject without an event, since it has too many files.
    count_poll_at: Option<Instant>,
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
