//! The fields of a head: memory for them while it is parsed, and what each field means to a proxy.

use std::mem::MaybeUninit;

/// Memory for the fields of a head while it is parsed.
pub(crate) type Slots<'b, const N: usize> = [MaybeUninit<httparse::Header<'b>>; N];

/// Returns memory for the fields of a head. It is not cleared, since the parser writes before it
/// reads.
pub(crate) fn slots<'b, const N: usize>() -> Slots<'b, N> {
    [const { MaybeUninit::uninit() }; N]
}

/// A field of a head, with its meaning to a proxy.
pub(crate) struct Field<'b> {
    /// The name as it was sent, in any case.
    pub(crate) name: &'b str,
    /// The value, without the white space around it.
    pub(crate) value: &'b [u8],
    /// What the name means.
    pub(crate) kind: FieldKind,
}

/// The meaning of a field to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldKind {
    Host,
    Connection,
    KeepAlive,
    ProxyConnection,
    Te,
    Upgrade,
    Trailer,
    TransferEncoding,
    ContentLength,
    Expect,
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPrefix,
    /// Another field that tells who the client of a proxy is.
    ForwardedOther,
    /// One of the fields above, written with `_` instead of `-`. Many frameworks treat both names
    /// as the same (RFC 3875, section 4.1.18), so such a field would escape the handling of the
    /// right name.
    Disguised,
    /// A field that a proxy need not know.
    Other,
}

impl FieldKind {
    /// Returns the meaning of a field with this name, in any case, to a proxy.
    pub(crate) fn of(name: &str) -> FieldKind {
        let kind = match name.len() {
            2 => one_of(name, &[("te", FieldKind::Te)]),
            4 => one_of(name, &[("host", FieldKind::Host)]),
            6 => one_of(name, &[("expect", FieldKind::Expect)]),
            7 => one_of(
                name,
                &[
                    ("upgrade", FieldKind::Upgrade),
                    ("trailer", FieldKind::Trailer),
                ],
            ),
            9 => one_of(
                name,
                &[
                    ("forwarded", FieldKind::Forwarded),
                    ("x-real-ip", FieldKind::ForwardedOther),
                ],
            ),
            10 => one_of(
                name,
                &[
                    ("connection", FieldKind::Connection),
                    ("keep-alive", FieldKind::KeepAlive),
                ],
            ),
            14 => one_of(name, &[("content-length", FieldKind::ContentLength)]),
            15 => one_of(name, &[("x-forwarded-for", FieldKind::ForwardedFor)]),
            16 => one_of(
                name,
                &[
                    ("x-forwarded-host", FieldKind::ForwardedHost),
                    ("proxy-connection", FieldKind::ProxyConnection),
                ],
            ),
            17 => one_of(
                name,
                &[
                    ("transfer-encoding", FieldKind::TransferEncoding),
                    ("x-forwarded-proto", FieldKind::ForwardedProto),
                ],
            ),
            18 => one_of(name, &[("x-forwarded-prefix", FieldKind::ForwardedPrefix)]),
            _ => FieldKind::Other,
        };
        let kind = match kind {
            FieldKind::Other if is_forwarded(name) => FieldKind::ForwardedOther,
            FieldKind::Other => return FieldKind::Other,
            kind => kind,
        };
        match name.contains('_') {
            true => FieldKind::Disguised,
            false => kind,
        }
    }
}

fn is_forwarded(name: &str) -> bool {
    let prefix = "x-forwarded-";
    name.len() > prefix.len() && same(&name[..prefix.len()], prefix)
}

fn one_of(name: &str, kinds: &[(&str, FieldKind)]) -> FieldKind {
    kinds
        .iter()
        .find(|(known, _)| same(name, known))
        .map_or(FieldKind::Other, |(_, kind)| *kind)
}

fn same(name: &str, lower_case: &str) -> bool {
    let read = |byte: u8| match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    };
    name.bytes()
        .zip(lower_case.bytes())
        .all(|(a, b)| read(a) == b)
}

/// Returns true if a field of [`FieldKind::Other`] goes to the instance even if `Connection` names
/// it. RFC 9110, section 7.6.1, lets a sender name only fields that concern the connection. A
/// client that names one of these fields wants to remove what a proxy before us has written, or
/// attacks a program that trusts requests without the field.
pub(crate) fn is_end_to_end(name: &str) -> bool {
    let content = "content-";
    if name
        .get(..content.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(content))
    {
        return true;
    }
    [
        "authorization",
        "cookie",
        "set-cookie",
        "cache-control",
        "origin",
        "date",
        "location",
    ]
    .iter()
    .any(|known| known.eq_ignore_ascii_case(name))
}

/// Returns true if a field may stand in a trailer section. A field that frames, routes, identifies
/// or describes the content may not: recipients need it before the content (RFC 9110, section
/// 6.5.1).
pub(super) fn is_trailer(name: &str) -> bool {
    FieldKind::of(name) == FieldKind::Other && !is_end_to_end(name)
}

/// Returns the members of a comma-separated list, without white space and empty ones.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Parses the value of `Content-Length`; `None` if it is not one plain number.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Returns the protocol of the only `Upgrade` field; `None` if there are several fields or
/// protocols.
pub(super) fn one_upgrade<'b>(fields: &[Field<'b>]) -> Option<&'b [u8]> {
    let mut upgrades = fields
        .iter()
        .filter(|field| field.kind == FieldKind::Upgrade);
    let value = upgrades.next()?.value;
    let mut protocols = tokens(value);
    let protocol = protocols.next()?;
    (upgrades.next().is_none() && protocols.next().is_none()).then_some(protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_known_in_any_case() {
        assert_eq!(FieldKind::of("HOST"), FieldKind::Host);
        assert_eq!(
            FieldKind::of("Transfer-Encoding"),
            FieldKind::TransferEncoding
        );
        assert_eq!(FieldKind::of("x-forwarded-For"), FieldKind::ForwardedFor);
        assert_eq!(
            FieldKind::of("X-Forwarded-Prefix"),
            FieldKind::ForwardedPrefix
        );
        assert_eq!(FieldKind::of("Forwarded"), FieldKind::Forwarded);
        assert_eq!(FieldKind::of("X-Forwarded"), FieldKind::Other);
        assert_eq!(FieldKind::of("Accept"), FieldKind::Other);
    }

    #[test]
    fn an_underscore_does_not_hide_a_known_name() {
        assert_eq!(FieldKind::of("Content_Length"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("X_Forwarded-For"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("X_FORWARDED_PREFIX"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("my_field"), FieldKind::Other);
    }

    #[test]
    fn names_that_are_not_ascii_boundaries_do_not_panic() {
        assert!(!is_end_to_end("conténtx"));
        assert!(is_end_to_end("Content-Type"));
        assert!(!is_trailer("Content-Length"));
        assert!(!is_trailer("Authorization"));
        assert!(is_trailer("X-Checksum"));
    }

    #[test]
    fn lists_are_taken_apart() {
        let list: Vec<&[u8]> = tokens(b" close ,, x-y,\tTE").collect();
        assert_eq!(list, [&b"close"[..], b"x-y", b"TE"]);
    }
}
