//! The time of day as the `Date` of a response tells it.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

thread_local! {
    /// The second since 1970 that was last written on this thread, and its text.
    static WRITTEN: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Writes a `Date` field with the present time. The text is made once for each second and thread.
pub(crate) fn put_date(out: &mut Vec<u8>) {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // A clock that stands before 1970 is wrong anyway.
    put_date_of(since_1970.unwrap_or_default().as_secs(), out);
}

fn put_date_of(second: u64, out: &mut Vec<u8>) {
    WRITTEN.with_borrow_mut(|(of, text)| {
        if *of != second || text.is_empty() {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            (*of, *text) = (second, httpdate::fmt_http_date(time));
        }
        for part in ["Date: ", text, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_its_second() {
        for (second, expected) in [
            (0, "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"),
            (784_111_777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
            (784_111_777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
            (784_111_778, "Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n"),
            (784_111_777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        ] {
            let mut out = Vec::new();
            put_date_of(second, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
