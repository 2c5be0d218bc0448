//! The target of a request, and the host in it: what forms they may have.

use super::refusal::Refusal;

/// Returns the target in origin-form, and the host if the target names one (RFC 9112, section 3.2).
pub(super) fn split_target<'b>(
    method: &str,
    target: &'b str,
) -> Result<(&'b str, Option<&'b [u8]>), Refusal> {
    let invalid = Err(Refusal::Bad("request target"));
    if target.contains('#') {
        return invalid;
    }
    if target.starts_with('/') {
        return Ok((target, None));
    }
    if target == "*" {
        return match method {
            "OPTIONS" => Ok((target, None)),
            _ => invalid,
        };
    }
    let after = |scheme: &str| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    // Whether the connection has TLS is known without the scheme.
    let Some(rest) = after("http://").or_else(|| after("https://")) else {
        return invalid;
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    if host.is_empty() || !is_authority(host.as_bytes()) {
        return invalid;
    }
    match path {
        "" if method == "OPTIONS" => Ok(("*", Some(host.as_bytes()))),
        "" => Ok(("/", Some(host.as_bytes()))),
        path if path.starts_with('/') => Ok((path, Some(host.as_bytes()))),
        // An empty path with a query would have to be rewritten, and no client sends that.
        _ => invalid,
    }
}

/// Returns true for a host with or without a port (RFC 9110, section 7.2), without user
/// information. The grammar allows a comma in a host name, but it is refused: several hosts in one
/// field look like that.
pub(super) fn is_authority(value: &[u8]) -> bool {
    let (host, port) = split_port(value);
    let port_is_number =
        port.is_none_or(|port| port.len() <= 5 && port.iter().all(u8::is_ascii_digit));
    let host_is_valid = match host {
        [b'[', address @ .., b']'] => std::str::from_utf8(address)
            .is_ok_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
        host => {
            !host.is_empty()
                && host
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte))
        }
    };
    host_is_valid && port_is_number
}

/// Returns the host and the port of an authority.
pub(super) fn split_port(value: &[u8]) -> (&[u8], Option<&[u8]>) {
    // The colons of an IPv6 address are within brackets.
    match value.iter().rposition(|&byte| byte == b':' || byte == b']') {
        Some(colon) if value[colon] == b':' => (&value[..colon], Some(&value[colon + 1..])),
        _ => (value, None),
    }
}
