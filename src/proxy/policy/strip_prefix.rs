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
        strip(asked.head, asked.strip)
    }
}

/// Removes this many bytes from the beginning of the path. What is left must not begin with `//`,
/// which some programs take for the address of another host, and must not lead out of the path.
fn strip(head: &mut RequestHead<'_>, count: usize) -> Result<(), Refusal> {
    if count > 0
        && let Some((prefix, mut target)) = head.target.split_at_checked(count)
    {
        while target.starts_with("//") {
            target = &target[1..];
        }
        let segment = target.split(['/', '?']).nth(1).unwrap_or_default();
        if target.starts_with('/') && (segment == ".." || segment.starts_with('\\')) {
            return Err(Refusal::Bad("the path leads out of its prefix"));
        }
        head.prefix = prefix;
        head.target = target;
    }
    Ok(())
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
            strip(&mut head, count).unwrap();
            assert_eq!((head.prefix, head.target), (prefix, target));
        }
    }

    #[test]
    fn what_is_left_leads_neither_to_another_host_nor_out_of_the_path() {
        for (path, left) in [
            ("/shop//evil.example/x", Some("/evil.example/x")),
            ("/shop////", Some("/")),
            ("/shop//?//", Some("/?//")),
            ("/shop/..x", Some("/..x")),
            ("/shop/../x", None),
            ("/shop/..", None),
            ("/shop//..?x", None),
            ("/shop/\\evil.example", None),
        ] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut slots = slots();
            let mut head = RequestHead::parse(head.as_bytes(), &mut slots)
                .unwrap()
                .unwrap();
            let stripped = strip(&mut head, "/shop".len());
            assert_eq!(stripped.ok().map(|()| head.target), left, "{path}");
        }
    }
}
