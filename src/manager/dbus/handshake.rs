//! The handshake of a client on the private socket: the server's side of the D-Bus authentication
//! protocol.
//!
//! The kernel has told who the client is, so the only mechanism is EXTERNAL: the client may say the
//! number of its user, which must be the right one. File descriptors cannot be passed, because no
//! method takes one. [`Handshake`] takes one byte after the other and does nothing else; what it
//! keeps has the length of one line. [`welcome`] is the shell around it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::limits::HANDSHAKE_BYTES;

/// Performs the handshake with a client. Returns the bytes after it that were read already, or
/// `None` if the client has not kept to the protocol.
pub(super) async fn welcome(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut handshake: Handshake,
) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = [0; 512];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return Ok(None);
        }
        for (index, &byte) in bytes[..length].iter().enumerate() {
            match handshake.take(byte) {
                Heard::More => {}
                Heard::Answer(answer) => stream.write_all(answer.as_bytes()).await?,
                Heard::Begun => return Ok(Some(bytes[index + 1..length].to_vec())),
                Heard::Nonsense => return Ok(None),
            }
        }
    }
}

/// The handshake of one client, as far as it has come.
#[derive(Debug)]
pub(super) struct Handshake {
    uid: u32,
    guid: String,
    step: Step,
    line: Vec<u8>,
    taken: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The first byte has to be NUL.
    Nul,
    /// The client has to choose a mechanism.
    Auth,
    /// The client has to say who it is.
    Data,
    /// The client is known and may begin.
    Known,
}

/// What follows from a byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// More bytes are needed.
    More,
    /// The client gets this answer.
    Answer(String),
    /// Messages begin with the next byte.
    Begun,
    /// The client speaks another protocol, or without end.
    Nonsense,
}

impl Handshake {
    /// Begins the handshake with a client of user `uid`. `guid` names the server.
    pub(super) fn new(uid: u32, guid: String) -> Handshake {
        Handshake {
            uid,
            guid,
            step: Step::Nul,
            line: Vec::new(),
            taken: 0,
        }
    }

    /// Takes the next byte from the client.
    pub(super) fn take(&mut self, byte: u8) -> Heard {
        self.taken += 1;
        if self.taken > HANDSHAKE_BYTES {
            return Heard::Nonsense;
        }
        match (self.step, byte) {
            (Step::Nul, 0) => {
                self.step = Step::Auth;
                Heard::More
            }
            (Step::Nul, _) => Heard::Nonsense,
            (_, b'\n') => {
                let line = std::mem::take(&mut self.line);
                match line.strip_suffix(b"\r").map(str::from_utf8) {
                    Some(Ok(line)) => self.command(line),
                    _ => Heard::Nonsense,
                }
            }
            _ => {
                self.line.push(byte);
                Heard::More
            }
        }
    }

    fn command(&mut self, line: &str) -> Heard {
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        match (self.step, command) {
            (Step::Known, "BEGIN") => return Heard::Begun,
            (Step::Auth, "AUTH") => match (words.next(), words.next()) {
                (Some("EXTERNAL"), None) => {
                    self.step = Step::Data;
                    return Heard::Answer("DATA\r\n".to_owned());
                }
                (Some("EXTERNAL"), Some(id)) if self.is_right(id) => return self.accept(),
                _ => {}
            },
            (Step::Data, "DATA") if words.next().is_none_or(|id| self.is_right(id)) => {
                return self.accept();
            }
            (Step::Data, "DATA") | (_, "CANCEL" | "ERROR") => {}
            _ => return Heard::Answer("ERROR \"not here\"\r\n".to_owned()),
        }
        self.step = Step::Auth;
        Heard::Answer("REJECTED EXTERNAL\r\n".to_owned())
    }

    fn accept(&mut self) -> Heard {
        self.step = Step::Known;
        Heard::Answer(format!("OK {}\r\n", self.guid))
    }

    /// Returns true if `id` is the number of the client's user: decimal digits, as hexadecimal
    /// bytes.
    fn is_right(&self, id: &str) -> bool {
        let digits = self.uid.to_string();
        let expected: String = digits.bytes().map(|digit| format!("{digit:02x}")).collect();
        id.is_empty() || id == expected
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new() -> Handshake {
        Handshake::new(1000, "f00d".to_owned())
    }

    /// Returns all answers to these bytes, and how they end.
    fn hear(bytes: &[u8]) -> (String, Option<Heard>) {
        let (mut handshake, mut answers) = (new(), String::new());
        for &byte in bytes {
            match handshake.take(byte) {
                Heard::More => {}
                Heard::Answer(answer) => answers += &answer,
                end => return (answers, Some(end)),
            }
        }
        (answers, None)
    }

    #[test]
    fn clients_begin_in_their_ways() {
        let ok = "OK f00d\r\n";
        let no = "ERROR \"not here\"\r\n";
        for (client, bytes, expected) in [
            (
                "zbus",
                "\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n",
                ok.to_owned(),
            ),
            (
                "libdbus",
                "\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
                format!("{ok}{no}"),
            ),
            (
                "sd-bus",
                "\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
                format!("DATA\r\n{ok}{no}"),
            ),
            (
                "one that tries",
                "\0AUTH\r\nAUTH ANONYMOUS 00\r\nAUTH EXTERNAL 31303030\r\nBEGIN\r\n",
                format!("REJECTED EXTERNAL\r\nREJECTED EXTERNAL\r\n{ok}"),
            ),
        ] {
            assert_eq!(
                hear(bytes.as_bytes()),
                (expected, Some(Heard::Begun)),
                "{client}"
            );
        }
    }

    #[test]
    fn nobody_is_somebody_else() {
        let rejected = "REJECTED EXTERNAL\r\n".to_owned();
        assert_eq!(hear(b"\0AUTH EXTERNAL 30\r\n"), (rejected.clone(), None));
        let (answers, _) = hear(b"\0AUTH EXTERNAL\r\nDATA 30\r\nBEGIN\r\n");
        assert_eq!(
            answers,
            format!("DATA\r\n{rejected}ERROR \"not here\"\r\n"),
            "it does not begin"
        );
    }

    #[test]
    fn nonsense_and_talk_without_end_are_the_end() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\0\n", b"\0AUTH\n"] {
            assert_eq!(hear(bytes), (String::new(), Some(Heard::Nonsense)));
        }
        let endless = [b"\0".to_vec(), vec![b'A'; HANDSHAKE_BYTES]].concat();
        assert_eq!(hear(&endless), (String::new(), Some(Heard::Nonsense)));
        let lines = ["\0".to_owned(), "NO\r\n".repeat(HANDSHAKE_BYTES)].concat();
        assert_eq!(hear(lines.as_bytes()).1, Some(Heard::Nonsense));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut handshake = new();
            for byte in [0].into_iter().chain(bytes) {
                let heard = handshake.take(byte);
                prop_assert!(handshake.line.len() < HANDSHAKE_BYTES);
                prop_assert!(heard != Heard::Begun, "nobody guesses it");
                if heard == Heard::Nonsense {
                    break;
                }
            }
        }
    }
}
