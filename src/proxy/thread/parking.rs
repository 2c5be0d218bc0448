//! Parks connections that have been idle for a while, so that they need no task.
//!
//! # Theory of operation
//! A task, its timer and its entry in the reactor need much more memory than a connection that only
//! waits. So a connection that has got its responses and stays silent gives them up: its socket
//! goes into the thread's epoll for parked connections, and a single task watches that epoll. When
//! bytes or the end of the stream come, the connection gets a task again, for which its socket is
//! as fresh as an accepted one. A parked connection ends like any other idle one: by its time
//! limit, or by the drain of the worker. If there are too many connections, those that have been
//! parked for longest end first ([`Parking::make_room`]).
//!
//! The caller decides how a connection gets a task again, and how it is ended ([`Wake`]).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use tokio::time::Instant;

use crate::ipc::ListenerId;
use crate::proxy::net::descriptor::SharedDescriptor;
use crate::proxy::net::socket::is_quiet;
use crate::proxy::shared::heap;
use crate::proxy::shared::threads::Open;
use crate::proxy::view::drain::Drain;
use crate::proxy::view::listener::ListenerView;
use crate::proxy::view::view::BehindProxy;

/// How often the watch looks for connections whose time limit is over.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How many connections get a task again before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// How many connections are looked at to find the oldest one of a listener.
const MOST_LOOKED_AT: usize = 1024;

/// After this many connections were parked, the memory of their tasks is given back to the system.
const TRIM_AFTER: usize = 1000;

/// The parked connections of a thread.
pub(crate) struct Parking {
    epoll: Arc<OwnedFd>,
    /// The connections with their numbers.
    parked: RefCell<HashMap<RawFd, (u32, Parked)>>,
    /// The parked connections in the order in which they came, by their descriptors and numbers.
    /// Some of them may be gone already.
    order: RefCell<VecDeque<(RawFd, u32)>>,
    /// The number of the next connection.
    next: Cell<u32>,
    /// How many connections were parked since memory was given back to the system.
    untrimmed: Cell<usize>,
}

/// A connection without a task.
pub(crate) struct Parked {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Rc<ListenerView>,
    pub(crate) open: Open,
    pub(crate) behind_proxy: BehindProxy,
    /// True if the client is known to speak HTTP/1.
    pub(crate) speaks_http1: bool,
    /// When the time limit of the idle connection is over.
    pub(crate) until: Instant,
}

/// What the caller does with a connection that leaves the parking.
pub(crate) trait Wake {
    /// Gives a connection a task again, because bytes or the end of the stream have come.
    fn resume(&self, parked: Parked);

    /// Ends a connection whose time limit is over.
    fn close(&self, parked: Parked);
}

impl Parking {
    /// Makes a parking without connections.
    pub(crate) fn new() -> io::Result<Parking> {
        Ok(Parking {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?.into(),
            parked: RefCell::default(),
            order: RefCell::default(),
            next: Cell::default(),
            untrimmed: Cell::new(0),
        })
    }

