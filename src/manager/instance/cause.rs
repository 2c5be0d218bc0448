//! The causes of failed starts, in words, each with what to do about it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::config::Bind;
use crate::ipc::Address;
use crate::manager::event::Sighting;
use crate::manager::host::sockets::SeenSocket;
use crate::manager::process::ProcessEnd;

/// How many places are named.
const NAMED: usize = 3;

/// Says why a program that has ended before it was ready did so, as far as its end tells.
pub(super) fn of_early_end(ending: &ProcessEnd) -> Option<String> {
    if ending.went_to_the_background() {
        return Some(
            "it went to the background, where a process that it has started ran on; let it stay in \
             the foreground, as by an option such as `--foreground`, `--no-daemon` or `-D`, or by \
             `exec` in the last line of a script"
                .to_owned(),
        );
    }
    ending.ended_well().then(|| {
        "a service has to run until it is told to stop; start its server in the foreground"
            .to_owned()
    })
}

/// How an instance learns its port, beside the variable PORT.
pub(super) enum PortHint {
    /// By this argument, which it gets because its service has no `args`.
    Default(String),
    /// By `{port}` in `args`.
    Arguments,
    /// By the variable alone.
    Nothing,
}

/// Says why an instance that runs is not ready, as far as it was seen where it listens.
pub(super) fn of_unreadiness(
    sighting: &Sighting,
    wanted: &Address,
    bind: Bind,
    hint: PortHint,
) -> Option<String> {
    match (wanted, bind) {
        (Address::Unix(path), _) => of_no_socket(&sighting.places, &SeenSocket::Unix(path.clone())),
        (Address::Tcp(address), Bind::Inherit) => of_own_socket(&sighting.places, *address),
        (Address::Tcp(address), _) => of_no_port(sighting, *address, hint),
    }
}

fn of_no_port(sighting: &Sighting, wanted: SocketAddr, hint: PortHint) -> Option<String> {
    let places = &sighting.places;
    if places.iter().any(|place| place.covers(wanted)) {
        return None;
    }
    let port = wanted.port();
    if let Some(holder) = &sighting.holder {
        return Some(format!(
            "address in use: port {port} is taken by {holder}; end that program, or choose other \
             ports by `start_instance_port`"
        ));
    }
    let on_port =
        |place: &&SeenSocket| matches!(place, SeenSocket::Tcp(address) if address.port() == port);
    if let Some(SeenSocket::Tcp(address)) = places.iter().find(on_port) {
        return Some(format!(
            "it listens on {address} and not on {}; let it listen there, or write `server_ip: \
             \"{}\"`",
            wanted.ip(),
            address.ip()
        ));
    }
    let cure = match hint {
        PortHint::Default(argument) => format!(
            "it gets `{argument}`, because `args` is not set, and PORT; set `args` to what it \
             understands, as in `args: [\"--port\", \"{{port}}\"]`"
        ),
        PortHint::Arguments => String::new(),
        PortHint::Nothing => "give it {port} in `args`, or let it read PORT".to_owned(),
    };
    const SLOW: &str = "it listens on no port; if it needs longer, raise `start_timeout`";
    Some(match (named(places), &*cure) {
        (Some(named), "") => format!("it listens on {named}, although it gets {{port}} in `args`"),
        (Some(named), cure) => format!("it listens on {named}; {cure}"),
        (None, "") => SLOW.to_owned(),
        (None, cure) => format!("{SLOW}, else {cure}"),
    })
}

fn of_no_socket(places: &BTreeSet<SeenSocket>, wanted: &SeenSocket) -> Option<String> {
    if places.contains(wanted) {
        return None;
    }
    let cure = "give it {socket} in `args`, or let it read SOCKET";
    Some(match named(places) {
        Some(named) => format!("it listens on {named}; {cure}, or leave `bind: unix` out"),
        None => format!("it listens on no socket; {cure}"),
    })
}

/// Says what an instance does instead of using the socket that it inherits, which it has anyway.
fn of_own_socket(places: &BTreeSet<SeenSocket>, inherited: SocketAddr) -> Option<String> {
    let mut others = places.clone();
    others.remove(&SeenSocket::Tcp(inherited));
    let cure = "let it take the socket that it inherits as descriptor 3 (LISTEN_FDS)";
    Some(match named(&others) {
        Some(named) => format!("it listens on {named}; {cure}, or leave `bind: inherit` out"),
        None => format!("it accepts no connection; {cure}"),
    })
}

