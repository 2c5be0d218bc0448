//! `hsts`: browsers that use TLS are told to use only TLS from then on (RFC 6797).
//!
//! If the response of an instance has this field already, the field of the instance stays.

use std::sync::Arc;
use std::time::Duration;

use super::rule::{Answered, Asked, Rule};
use crate::ipc::{Handling, Route};
use crate::proxy::http::http1::Refusal;

/// The name of the field, in lower case.
const FIELD: &str = "strict-transport-security";

/// The field line that is added to responses over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hsts {
    line: Arc<str>,
}

impl Rule for Hsts {
    fn compile(handling: &Handling, _: &[Route]) -> Option<Hsts> {
        let line = line(handling.hsts?).into();
        Some(Hsts { line })
    }

    fn on_request(&self, asked: &mut Asked<'_, '_>) -> Result<(), Refusal> {
        asked.memo.over_tls = asked.is_over_tls();
        Ok(())
    }

    fn on_response(&self, answered: &mut Answered<'_, '_>) {
        if answered.memo.over_tls && answered.head.get(FIELD).is_none() {
            answered.out.extend_from_slice(self.line.as_bytes());
        }
    }
}

/// Returns the whole field line, with its CRLF.
fn line(max_age: Duration) -> String {
    format!(
        "Strict-Transport-Security: max-age={}\r\n",
        max_age.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::super::rule::Memo;
    use super::*;
    use crate::proxy::http::http1::{ResponseHead, slots};

    /// Returns what the rule adds to the head of a response.
    fn added(over_tls: bool, head: &str) -> String {
        let line = line(Duration::from_secs(3600)).into();
        let mut slots = slots();
        let head = ResponseHead::parse(head.as_bytes(), false, &mut slots);
        let mut out = Vec::new();
        Hsts { line }.on_response(&mut Answered {
            memo: Memo { over_tls },
            head: &head.unwrap().unwrap(),
            out: &mut out,
        });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_field_is_added_over_tls_unless_the_instance_has_it() {
        let plain = "HTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(
            added(true, plain),
            "Strict-Transport-Security: max-age=3600\r\n"
        );
        assert_eq!(added(false, plain), "");
        let said = "HTTP/1.1 200 OK\r\nstrict-Transport-security: max-age=0\r\n\r\n";
        assert_eq!(added(true, said), "");
    }
}
