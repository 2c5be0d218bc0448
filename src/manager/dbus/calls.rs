//! The calls of D-Bus clients that have no answer yet, and how many there may be.
//!
//! zbus starts a task for every call that it reads, and each task builds its answer before the
//! client takes the one before. So what the manager holds for a client is bounded by the number of
//! calls that zbus gets to see. On the private socket, the next call waits in the socket until an
//! earlier one is answered, which slows only the client itself. On a bus, the calls of all senders
//! come through one socket, together with the answers that the manager itself waits for, so nothing
//! may wait there: calls over the limit are refused. A call that would set a property, all of which
//! can only be read, is refused before it takes a place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zbus::Message;
use zbus::message::Type;

use super::complete::is_set;
use super::limits::{CALLS_OF_CONNECTION, CALLS_OF_SENDER, CALLS_ON_BUS};

/// How many refusals wait to be sent. Meanwhile nothing more is read from the bus.
const REFUSALS: usize = 64;

/// The calls on one connection that have no answer yet.
#[derive(Debug)]
pub(super) struct Calls {
    open: Mutex<Vec<OpenCall>>,
    limit: CallLimit,
    /// Calls that are not carried out go to whoever refuses them.
    refuse: mpsc::Sender<Message>,
}

/// A call without an answer.
#[derive(Debug)]
pub(super) struct OpenCall {
    serial: u32,
    /// The sender's name, on a bus.
    sender: Option<String>,
    /// Whether the caller wants to have the answer.
    pub(super) is_answered: bool,
    _places: Vec<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum CallLimit {
    /// A call waits for a place in each of these.
    Wait(Vec<Arc<Semaphore>>),
    /// Calls over the limit are refused.
    Refuse,
}

impl Calls {
    /// Counts the calls of a client on the private socket. `shared` are the places that the client
    /// shares with others. The calls to be refused come out of the receiver.
    pub(super) fn of_client(shared: [Arc<Semaphore>; 2]) -> (Calls, mpsc::Receiver<Message>) {
        let own = Arc::new(Semaphore::new(CALLS_OF_CONNECTION));
        let places = [own].into_iter().chain(shared).collect();
        Calls::new(CallLimit::Wait(places), 1)
    }

    /// Counts the calls on a bus. The calls to be refused come out of the receiver.
    pub(super) fn on_bus() -> (Calls, mpsc::Receiver<Message>) {
        Calls::new(CallLimit::Refuse, REFUSALS)
    }

    fn new(limit: CallLimit, refusals: usize) -> (Calls, mpsc::Receiver<Message>) {
        let (refuse, refused) = mpsc::channel(refusals);
        let calls = Calls {
            open: Mutex::default(),
            limit,
            refuse,
        };
        (calls, refused)
    }

    fn open(&self) -> MutexGuard<'_, Vec<OpenCall>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the call may be carried out. Returns false if it is refused. Messages that are
    /// no calls need no place.
    pub(super) async fn admit(&self, message: &Message, is_answered: bool) -> bool {
        if message.message_type() != Type::MethodCall {
            return true;
        }
        if is_set(message) {
            return self.refuse(message, is_answered).await;
        }
        let header = message.header();
        let mut call = OpenCall {
            serial: message.primary_header().serial_num().get(),
            sender: header.sender().map(|sender| sender.to_string()),
            is_answered,
            _places: Vec::new(),
        };
        match &self.limit {
            CallLimit::Wait(places) => {
                for place in places {
                    match place.clone().acquire_owned().await {
                        Ok(place) => call._places.push(place),
                        Err(_) => return false,
                    }
                }
                self.open().push(call);
            }
            CallLimit::Refuse => {
                if !self.open_on_bus(call) {
                    return self.refuse(message, is_answered).await;
                }
            }
        }
        true
    }

    /// Has a call refused. Returns false.
    async fn refuse(&self, call: &Message, is_answered: bool) -> bool {
        if is_answered {
            // Nobody takes refusals any more if the connection ends.
            let _ = self.refuse.send(call.clone()).await;
        }
        false
    }

    /// Counts a call on a bus, unless its sender or all senders have too many.
    fn open_on_bus(&self, call: OpenCall) -> bool {
        let mut open = self.open();
        let of_sender = open.iter().filter(|other| other.sender == call.sender);
        let is_admitted = of_sender.count() < CALLS_OF_SENDER && open.len() < CALLS_ON_BUS;
        if is_admitted {
            open.push(call);
        }
        is_admitted
    }