fn named(places: &BTreeSet<SeenSocket>) -> Option<String> {
    let named: Vec<String> = places
        .iter()
        .take(NAMED)
        .map(SeenSocket::to_string)
        .collect();
    let more = places.len().saturating_sub(NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    (!named.is_empty()).then(|| named.join(", ") + &more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> SeenSocket {
        SeenSocket::Tcp(text.parse().unwrap())
    }

    fn cause(bind: Bind, wanted: &Address, places: &[SeenSocket]) -> String {
        let sighting = Sighting {
            places: places.iter().cloned().collect(),
            holder: None,
        };
        of_unreadiness(&sighting, wanted, bind, PortHint::Nothing).unwrap_or_default()
    }

    #[test]
    fn where_an_instance_listens_tells_what_to_do() {
        let unix = SeenSocket::Unix("/run/x.sock".into());
        let port = Address::Tcp("127.0.0.1:9001".parse().unwrap());
        let socket = Address::Unix("/run/x.sock".into());
        for (bind, wanted, places, told) in [
            (Bind::Port, &port, vec![tcp("127.0.0.1:9001")], ""),
            (Bind::Port, &port, vec![tcp("0.0.0.0:9001")], ""),
            (
                Bind::Port,
                &port,
                vec![tcp("[::]:9001"), tcp("127.0.0.1:80")],
                "",
            ),
            (
                Bind::Port,
                &port,
                vec![tcp("127.0.0.1:3456")],
                "it listens on 127.0.0.1:3456; give it {port} in `args`, or let it read PORT",
            ),
            (
                Bind::Port,
                &port,
                vec![tcp("[::1]:9001")],
                "it listens on [::1]:9001 and not on 127.0.0.1; let it listen there, or write \
                 `server_ip: \"::1\"`",
            ),
            (
                Bind::Port,
                &port,
                vec![unix.clone()],
                "it listens on the unix socket /run/x.sock; give it {port} in `args`, or let it \
                 read PORT",
            ),
            (
                Bind::Port,
                &port,
                (1..=5).map(|n| tcp(&format!("127.0.0.1:{n}"))).collect(),
                "it listens on 127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3 and 2 more; give it {port} in \
                 `args`, or let it read PORT",
            ),
            (
                Bind::Port,
                &port,
                vec![],
                "it listens on no port; if it needs longer, raise `start_timeout`, else give it \
                 {port} in `args`, or let it read PORT",
            ),
            (Bind::Unix, &socket, vec![unix.clone()], ""),
            (
                Bind::Unix,
                &socket,
                vec![tcp("0.0.0.0:3000")],
                "it listens on 0.0.0.0:3000; give it {socket} in `args`, or let it read SOCKET, or \
                 leave `bind: unix` out",
            ),
            (
                Bind::Inherit,
                &port,
                vec![tcp("127.0.0.1:9001"), tcp("127.0.0.1:3000")],
                "it listens on 127.0.0.1:3000; let it take the socket that it inherits as \
                 descriptor 3 (LISTEN_FDS), or leave `bind: inherit` out",
            ),
        ] {
            assert_eq!(cause(bind, wanted, &places), told);
        }
    }

    #[test]
    fn another_program_on_the_port_and_an_argument_that_is_not_understood_are_named() {
        let wanted = Address::Tcp("127.0.0.1:9001".parse().unwrap());
        let sighting = |places: &[SeenSocket], holder: Option<&str>| Sighting {
            places: places.iter().cloned().collect(),
            holder: holder.map(str::to_owned),
        };
        let taken = sighting(&[], Some("nginx (process 123)"));
        let told = of_unreadiness(&taken, &wanted, Bind::Port, PortHint::Nothing).unwrap();
        assert!(
            told.contains("port 9001 is taken by nginx (process 123)"),
            "{told}"
        );
        let elsewhere = sighting(&[tcp("127.0.0.1:3456")], None);
        let argument = PortHint::Default("-port=9001".to_owned());
        let told = of_unreadiness(&elsewhere, &wanted, Bind::Port, argument).unwrap();
        let expected = "it listens on 127.0.0.1:3456; it gets `-port=9001`, because `args` is not \
                        set, and PORT; set `args`";
        assert!(told.starts_with(expected), "{told}");
        // Nobody is told to do what they have done.
        for (places, expected) in [
            (
                vec![],
                "it listens on no port; if it needs longer, raise `start_timeout`",
            ),
            (
                vec![tcp("127.0.0.1:3456")],
                "it listens on 127.0.0.1:3456, although it gets {port} in `args`",
            ),
        ] {
            let seen = sighting(&places, None);
            let told = of_unreadiness(&seen, &wanted, Bind::Port, PortHint::Arguments);
            assert_eq!(told.as_deref(), Some(expected));
        }
    }
}
