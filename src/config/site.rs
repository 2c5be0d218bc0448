//! `server_name`: hosts and paths.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Site;
use crate::ipc::Host;

impl Site {
    /// Reads `host`, `*.host`, `_`, each with or without a `/path`. The error says what is wrong and what to do.
    pub fn parse(text: &str) -> Result<Site, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!(
                "`{text}` begins with `{scheme}://`; give the host and the path only: `{rest}`"
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
            Host::Exact(host) => f.write_str(host)?,
            Host::Subdomain(host) => write!(f, "*.{host}")?,
            Host::Any => f.write_str("_")?,
        }
        if self.path != "/" {
            f.write_str(&self.path)?;
        }
        Ok(())
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    match text {
        "_" => return Ok(Host::Any),
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
        Some(rest) => check_name(text, rest).map(|()| Host::Subdomain(rest.to_owned())),
        None => check_name(text, host).map(|()| Host::Exact(host.to_owned())),
    }
}

/// `[::1]`, kept with its brackets as it stands in a `Host` field, in its canonical form.
fn parse_ipv6(text: &str) -> Result<Host, String> {
    let (inner, rest) = text[1..].split_once(']').unwrap_or((&text[1..], ""));
    if rest.starts_with(':') {
        return Err(format!(
            "`{text}` has a port; leave `[{inner}]` here and give the port as `port`"
        ));
    }
    match inner.parse::<Ipv6Addr>() {
        Ok(address) if rest.is_empty() && text.ends_with(']') => {
            Ok(Host::Exact(format!("[{address}]")))
        }
        _ => Err(format!("`{text}` is no IPv6 address such as `[::1]`")),
    }
}

/// RFC 1123, with the underscore that real names have.
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
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hosts_and_paths() {
        for (text, host, path) in [
            ("a.example", Host::Exact("a.example".into()), "/"),
            ("A.Example.", Host::Exact("a.example".into()), "/"),
            (
                "local.zyaps.com/center",
                Host::Exact("local.zyaps.com".into()),
                "/center",
            ),
            (
                "a.example/API/v1/",
                Host::Exact("a.example".into()),
                "/API/v1",
            ),
            ("*.example", Host::Subdomain("example".into()), "/"),
            ("_", Host::Any, "/"),
            ("_/api", Host::Any, "/api"),
            ("localhost/", Host::Exact("localhost".into()), "/"),
            ("127.0.0.1", Host::Exact("127.0.0.1".into()), "/"),
            ("[::0:1]", Host::Exact("[::1]".into()), "/"),
            ("my_host", Host::Exact("my_host".into()), "/"),
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
        ] {
            let message = Site::parse(text).unwrap_err();
            assert!(message.contains(advice), "{text}: {message}");
        }
    }
}
