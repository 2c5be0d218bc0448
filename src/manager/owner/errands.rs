//! The errands of the owner: whatever needs files of services, or of the configuration.
//!
//! # Theory of operation
//! The owner never waits for a file: a file system may not answer, and one user's files must not
//! stop what is done for the others. So an errand has two parts (`proceed`). First a thread of its
//! own reads what the errand needs (`disk`). Then the owner gets what was found, and the errand is
//! carried out without any further look at the disk.
//!
//! Errands wait in a queue. An errand is read for as soon as no earlier one is about the same
//! service, or about all of them. So a later errand finds on disk what is newer, and of the owner's
//! state what the earlier ones have made of it, and a service whose files do not answer holds up
//! nobody else. A few errands are read for at once; those that take long, because files do not
//! answer, do not count among these. Everything else goes on meanwhile. A stop of a service is
//! carried out at once, unless errands about that service wait before it. An errand that waits when
//! the manager ends is answered that it is too late, and a change on disk is left to the next
//! manager.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::disk::{FilesOutcome, MOST_STUCK};
use crate::manager::handle::CommandError;
use crate::status::JobKind;

/// The most errands that wait. Commands wait where they come from then.
const MOST_WAITING: usize = 64;

/// The most errands that are read for at once, apart from those that take longer than [`QUICK`].
const MOST_AT_ONCE: usize = 4;

/// How long an errand is read for if its files answer.
const QUICK: Duration = Duration::from_secs(1);

/// The most errands that are read for in any case. Further ones wait, also if all files hang.
const MOST_READ: usize = 24;

/// Each errand that is read for has a thread.
const _: () = assert!(MOST_READ < MOST_STUCK);

/// The channel for the answer to a command.
pub(super) type Answer = oneshot::Sender<Result<Vec<u32>, CommandError>>;

/// Something to do that needs files.
#[derive(Debug)]
pub(super) enum Errand {
    /// Apply all changes on disk.
    Reload(Option<Answer>),
    /// Replace the instances of a service with new instances of what is on disk, or start it.
    Renew(JobKind, String, Answer),
    /// Restart every service that should run by then.
    RestartAll(Answer),
    /// Stop a service after what was asked for before.
    Stop(String, Answer),
    /// Look at the changed files of a service.
    FilesChanged(String),
    /// Look at the changed certificate of a service.
    CertificateChanged(String),
}

impl Errand {
    /// Returns the service that the errand is about, or `None` for all of them.
    fn service(&self) -> Option<&str> {
        match self {
            Errand::Reload(_) | Errand::RestartAll(_) => None,
            Errand::Renew(_, name, _)
            | Errand::Stop(name, _)
            | Errand::FilesChanged(name)
            | Errand::CertificateChanged(name) => Some(name),
        }
    }

    /// Returns true if a service is concerned by both errands.
    fn meets(&self, other: &Errand) -> bool {
        match (self.service(), other.service()) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        }
    }

    /// Returns the channel on which somebody waits for the answer to this errand.
    pub(super) fn answer(self) -> Option<Answer> {
        match self {
            Errand::Reload(answer) => answer,
            Errand::Renew(.., answer) | Errand::RestartAll(answer) | Errand::Stop(_, answer) => {
                Some(answer)
            }
            Errand::FilesChanged(_) | Errand::CertificateChanged(_) => None,
        }
    }
}

/// The errands that wait, and those that are read for.
#[derive(Debug)]
pub(super) struct Errands {
    waiting: VecDeque<Errand>,
    /// The errands that are read for, by number, and when each was begun.
    current: BTreeMap<u64, (Errand, Instant)>,
    /// The number of the last errand that was begun.
    last: u64,
    /// The channel for what was found for the errand with this number.
    pub(super) outcomes: mpsc::UnboundedSender<(u64, FilesOutcome)>,
    /// Answers that are sent once their consequences are published.
    answers: Vec<(Answer, Result<Vec<u32>, CommandError>)>,
}

impl Errands {
    /// Makes an empty queue. The receiver gets what was found for errands.
    pub(super) fn new() -> (Errands, mpsc::UnboundedReceiver<(u64, FilesOutcome)>) {
        let (outcomes, receiver) = mpsc::unbounded_channel();
        let errands = Errands {
            waiting: VecDeque::new(),
            current: BTreeMap::new(),
            last: 0,
            outcomes,
            answers: Vec::new(),
        };
        (errands, receiver)
    }

