//! Tells which services' files have changed, or their certificates, and are quiet again.
//!
//! # Theory of operation
//! A thread of its own owns the watches, since it walks through folders and that must not hold the manager up. It knows for
//! each service the `places` where a change would show, and asks the kernel (inotify, through `notify`) to tell about
//! the folders among them. Then, in a loop:
//!
//! * An event at a place starts the quiet time of the services that have an interest in it, or starts it again.
//! * If something came, went or was renamed there, the way to the files may lead elsewhere now. The places are looked up anew,
//!   at most every `RENEWAL`, and watches are moved. That repeats until nothing new is found, because folders may have
//!   changed between looking and watching; and it counts as a change itself, because files may have.
//! * A service whose quiet time is over is told to the manager by name.
//!
//! A name only means "look again": whether there is a change is for [`Fingerprint`](crate::fingerprint::Fingerprint) to
//! decide. So everything doubtful is told: every service once when it is declared, all of them when the kernel has lost
//! events, and every `POLL` those with a folder that cannot be watched (no permission, no watches left).

mod inbox;
mod places;
mod quiet;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::{INotifyWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::config::ServiceConfig;
use inbox::{Batch, Inbox};
use places::Place;
use quiet::Changes;

/// Places are not looked up more often.
const RENEWAL: Duration = Duration::from_millis(100);

/// How often services are told whose files cannot all be watched.
const POLL: Duration = Duration::from_secs(10);

/// A certificate and its key are replaced one after the other.
const CERTIFICATE_QUIET: Duration = Duration::from_secs(1);

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    inbox: Inbox,
}

/// What may have changed, of the service of this name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Changed {
    /// Its own file, its executable, what it watches.
    Files(String),
    /// Its certificate, or the key.
    Certificate(String),
}

impl Changed {
    fn service(&self) -> &str {
        match self {
            Changed::Files(name) | Changed::Certificate(name) => name,
        }
    }
}

/// What is watched for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subject {
    what: Changed,
    executable: Option<PathBuf>,
    files: Vec<PathBuf>,
    quiet: Duration,
}

