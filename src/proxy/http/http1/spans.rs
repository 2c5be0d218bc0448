//! What decoding a body returns: the ranges of the input that hold data, or an error.

use std::ops::Range;

/// Why bytes are not a body with the announced framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    /// A chunk size, an extension or a line end between chunks breaks the grammar.
    #[error("malformed chunk")]
    Chunk,
    /// The trailer section breaks the grammar, or is too long.
    #[error("malformed trailers")]
    Trailers,
    /// The connection has ended before the body did.
    #[error("the body ended early")]
    Incomplete,
}

/// The ranges of an input that hold data. There are few enough that one `writev` can send them all.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    ranges: [(u32, u32); Spans::MOST],
    count: usize,
    length: usize,
}

impl Spans {
    /// How many ranges one `Spans` can hold.
    pub(crate) const MOST: usize = 16;

    /// Notes a range of data. Returns false, and notes nothing, if there is no room for another
    /// range.
    pub(super) fn push(&mut self, start: usize, length: usize) -> bool {
        if length == 0 {
            return true;
        }
        let Some(slot) = self.ranges.get_mut(self.count) else {
            return false;
        };
        // A piece of input is a buffer of at most some hundred KiB.
        let range = (u32::try_from(start), u32::try_from(length));
        let (Ok(start), Ok(length)) = range else {
            return false;
        };
        *slot = (start, length);
        self.count += 1;
        self.length += length as usize;
        true
    }

    /// Returns spans that are full already, so that a decoder stops at the first byte of data.
    pub(crate) fn full() -> Spans {
        Spans {
            count: Spans::MOST,
            ..Spans::default()
        }
    }

    /// Returns the number of bytes of data in all ranges.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Returns true if the input holds no data.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the data, range by range. `input` must be the input that was decoded.
    pub(crate) fn of<'a>(&self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.ranges[..self.count].iter().map(|&(start, length)| {
            let range: Range<usize> = start as usize..(start + length) as usize;
            &input[range]
        })
    }
}
