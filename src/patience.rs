//! Work that may never end: what asks a file system or a database of users, either of which may
//! hang on another machine.
//!
//! # Theory of operation
//! Each piece of work has a subject, such as `the files of shop`, and is done by another thread.
//! Whoever wants the result waits, but not for long. A thread that takes longer is left alone: its
//! subject *hangs*. As long as it does, further work on the same subject fails at once. While
//! somebody waits for work on a subject, whoever else has work on it waits for its turn, within its
//! own time. So there is no more than one thread for each subject. When what it waits for answers
//! at last, the thread ends, and the subject can be asked again.
//!
//! A thread that does many pieces of work has one budget for all waiting in vain. Each wait gets
//! half of what is left, so the first one has the most time, and many subjects that hang together
//! cost little more than one. Subjects that answer slowly take of the time that the thread has in
//! all, [`LONGEST`]. Once that is over, nothing is asked any more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread waits in vain, for all its work together.
const BUDGET: Duration = Duration::from_secs(16);

/// How long each piece of work has, even if the budget is used up.
const LEAST: Duration = Duration::from_millis(50);

/// How many subjects may hang. Each costs a thread.
const MOST_HANGING: u32 = 64;

/// How long a thread waits for its work together, in vain or not. It is enough if each subject that
/// may hang hangs.
pub const LONGEST: Duration = BUDGET.saturating_add(LEAST.saturating_mul(MOST_HANGING));

/// The subjects that threads are at.
static SUBJECTS: Mutex<BTreeMap<String, Progress>> = Mutex::new(BTreeMap::new());

/// Tells that a thread has ended its work on a subject, or was left alone.
static PROGRESS: Condvar = Condvar::new();

/// How far the work on a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Somebody waits for it.
    Asked,
    /// Nobody waits any more: the subject hangs.
    Hanging,
}

thread_local! {
    /// How long this thread has waited.
    static WAITED: Cell<Waited> = const { Cell::new(Waited::NOT_YET) };

    /// The thread that does this thread's work. It ends with this thread or, if it is left alone,
    /// with its work.
    static WORKER: RefCell<Option<Sender<Work>>> = const { RefCell::new(None) };
}

type Work = Box<dyn FnOnce() + Send>;

/// How long a thread has waited for its work, in all and in vain.
#[derive(Debug, Clone, Copy)]
struct Waited {
    in_all: Duration,
    in_vain: Duration,
}

impl Waited {
    const NOT_YET: Waited = Waited {
        in_all: Duration::ZERO,
        in_vain: Duration::ZERO,
    };

    /// Returns how long the next piece of work has. `None`: there is no time left.
    fn limit(self) -> Option<Duration> {
        let left = LONGEST.saturating_sub(self.in_all);
        let share = BUDGET.saturating_sub(self.in_vain) / 2;
        (!left.is_zero()).then_some(share.max(LEAST).min(left))
    }

    /// Adds a wait.
    fn and(self, time: Duration, is_in_vain: bool) -> Waited {
        Waited {
            in_all: self.in_all + time,
            in_vain: self.in_vain + if is_in_vain { time } else { Duration::ZERO },
        }
    }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The subject hangs.
    #[error("{0} did not answer in time; look for a file system, or a server, that hangs")]
    Hangs(String),
    /// Too many other subjects hang.
    #[error("{MOST_HANGING} threads wait for an answer; look for file systems that hang")]
    TooMany,
    /// The work before has taken all the time.
    #[error("there was no time left for {0}, since others took too long to answer")]
    NoTime(String),
    /// No thread could be started, or it has panicked.
    #[error("the thread that reads {0} has failed")]
    Failed(String),
}

/// What has become of a piece of work.
enum Outcome<T> {
    /// The thread is at it, and somebody waits.
    Awaited,
    /// The thread is at it, and nobody waits any more.
    LeftAlone,
    /// The thread has ended. `None`: it has panicked.
    Done(Option<T>),
}

/// Gives this thread a whole budget again. A thread that takes one task after the other begins each
/// with this.
pub fn renew() {
    WAITED.set(Waited::NOT_YET);
}

/// Uses up this thread's budget, so that the next piece of work has the least time.
#[cfg(test)]
pub fn hurry() {
    WAITED.set(Waited::NOT_YET.and(BUDGET, true));
}

