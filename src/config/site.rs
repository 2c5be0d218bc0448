//! `server_name`: the hosts and paths that a service serves.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::fields::At;
use super::reader::Reader;
use super::value;

/// A host and a path prefix: the requests that a service gets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Site {
    /// The host.
    pub host: HostPattern,
    /// The path prefix: `/`, or a path without a slash at its end.
    pub path: String,
}

/// A pattern of hosts, in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HostPattern {
    /// One host, `a.example`.
    Exact(String),
    /// All hosts with at least one label before this one: `*.example`, here without the `*.`.
    Subdomain(String),
    /// Any host, `_`.
    Any,
}

impl Site {
    /// Reads `server_name`, sorted and without repetitions. Without that key a service serves all
    /// hosts and paths.
    pub(super) fn read_all(reader: &mut Reader<'_>) -> Vec<Site> {
        let Some(words) = reader.get("server_name", value::words) else {
            return vec![Site {
                host: HostPattern::Any,
                path: "/".to_owned(),
            }];
        };
        let mut sites = Vec::new();
        for At { at, value: text } in words {
            match Site::parse(&text) {
                Ok(site) => sites.push(site),
                Err(why) => reader.report.at(at, format!("`server_name`: {why}")),
            }
        }
        sites.sort();
        sites.dedup();
        sites
    }

    /// Parses `host`, `*.host` or `_`, each with or without a `/path`. The error says what is wrong
    /// and what to do.
    pub fn parse(text: &str) -> Result<Site, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!(
                "`{text}` begins with `{scheme}://`; {}",
                site_of_url(rest)
            ));
        }
        let (host, path) = match text.find('/') {
            Some(slash) => text.split_at(slash),
            None => (text, "/"),
        };
        Ok(Site {
            host: parse_host(host)?,
            path: parse_path(path)?,
        })
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            HostPattern::Exact(host) => f.write_str(host)?,
            HostPattern::Subdomain(host) => write!(f, "*.{host}")?,
            HostPattern::Any => f.write_str("_")?,
        }
        if self.path != "/" {
            f.write_str(&self.path)?;
        }
        Ok(())
    }
}

/// Says what to write instead of a URL, whose part behind the scheme this is.
fn site_of_url(rest: &str) -> String {
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host,
        _ => authority,
    };
    match path.trim_end_matches('/') {
        "" => format!("give the host alone: `{host}`"),
        path => format!("give the host and the path only: `{host}{path}`"),
    }
}

fn parse_host(text: &str) -> Result<HostPattern, String> {
    match text {
        "_" => return Ok(HostPattern::Any),
        "*" => return Err("`*` is no host; write `_` for any host".to_owned()),
        "" => return Err("the host is missing; write `_` for any host".to_owned()),
        _ => {}
    }
    if !text.is_ascii() {
        return Err(format!(
            "`{text}` is not ASCII; write the host in punycode, as `xn--…`"
        ));
    }
    if text.starts_with('[') {
        return parse_ipv6(text);
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!(
            "`{text}` is an IPv6 address; write it as `[{text}]`"
        ));
    }
    if let Some((host, _)) = text.split_once(':') {
        return Err(format!(
            "`{text}` has a port; leave `{host}` here and give the port as `port`"
        ));
    }
    let lower = text.to_ascii_lowercase();
    let host = lower.strip_suffix('.').unwrap_or(&lower);
    match host.strip_prefix("*.") {
        Some(rest) if rest.parse::<Ipv4Addr>().is_ok() => {
            Err(format!("`{text}` is no host: an address has no subdomains"))
        }
        Some(rest) => check_name(text, rest).map(|()| HostPattern::Subdomain(rest.to_owned())),
        None => check_name(text, host).map(|()| HostPattern::Exact(host.to_owned())),
    }
}

/// Parses `[::1]`. It is kept with its brackets, as it stands in a `Host` header, and in its
/// canonical form.
fn parse_ipv6(text: &str) -> Result<HostPattern, String> {
    let (inner, rest) = text[1..].split_once(']').unwrap_or((&text[1..], ""));
    if rest.starts_with(':') {
        return Err(format!(
            "`{text}` has a port; leave `[{inner}]` here and give the port as `port`"
        ));
    }
    match inner.parse::<Ipv6Addr>() {
        Ok(address) if rest.is_empty() && text.ends_with(']') => {
            Ok(HostPattern::Exact(format!("[{address}]")))
        }
        _ => Err(format!("`{text}` is no IPv6 address such as `[::1]`")),
    }
}

/// Checks the name of a host by RFC 1123, with the underscore that real names have.
fn check_name(whole: &str, name: &str) -> Result<(), String> {
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.contains('*') {
        return Err(format!(
            "`{whole}` is no host: `*` stands for the first part alone, as in `*.example.org`"
        ));
    }
    if name.len() > 253 || !name.split('.').all(good) {
        return Err(format!(
            "`{whole}` is no host: use letters, digits, `-` and `.`, as in `www.example.org`"
        ));
    }
    Ok(())
}

