//! Sends bytes of our own together with data that still lies in a receive buffer, in one system
//! call.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Poll, ready};

use super::stream::Stream;
use crate::proxy::http::http1::{Encoding, Spans};

/// Up to this many bytes are copied together before they are sent. For more bytes, it is cheaper if
/// the kernel gathers them.
pub(crate) const GATHERED: usize = 16 << 10;

/// Bytes that are ready to be sent: `own[..split]`, the data, `own[split..]`.
pub(crate) struct Sendable<'a> {
    own: &'a [u8],
    split: usize,
    input: &'a [u8],
    data: Spans,
}

impl<'a> Sendable<'a> {
    /// Makes a sendable of these bytes alone.
    pub(crate) fn plain(own: &'a [u8]) -> Sendable<'a> {
        Sendable {
            own,
            split: own.len(),
            input: b"",
            data: Spans::default(),
        }
    }

    /// Makes a sendable of the bytes in `own`, perhaps a head, and of the data in `input`, which is
    /// framed as `encoding` says. If there are `trailers`, even empty ones, the data is the last of
    /// its body.
    pub(crate) fn framed(
        own: &'a mut Vec<u8>,
        encoding: Encoding,
        input: &'a [u8],
        data: Spans,
        trailers: Option<&[u8]>,
    ) -> Sendable<'a> {
        let length = data.len();
        encoding.before(length, own);
        let gathered = own.len() + length <= GATHERED;
        if gathered {
            data.of(input).for_each(|span| own.extend_from_slice(span));
        }
        let split = own.len();
        encoding.after(length, trailers, own);
        Sendable {
            own,
            split,
            input,
            data: if gathered { Spans::default() } else { data },
        }
    }

    /// Returns true if there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.data.is_empty()
    }

    /// Returns true if all bytes are our own, so the receive buffer is not needed.
    pub(crate) fn is_gathered(&self) -> bool {
        self.data.is_empty()
    }

    /// Sends everything. Calls `moved` each time `stream` has taken some bytes.
    pub(crate) async fn send(&self, stream: &Stream, moved: impl Fn()) -> io::Result<()> {
        let total = self.own.len() + self.data.len();
        let mut sent = 0;
        poll_fn(|cx| {
            while sent < total {
                let mut slices = [IoSlice::new(b""); Spans::MOST + 2];
                let count = self.slices_from(sent, &mut slices);
                match ready!(stream.poll_send(cx, &slices[..count]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    taken => sent += taken,
                }
                moved();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Fills in what is left to send after `sent` bytes, and returns the number of slices.
    fn slices_from<'s>(&'s self, sent: usize, slices: &mut [IoSlice<'s>]) -> usize {
        let before = std::iter::once(&self.own[..self.split]);
        let after = std::iter::once(&self.own[self.split..]);
        let mut skip = sent;
        let mut count = 0;
        for part in before.chain(self.data.of(self.input)).chain(after) {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                slices[count] = IoSlice::new(&part[skipped..]);
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::super::socket::Socket;
    use super::*;
    use crate::proxy::http::http1::{Decoder, Framing};

    async fn received(sendable: Sendable<'_>) -> Vec<u8> {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let ours = Stream::from(Socket::opened(ours));
        let mut bytes = Vec::new();
        let sending = async move {
            sendable.send(&ours, || {}).await.unwrap();
            drop(ours);
        };
        let (_, result) = tokio::join!(sending, theirs.read_to_end(&mut bytes));
        result.unwrap();
        bytes
    }

    #[tokio::test]
    async fn everything_arrives_in_order_whether_gathered_or_not() {
        for size in [1, 100, GATHERED, 1 << 20] {
            let piece = vec![b'x'; size];
            let input = [
                format!("{size:x}\r\n").as_bytes(),
                &piece,
                b"\r\n2\r\nyz\r\n0\r\nt: u\r\n\r\n",
            ]
            .concat();
            let mut decoder = Decoder::new(Framing::Chunked);
            let mut spans = Spans::default();
            assert_eq!(decoder.decode(&input, &mut spans), Ok(input.len()));
            let mut own = b"head ".to_vec();
            let trailers = Some(decoder.trailers());
            let sendable = Sendable::framed(&mut own, Encoding::Chunked, &input, spans, trailers);
            let total = size + 2;
            let expected = [
                format!("head {total:x}\r\n").as_bytes(),
                &piece,
                b"yz\r\n0\r\nt: u\r\n\r\n",
            ]
            .concat();
            assert!(received(sendable).await == expected, "{size}");
        }
    }

    #[tokio::test]
    async fn a_plain_end_sends_nothing() {
        let mut own = Vec::new();
        let end = Sendable::framed(
            &mut own,
            Encoding::Plain,
            b"",
            Spans::default(),
            Some(b"t: u\r\n"),
        );
        assert!(end.is_empty());
        assert_eq!(received(end).await, b"");
    }
}
