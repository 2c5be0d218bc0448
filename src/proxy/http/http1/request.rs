//! The head of a request: parses it, and refuses what two readers could understand differently.

use super::body::Framing;
use super::fields::{Field, FieldKind, Slots, binds, content_length, one_upgrade, tokens};
use super::refusal::Refusal;
use super::target::{is_authority, split_port, split_target};

/// How many bytes the head of a request may have.
pub(crate) const LONGEST_REQUEST_HEAD: usize = 32 << 10;

/// Fields that the head of a request may have.
pub(super) const MOST_REQUEST_FIELDS: usize = 100;

/// How many fields `Connection` may name beside the usual options. For each of these names, all
/// fields are searched.
const MOST_NOMINATED: usize = 50;

/// Returns why a head that begins with `bytes`, and is longer than it may be, is refused.
pub(crate) fn too_long(bytes: &[u8]) -> Refusal {
    let line = bytes.iter().position(|&byte| byte == b'\n');
    match line.is_some_and(|end| end < LONGEST_REQUEST_HEAD) {
        true => Refusal::HeadTooLarge,
        false => Refusal::TargetTooLong,
    }
}

/// The versions of HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.0, where a connection ends with its first response unless both sides say otherwise.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// The head of a request, parsed and checked.
pub(crate) struct RequestHead<'b> {
    /// The method as it was sent.
    pub(crate) method: &'b str,
    /// The target in origin-form, or `*`.
    pub(crate) target: &'b str,
    /// The beginning of the path that the policy rule `strip_prefix` has taken from the target.
    pub(crate) prefix: &'b str,
    /// The host of the target, with its port if it has one. Empty if the client named none.
    pub(crate) host: &'b [u8],
    /// The version that the client speaks.
    pub(crate) version: Version,
    /// How the body is framed, and so where it ends.
    pub(crate) framing: Framing,
    /// True if the client means to send another request on this connection.
    pub(crate) keep_alive: bool,
    /// True if the client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// True if the client accepts trailers.
    pub(crate) takes_trailers: bool,
    /// The protocol that the client wants to switch to, if smoothserve may pass the wish on.
    pub(crate) upgrade: Option<&'b [u8]>,
    /// True if `Connection` names other fields.
    pub(crate) nominates: bool,
    /// True if a field names another method than the request line.
    pub(crate) overrides_method: bool,
    /// True if the request proves an identity that then belongs to its connection.
    pub(crate) binds_connection: bool,
    /// All fields, in the order in which they were sent.
    pub(crate) fields: Vec<Field<'b>>,
    /// Length of the head in bytes.
    pub(crate) length: usize,
}

impl<'b> RequestHead<'b> {
    /// Parses the head at the start of `bytes`; `None` if the head is not complete yet.
    pub(crate) fn parse<'h>(
        bytes: &'b [u8],
        slots: &'h mut Slots<'b, MOST_REQUEST_FIELDS>,
    ) -> Result<Option<RequestHead<'b>>, Refusal>
    where
        'b: 'h,
    {
        let mut parsed = httparse::Request::new(&mut []);
        let length = match parsed.parse_with_uninit_headers(bytes, slots) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(Refusal::of(error, bytes)),
        };
        let (Some(method), Some(target), Some(version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(Refusal::Bad("request line"));
        };
        let version = match version {
            0 => Version::Http10,
            _ => Version::Http11,
        };
        if method == "CONNECT" {
            return Err(Refusal::NotImplemented("CONNECT"));
        }
        let checked = Checked::try_new(parsed.headers, version)?;
        let (target, host) = split_target(method, target)?;
        let host = match (host, checked.host) {
            (Some(host), _) => host,
            (None, Some(host)) => host,
            (None, None) => b"",
        };
        Ok(Some(RequestHead {
            method,
            target,
            prefix: "",
            host,
            version,
            framing: checked.framing,
            keep_alive: checked.keep_alive,
            expects_continue: checked.expects_continue,
            takes_trailers: checked.takes_trailers,
            upgrade: checked.upgrade,
            nominates: checked.nominates,
            overrides_method: checked.overrides_method,
            binds_connection: checked.binds_connection,
            fields: checked.fields,
            length,
        }))
    }

    /// Returns the path of the target, without its query.
    pub(crate) fn path(&self) -> &'b [u8] {
        let target = self.target.as_bytes();
        target.split(|&byte| byte == b'?').next().unwrap_or(target)
    }

    /// Returns the target with another path.
    pub(crate) fn with_path(&self, mut path: Vec<u8>) -> Result<String, Refusal> {
        path.extend_from_slice(&self.target.as_bytes()[self.path().len()..]);
        String::from_utf8(path).map_err(|_| Refusal::Bad("request target"))
    }

    /// Returns the host without its port.
    pub(crate) fn host_name(&self) -> &'b [u8] {
        split_port(self.host).0
    }

    /// Returns true if sending the request twice has the same effect as once (RFC 9110, section
    /// 9.2.2). Nobody knows that if a field names another method than the request line.
    pub(crate) fn is_idempotent(&self) -> bool {
        !self.overrides_method
            && matches!(
                self.method,
                "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
            )
    }
}

