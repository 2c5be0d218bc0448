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
    Date,
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPrefix,
    RequestId,
    /// Another field by which a proxy in front tells an instance who the client is, or what it has
    /// asked for. docs/http.md lists these fields.
    FromProxy,
    /// A field by which programs and the proxies in front of them tell each other which file to
    /// send.
    Internal,
    /// A field that no instance gets, whoever sends it.
    Unwanted,
    /// A field that names the method that an instance understands instead of the one in the request
    /// line.
    MethodOverride,
    /// What a client proves its identity with.
    Authorization,
    /// What an instance wants as a proof of identity.
    Challenge,
    /// One of the fields above, written with another punctuation mark instead of `-`, mostly `_`.
    /// Many frameworks treat both names as the same (RFC 3875, section 4.1.18), so such a field
    /// would escape the handling of the right name.
    Disguised,
    /// A field that a proxy need not know.
    Other,
}

impl FieldKind {
    /// Returns the meaning of a field with this name, in any case, to a proxy.
    pub(crate) fn of(name: &str) -> FieldKind {
        match Begins::of(name).may_mean_something(name) {
            true => FieldKind::looked_up(name),
            false => FieldKind::Other,
        }
    }

    /// Returns the meaning of a name that has the length and the first letter of a known one, or
    /// that begins as a family does.
    fn looked_up(name: &str) -> FieldKind {
        let bytes = name.as_bytes();
        let candidates = known(name.len(), bytes.first().map_or(0, |&first| read(first)));
        // Known names of the same length differ here, mostly.
        let (middle, last) = (name.len() / 2, name.len().saturating_sub(1));
        let may_be = |(known, _): &&Meaning| {
            read(bytes[last]) == known.as_bytes()[last]
                && read(bytes[middle]) == known.as_bytes()[middle]
        };
        for (known, kind) in candidates.iter().filter(may_be) {
            if equals(name, known) {
                return *kind;
            }
            if same(name, known) {
                return FieldKind::Disguised;
            }
        }
        let is_of = |(begin, _): &&Meaning| {
            name.len() > begin.len() && read(bytes[begin.len() - 1]) == b'-' && same(name, begin)
        };
        match families(bytes).iter().find(is_of) {
            None => FieldKind::Other,
            Some((_, kind)) => match name.bytes().all(|byte| read(byte) == lower_case(byte)) {
                true => *kind,
                false => FieldKind::Disguised,
            },
        }
    }
}

/// What is known about all names with the same first byte. Every field of every message is looked
/// up, and most of them mean nothing to a proxy: a look at this says so.
#[derive(Clone, Copy)]
struct Begins {
    /// Bit N: a name of N bytes is in the list of known ones.
    lengths: u64,
    /// Bit N: a family begins with this byte and the Nth letter, perhaps with a punctuation mark
    /// between them.
    families: u32,
}

static BEGINS: [Begins; 256] = {
    let mut all = [Begins {
        lengths: 0,
        families: 0,
    }; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = Begins::with(read(byte as u8));
        byte += 1;
    }
    all
};

impl Begins {
    fn of(name: &str) -> &'static Begins {
        &BEGINS[usize::from(name.bytes().next().unwrap_or(0))]
    }

    const fn with(first: u8) -> Begins {
        let mut lengths = 0;
        let mut length = 0;
        while length < u64::BITS {
            lengths |= (!known(length as usize, first).is_empty() as u64) << length;
            length += 1;
        }
        let mut families_of = 0;
        let mut letter = b'a';
        while letter <= b'z' {
            let is_one = !families(&[first, letter, b'-']).is_empty()
                || !families(&[first, b'-', letter]).is_empty();
            families_of |= (is_one as u32) << (letter & 31);
            letter += 1;
        }
        Begins {
            lengths,
            families: families_of,
        }
    }

    fn may_mean_something(&self, name: &str) -> bool {
        let is_of_length = self.lengths.checked_shr(name.len() as u32).unwrap_or(0) & 1 == 1;
        is_of_length || (self.families != 0 && self.may_be_of_family(name.as_bytes()))
    }

    fn may_be_of_family(&self, name: &[u8]) -> bool {
        let letter = match name {
            [_, second, ..] if second.is_ascii_alphanumeric() => *second,
            [_, _, third, ..] => *third,
            _ => return false,
        };
        (self.families >> (letter & 31)) & 1 == 1
    }
}

