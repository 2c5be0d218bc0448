//! What a D-Bus client can make the manager hold. docs/dbus.md has a table of these limits, which a
//! test compares.

use std::time::Duration;

/// How long a client may take for the handshake, and how long the manager waits for a bus.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// How many bytes a client may send before the end of the handshake. Clients send about 60.
pub(super) const HANDSHAKE_BYTES: usize = 4 << 10;

/// The size of the longest message that the manager takes. The calls of the documented methods have
/// at most a few hundred bytes: their longest argument is the name of a service.
pub(super) const LONGEST_MESSAGE: usize = 64 << 10;

/// How many calls of one connection to the private socket may be without an answer. The manager
/// reads the next call when an answer has left it.
pub(super) const CALLS_OF_CONNECTION: usize = 4;

/// How long a client may take to read one message. A client that takes longer is disconnected.
pub(super) const SLOWEST_READER: Duration = Duration::from_secs(10);

/// How many calls of one sender on a bus may be without an answer; further calls are refused.
pub(super) const CALLS_OF_SENDER: usize = 16;

/// How many calls of all senders on a bus may be without an answer; further calls are refused.
pub(super) const CALLS_ON_BUS: usize = 512;

/// How many calls of one user may wait for polkit, for example until a person enters a password.
pub(super) const QUESTIONS_OF_USER: usize = 4;

/// How many calls of all users may wait for polkit.
pub(super) const QUESTIONS: usize = 32;

/// How much the clients of a group of users may use of the private socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// Connections of one user.
    pub(super) connections_of_user: usize,
    /// Connections of all users of the group.
    pub(super) connections: usize,
    /// Calls of one user that have no answer yet.
    pub(super) calls_of_user: usize,
    /// Calls of all users of the group that have no answer yet.
    pub(super) calls: usize,
}

/// The share that root has alone, and that the manager's own user has alone.
pub(super) const MASTER: Share = Share {
    connections_of_user: 128,
    connections: 128,
    calls_of_user: 64,
    calls: 64,
};

/// The share of all other users together.
pub(super) const OTHERS: Share = Share {
    connections_of_user: 32,
    connections: 128,
    calls_of_user: 8,
    calls: 64,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_the_limits() {
        let reference = include_str!("../../../docs/dbus.md");
        let (_, section) = reference.split_once("## Limits").expect("it has a section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
        let seconds = |time: Duration| format!("{} s", time.as_secs());
        let (bytes, time) = (kib(HANDSHAKE_BYTES), seconds(HANDSHAKE_TIME));
        let (message, reader) = (kib(LONGEST_MESSAGE), seconds(SLOWEST_READER));
        let Share {
            connections, calls, ..
        } = MASTER;
        let Share {
            connections_of_user,
            connections: connections_of_others,
            calls_of_user,
            calls: calls_of_others,
        } = OTHERS;
        for row in [
            format!("| handshake | {bytes}, {time} |"),
            format!("| message that a client sends | {message} |"),
            format!("| time to read a message | {reader} |"),
            format!("| calls without an answer, of one connection | {CALLS_OF_CONNECTION} |"),
            format!("| connections of root, and of smoothserve's own user | {connections} |"),
            format!("| connections of another user | {connections_of_user} |"),
            format!("| connections of all other users | {connections_of_others} |"),
            format!(
                "| calls without an answer, of root, and of smoothserve's own user | {calls} |"
            ),
            format!("| calls without an answer, of another user | {calls_of_user} |"),
            format!("| calls without an answer, of all other users | {calls_of_others} |"),
            format!("| calls without an answer, of one sender on a bus | {CALLS_OF_SENDER} |"),
            format!("| calls without an answer, of all senders on a bus | {CALLS_ON_BUS} |"),
            format!("| calls that wait for polkit, of one user | {QUESTIONS_OF_USER} |"),
            format!("| calls that wait for polkit, of all users | {QUESTIONS} |"),
        ] {
            assert!(section.contains(&row), "no row {row:?} in {section}");
        }
    }
}