    /// Returns true if further commands can be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MOST_WAITING
    }

    /// Returns true if an errand is under way that starts or stops this service.
    pub(super) fn are_about(&self, service: &str) -> bool {
        let mut all = self.waiting.iter().chain(self.current());
        all.any(|errand| match errand {
            Errand::Renew(_, name, _) | Errand::Stop(name, _) => name == service,
            Errand::RestartAll(_) => true,
            _ => false,
        })
    }

    /// Gives an answer as soon as its consequences are published.
    pub(super) fn answer(&mut self, answer: Answer, result: Result<Vec<u32>, CommandError>) {
        self.answers.push((answer, result));
    }

    /// Sends the answers, after their consequences were published.
    pub(super) fn send_answers(&mut self) {
        for (answer, result) in self.answers.drain(..) {
            // Sending fails if the caller has gone, and then nobody needs the answer.
            let _ = answer.send(result);
        }
    }

    /// Queues an errand. If the same errand waits already and nobody waits for its answer, it is
    /// done once, later.
    pub(super) fn queue(&mut self, errand: Errand) {
        if !self.is_waiting(&errand) {
            self.waiting.push_back(errand);
        }
    }

    /// Returns when an errand that waits only because of the number of the others may begin.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_full = !self.waiting.is_empty() && self.current.len() < MOST_READ;
        let mut quick = self.quick(Instant::now());
        let first = quick.next().filter(|_| is_full)?;
        (quick.count() + 1 >= MOST_AT_ONCE).then_some(first + QUICK)
    }

    /// Returns when the errands were begun that may still be quick, in this order.
    fn quick(&self, now: Instant) -> impl Iterator<Item = Instant> {
        let begun = self.current.values().map(|(_, begun)| *begun);
        begun.filter(move |begun| now < *begun + QUICK)
    }

    fn current(&self) -> impl Iterator<Item = &Errand> {
        self.current.values().map(|(errand, _)| errand)
    }

    /// Takes out the next errand that has to wait for no other one.
    pub(super) fn next(&mut self) -> Option<Errand> {
        let quick = self.quick(Instant::now()).count();
        if quick >= MOST_AT_ONCE || self.current.len() >= MOST_READ {
            return None;
        }
        let is_free = |&index: &usize| {
            let errand = &self.waiting[index];
            let before = self.waiting.range(..index).chain(self.current());
            !before.into_iter().any(|earlier| earlier.meets(errand))
        };
        let index = (0..self.waiting.len()).find(is_free)?;
        self.waiting.remove(index)
    }

    /// Notes that an errand is read for. Returns its number.
    pub(super) fn begin(&mut self, errand: Errand) -> u64 {
        self.last += 1;
        self.current.insert(self.last, (errand, Instant::now()));
        self.last
    }

    /// Takes out an errand that was read for.
    pub(super) fn end(&mut self, number: u64) -> Option<Errand> {
        self.current.remove(&number).map(|(errand, _)| errand)
    }

    fn is_waiting(&self, new: &Errand) -> bool {
        let mut waiting = self.waiting.iter();
        waiting.any(|errand| match (errand, new) {
            (Errand::Reload(None), Errand::Reload(None)) => true,
            (Errand::FilesChanged(one), Errand::FilesChanged(other))
            | (Errand::CertificateChanged(one), Errand::CertificateChanged(other)) => one == other,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_is_done_once() {
        let (mut errands, _outcomes) = Errands::new();
        for _ in 0..2 * MOST_WAITING {
            errands.queue(Errand::Reload(None));
            errands.queue(Errand::FilesChanged("shop".to_owned()));
            errands.queue(Errand::CertificateChanged("shop".to_owned()));
        }
        assert!(errands.has_room());
        errands.queue(Errand::FilesChanged("blog".to_owned()));
        errands.queue(Errand::Reload(Some(oneshot::channel().0)));
        assert_eq!(std::iter::from_fn(|| errands.next()).count(), 5);
    }

    #[test]
    fn a_service_holds_up_nobody_but_those_who_need_all() {
        let (mut errands, _outcomes) = Errands::new();
        let changed = |name: &str| Errand::FilesChanged(name.to_owned());
        errands.queue(changed("shop"));
        errands.queue(Errand::CertificateChanged("shop".to_owned()));
        errands.queue(changed("web"));
        errands.queue(Errand::Reload(None));
        errands.queue(changed("other"));
        let mut begin = || {
            let next = errands.next()?;
            let shown = format!("{next:?}");
            Some((errands.begin(next), shown))
        };
        let first = begin().unwrap();
        assert_eq!(first.1, "FilesChanged(\"shop\")");
        assert_eq!(begin().unwrap().1, "FilesChanged(\"web\")");
        assert_eq!(
            begin(),
            None,
            "one waits for shop, all for it, and another for all"
        );
        errands.end(first.0);
        let second = errands.next();
        assert!(matches!(second, Some(Errand::CertificateChanged(_))));
        errands.current.clear();
        assert!(matches!(errands.next(), Some(Errand::Reload(None))));
    }

    #[tokio::test(start_paused = true)]
    async fn errands_whose_files_hang_hold_up_those_of_other_services_for_a_moment_only() {
        let (mut errands, _outcomes) = Errands::new();
        for number in 0..2 * MOST_READ {
            errands.queue(Errand::FilesChanged(number.to_string()));
        }
        let begin_all = |errands: &mut Errands| {
            let mut begun = 0;
            while let Some(errand) = errands.next() {
                errands.begin(errand);
                begun += 1;
            }
            begun
        };
        assert_eq!(errands.deadline(), None, "nothing keeps them waiting");
        let mut begun = 0;
        while begun < MOST_READ {
            assert_eq!(begin_all(&mut errands), MOST_AT_ONCE);
            assert_eq!(begin_all(&mut errands), 0);
            begun += MOST_AT_ONCE;
            let deadline = errands.deadline();
            assert_eq!(deadline.is_some(), begun < MOST_READ);
            tokio::time::sleep_until(deadline.unwrap_or(Instant::now() + QUICK)).await;
        }
        assert_eq!(begin_all(&mut errands), 0, "the threads are bounded");
        let first = *errands.current.keys().next().unwrap();
        assert!(errands.end(first).is_some());
        assert_eq!(begin_all(&mut errands), 1);
    }
}