/// A name, or the beginning of names, and what it means to a proxy.
type Meaning = (&'static str, FieldKind);

/// Returns the names of this length, with this first letter, that mean something to a proxy, in
/// lower case. Most fields of a request have another length or letter, so that nothing has to be
/// compared.
const fn known(length: usize, first: u8) -> &'static [Meaning] {
    use FieldKind::*;
    match (length, first) {
        (2, b't') => &[("te", Te)],
        (4, b'd') => &[("date", Date)],
        (4, b'h') => &[("host", Host)],
        (5, b'p') => &[("proxy", Unwanted)],
        (6, b'e') => &[("expect", Expect)],
        (6, b'x') => &[("x-host", FromProxy)],
        (7, b't') => &[("trailer", Trailer)],
        (7, b'u') => &[("upgrade", Upgrade)],
        (8, b'x') => &[("x-scheme", FromProxy)],
        (9, b'c') => &[("client-ip", FromProxy)],
        (9, b'f') => &[("forwarded", Forwarded)],
        (9, b'p') => &[("path-info", FromProxy)],
        (9, b'x') => &[("x-arr-ssl", FromProxy), ("x-real-ip", FromProxy)],
        (10, b'c') => &[("connection", Connection)],
        (10, b'k') => &[("keep-alive", KeepAlive)],
        (10, b'x') => &[("x-sendfile", Internal), ("x-ssl-cert", FromProxy)],
        (11, b'c') => &[("client-cert", FromProxy)],
        (11, b'r') => &[("remote-name", FromProxy), ("remote-user", FromProxy)],
        (11, b's') => &[("script-name", FromProxy)],
        (11, b'x') => &[
            ("x-auth-user", FromProxy),
            ("x-client-ip", FromProxy),
            ("x-forwarded", FromProxy),
            ("x-remote-ip", FromProxy),
        ],
        (12, b'r') => &[("remote-email", FromProxy)],
        (12, b'x') => &[("x-request-id", RequestId), ("x-url-scheme", FromProxy)],
        (13, b'a') => &[("authorization", Authorization)],
        (13, b'f') => &[("fly-client-ip", FromProxy), ("forwarded-for", FromProxy)],
        (13, b'r') => &[("remote-groups", FromProxy)],
        (13, b'x') => &[
            ("x-client-cert", FromProxy),
            ("x-forward-for", FromProxy),
            ("x-http-method", MethodOverride),
            ("x-remote-addr", FromProxy),
            ("x-remote-user", FromProxy),
            ("x-rewrite-url", FromProxy),
            ("x-script-name", FromProxy),
        ],
        (14, b'c') => &[("content-length", ContentLength)],
        (14, b'h') => &[("http2-settings", Unwanted)],
        (14, b't') => &[("true-client-ip", FromProxy)],
        (14, b'x') => &[("x-remote-group", FromProxy), ("x-webauth-user", FromProxy)],
        (15, b'f') => &[("front-end-https", FromProxy)],
        (15, b'p') => &[("proxy-client-ip", FromProxy)],
        (15, b'x') => &[
            ("x-forwarded-for", ForwardedFor),
            ("x-remote-groups", FromProxy),
            ("x-replaced-path", FromProxy),
            ("x-sendfile-type", Internal),
        ],
        (16, b'c') => &[("cf-connecting-ip", FromProxy)],
        (16, b'd') => &[("do-connecting-ip", FromProxy)],
        (16, b'f') => &[("fastly-client-ip", FromProxy)],
        (16, b'p') => &[("proxy-connection", ProxyConnection)],
        (16, b'w') => &[("www-authenticate", Challenge)],
        (16, b'x') => &[
            ("x-arr-clientcert", FromProxy),
            ("x-azure-clientip", FromProxy),
            ("x-azure-socketip", FromProxy),
            ("x-forwarded-host", ForwardedHost),
            ("x-originating-ip", FromProxy),
        ],
        (17, b'c') => &[("client-cert-chain", FromProxy)],
        (17, b't') => &[("transfer-encoding", TransferEncoding)],
        (17, b'x') => &[
            ("x-forwarded-proto", ForwardedProto),
            ("x-method-override", MethodOverride),
        ],
        (18, b'c') => &[("cf-connecting-ipv6", FromProxy)],
        (18, b'w') => &[("wl-proxy-client-ip", FromProxy)],
        (18, b'x') => &[("x-forwarded-prefix", ForwardedPrefix)],
        (19, b'x') => &[
            ("x-appengine-user-ip", FromProxy),
            ("x-cluster-client-ip", FromProxy),
        ],
        (20, b'x') => &[
            ("x-authenticated-user", FromProxy),
            ("x-http-host-override", FromProxy),
        ],
        (21, b'x') => &[("x-ms-client-principal", FromProxy)],
        (22, b'x') => &[
            ("x-http-method-override", MethodOverride),
            ("x-vercel-forwarded-for", FromProxy),
        ],
        (25, b'x') => &[("x-nf-client-connection-ip", FromProxy)],
        _ => &[],
    }
}