/// Does a piece of work on a subject in a thread of its own, and waits for the result, but not for
/// long.
pub fn within<T: Send + 'static>(
    subject: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let waited = WAITED.get();
    let limit = waited.limit();
    let limit = limit.ok_or_else(|| Unanswered::NoTime(subject.to_owned()))?;
    let begun = Instant::now();
    let result = within_limit(subject, begun + limit, work);
    let is_in_vain = matches!(result, Err(Unanswered::Hangs(_)));
    WAITED.set(waited.and(begun.elapsed(), is_in_vain));
    result
}

fn within_limit<T: Send + 'static>(
    subject: &str,
    until: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let failed = || Unanswered::Failed(subject.to_owned());
    begin(subject, until)?;
    let shared = Arc::new((Mutex::new(Outcome::Awaited), Condvar::new()));
    let (own, name) = (shared.clone(), subject.to_owned());
    let is_begun = give_away(Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(work)).ok();
        let (outcome, done) = &*own;
        let mut outcome = lock(outcome);
        end(&name);
        if !matches!(*outcome, Outcome::LeftAlone) {
            *outcome = Outcome::Done(result);
        }
        done.notify_all();
    }));
    if !is_begun {
        end(subject);
        return Err(failed());
    }
    let (outcome, done) = &*shared;
    let is_awaited = |outcome: &mut Outcome<T>| matches!(outcome, Outcome::Awaited);
    let left = until.saturating_duration_since(Instant::now());
    let waited = done.wait_timeout_while(lock(outcome), left, is_awaited);
    let (mut outcome, _) = waited.unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *outcome, Outcome::LeftAlone) {
        Outcome::Done(result) => result.ok_or_else(failed),
        Outcome::Awaited | Outcome::LeftAlone => {
            WORKER.set(None);
            // The thread ends it, and needs the lock of the outcome before.
            subjects().insert(subject.to_owned(), Progress::Hanging);
            PROGRESS.notify_all();
            Err(Unanswered::Hangs(subject.to_owned()))
        }
    }
}

/// Notes that a subject is asked, once nobody else asks it. Fails if that takes too long.
fn begin(subject: &str, until: Instant) -> Result<(), Unanswered> {
    let left = until.saturating_duration_since(Instant::now());
    let is_asked =
        |subjects: &mut BTreeMap<String, Progress>| subjects.get(subject) == Some(&Progress::Asked);
    let waited = PROGRESS.wait_timeout_while(subjects(), left, is_asked);
    let (mut subjects, _) = waited.unwrap_or_else(PoisonError::into_inner);
    if subjects.contains_key(subject) {
        return Err(Unanswered::Hangs(subject.to_owned()));
    }
    let hanging = subjects
        .values()
        .filter(|progress| **progress == Progress::Hanging);
    if hanging.count() >= MOST_HANGING as usize {
        return Err(Unanswered::TooMany);
    }
    subjects.insert(subject.to_owned(), Progress::Asked);
    Ok(())
}

/// Notes that no thread is at a subject any more.
fn end(subject: &str) {
    subjects().remove(subject);
    PROGRESS.notify_all();
}

/// Has this thread's worker do a piece of work. Returns false if there is no thread for it.
fn give_away(work: Work) -> bool {
    WORKER.with_borrow_mut(|worker| {
        if worker.is_none() {
            let (sender, receiver) = mpsc::channel::<Work>();
            let thread = thread::Builder::new().name("files".to_owned());
            let started = thread.spawn(move || receiver.into_iter().for_each(|work| work()));
            *worker = started.is_ok().then_some(sender);
        }
        worker
            .as_ref()
            .is_some_and(|worker| worker.send(work).is_ok())
    })
}

/// A descriptor of a file that somebody else owns. Closing it may take any time, too, so a thread
/// of its own does that.
#[derive(Debug)]
pub struct ForeignFile(Option<OwnedFd>);

/// How many threads close files at once. Further ones wait for one of these.
const MOST_CLOSING: usize = 8;

/// The files that are to be closed, and how many threads are at it.
static CLOSING: Mutex<(Vec<OwnedFd>, usize)> = Mutex::new((Vec::new(), 0));

impl From<OwnedFd> for ForeignFile {
    fn from(file: OwnedFd) -> ForeignFile {
        ForeignFile(Some(file))
    }
}

impl AsFd for ForeignFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let file = self.0.as_ref();
        file.expect("it is there until it is dropped").as_fd()
    }
}