/// What the fields of a request say.
struct Checked<'b> {
    host: Option<&'b [u8]>,
    framing: Framing,
    keep_alive: bool,
    expects_continue: bool,
    takes_trailers: bool,
    upgrade: Option<&'b [u8]>,
    nominates: bool,
    overrides_method: bool,
    binds_connection: bool,
    fields: Vec<Field<'b>>,
}

impl<'b> Checked<'b> {
    fn try_new(headers: &[httparse::Header<'b>], version: Version) -> Result<Checked<'b>, Refusal> {
        let mut fields = Vec::with_capacity(headers.len());
        let mut host = None;
        let mut length = None;
        let mut coding = None;
        let mut close = false;
        let mut keep_alive = version == Version::Http11;
        let mut expects_continue = false;
        let mut takes_trailers = false;
        let mut upgrades = false;
        let mut nominated = 0;
        let mut overrides_method = false;
        let mut binds_connection = false;
        for &httparse::Header { name, value } in headers {
            let kind = FieldKind::of(name);
            match kind {
                FieldKind::Host => {
                    if host.replace(value).is_some() {
                        return Err(Refusal::Bad("several Host fields"));
                    }
                    if !is_authority(value) {
                        return Err(Refusal::Bad("invalid Host"));
                    }
                }
                FieldKind::ContentLength => {
                    let value = content_length(value).ok_or(Refusal::Bad("Content-Length"))?;
                    if length.replace(value).is_some() {
                        return Err(Refusal::Bad("several Content-Length fields"));
                    }
                }
                FieldKind::TransferEncoding => {
                    check_coding(value, version)?;
                    if coding.replace(()).is_some() {
                        return Err(Refusal::Bad("several Transfer-Encoding fields"));
                    }
                }
                FieldKind::Connection => {
                    for token in tokens(value) {
                        if token.eq_ignore_ascii_case(b"close") {
                            close = true;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            keep_alive = true;
                        } else {
                            upgrades |= token.eq_ignore_ascii_case(b"upgrade");
                            nominated += 1;
                        }
                    }
                }
                FieldKind::Expect => {
                    expects_continue |= value.eq_ignore_ascii_case(b"100-continue")
                }
                FieldKind::MethodOverride => overrides_method = true,
                FieldKind::Authorization => binds_connection |= binds(value),
                FieldKind::Te => takes_trailers |= tokens(value).any(is_trailers),
                _ => {}
            }
            fields.push(Field { name, value, kind });
        }
        if nominated > MOST_NOMINATED {
            return Err(Refusal::Bad("Connection"));
        }
        if host.is_none() && version == Version::Http11 {
            return Err(Refusal::Bad("no Host"));
        }
        let framing = match (length, coding) {
            (Some(_), Some(())) => {
                return Err(Refusal::Bad("Content-Length with Transfer-Encoding"));
            }
            (Some(length), None) => Framing::Length(length),
            (None, Some(())) => Framing::Chunked,
            (None, None) => Framing::None,
        };
        let has_body = !matches!(framing, Framing::None | Framing::Length(0));
        Ok(Checked {
            host,
            framing,
            keep_alive: keep_alive && !close,
            // RFC 9110, section 10.1.1: ignore the expectation in HTTP/1.0, and in a request
            // without content.
            expects_continue: expects_continue && has_body && version == Version::Http11,
            takes_trailers: takes_trailers && version == Version::Http11,
            // If the request had a body, some readers would take what follows it for the new
            // protocol, others for the old one.
            upgrade: protocol(&fields)
                .filter(|_| upgrades && !has_body && !close && version == Version::Http11),
            nominates: nominated > 0,
            overrides_method,
            binds_connection,
            fields,
        })
    }
}

/// Returns the one protocol of an `Upgrade` field. HTTP/2 is left out: a tunnel with HTTP/2 in it
/// would carry requests past routing and all checks.
fn protocol<'b>(fields: &[Field<'b>]) -> Option<&'b [u8]> {
    let is_known = |protocol: &&[u8]| {
        let name = protocol.split(|&byte| byte == b'/').next();
        let is_http = |name: &[u8]| {
            [&b"h2c"[..], b"h2", b"http"]
                .iter()
                .any(|http| name.eq_ignore_ascii_case(http))
        };
        !protocol.is_empty() && !name.is_some_and(is_http)
    };
    one_upgrade(fields).filter(is_known)
}