    /// Returns the call that this message answers. The call keeps its places until it is dropped.
    pub(super) fn answered_by(&self, message: &Message) -> Option<OpenCall> {
        if !matches!(message.message_type(), Type::MethodReturn | Type::Error) {
            return None;
        }
        let header = message.header();
        let serial = header.reply_serial()?.get();
        let sender = header.destination().map(|name| name.to_string());
        let mut open = self.open();
        let is_it = |call: &OpenCall| call.serial == serial && call.sender == sender;
        let index = open.iter().position(is_it)?;
        Some(open.swap_remove(index))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;

    use futures_util::FutureExt;

    use super::super::complete::PROPERTIES;
    use super::*;

    fn call(sender: Option<&str>) -> Message {
        let message = Message::method_call("/", "Ping");
        let message = match sender {
            Some(sender) => message.sender(sender),
            None => message,
        };
        message.build(&()).unwrap()
    }

    async fn is_done(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_ready()))
            .await
    }

    fn answer(call: &Message) -> Message {
        Message::method_return(&call.header()).build(&()).unwrap()
    }

    #[tokio::test]
    async fn a_client_waits_for_its_answers_and_a_user_for_those_of_all_its_clients() {
        let shared = [5, 100].map(|places| Arc::new(Semaphore::new(places)));
        let [(one, mut refused), (other, _)] = [0; 2].map(|_| Calls::of_client(shared.clone()));
        let calls: Vec<Message> = (0..CALLS_OF_CONNECTION).map(|_| call(None)).collect();
        for call in &calls {
            assert!(one.admit(call, true).await);
        }
        let set = Message::method_call("/", "Set").interface(PROPERTIES);
        assert!(
            !one.admit(&set.build(&("a.b", "State")).unwrap(), true)
                .await
        );
        assert!(refused.try_recv().is_ok());
        let fifth = call(None);
        let mut waiting = Box::pin(one.admit(&fifth, true));
        assert!(!is_done(&mut waiting).await);
        let sixth = call(None);
        assert!(other.admit(&sixth, true).await);
        let seventh = call(None);
        let mut others = Box::pin(other.admit(&seventh, true));
        assert!(!is_done(&mut others).await);
        let answered = one.answered_by(&answer(&calls[2])).expect("it is open");
        assert!(!is_done(&mut waiting).await);
        drop(answered);
        assert!(one.answered_by(&answer(&calls[2])).is_none());
        drop(one.answered_by(&answer(&calls[0])));
        let done = [is_done(&mut waiting).await, is_done(&mut others).await];
        assert!(done.contains(&true));
        drop((waiting, others));
        drop((one, other));
        assert_eq!(shared.map(|places| places.available_permits()), [5, 100]);
    }

    #[tokio::test]
    async fn a_sender_on_the_bus_is_refused_and_the_others_are_not() {
        let (calls, mut refused) = Calls::on_bus();
        let first = call(Some(":1.7"));
        assert!(calls.admit(&first, true).await);
        for _ in 1..CALLS_OF_SENDER {
            assert!(calls.admit(&call(Some(":1.7")), true).await);
        }
        assert!(!calls.admit(&call(Some(":1.7")), true).await);
        assert!(!calls.admit(&call(Some(":1.7")), false).await);
        assert!(calls.admit(&call(Some(":1.8")), true).await);
        assert!(refused.try_recv().is_ok());
        assert!(refused.try_recv().is_err(), "one wants no answer");
        drop(calls.answered_by(&answer(&first)));
        assert!(calls.admit(&call(Some(":1.7")), true).await);
        for number in 0..2 * CALLS_ON_BUS {
            let sender = format!(":1.{}", 100 + number);
            calls.admit(&call(Some(&sender)), false).await;
        }
        assert_eq!(calls.open().len(), CALLS_ON_BUS);
        // Who wants an answer gets one, and the others wait meanwhile.
        let over = call(Some(":1.7"));
        for _ in 0..REFUSALS {
            assert_eq!(calls.admit(&over, true).now_or_never(), Some(false));
        }
        assert_eq!(calls.admit(&over, true).now_or_never(), None);
        assert!(refused.try_recv().is_ok());
        assert_eq!(calls.admit(&over, true).now_or_never(), Some(false));
    }
}