/// Returns the beginnings of names that mean something to a proxy, of which one may be that of this
/// name.
const fn families(name: &[u8]) -> &'static [Meaning] {
    match name {
        [b'x' | b'X', _, b'f' | b'F', ..] => &[("x-forwarded-", FieldKind::FromProxy)],
        [b'x' | b'X', _, b'a' | b'A', ..] => &[
            ("x-accel-", FieldKind::Internal),
            ("x-auth-request-", FieldKind::FromProxy),
            ("x-amzn-oidc-", FieldKind::FromProxy),
        ],
        [b'x' | b'X', _, b'e' | b'E', ..] => &[("x-envoy-", FieldKind::FromProxy)],
        [b'x' | b'X', _, b'g' | b'G', ..] => &[
            ("x-goog-authenticated-user-", FieldKind::FromProxy),
            ("x-goog-iap-", FieldKind::FromProxy),
        ],
        [b'x' | b'X', _, b'm' | b'M', ..] => &[("x-ms-client-principal-", FieldKind::FromProxy)],
        [b'x' | b'X', _, b'o' | b'O', ..] => &[("x-original-", FieldKind::FromProxy)],
        [b'x' | b'X', _, b's' | b'S', ..] => &[("x-ssl-client-", FieldKind::FromProxy)],
        [b's' | b'S', b's' | b'S', ..] => &[("ssl-client-", FieldKind::FromProxy)],
        [b'c' | b'C', b'f' | b'F', ..] => &[("cf-access-", FieldKind::FromProxy)],
        [b't' | b'T', b'a' | b'A', ..] => &[("tailscale-user-", FieldKind::FromProxy)],
        [b'f' | b'F', b'o' | b'O', ..] => &[("forwarded-", FieldKind::FromProxy)],
        _ => &[],
    }
}

/// Returns true if `name`, in any case, is `lower_case`, which is as long, and has letters, digits
/// and `-` only. No other byte that may be in a name becomes one of these by the bit that tells the
/// case, and a loop without an early end is the cheaper one for so few bytes.
fn equals(name: &str, lower_case: &str) -> bool {
    let pairs = name.bytes().zip(lower_case.bytes());
    pairs.fold(0, |all, (a, b)| all | ((a | 0x20) ^ b)) == 0
}

/// Returns true if `name` begins with `lower_case`, however its letters and punctuation marks are
/// written.
fn same(name: &str, lower_case: &str) -> bool {
    name.bytes()
        .zip(lower_case.bytes())
        .all(|(a, b)| read(a) == b)
}

/// Returns a byte of a name in the way in which programs may read it.
const fn read(byte: u8) -> u8 {
    READ[byte as usize]
}

static READ: [u8; 256] = {
    let mut all = [b'-'; 256];
    let mut byte = 0;
    while byte < 128 {
        if (byte as u8).is_ascii_alphanumeric() {
            all[byte] = lower_case(byte as u8);
        }
        byte += 1;
    }
    all
};

