//! Parks connections that have been idle for a while, so that they need no task.
//!
//! # Theory of operation
//! A task, its timer and its entry in the reactor need much more memory than a connection that only
//! waits. So a connection that has got its responses and stays silent gives them up: its socket
//! goes into the thread's epoll for parked connections, and a single task watches that epoll. When
//! bytes or the end of the stream come, the connection gets a task again, for which its socket is
//! as fresh as an accepted one. A parked connection ends like any other idle one: by its time
//! limit, or by the drain of the worker.
//!
//! The caller decides how a connection gets a task again, and how it is ended ([`Wake`]).

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

use crate::proxy::net::descriptor::SharedDescriptor;
use crate::proxy::net::socket::is_quiet;
use crate::proxy::shared::threads::Open;
use crate::proxy::view::drain::Drain;
use crate::proxy::view::listener::ListenerView;

/// How often the watch looks for connections whose time limit is over.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How many connections get a task again before other tasks of the thread get their turn.
const BATCH: usize = 64;

/// After this many connections were parked, the memory of their tasks is given back to the system.
const TRIM_AFTER: usize = 1000;

/// The parked connections of a thread.
pub(crate) struct Parking {
    epoll: Arc<OwnedFd>,
    parked: RefCell<HashMap<RawFd, Parked>>,
    /// How many connections were parked since memory was given back to the system.
    untrimmed: Cell<usize>,
}

/// A connection without a task.
pub(crate) struct Parked {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Rc<ListenerView>,
    pub(crate) open: Open,
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
        self.parked.borrow_mut().insert(descriptor, parked);
        self.untrimmed.update(|count| count + 1);
        Ok(())
    }

    /// Resumes the connections on which something has come, and closes those whose time limit is
    /// over.
    pub(crate) async fn watch(&self, drain: &Drain, wake: &impl Wake) -> io::Result<()> {
        let ready = SharedDescriptor::register(self.epoll.clone())?;
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut drained = pin!(async {
            let idle_limit = drain.begins().await;
            tokio::time::sleep(idle_limit).await;
        });
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
                    self.end(wake, |_| true);
                }
                _ = looks.tick() => {
                    let now = Instant::now();
                    self.end(wake, |parked| now >= parked.until);
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
        Ok(woken.inspect(|woken| self.forget(woken)).collect())
    }

    /// Closes the connections that are `over`, and resumes those on which something has just come.
    fn end(&self, wake: &impl Wake, over: impl Fn(&Parked) -> bool) {
        let over: Vec<Parked> = {
            let mut parked = self.parked.borrow_mut();
            let over = parked.extract_if(|_, parked| over(parked));
            over.map(|(_, parked)| parked).collect()
        };
        for parked in over {
            self.forget(&parked);
            match is_quiet(&parked.socket) {
                true => wake.close(parked),
                false => wake.resume(parked),
            }
        }
    }

    fn forget(&self, parked: &Parked) {
        // The socket is still open and in the epoll, so this cannot fail.
        let _ = epoll::delete(&self.epoll, &parked.socket);
    }

    /// Gives free memory back to the system. The allocator does not do that by itself while a
    /// single byte behind the free memory is in use.
    fn trim(&self) {
        if self.untrimmed.get() >= TRIM_AFTER {
            self.untrimmed.set(0);
            #[cfg(target_env = "gnu")]
            #[allow(unsafe_code)]
            // SAFETY: malloc_trim has no requirements.
            unsafe {
                nix::libc::malloc_trim(0);
            }
        }
    }
}
