//! `redirect_https`: a client that does not use TLS is redirected to the same address over TLS.

use super::denial::Denial;
use super::rule::{Asked, Rule};
use crate::ipc::{Handling, Route};
use crate::proxy::http::http1::{Refusal, RequestHead};

/// The default port of HTTPS, which an address need not name.
const HTTPS_PORT: u16 = 443;

/// The TLS port that clients without TLS are redirected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RedirectToTls {
    port: u16,
}

impl Rule for RedirectToTls {
    fn compile(handling: &Handling, _: &[Route]) -> Option<RedirectToTls> {
        handling.redirect_https.map(|port| RedirectToTls { port })
    }

    fn on_request(&self, asked: &mut Asked<'_, '_>) -> Result<(), Refusal> {
        if !asked.is_over_tls() {
            let location = location(asked.head, self.port)?;
            asked.deny(Denial {
                status: 308,
                reason: "Permanent Redirect",
                field: Some(("Location", location)),
                text: "This page is available only over HTTPS.\n",
                why: "the request came without TLS, and redirect_https is set",
            });
        }
        Ok(())
    }
}

/// Returns the address that the client has asked for, with `https` and this port.
fn location(head: &RequestHead<'_>, port: u16) -> Result<String, Refusal> {
    let host = std::str::from_utf8(head.host_name()).unwrap_or_default();
    if host.is_empty() {
        return Err(Refusal::Bad("no Host"));
    }
    let port = match port {
        HTTPS_PORT => String::new(),
        port => format!(":{port}"),
    };
    let path = [head.prefix, head.target].concat();
    let path = if path == "*" { "/" } else { &path };
    Ok(format!("https://{host}{port}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http::http1::slots;

    fn location_of(head: &str, port: u16) -> Option<String> {
        let mut slots = slots();
        let head = RequestHead::parse(head.as_bytes(), &mut slots);
        location(&head.unwrap().unwrap(), port).ok()
    }

    #[test]
    fn the_same_address_is_named_with_the_port_of_tls() {
        for (head, port, location) in [
            (
                "GET /a?b HTTP/1.1\r\nHost: a.example:80\r\n\r\n",
                443,
                Some("https://a.example/a?b"),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
                8443,
                Some("https://a.example:8443/"),
            ),
            (
                "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
                443,
                Some("https://a.example/"),
            ),
            ("GET / HTTP/1.0\r\n\r\n", 443, None),
        ] {
            assert_eq!(location_of(head, port).as_deref(), location, "{head}");
        }
    }
}
