//! The id of a request, by which a person finds it again: the instance gets it in `X-Request-Id`,
//! messages name it, and so does a response of smoothserve's own.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

/// The most bytes of an id that a trusted proxy has chosen.
const LONGEST: usize = 128;

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestId {
    /// Made here: 128 bits as hexadecimal digits.
    Own([u8; 32]),
    /// Chosen by a trusted proxy.
    Kept(Box<[u8]>),
}

thread_local! {
    /// The state from which the next ids of this thread are made.
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
}

impl RequestId {
    /// Makes an id that no other request has. It is no secret: whoever knows some ids could tell
    /// others.
    pub(crate) fn new() -> RequestId {
        let number = u128::from(next()) << 64 | u128::from(next());
        let mut digits = [0; 32];
        for (pair, byte) in digits
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(number.to_be_bytes())
        {
            *pair = PAIRS[usize::from(byte)];
        }
        RequestId::Own(digits)
    }

    /// Keeps the id that a trusted proxy has sent; `None` if it is empty, too long, or has bytes
    /// that could mean something in a line of a log.
    pub(crate) fn keep(value: &[u8]) -> Option<RequestId> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@~".contains(byte);
        let fits = (1..=LONGEST).contains(&value.len()) && value.iter().all(is_plain);
        fits.then(|| RequestId::Kept(value.into()))
    }

    /// Returns the id as it is sent.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            RequestId::Own(digits) => digits,
            RequestId::Kept(bytes) => bytes,
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.as_bytes()).fmt(out)
    }
}

/// Returns the next number of this thread. Each state gives another number (SplitMix64).
fn next() -> u64 {
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The two hexadecimal digits of each byte.
static PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_ids_are_the_same() {
        let make = || {
            let ids = (0..10_000).map(|_| RequestId::new().to_string());
            ids.collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(make)).collect();
        let ids = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        let ids: HashSet<String> = ids.collect();
        assert_eq!(ids.len(), 40_000);
        let is_id = |id: &String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(ids.iter().all(is_id));
    }

    #[test]
    fn an_id_is_kept_only_if_it_is_plain() {
        for id in [
            "a",
            "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
            "Root=1-5e/x:y+z@a~b.c_d",
        ] {
            let kept = RequestId::keep(id.as_bytes()).unwrap();
            assert_eq!(kept.to_string(), id);
        }
        for id in [
            "",
            "a b",
            "a\"b",
            "a,b",
            "\u{e4}",
            "<x>",
            "a\tb",
            &"a".repeat(129),
        ] {
            assert_eq!(RequestId::keep(id.as_bytes()), None, "{id}");
        }
    }
}
