//! Where connections wait that have been idle for a while, without a task for each.
//!
//! # Theory of operation
//! A task, its timer and the reactor's entry take many times what has to be known of a connection that only waits. So one
//! that has got its answers and stays silent gives them up: its socket goes into an epoll that the thread has for such,
//! and a single task watches that. When something comes, be it the end, the connection gets a task again, to which its
//! socket is as fresh as an accepted one. What ends an idle connection ends a parked one: its limit, and the drain of the
//! worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
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

use super::listener::Listener;
use super::thread::Thread;
use super::threads::Open;
use crate::proxy::net::descriptor::SharedDescriptor;
use crate::proxy::net::socket::is_quiet;

/// So much of its limit a connection keeps its task: most requests of a browser follow one another closely.
pub(crate) const PARK_AFTER: Duration = Duration::from_secs(2);

/// How often it is looked whose time is over.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Connections that become active in one go before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// The tasks of so many are worth being given back to the system.
const TRIM_AFTER: usize = 1000;

/// The parked connections of a thread.
pub(crate) struct Parking {
    epoll: Arc<OwnedFd>,
    parked: RefCell<HashMap<RawFd, Parked>>,
    /// How many were parked since memory was given back.
    untrimmed: Cell<usize>,
}

/// A connection without a task.
pub(crate) struct Parked {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Rc<Listener>,
    pub(crate) open: Open,
    /// When it has been idle for long enough.
    pub(crate) until: Instant,
}

impl Parking {
    pub(crate) fn new() -> io::Result<Parking> {
        Ok(Parking {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?.into(),
            parked: RefCell::default(),
            untrimmed: Cell::new(0),
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.parked.borrow().len()
    }

    /// Gives the connection back if the system has no room for it.
    pub(crate) fn park(&self, parked: Parked) -> Result<(), Parked> {
        let descriptor = parked.socket.as_raw_fd();
        let data = epoll::EventData::new_u64(descriptor.cast_unsigned().into());
        let events = epoll::EventFlags::IN;
        if epoll::add(&self.epoll, &parked.socket, data, events).is_err() {
            return Err(parked);
        }
        self.parked.borrow_mut().insert(descriptor, parked);
        self.untrimmed.update(|count| count + 1);
        Ok(())
    }

    /// Gives those a task again to which something has come, and ends those whose time is over.
    pub(crate) async fn watch(&self, thread: &Rc<Thread>) -> io::Result<()> {
        let ready = SharedDescriptor::register(self.epoll.clone())?;
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut drained = pin!(thread.drain_idle());
        let mut is_drained = false;
        loop {
            tokio::select! {
                ready = ready.readable() => {
                    let mut ready = ready?;
                    let woken = self.take_ready()?;
                    if woken.len() < BATCH {
                        ready.clear_ready();
                    }
                    woken.into_iter().for_each(|parked| thread.resume(parked));
                    tokio::task::yield_now().await;
                }
                () = &mut drained, if !is_drained => {
                    is_drained = true;
                    self.end(thread, |_| true);
                }
                _ = looks.tick() => {
                    let now = Instant::now();
                    self.end(thread, |parked| now >= parked.until);
                    self.trim();
                }
            }
        }
    }

    /// Those to which something has come.
    fn take_ready(&self) -> io::Result<Vec<Parked>> {
        let mut events = Vec::with_capacity(BATCH);
        let at_once = Timespec::default();
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once))?;
        let mut parked = self.parked.borrow_mut();
        let descriptors = events.iter().map(|event| event.data.u64() as RawFd);
        let woken = descriptors.filter_map(|descriptor| parked.remove(&descriptor));
        Ok(woken.inspect(|woken| self.forget(woken)).collect())
    }

    /// Ends those that are `over`, unless something has just come.
    fn end(&self, thread: &Rc<Thread>, over: impl Fn(&Parked) -> bool) {
        let over: Vec<Parked> = {
            let mut parked = self.parked.borrow_mut();
            let over = parked.extract_if(|_, parked| over(parked));
            over.map(|(_, parked)| parked).collect()
        };
        for parked in over {
            self.forget(&parked);
            match is_quiet(&parked.socket) {
                true => thread.close(parked),
                false => thread.resume(parked),
            }
        }
    }

    fn forget(&self, parked: &Parked) {
        // It is there, since it was added and its socket is open.
        let _ = epoll::delete(&self.epoll, &parked.socket);
    }

    /// Gives memory back to the system, which the allocator does not do by itself while a single byte behind is in use.
    fn trim(&self) {
        if self.untrimmed.get() >= TRIM_AFTER {
            self.untrimmed.set(0);
            #[cfg(target_env = "gnu")]
            #[allow(unsafe_code)]
            // SAFETY: it has no requirements.
            unsafe {
                libc::malloc_trim(0);
            }
        }
    }
}
