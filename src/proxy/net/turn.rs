//! Taking turns: all tasks that are ready receive before the first of them sends, and what moves
//! many bytes does not hold up the others.
//!
//! # Theory of operation
//! Sending wakes the task that waits for the bytes, and waking a task on another core is the most
//! expensive part of a small message. Receiving from a unix socket also wakes the sender, to tell
//! it that there is room. A task that is already awake costs nothing to wake. So a task that has
//! received does not send at once, but goes to the end of the queue: meanwhile the other tasks
//! receive their messages. When the tasks then send one after the other, most receivers are still
//! awake, and have more to do before they sleep again.
//!
//! A task that moves a large body could go on as long as its peers are fast, and a request takes
//! several rounds of the queue. So a task that has had its [`BodyShare`] waits until it gets a
//! place, and few tasks have one in each round. However many large bodies there are, a round stays
//! short, and they are as fast together as one alone. Reading HTTP/2 takes places as well.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Semaphore;

/// How many tasks run before the reactor looks at the sockets again: enough that all tasks of a
/// burst can receive and send.
pub(crate) const TASKS_BETWEEN_LOOKS: u32 = 128;

/// Lets all other tasks of this thread that are ready run first.
pub(crate) async fn pass() {
    let mut passed = false;
    poll_fn(|cx| {
        if passed {
            return Poll::Ready(());
        }
        passed = true;
        // Unlike the runtime's own way to yield, this does not make it look at the sockets first.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How many bytes of a body a task may move until others get their turn.
const SHARE: usize = 256 << 10;

/// How many bytes a piece of a body counts at least. A body may come in chunks of a byte.
const LEAST_PIECE: usize = 1 << 10;

/// How many tasks that have had their share go on in one round.
pub(crate) const PLACES: u32 = 4;

thread_local! {
    static ROUND: Arc<Semaphore> = Arc::new(Semaphore::new(PLACES as usize));
}

/// What a task may move of a body before it lets others go first.
pub(crate) struct BodyShare {
    left: usize,
}

impl BodyShare {
    /// Makes a share of which nothing is used.
    pub(crate) fn new() -> BodyShare {
        BodyShare { left: SHARE }
    }

    /// Notes that a piece of so many bytes was moved. Lets others go first if that was the rest of
    /// the share.
    pub(crate) async fn used(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes.max(LEAST_PIECE));
        if self.left == 0 {
            Box::pin(wait_for_turn(1)).await;
            self.left = SHARE;
        }
    }
}

/// Waits for so many places in a round, at most [`PLACES`]. Then all tasks that are ready run
/// first, and those for which the reactor finds something: with [`pass`], it would look only after
/// many large pieces.
pub(crate) async fn wait_for_turn(places: u32) {
    let places = ROUND.with(Arc::clone).acquire_many_owned(places).await;
    tokio::task::yield_now().await;
    drop(places);
}

/// Returns how many places of a round nobody has.
#[cfg(test)]
pub(super) fn free_places() -> usize {
    ROUND.with(|round| round.available_permits())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use tokio::runtime::LocalOptions;
    use tokio::task::{JoinSet, LocalSet};

    use super::*;

    #[test]
    fn all_receive_before_the_first_sends() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mut tasks = JoinSet::new();
            for _ in 0..3 {
                let order = order.clone();
                tasks.spawn_local(async move {
                    order.borrow_mut().push("receive");
                    pass().await;
                    order.borrow_mut().push("send");
                });
            }
            while tasks.join_next().await.is_some() {}
        });
        let expected = ["receive", "receive", "receive", "send", "send", "send"];
        assert_eq!(*order.borrow(), expected);
    }

    /// Many tasks move large bodies. One that takes a few rounds for little sees no more than the
    /// places of each round move on meanwhile, and all bodies are moved in the end.
    #[test]
    fn few_of_those_that_move_much_go_on_in_a_round() {
        const BODIES: usize = 100;
        const PIECES: usize = 10;
        const ROUNDS: usize = 5;
        let moved = Rc::new(Cell::new(0));
        // A runtime like that of a data thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build_local(LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let mut bodies = JoinSet::new();
            for _ in 0..BODIES {
                let moved = moved.clone();
                bodies.spawn_local(async move {
                    let mut share = BodyShare::new();
                    for _ in 0..PIECES {
                        moved.set(moved.get() + 1);
                        share.used(SHARE).await;
                    }
                });
            }
            let seen = moved.clone();
            let other = tokio::task::spawn_local(async move {
                // All others have begun.
                let before = seen.get();
                for _ in 0..ROUNDS {
                    tokio::task::yield_now().await;
                }
                (before, seen.get() - before)
            });
            let (before, meanwhile) = other.await.unwrap();
            assert_eq!(before, BODIES);
            // Those that have places already go on as well.
            let most = PLACES as usize * (ROUNDS + 1);
            assert!(meanwhile <= most, "{meanwhile}");
            while bodies.join_next().await.is_some() {}
            assert_eq!(moved.get(), BODIES * PIECES);
        });
    }

    #[test]
    fn small_pieces_use_up_a_share_as_well() {
        let mut share = BodyShare::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            for _ in 1..SHARE / LEAST_PIECE {
                share.used(1).await;
            }
            assert_eq!(share.left, LEAST_PIECE);
            share.used(1).await;
            assert_eq!(share.left, SHARE);
        });
    }
}