const fn lower_case(byte: u8) -> u8 {
    byte.to_ascii_lowercase()
}

/// Returns true if a field of [`FieldKind::Other`] or of a similar kind goes to the instance even
/// if `Connection` names it. RFC 9110, section 7.6.1, lets a sender name only fields that concern
/// the connection. A client that names one of these fields wants to remove what a proxy before us
/// has written, or attacks a program that trusts requests without the field.
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

/// Returns true if one of the credentials or challenges in this value belongs to the connection and
/// not to the request: NTLM, and Negotiate, which may use NTLM (RFC 4559).
pub(super) fn binds(value: &[u8]) -> bool {
    // To look for a comma first is cheaper than to take a list apart, and most values are none.
    match value.contains(&b',') {
        true => tokens(value).any(begins_with_binding_scheme),
        false => begins_with_binding_scheme(value.trim_ascii()),
    }
}

fn begins_with_binding_scheme(token: &[u8]) -> bool {
    let begins_with = |scheme: &&[u8]| {
        token
            .split_at_checked(scheme.len())
            .is_some_and(|(begin, rest)| {
                begin.eq_ignore_ascii_case(scheme) && matches!(rest, [] | [b' ' | b'\t', ..])
            })
    };
    matches!(token, [b'n' | b'N', ..]) && [&b"ntlm"[..], b"negotiate"].iter().any(begins_with)
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
        assert_eq!(FieldKind::of("X-Forwarded"), FieldKind::FromProxy);
        assert_eq!(FieldKind::of("X-Forwarded-"), FieldKind::Other);
        assert_eq!(FieldKind::of("x-forwarded-x"), FieldKind::FromProxy);
        assert_eq!(FieldKind::of("X-ACCEL-Redirect"), FieldKind::Internal);
        assert_eq!(FieldKind::of("Accept"), FieldKind::Other);
    }

    #[test]
    fn an_underscore_does_not_hide_a_known_name() {
        assert_eq!(FieldKind::of("Content_Length"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("X_Forwarded-For"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("X_FORWARDED_PREFIX"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("X.Forwarded.For"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("x~client|ip"), FieldKind::Disguised);
        assert_eq!(FieldKind::of("my_field"), FieldKind::Other);
    }

    /// Comparing without the bit that tells the case takes no other name for a known one.
    #[test]
    fn no_other_byte_of_a_name_stands_for_a_letter_a_digit_or_a_hyphen() {
        let of_names =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        for byte in (0..=u8::MAX).filter(of_names) {
            let lower = [byte | 0x20];
            let known =
                lower[0].is_ascii_lowercase() || lower[0].is_ascii_digit() || lower == [b'-'];
            assert!(!known || lower.eq_ignore_ascii_case(&[byte]), "{byte}");
        }
    }

    /// A name in the list of another length would never be found.
    #[test]
    fn each_known_name_is_in_the_list_of_its_length() {
        for (length, &(name, kind)) in (0..64)
            .flat_map(|n| (b'a'..=b'z').flat_map(move |c| known(n, c).iter().map(move |k| (n, k))))
        {
            assert_eq!(name.len(), length, "{name}");
            assert_eq!(FieldKind::of(name), kind, "{name}");
        }
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
    fn schemes_that_belong_to_the_connection() {
        for (value, belongs) in [
            ("NTLM", true),
            ("negotiate", true),
            ("Negotiate TlRMTVNTUAAB", true),
            ("Basic realm=\"a, b\", Negotiate", true),
            ("Digest realm=\"x\", NTLM\tTlRM", true),
            ("Basic realm=\"NTLM\"", false),
            ("Bearer ntlm", false),
            ("NTLM2", false),
            ("", false),
        ] {
            assert_eq!(binds(value.as_bytes()), belongs, "{value}");
        }
    }

    #[test]
    fn lists_are_taken_apart() {
        let list: Vec<&[u8]> = tokens(b" close ,, x-y,\tTE").collect();
        assert_eq!(list, [&b"close"[..], b"x-y", b"TE"]);
    }
}