impl Subject {
    fn files(service: &ServiceConfig) -> Subject {
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

    fn certificate(service: &ServiceConfig) -> Option<Subject> {
        let tls = service.tls.as_ref()?;
        Some(Subject {
            what: Changed::Certificate(service.name.clone()),
            executable: None,
            files: vec![tls.certificate.clone(), tls.key.clone()],
            quiet: CERTIFICATE_QUIET,
        })
    }

    fn places(&self) -> BTreeSet<Place> {
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

impl Watcher {
    /// Starts the thread. The receiver gets what may have changed.
    pub fn new() -> io::Result<(Watcher, mpsc::Receiver<Changed>)> {
        let inbox = Inbox::default();
        let events = inbox.clone();
        let notify = INotifyWatcher::new(
            move |event| events.event(event),
            notify::Config::default().with_follow_symlinks(false),
        )
        .map_err(io::Error::other)?;
        let (names, receiver) = mpsc::channel(64);
        let watching = Watching {
            inbox: inbox.clone(),
            kernel: Kernel {
                notify,
                watched: BTreeMap::new(),
            },
            services: Vec::new(),
            interests: HashMap::new(),
            renew_at: None,
            names,
        };
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(|| watching.run())?;
        Ok((Watcher { inbox }, receiver))
    }

    /// Watches the certificates of these services, the files of those with `auto_restart`, and no others. What is new or has
    /// other files than before is told once, so that no change is lost that came before.
    pub fn set<'a>(&self, services: impl IntoIterator<Item = &'a ServiceConfig>) {
        let subjects = services.into_iter().flat_map(|service| {
            let files = service.auto_restart.then(|| Subject::files(service));
            files.into_iter().chain(Subject::certificate(service))
        });
        self.inbox.declare(subjects.collect());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// A service in the thread.
#[derive(Debug)]
struct Watched {
    subject: Subject,
    places: BTreeSet<Place>,
    /// Seen, not yet told.
    changes: Option<Changes>,
    /// Its places have to be looked up anew.
    stale: bool,
    /// Not all of its places can be watched: when to tell it without an event.
    poll_at: Option<Instant>,
}

/// Who wants to know about what in a folder.
#[derive(Debug, Default)]
struct Interest {
    /// The service's number, and whether this is the way to its executable.
    names: HashMap<OsString, Vec<(usize, bool)>>,
    everything: Vec<usize>,
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

/// What came of watching a service's folders.
#[derive(Debug, Clone)]
enum Outcome {
    /// A folder is watched only from now on.
    Moved,
    /// A folder cannot be watched.
    Failed(String),
}

/// Notes an outcome for all that have a place there. A failure counts for more than a move, which the next look repeats.
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

/// The thread's state.
struct Watching {
    inbox: Inbox,
    kernel: Kernel,
    services: Vec<Watched>,
    /// By folder, under the name that it is watched by.
    interests: HashMap<PathBuf, Interest>,
    /// When stale places are looked up.
    renew_at: Option<Instant>,
    names: mpsc::Sender<Changed>,
}

impl Watching {
    fn run(mut self) {
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

    /// When there is something to do without an event.
    fn next_time(&self) -> Option<Instant> {
        let services = self.services.iter().flat_map(|service| {
            let due = service
                .changes
                .map(|changes| changes.due(service.subject.quiet));
            [due, service.poll_at]
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

    /// Keeps what is declared as before, and begins with the rest.
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
            }));
        }
        // The interests name services by number, so they are made anew even if nothing is stale.
        self.renew();
    }

    /// Something happened to a path.
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
            let places = service.subject.places();
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

    /// Watches the folders of all places and no others, and notes who is interested in them. Says for which services that
    /// has changed something or did not work.
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
        let mut known: HashMap<Identity, PathBuf> = HashMap::new();
        for (folder, places) in folders {
            let identity = Identity::of(folder);
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

    /// Tells the services whose time has come. The error: nobody listens any more.
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
            // While changes are seen, their own time is the right one.
            if due || poll && service.changes.is_none() {
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

impl Watched {
    fn change(&mut self, now: Instant, executable: bool) {
        self.changes = Some(Changes::add(self.changes, now, executable));
    }
}

/// Which folder it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(folder: &Path) -> io::Result<Identity> {
        let metadata = folder.symlink_metadata()?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// The watches that the kernel has.
#[derive(Debug)]
struct Kernel {
    notify: INotifyWatcher,
    /// `None`: something happened to the folder, and the watch may be gone.
    watched: BTreeMap<PathBuf, Option<Identity>>,
}

impl Kernel {
    /// Watches a folder. `false`: it was watched already.
    fn watch(&mut self, folder: &Path, identity: Identity) -> io::Result<bool> {
        if self.watched.get(folder) == Some(&Some(identity)) {
            return Ok(false);
        }
        // Another folder may have been watched by that name; a watch goes with the folder, not with its name.
        if self.watched.remove(folder).is_some() {
            let _ = self.notify.unwatch(folder);
        }
        let watched = self.notify.watch(folder, RecursiveMode::NonRecursive);
        watched.map_err(|error| match error.kind {
            notify::ErrorKind::Io(error) => error,
            notify::ErrorKind::PathNotFound => io::ErrorKind::NotFound.into(),
            notify::ErrorKind::MaxFilesWatch => {
                io::Error::other("no watches left, see /proc/sys/fs/inotify/max_user_watches")
            }
            _ => io::Error::other(error),
        })?;
        self.watched.insert(folder.to_owned(), Some(identity));
        Ok(true)
    }

    /// What was at a path may not be there any more; then `notify` gives up the watches below it by itself.
    fn doubt(&mut self, path: &Path) {
        let below = self.watched.range_mut(path.to_owned()..);
        for (_, identity) in below.take_while(|(folder, _)| folder.starts_with(path)) {
            *identity = None;
        }
    }

    /// Ends the watches of all other folders.
    fn keep(&mut self, folders: &HashMap<PathBuf, Interest>) {
        let notify = &mut self.notify;
        self.watched.retain(|folder, _| {
            let keep = folders.contains_key(folder);
            if !keep {
                let _ = notify.unwatch(folder);
            }
            keep
        });
    }
}
