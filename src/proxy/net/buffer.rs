//! Received bytes, and the memory for them.
//!
//! # Theory of operation
//! A buffer owns memory only while it holds bytes: the memory is taken from the thread's pool when
//! a socket has become readable, and goes back when the last byte is consumed. So a connection that
//! waits holds no memory, whatever it waits for. Most reads need little memory. A buffer that the
//! last read has filled completely takes a large piece for the next read, as long as the thread
//! does not use too many large pieces, so that many slow streams cannot take much memory.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll, ready};

/// A source of bytes. Its reader needs memory only once bytes have come.
pub(crate) trait Receive {
    /// Ready when [`poll_receive`](Receive::poll_receive) may find something.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads the bytes that have come; 0 at the end of the source.
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
}

/// Bytes of a page of memory.
const PAGE: usize = 4 << 10;

/// Bytes of a small piece of memory: enough for nearly all heads, and for many bodies with them.
const SMALL: usize = 16 << 10;

/// Bytes of a large piece of memory: copying them costs much more than the system call.
const LARGE: usize = 128 << 10;

/// How many unused small pieces of memory a thread keeps.
const MOST_SMALL_KEPT: usize = 64;

/// How many unused large pieces of memory a thread keeps.
const MOST_LARGE_KEPT: usize = 16;

/// How many large pieces of memory a thread uses at the same time.
const MOST_LARGE_USED: usize = 64;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

/// A piece of memory that begins where a page does. Processors with a fast `rep movs` can take
/// twice as long to copy to a place a few bytes into a page, which is where an allocator likes to
/// put large pieces.
///
/// A new small piece is ready for use in its first page alone, for most heads need no more: memory
/// that nobody has written to costs the machine nothing, and the allocator may write to all of a
/// piece of this size when it is asked for zeros. Large pieces come from the kernel, which knows
/// them to be zero.
#[derive(Default)]
struct Memory {
    /// The part that is ready for use, behind what comes before the first whole page. It has room
    /// for the whole piece; it is empty if there is no piece.
    allocated: Vec<u8>,
}

impl Memory {
    fn small() -> Memory {
        let mut memory = Memory {
            allocated: Vec::with_capacity(SMALL + PAGE),
        };
        memory.make_ready(PAGE);
        memory
    }

    fn large() -> Memory {
        let mut memory = Memory {
            allocated: vec![0; LARGE + PAGE],
        };
        memory.allocated.truncate(memory.start() + LARGE);
        memory
    }

    /// Returns where the piece begins in what was allocated. The allocation never moves, since all
    /// of the piece was asked for at the start.
    fn start(&self) -> usize {
        match self.allocated.capacity() {
            0 => 0,
            _ => self.allocated.as_ptr().align_offset(PAGE).min(PAGE),
        }
    }

    /// Returns the bytes of the whole piece, ready or not; 0 if there is no piece.
    fn length(&self) -> usize {
        match self.allocated.capacity() {
            0 => 0,
            capacity if capacity < LARGE => SMALL,
            _ => LARGE,
        }
    }

    /// Makes this many bytes of the piece ready for use.
    fn make_ready(&mut self, length: usize) {
        self.allocated.resize(self.start() + length, 0);
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.allocated[self.start()..]
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.allocated[start..]
    }
}

/// The unused pieces of memory of a thread.
struct Pool {
    small: Vec<Memory>,
    large: Vec<Memory>,
    large_used: usize,
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            small: Vec::new(),
            large: Vec::new(),
            large_used: 0,
        }
    }

    fn small(&mut self) -> Memory {
        self.small.pop().unwrap_or_else(Memory::small)
    }

    fn large(&mut self) -> Memory {
        self.large_used += 1;
        self.large.pop().unwrap_or_else(Memory::large)
    }

    fn put_back(&mut self, memory: Memory) {
        if memory.length() == LARGE {
            self.large_used -= 1;
            if self.large.len() < MOST_LARGE_KEPT {
                self.large.push(memory);
            }
        } else if memory.length() == SMALL && self.small.len() < MOST_SMALL_KEPT {
            self.small.push(memory);
        }
    }
}

/// Bytes that were received and not yet consumed.
#[derive(Default)]
pub(crate) struct Buffer {
    /// The memory that holds the unread bytes; an empty buffer has none.
    memory: Memory,
    start: usize,
    end: usize,
    /// The last read has filled the memory, so there may be more to read.
    full: bool,
}

