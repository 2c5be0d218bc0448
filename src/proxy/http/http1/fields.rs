//! The fields of a head: room for them while it is parsed, and which of them a proxy must know.

use std::mem::MaybeUninit;

/// Room for the fields of a head while it is parsed.
pub(crate) type Slots<'b, const N: usize> = [MaybeUninit<httparse::Header<'b>>; N];

/// Returns room for the fields of a head, which need not be cleared first.
pub(crate) fn slots<'b, const N: usize>() -> Slots<'b, N> {
    [const { MaybeUninit::uninit() }; N]
}

/// A field with what it means to a proxy.
pub(crate) struct Field<'b> {
    pub(crate) name: &'b str,
    pub(crate) value: &'b [u8],
    pub(crate) kind: Kind,
}

/// What a field means to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
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
    /// Says something else about who is on the other side of a proxy.
    ForwardedOther,
    /// One of the above written with `_` for `-`. Many frameworks take the two for the same (RFC 3875, section 4.1.18),
    /// so it would get past whatever is done about the right name.
    Disguised,
    Other,
}

impl Kind {
    pub(crate) fn of(name: &str) -> Kind {
        let kind = match name.len() {
            2 => one_of(name, &[("te", Kind::Te)]),
            4 => one_of(name, &[("host", Kind::Host)]),
            6 => one_of(name, &[("expect", Kind::Expect)]),
            7 => one_of(
                name,
                &[("upgrade", Kind::Upgrade), ("trailer", Kind::Trailer)],
            ),
            9 => one_of(
                name,
                &[
                    ("forwarded", Kind::Forwarded),
                    ("x-real-ip", Kind::ForwardedOther),
                ],
            ),
            10 => one_of(
                name,
                &[
                    ("connection", Kind::Connection),
                    ("keep-alive", Kind::KeepAlive),
                ],
            ),
            14 => one_of(name, &[("content-length", Kind::ContentLength)]),
            15 => one_of(name, &[("x-forwarded-for", Kind::ForwardedFor)]),
            16 => one_of(
                name,
                &[
                    ("x-forwarded-host", Kind::ForwardedHost),
                    ("proxy-connection", Kind::ProxyConnection),
                ],
            ),
            17 => one_of(
                name,
                &[
                    ("transfer-encoding", Kind::TransferEncoding),
                    ("x-forwarded-proto", Kind::ForwardedProto),
                ],
            ),
            18 => one_of(name, &[("x-forwarded-prefix", Kind::ForwardedPrefix)]),
            _ => Kind::Other,
        };
        let kind = match kind {
            Kind::Other if is_forwarded(name) => Kind::ForwardedOther,
            Kind::Other => return Kind::Other,
            kind => kind,
        };
        match name.contains('_') {
            true => Kind::Disguised,
            false => kind,
        }
    }
}

fn is_forwarded(name: &str) -> bool {
    let prefix = "x-forwarded-";
    name.len() > prefix.len() && same(&name[..prefix.len()], prefix)
}

fn one_of(name: &str, kinds: &[(&str, Kind)]) -> Kind {
    kinds
        .iter()
        .find(|(known, _)| same(name, known))
        .map_or(Kind::Other, |(_, kind)| *kind)
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

/// Whether a field that is [`Kind::Other`] is for the instance whatever `Connection` says. RFC 9110, section 7.6.1, lets
/// a sender name only fields that concern the connection; a client that names one of these wants to take away what a
/// proxy before us has put there, or hopes for a program that trusts its absence.
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

/// Whether a field may stand in a trailer section: none that frames, routes, identifies or describes the content, for
/// those must be known before it (RFC 9110, section 6.5.1).
pub(super) fn is_trailer(name: &str) -> bool {
    Kind::of(name) == Kind::Other && !is_end_to_end(name)
}

/// The members of a comma-separated list.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Parses a `Content-Length`; `None` unless it is one plain number.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The protocol of the only `Upgrade` field, if it is only one.
pub(super) fn one_upgrade<'b>(fields: &[Field<'b>]) -> Option<&'b [u8]> {
    let mut upgrades = fields.iter().filter(|field| field.kind == Kind::Upgrade);
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
        assert_eq!(Kind::of("HOST"), Kind::Host);
        assert_eq!(Kind::of("Transfer-Encoding"), Kind::TransferEncoding);
        assert_eq!(Kind::of("x-forwarded-For"), Kind::ForwardedFor);
        assert_eq!(Kind::of("X-Forwarded-Prefix"), Kind::ForwardedPrefix);
        assert_eq!(Kind::of("Forwarded"), Kind::Forwarded);
        assert_eq!(Kind::of("X-Forwarded"), Kind::Other);
        assert_eq!(Kind::of("Accept"), Kind::Other);
    }

    #[test]
    fn an_underscore_does_not_hide_a_known_name() {
        assert_eq!(Kind::of("Content_Length"), Kind::Disguised);
        assert_eq!(Kind::of("X_Forwarded-For"), Kind::Disguised);
        assert_eq!(Kind::of("X_FORWARDED_PREFIX"), Kind::Disguised);
        assert_eq!(Kind::of("my_field"), Kind::Other);
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