impl Drop for ForeignFile {
    fn drop(&mut self) {
        let Some(file) = self.0.take() else {
            return;
        };
        let mut closing = lock(&CLOSING);
        let (waiting, threads) = &mut *closing;
        // One thread keeps up, unless it waits for a file system.
        let needs_thread = *threads == 0 || !waiting.is_empty() && *threads < MOST_CLOSING;
        waiting.push(file);
        let worker = || thread::Builder::new().name("close".to_owned());
        if needs_thread && worker().spawn(close_all).is_ok() {
            *threads += 1;
        }
    }
}

fn close_all() {
    loop {
        let mut closing = lock(&CLOSING);
        let Some(file) = closing.0.pop() else {
            closing.1 -= 1;
            return;
        };
        drop(closing);
        drop(file);
    }
}

fn subjects() -> MutexGuard<'static, BTreeMap<String, Progress>> {
    lock(&SUBJECTS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_waited_for_once_until_it_answers() {
        hurry();
        assert_eq!(within("one", || 7), Ok(7));
        let (answer, hang) = mpsc::channel::<()>();
        let hangs = Err(Unanswered::Hangs("the files of shop".to_owned()));
        let work = move || hang.recv().unwrap_or_default();
        assert_eq!(within("the files of shop", work), hangs);
        let again = within("the files of shop", || unreachable!("it hangs"));
        assert_eq!(again, hangs.clone());
        assert_eq!(within("the files of web", || 8), Ok(8), "others do not");
        drop(answer);
        while subjects().contains_key("the files of shop") {
            thread::yield_now();
        }
        assert_eq!(within("the files of shop", || ()), Ok(()));
    }

    #[test]
    fn what_hangs_and_what_is_slow_take_of_the_same_time() {
        let second = Duration::from_secs(1);
        let mut waited = Waited::NOT_YET;
        for time in [6, 6, 7] {
            assert!(waited.limit() >= Some(3 * second), "{waited:?}");
            waited = waited.and(time * second, false);
        }
        assert_eq!(waited.limit(), Some(LONGEST - 19 * second));
        waited = waited.and(second, true);
        assert_eq!(waited.limit(), None);

        WAITED.set(waited);
        let refused = within("the files of shop", || unreachable!("there is no time"));
        assert_eq!(
            refused,
            Err(Unanswered::NoTime("the files of shop".to_owned()))
        );
        renew();
        let begun = Instant::now();
        within("the files of web", || thread::sleep(LEAST)).unwrap();
        let waited = WAITED.get();
        assert!(
            (LEAST..=begun.elapsed()).contains(&waited.in_all),
            "{waited:?}"
        );
        assert_eq!(waited.in_vain, Duration::ZERO);
        renew();
    }

    #[test]
    fn many_that_hang_cost_little_more_than_one() {
        let mut waited = Waited::NOT_YET;
        for _ in 0..MOST_HANGING {
            waited = waited.and(waited.limit().unwrap(), true);
        }
        assert!(waited.in_all < LONGEST, "{waited:?}");
    }

    #[test]
    fn one_thread_asks_for_each_subject_however_many_want_to_know() {
        let (answer, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let begun = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let ask = || {
            let (hang, begun) = (hang.clone(), begun.clone());
            thread::spawn(move || {
                WAITED.set(Waited::NOT_YET.and(BUDGET - 4 * LEAST, true));
                within("the user of all", move || {
                    begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    lock(&hang).recv().unwrap_or_default();
                })
            })
        };
        let all: Vec<_> = std::iter::repeat_with(ask).take(8).collect();
        let hangs = Err(Unanswered::Hangs("the user of all".to_owned()));
        for one in all {
            assert_eq!(one.join().unwrap(), hangs);
        }
        assert_eq!(begun.load(std::sync::atomic::Ordering::Relaxed), 1);
        drop(answer);
    }

    #[test]
    fn each_gets_an_answer_of_its_own_when_its_turn_comes() {
        let ask = |number| thread::spawn(move || within("the user of each", move || number));
        let all: Vec<_> = (0..8).map(ask).collect();
        for (number, one) in all.into_iter().enumerate() {
            assert_eq!(one.join().unwrap(), Ok(number));
        }
    }

    #[test]
    fn foreign_files_are_closed_elsewhere() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        drop(ForeignFile::from(OwnedFd::from(writer)));
        // It ends when the other side is closed.
        std::io::Read::read_to_end(&mut reader, &mut Vec::new()).unwrap();
    }

    #[test]
    fn a_panic_is_no_hang() {
        let failed = within("something", || panic!("no"));
        assert_eq!(
            failed,
            Err::<(), _>(Unanswered::Failed("something".to_owned()))
        );
        assert_eq!(within("something", || 1), Ok(1));
    }
}