    /// Returns how many connections are parked.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.parked.borrow().len()
    }

    /// Parks a connection. The connection is returned if the system has no room for it.
    pub(crate) fn park(&self, parked: Parked) -> Result<(), Parked> {
        let descriptor = parked.socket.as_raw_fd();
        let data = epoll::EventData::new_u64(descriptor.cast_unsigned().into());
        let events = epoll::EventFlags::IN;
        if epoll::add(&self.epoll, &parked.socket, data, events).is_err() {
            return Err(parked);
        }
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        self.order.borrow_mut().push_back((descriptor, number));
        self.parked
            .borrow_mut()
            .insert(descriptor, (number, parked));
        self.compact();
        self.untrimmed.update(|count| count + 1);
        Ok(())
    }

    /// Ends the connection that has been parked for longest: of `listener`, or of any listener.
    /// Returns false if there is none.
    pub(crate) fn make_room(&self, wake: &impl Wake, listener: Option<ListenerId>) -> bool {
        let Some(oldest) = self.oldest(listener) else {
            return false;
        };
        let parked = self.parked.borrow_mut().remove(&oldest);
        if let Some((_, parked)) = parked {
            self.end(wake, parked);
        }
        true
    }

    fn oldest(&self, listener: Option<ListenerId>) -> Option<RawFd> {
        let parked = self.parked.borrow();
        let mut order = self.order.borrow_mut();
        while order.front().is_some_and(|place| !is_at(&parked, place)) {
            order.pop_front();
        }
        let is_of_listener = |descriptor: &RawFd| {
            let meant = parked.get(descriptor);
            meant.is_some_and(|(_, meant)| listener.is_none_or(|id| meant.listener.id() == id))
        };
        let mut order = order.iter().take(MOST_LOOKED_AT);
        let found = order.find(|place| is_at(&parked, place) && is_of_listener(&place.0));
        found.map(|(descriptor, _)| *descriptor)
    }

    /// Forgets the places of connections that are gone, once these are more than the others.
    fn compact(&self) {
        let parked = self.parked.borrow();
        let mut order = self.order.borrow_mut();
        if order.len() > parked.len() * 2 + BATCH {
            order.retain(|place| is_at(&parked, place));
        }
    }

    /// Resumes the connections on which something has come, and closes those whose time limit is
    /// over.
    pub(crate) async fn watch(&self, drain: &Drain, wake: &impl Wake) -> io::Result<()> {
        let ready = SharedDescriptor::register(self.epoll.clone())?;
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut drained = pin!(drain.ends_idle());
        let mut is_drained = false;
        loop {
            tokio::select! {
                ready = ready.readable() => {
                    let mut ready = ready?;
                    let woken = self.take_ready()?;
                    if woken.len() < BATCH {
                        ready.clear_ready();
                    }
                    woken.into_iter().for_each(|parked| wake.resume(parked));
                    tokio::task::yield_now().await;
                }
                () = &mut drained, if !is_drained => {
                    is_drained = true;
                    self.end_all(wake, |_| true);
                }
                _ = looks.tick() => {
                    let now = Instant::now();
                    self.end_all(wake, |parked| now >= parked.until);
                    self.trim();
                }
            }
        }
    }

    /// Takes out the connections on which something has come.
    fn take_ready(&self) -> io::Result<Vec<Parked>> {
        let mut events = Vec::with_capacity(BATCH);
        let at_once = Timespec::default();
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once))?;
        let mut parked = self.parked.borrow_mut();
        let descriptors = events.iter().map(|event| event.data.u64() as RawFd);
        let woken = descriptors.filter_map(|descriptor| parked.remove(&descriptor));
        let woken = woken.map(|(_, woken)| woken);
        Ok(woken.inspect(|woken| self.forget(woken)).collect())
    }

    /// Ends the connections that are `over`.
    fn end_all(&self, wake: &impl Wake, over: impl Fn(&Parked) -> bool) {
        let over: Vec<Parked> = {
            let mut parked = self.parked.borrow_mut();
            let over = parked.extract_if(|_, (_, parked)| over(parked));
            over.map(|(_, (_, parked))| parked).collect()
        };
        for parked in over {
            self.end(wake, parked);
        }
    }

    /// Closes a connection, or resumes it if something has just come on it.
    fn end(&self, wake: &impl Wake, parked: Parked) {
        self.forget(&parked);
        match is_quiet(&parked.socket) {
            true => wake.close(parked),
            false => wake.resume(parked),
        }
    }

    fn forget(&self, parked: &Parked) {
        // The socket is still open and in the epoll, so this cannot fail.
        let _ = epoll::delete(&self.epoll, &parked.socket);
    }

    /// Gives free memory back to the system, after many connections were parked.
    fn trim(&self) {
        if self.untrimmed.get() >= TRIM_AFTER {
            self.untrimmed.set(0);
            heap::trim();
        }
    }
}

/// Returns true if the connection that was given this place is still parked.
fn is_at(parked: &HashMap<RawFd, (u32, Parked)>, (descriptor, number): &(RawFd, u32)) -> bool {
    parked.get(descriptor).is_some_and(|(at, _)| at == number)
}
