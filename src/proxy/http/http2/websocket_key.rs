//! The key of a WebSocket that the worker asks an instance for, and the answer to it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::header;

use crate::proxy::http::http1::{Field, Malformed, ResponseHead};

/// The nonce with which the proxy asks an instance for a WebSocket: 16 bytes in base64 (RFC 6455,
/// section 4.1). A client with HTTP/2 has none, so towards the instance the proxy is the WebSocket
/// client that RFC 6455 speaks of: it makes the nonce and checks the answer to it.
pub(crate) struct WebSocketKey(pub(super) String);

impl WebSocketKey {
    /// Makes a key, which only has to be new each time.
    pub(crate) fn new() -> WebSocketKey {
        let random = || RandomState::new().build_hasher().finish();
        // Hexadecimal digits are valid base64. Only two bits of the last significant digit count.
        let digits = format!("{:016x}{:016x}", random(), random());
        WebSocketKey(format!("{}A==", &digits[..21]))
    }

    /// Checks that a response may be passed on to the client, for which any success means that the
    /// tunnel is open (RFC 8441, section 5): only the 101 that answers this key is one.
    pub(crate) fn check(&self, head: &ResponseHead<'_>) -> Result<(), Malformed> {
        match head.status {
            101 => {
                let mut accepts = head.fields.iter().filter(|field| {
                    let name = header::SEC_WEBSOCKET_ACCEPT;
                    field.name.eq_ignore_ascii_case(name.as_str())
                });
                let is_right = |field: &Field<'_>| field.value == self.accept().as_bytes();
                match (accepts.next().is_some_and(is_right), accepts.next()) {
                    (true, None) => Ok(()),
                    _ => Err(Malformed("a 101 that does not answer Sec-WebSocket-Key")),
                }
            }
            200..300 => Err(Malformed("a success instead of the WebSocket")),
            _ => Ok(()),
        }
    }

    /// Returns the answer to the key: its SHA-1 together with a constant, in base64 (RFC 6455,
    /// section 4.2.2).
    fn accept(&self) -> String {
        let text = [&self.0, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
        base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref())
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            text.push(match digit <= three.len() {
                true => DIGITS[(bits >> (18 - 6 * digit)) as usize & 63].into(),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http::http1::slots;

    #[test]
    fn each_key_is_new_and_well_formed() {
        let [one, other] = [WebSocketKey::new().0, WebSocketKey::new().0];
        assert_ne!(one, other);
        assert!(one.len() == 24 && one.ends_with("A=="), "{one}");
    }

    /// The key and its answer are those of RFC 6455, section 1.3.
    #[test]
    fn the_answer_to_a_key_is_checked() {
        let key = WebSocketKey("dGhlIHNhbXBsZSBub25jZQ==".to_owned());
        let right = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        for (line, fields, is_right) in [
            ("101 Switching Protocols", right.to_owned(), true),
            ("101 Switching Protocols", String::new(), false),
            ("101 Switching Protocols", [right, right].concat(), false),
            (
                "101 Switching Protocols",
                right.replace("s3p", "S3P"),
                false,
            ),
            ("101 Switching Protocols", right.replace("=", ""), false),
            ("100 Continue", String::new(), true),
            ("200 OK", right.to_owned(), false),
            ("204 No Content", String::new(), false),
            ("299 Fine", String::new(), false),
            ("302 Found", String::new(), true),
            ("426 Upgrade Required", String::new(), true),
        ] {
            let text = format!("HTTP/1.1 {line}\r\n{fields}\r\n");
            let mut slots = slots();
            let head = ResponseHead::parse(text.as_bytes(), false, &mut slots);
            let checked = key.check(&head.unwrap().unwrap());
            assert_eq!(checked.is_ok(), is_right, "{text}");
        }
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