fn is_trailers(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"trailers")
}

fn check_coding(value: &[u8], version: Version) -> Result<(), Refusal> {
    if version == Version::Http10 {
        return Err(Refusal::Bad("Transfer-Encoding in HTTP/1.0"));
    }
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let codings = || tokens(value);
    let ambiguous = match codings().last() {
        None => true,
        Some(last) => {
            let chunked = codings().filter(is_chunked).count();
            // `chunked` must come last, and only once. The code above accepts `chunked` alone, but
            // not with superfluous commas around it.
            chunked > 1 || (chunked == 1 && !is_chunked(&last)) || codings().all(|c| is_chunked(&c))
        }
    };
    if ambiguous {
        return Err(Refusal::Bad("Transfer-Encoding"));
    }
    Err(Refusal::NotImplemented("transfer coding"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fields::slots;
    use super::*;

    fn parse<R>(head: &str, check: impl FnOnce(RequestHead<'_>) -> R) -> Result<R, Refusal> {
        let mut slots = slots();
        RequestHead::parse(head.as_bytes(), &mut slots).map(|head| check(head.unwrap()))
    }

    fn refused(head: &str) -> Refusal {
        parse(head, |_| ()).expect_err(head)
    }

    #[test]
    fn forms_of_the_target() {
        for (line, target, host) in [
            ("GET /a?b HTTP/1.1", "/a?b", "h:1"),
            ("OPTIONS * HTTP/1.1", "*", "h:1"),
            (
                "GET http://a.example:80/x?y HTTP/1.1",
                "/x?y",
                "a.example:80",
            ),
            ("GET HTTP://a.example HTTP/1.1", "/", "a.example"),
            ("GET https://a.example/x HTTP/1.1", "/x", "a.example"),
            ("OPTIONS http://a.example HTTP/1.1", "*", "a.example"),
        ] {
            let found = parse(&format!("{line}\r\nHost: h:1\r\n\r\n"), |head| {
                (head.target.to_owned(), head.host.to_vec())
            });
            assert_eq!(found.unwrap(), (target.to_owned(), host.into()), "{line}");
        }
        for line in [
            "GET * HTTP/1.1",
            "GET a HTTP/1.1",
            "GET http:///a HTTP/1.1",
            "GET http://a@b/ HTTP/1.1",
            "GET http://a?b HTTP/1.1",
            "GET ftp://a/ HTTP/1.1",
            "GET https:/a HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET /",
            "GET /a b HTTP/1.1",
            "GET / HTTP/1",
            "GET / HTTPS/1.1",
        ] {
            let refusal = refused(&format!("{line}\r\nHost: h\r\n\r\n"));
            assert!(matches!(refusal, Refusal::Bad(_)), "{line}: {refusal:?}");
        }
        assert_eq!(refused("GET / HTTP/2.0\r\n\r\n"), Refusal::Version);
        assert_eq!(
            refused("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n"),
            Refusal::NotImplemented("CONNECT")
        );
    }

    #[test]
    fn the_path_and_the_host_to_route_by() {
        let head = "GET /a/b?c=/d HTTP/1.1\r\nHost: [::1]:80\r\n\r\n";
        let found = parse(head, |head| {
            (head.path().to_vec(), head.host_name().to_vec())
        });
        assert_eq!(found.unwrap(), (b"/a/b".to_vec(), b"[::1]".to_vec()));
    }

    #[test]
    fn hosts() {
        for host in [
            "a",
            "a.example:8080",
            "127.0.0.1",
            "[::1]",
            "[fe80::1]:80",
            "a:",
            "_",
        ] {
            assert!(
                parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), |_| ()).is_ok(),
                "{host}"
            );
        }
        for host in [
            "a b", "a,b", "a/b", "u@a", "a:b", "a:123456", "[::1", "::1", "[x]", "a\u{e9}", ":80",
            "[::1]x", "",
        ] {
            assert!(
                parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), |_| ()).is_err(),
                "{host}"
            );
        }
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Refusal::Bad("no Host"));
        assert_eq!(
            refused("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
            Refusal::Bad("several Host fields")
        );
        assert!(
            parse("GET / HTTP/1.0\r\n\r\n", |head| assert!(
                head.host.is_empty()
            ))
            .is_ok()
        );
    }

    #[test]
    fn framings() {
        for (fields, framing) in [
            ("", Framing::None),
            ("Content-Length: 0\r\n", Framing::Length(0)),
            ("Content-Length:  0012 \r\n", Framing::Length(12)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
            assert_eq!(parse(&head, |head| head.framing), Ok(framing), "{fields}");
        }
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked,\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length: 5\r\n , 6\r\n",
            " Folded: x\r\n",
            "A: b\rc\r\n",
            "A: b\0c\r\n",
            "A\0: b\r\n",
            "A b: c\r\n",
            ": x\r\n",
            "nothing\r\n",
            &format!("Connection: {}\r\n", "x,".repeat(51)),
        ] {
            let refusal = refused(&format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
            assert!(matches!(refusal, Refusal::Bad(_)), "{fields}: {refusal:?}");
        }
        for coding in [
            "gzip",
            "gzip, chunked",
            "identity",
            "xchunked",
            "chunked;q=1",
        ] {
            let refusal = refused(&format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: {coding}\r\n\r\n"
            ));
            assert_eq!(
                refusal,
                Refusal::NotImplemented("transfer coding"),
                "{coding}"
            );
        }
        assert!(matches!(
            refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Refusal::Bad(_)
        ));
    }

    #[test]
    fn keep_alive_and_expectations() {
        for (version, fields, keep_alive) in [
            ("1.1", "", true),
            ("1.1", "Connection: x, Close\r\n", false),
            (
                "1.1",
                "Connection: keep-alive\r\nConnection: close\r\n",
                false,
            ),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: h\r\n{fields}\r\n");
            assert_eq!(
                parse(&head, |head| head.keep_alive),
                Ok(keep_alive),
                "{head}"
            );
        }
        for (version, length, expects) in [("1.1", 5, true), ("1.1", 0, false), ("1.0", 5, false)] {
            let head = format!(
                "PUT / HTTP/{version}\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: {length}\r\n\r\n"
            );
            assert_eq!(
                parse(&head, |head| head.expects_continue),
                Ok(expects),
                "{head}"
            );
        }
    }

    #[test]
    fn too_many_fields() {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: h\r\n{}\r\n",
            "a: b\r\n".repeat(100)
        );
        assert_eq!(refused(&head), Refusal::HeadTooLarge);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut slots = slots();
            let _ = RequestHead::parse(&bytes, &mut slots);
        }

        #[test]
        fn text_near_the_grammar_never_panics(
            rest in "(GET|OPTIONS|x) [/*a:@?h#t.p]{1,12} HTTP/1[.][01]\r?\n([HhTt:, -]{0,12}(Host: [a:\\[\\]0-9]{0,5})?\r?\n){0,4}\r?\n",
        ) {
            let mut slots = slots();
            if let Ok(Some(head)) = RequestHead::parse(rest.as_bytes(), &mut slots) {
                prop_assert!(head.length <= rest.len());
                prop_assert!(head.target.starts_with('/') || head.target == "*");
                head.path();
                head.host_name();
            }
        }
    }
}
