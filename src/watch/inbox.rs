//! The inbox: what the kernel's events and the manager leave for the thread that watches.
//!
//! The thread of `notify` must never wait for the thread that watches, which itself waits for
//! `notify` whenever it asks for a watch. So events are not queued but collected by path, and when
//! there are too many paths, all that is remembered is that something happened.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use notify::EventKind;
use notify::event::{AccessKind, AccessMode, ModifyKind};

use super::subject::Subject;

/// The most paths that are told apart.
const MAX_PATHS: usize = 16_384;

/// The inbox, which the thread, `notify` and the manager share.
#[derive(Debug, Clone, Default)]
pub(super) struct Inbox(Arc<(Mutex<Batch>, Condvar)>);

/// All that came in since the thread looked last.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The subjects that are to be watched from now on, if the manager has declared them anew.
    pub(super) declared: Option<Vec<Subject>>,
    /// Paths with a change. True: something came, went or was renamed there, rather than only
    /// changed its contents.
    pub(super) events: HashMap<PathBuf, bool>,
    /// True: events were lost.
    pub(super) overflow: bool,
    /// True: the watcher was dropped, and the thread is to end.
    pub(super) closed: bool,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.declared.is_none() && self.events.is_empty() && !self.overflow && !self.closed
    }

    /// Notes one event of `notify`.
    fn add(&mut self, event: notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) => event,
            Err(_) => {
                self.overflow = true;
                return;
            }
        };
        self.overflow |= event.need_rescan();
        let structural = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Data(_)) => false,
            EventKind::Access(_) => return,
            _ => true,
        };
        for path in event.paths {
            if self.events.len() >= MAX_PATHS && !self.events.contains_key(&path) {
                self.overflow = true;
                self.events.clear();
                return;
            }
            *self.events.entry(path).or_default() |= structural;
        }
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        // Nothing that holds the lock leaves a batch half done.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares what is to be watched from now on.
    pub(super) fn declare(&self, subjects: Vec<Subject>) {
        self.lock().declared = Some(subjects);
        self.0.1.notify_one();
    }

    /// Leaves an event of `notify`.
    pub(super) fn event(&self, event: notify::Result<notify::Event>) {
        let mut batch = self.lock();
        batch.add(event);
        if !batch.is_empty() {
            self.0.1.notify_one();
        }
    }

    /// Asks the thread to end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_one();
    }

    /// Takes all that came in. If nothing has, waits for something until this time; `None`:
    /// forever.
    pub(super) fn take(&self, until: Option<Instant>) -> Batch {
        let mut batch = self.lock();
        while batch.is_empty() {
            let condition = &self.0.1;
            batch = match until {
                None => condition
                    .wait(batch)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = condition.wait_timeout(batch, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        std::mem::take(&mut batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::Event;
    use notify::event::{CreateKind, DataChange, Flag};

    #[test]
    fn events_collapse_and_reading_is_none() {
        let inbox = Inbox::default();
        let event = |kind, path: &str| inbox.event(Ok(Event::new(kind).add_path(path.into())));
        event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/a");
        event(EventKind::Modify(ModifyKind::Data(DataChange::Any)), "/b");
        event(EventKind::Create(CreateKind::File), "/b");
        event(EventKind::Modify(ModifyKind::Data(DataChange::Any)), "/b");
        let batch = inbox.take(None);
        assert_eq!(batch.events, HashMap::from([("/b".into(), true)]));
        assert!(!batch.overflow);
    }

    #[test]
    fn too_many_events_become_one_overflow() {
        let inbox = Inbox::default();
        for number in 0..=MAX_PATHS {
            let kind = EventKind::Create(CreateKind::File);
            inbox.event(Ok(Event::new(kind).add_path(format!("/{number}").into())));
        }
        let batch = inbox.take(None);
        assert!(batch.overflow);
        assert!(batch.events.len() < MAX_PATHS);

        inbox.event(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert!(inbox.take(None).overflow);
        inbox.event(Err(notify::Error::generic("lost")));
        assert!(inbox.take(None).overflow);
    }

    #[test]
    fn waiting_ends_in_time() {
        let batch = Inbox::default().take(Some(Instant::now()));
        assert!(batch.is_empty());
    }
}
