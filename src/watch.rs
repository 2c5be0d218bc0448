//! The watcher: tells which services' files or certificates have changed and are quiet again.
//!
//! # Theory of operation
//! A thread of its own (`thread`) owns the watches, because it walks through folders, and the
//! manager must not wait for that. It knows for each subject (`subject`), which is what the manager
//! declares for a service, the `places` where a change would show, and asks the kernel (`kernel`:
//! inotify, through the crate `notify`) to tell about the folders among them. Then, in a loop:
//!
//! * An event at a place starts the quiet time of the services that have an interest in it, or
//!   starts it again (`quiet`).
//! * If something came, went or was renamed there, the way to the files may lead elsewhere now. The
//!   thread looks the places up anew, at most every `RENEWAL`, and moves the watches. It repeats
//!   this until nothing new is found, because folders may have changed between looking and
//!   watching; and it counts that as a change itself, because files may have changed.
//! * A service whose quiet time is over is told to the manager by name.
//!
//! A name only means "look again": whether there is a change is for
//! [`Fingerprint`](crate::fingerprint::Fingerprint) to decide. So everything doubtful is told:
//! every service once when it is declared, all of them when the kernel has lost events, and every
//! `POLL` those with a folder that cannot be watched (no permission, no watches left).
//!
//! A file system may hang. Each lookup is bounded ([`patience`](crate::patience)): a service whose
//! files do not answer keeps its places, and is told and looked up again every `POLL`. A folder is
//! watched only right after a lookup has found it; if its file system hangs since then, that is
//! bounded as well, and every service is told, because all folders have to be watched anew.
//!
//! The thread looks at paths with the rights of the manager, also where ordinary users lead them.
//! That tells these users nothing: the fingerprint looks again, with rights that fit (`trust`).

mod inbox;
mod kernel;
mod places;
mod quiet;
mod subject;
mod thread;

use std::io;

use notify::{INotifyWatcher, Watcher as _};
use tokio::sync::mpsc;

use crate::config::ServiceConfig;
use inbox::Inbox;
use kernel::Kernel;
use subject::Subject;
use thread::Watching;

pub use subject::Changed;

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    inbox: Inbox,
}

impl Watcher {
    /// Starts the thread. The receiver gets what may have changed.
    pub fn new() -> io::Result<(Watcher, mpsc::Receiver<Changed>)> {
        let inbox = Inbox::default();
        let events = inbox.clone();
        let begin = move || {
            let events = events.clone();
            let config = notify::Config::default().with_follow_symlinks(false);
            INotifyWatcher::new(move |event| events.event(event), config)
        };
        let kernel = Kernel::new(Box::new(begin)).map_err(io::Error::other)?;
        let (names, receiver) = mpsc::channel(64);
        let watching = Watching::new(inbox.clone(), kernel, names);
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(|| watching.run())?;
        Ok((Watcher { inbox }, receiver))
    }

    /// Watches the certificates of these services, the files of those with `auto_restart`, and no
    /// others. A service that is new or has other files than before is told once, so that no change
    /// is lost that came before.
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