impl Buffer {
    /// Returns true if there are no unread bytes.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns the bytes that were received and not yet consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// Returns the same bytes, to be changed.
    pub(crate) fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.end]
    }

    /// Returns how many bytes of memory the buffer has.
    pub(crate) fn size(&self) -> usize {
        self.memory.length()
    }

    /// Drops this many unread bytes, which are done with.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
        if self.is_empty() {
            self.release();
        }
    }

    /// Reads what `source` has, and appends it to the unread bytes. Resolves to 0 at the end of
    /// `source`.
    pub(crate) async fn fill(&mut self, source: &impl Receive) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(source, cx)).await
    }

    /// Polls what [`fill`](Buffer::fill) awaits.
    pub(crate) fn poll_fill(
        &mut self,
        source: &impl Receive,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_up_to(usize::MAX, source, cx)
    }

    /// Polls what [`fill`](Buffer::fill) awaits, and reads at most `most` bytes, which are not 0.
    pub(crate) fn poll_fill_up_to(
        &mut self,
        most: usize,
        source: &impl Receive,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(source.poll_read_ready(cx))?;
        self.make_room();
        let room = self.memory.len() - self.end;
        let end = self.end + room.min(most);
        let read = source.poll_receive(cx, &mut self.memory[self.end..end]);
        if let Poll::Ready(Ok(count)) = read {
            self.end += count;
            self.full = self.end == self.memory.length();
        }
        if self.is_empty() {
            self.release();
        }
        read
    }

    fn make_room(&mut self) {
        if self.is_empty() {
            self.release();
            self.memory = POOL.with_borrow_mut(|pool| match self.full {
                true if pool.large_used < MOST_LARGE_USED => pool.large(),
                _ => pool.small(),
            });
        } else if self.end == self.memory.len() && self.end < self.memory.length() {
            self.memory.make_ready(SMALL);
        } else if self.end == self.memory.len() {
            let unread = self.end - self.start;
            if self.start > 0 {
                self.memory.copy_within(self.start..self.end, 0);
            } else {
                // Only the bytes of a head are not consumed as they come. A head is shorter than a
                // large piece, and a head that does not fit into a small piece is rare, so this
                // buffer may always have a large one.
                debug_assert_eq!(self.memory.length(), SMALL);
                let mut larger = POOL.with_borrow_mut(Pool::large);
                larger[..unread].copy_from_slice(self.unread());
                self.release();
                self.memory = larger;
            }
            (self.start, self.end) = (0, unread);
        }
    }

    fn release(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        (self.start, self.end) = (0, 0);
        if !memory.is_empty() {
            // When the thread ends, the pool may be gone before its last connections.
            let _ = POOL.try_with(|pool| pool.borrow_mut().put_back(memory));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;

    impl Receive for UnixStream {
        fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            UnixStream::poll_read_ready(self, cx)
        }

        fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            loop {
                ready!(UnixStream::poll_read_ready(self, cx))?;
                match self.try_read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            }
        }
    }

    #[tokio::test]
    async fn memory_is_held_only_while_there_are_bytes() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut buffer = Buffer::default();
        let waits = poll_fn(|cx| Poll::Ready(buffer.poll_fill(&ours, cx).is_pending())).await;
        assert!(waits && buffer.memory.is_empty());
        theirs.write_all(b"hello").await.unwrap();
        assert_eq!(buffer.fill(&ours).await.unwrap(), 5);
        assert_eq!(buffer.unread(), b"hello");
        buffer.consume(2);
        assert_eq!(buffer.unread(), b"llo");
        buffer.consume(3);
        assert!(buffer.memory.is_empty());
        drop(theirs);
        assert_eq!(buffer.fill(&ours).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_new_small_piece_is_made_ready_as_it_is_needed() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(&[1; PAGE + 1]).await.unwrap();
        let mut buffer = Buffer::default();
        assert_eq!(buffer.fill(&ours).await.unwrap(), PAGE);
        assert!(!buffer.full);
        assert_eq!(buffer.fill(&ours).await.unwrap(), 1);
        assert_eq!(buffer.memory.len(), SMALL);
        assert_eq!(buffer.unread(), &[1; PAGE + 1]);
    }

    #[tokio::test]
    async fn bytes_survive_the_growth_of_a_buffer() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..40 << 10).map(|n: u32| n as u8).collect();
        let copy = sent.clone();
        let sending = async move { theirs.write_all(&copy).await.unwrap() };
        let receiving = async {
            let mut buffer = Buffer::default();
            buffer.fill(&ours).await.unwrap();
            buffer.consume(7);
            while 7 + buffer.unread().len() < sent.len() {
                buffer.fill(&ours).await.unwrap();
            }
            assert_eq!(buffer.unread(), &sent[7..]);
        };
        tokio::join!(sending, receiving);
        assert_eq!(POOL.with_borrow(|pool| pool.large_used), 0);
    }
}
