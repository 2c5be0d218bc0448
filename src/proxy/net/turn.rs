//! Taking turns: all tasks that are ready receive before the first of them sends.
//!
//! # Theory of operation
//! Sending wakes whoever waits for it, and to wake somebody on another core is the dearest part of
//! a small message; receiving from a unix socket wakes the sender, too, to tell it of the room.
//! Somebody who is awake already costs nothing. So a task that has received does not send at once,
//! but goes to the end of the queue: the others' messages are received meanwhile, and when then one
//! after the other is sent, most find their receiver awake, with more to do before it sleeps again.

use std::future::poll_fn;
use std::task::Poll;

/// Tasks that run between two looks of the reactor at the sockets: enough for all of a burst to
/// receive and to send.
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
