//! Taking turns: all tasks that are ready receive before the first of them sends.
//!
//! # Theory of operation
//! Sending wakes the task that waits for the bytes, and waking a task on another core is the most
//! expensive part of a small message. Receiving from a unix socket also wakes the sender, to tell
//! it that there is room. A task that is already awake costs nothing to wake. So a task that has
//! received does not send at once, but goes to the end of the queue: meanwhile the other tasks
//! receive their messages. When the tasks then send one after the other, most receivers are still
//! awake, and have more to do before they sleep again.

use std::future::poll_fn;
use std::task::Poll;

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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

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
}