/// Checks a path prefix, takes the slash off its end, and writes it in the one way in which a path
/// is compared. The error says what is wrong and what to do.
pub(super) fn parse_path(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err(format!(
            "`{text}` is no path: it is a prefix by itself, so leave the `*` out"
        ));
    }
    if let Some(c) = text
        .chars()
        .find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#'))
    {
        return Err(format!(
            "`{text}` is no path: {c:?} cannot stand there; write it as %XX if it is meant"
        ));
    }
    let path = text.trim_end_matches('/');
    if path.len() > 1024 {
        return Err("the path is longer than 1024 bytes".to_owned());
    }
    if path.is_empty() {
        return Ok("/".to_owned());
    }
    if path[1..]
        .split('/')
        .any(|part| matches!(part, "" | "." | ".."))
    {
        return Err(format!(
            "`{text}` is no path: it has an empty part, `.` or `..`"
        ));
    }
    canonical(path).ok_or_else(|| {
        format!(
            "`{text}` is no path: requests with `%2F`, `%5C`, `\\`, control characters, or an invalid \
             `%` cannot be routed by their path; leave them out"
        )
    })
}

/// Writes a path in the one way in which it is compared: a byte stands for itself where RFC 3986
/// allows that, and all others are written as `%XX`. `None` if readers could take the path for
/// another one.
fn canonical(path: &str) -> Option<String> {
    let mut canonical = String::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (byte, coded) = match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let code = digit()? << 4 | digit()?;
                (u8::try_from(code).ok()?, true)
            }
            byte => (byte, false),
        };
        let is_separator = matches!(byte, b'\\') || (coded && byte == b'/');
        if is_separator || byte.is_ascii_control() {
            return None;
        }
        match byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            true => canonical.push(byte.into()),
            false => canonical.push_str(&format!("%{byte:02X}")),
        }
    }
    let mut segments = canonical.split('/');
    let is_safe = segments.all(|segment| !matches!(segment.split(';').next(), Some("." | "..")));
    is_safe.then_some(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hosts_and_paths() {
        for (text, host, path) in [
            ("a.example", HostPattern::Exact("a.example".into()), "/"),
            ("A.Example.", HostPattern::Exact("a.example".into()), "/"),
            (
                "local.zyaps.com/center",
                HostPattern::Exact("local.zyaps.com".into()),
                "/center",
            ),
            (
                "a.example/API/v1/",
                HostPattern::Exact("a.example".into()),
                "/API/v1",
            ),
            ("*.example", HostPattern::Subdomain("example".into()), "/"),
            ("_", HostPattern::Any, "/"),
            ("_/api", HostPattern::Any, "/api"),
            ("_/%61pi/%7Euser", HostPattern::Any, "/api/~user"),
            ("_/caf%c3%a9{", HostPattern::Any, "/caf%C3%A9%7B"),
            ("localhost/", HostPattern::Exact("localhost".into()), "/"),
            ("127.0.0.1", HostPattern::Exact("127.0.0.1".into()), "/"),
            ("[::0:1]", HostPattern::Exact("[::1]".into()), "/"),
            ("my_host", HostPattern::Exact("my_host".into()), "/"),
        ] {
            let site = Site {
                host,
                path: path.to_owned(),
            };
            assert_eq!(Site::parse(text), Ok(site), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["a.example", "*.example/x", "_", "_/api", "[::1]"] {
            assert_eq!(Site::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn says_what_to_do_about_a_wrong_one() {
        for (text, advice) in [
            ("http://a.example/x", "`a.example/x`"),
            ("a.example:80", "give the port as `port`"),
            ("[::1]:80", "leave `[::1]` here"),
            ("[::1", "no IPv6"),
            ("[", "no IPv6"),
            ("::1", "write it as `[::1]`"),
            ("bücher.example", "punycode"),
            ("*", "write `_`"),
            ("/api", "write `_`"),
            ("", "write `_`"),
            ("a.*.example", "the first part alone"),
            ("*example", "the first part alone"),
            ("*.", "no host"),
            ("*.10.0.0.1", "no subdomains"),
            ("a b", "no host"),
            ("-a", "no host"),
            ("a..b", "no host"),
            ("a/x?y", "%XX"),
            ("a/x y", "%XX"),
            ("a/x/*", "leave the `*` out"),
            ("a//x", "empty part"),
            ("a/../x", "`..`"),
            ("a/%2fx", "%2F"),
            ("a/x\\y", "%5C"),
            ("a/%2e%2E/x", "leave them out"),
            ("a/..;x", "leave them out"),
            ("a/%zz", "invalid `%`"),
            ("a/%0a", "control characters"),
        ] {
            let message = Site::parse(text).unwrap_err();
            assert!(message.contains(advice), "{text}: {message}");
        }
    }
}
