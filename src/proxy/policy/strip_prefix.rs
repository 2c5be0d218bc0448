//! `strip_prefix`: an instance does not get the beginning of the path, by which its service was
//! found.
//!
//! The route of each request says how many bytes are stripped. The instance learns the stripped
//! prefix by `X-Forwarded-Prefix`.

use super::rule::{Asked, Rule};
use crate::ipc::{Handling, Route};
use crate::proxy::http::http1::{Refusal, RequestHead};

/// The rule of a service in which at least one route strips a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StripPrefix;

impl Rule for StripPrefix {
    fn compile(_: &Handling, routes: &[Route]) -> Option<StripPrefix> {
        let strips = routes.iter().any(|route| route.strip > 0);
        strips.then_some(StripPrefix)
    }

    fn on_request(&self, asked: &mut Asked<'_, '_>) -> Result<(), Refusal> {
        strip(asked.head, asked.strip);
        Ok(())
    }
}

/// Removes this many bytes from the beginning of the path.
fn strip(head: &mut RequestHead<'_>, count: usize) {
    if count > 0
        && let Some((prefix, target)) = head.target.split_at_checked(count)
    {
        head.prefix = prefix;
        head.target = target;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http::http1::slots;

    #[test]
    fn the_prefix_is_taken_from_the_target_and_kept() {
        for (count, prefix, target) in [
            (0, "", "/shop/x?y"),
            (5, "/shop", "/x?y"),
            (7, "/shop/x", "?y"),
            (9, "/shop/x?y", ""),
            (10, "", "/shop/x?y"),
        ] {
            let mut slots = slots();
            let head = b"GET /shop/x?y HTTP/1.1\r\nHost: a\r\n\r\n";
            let mut head = RequestHead::parse(head, &mut slots).unwrap().unwrap();
            strip(&mut head, count);
            assert_eq!((head.prefix, head.target), (prefix, target));
        }
    }
}
