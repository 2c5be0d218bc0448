//! The frozen part of the messages: what managers and workers of all builds say in the same bytes.
//!
//! A manager and a worker that speak the same [version](MESSAGES) of the messages use all of them.
//! Any other two use only what is in this file: the worker says how it greets, how many requests
//! and tunnels it has, and when it has nothing left but tunnels, and the manager tells it to drain.
//! That is all they need to part without a loss: the worker serves on with the last table that it
//! has understood, until a worker of the manager's own build has taken over.
//!
//! No field here may be renamed, removed, or get another meaning, and messages get no field here
//! that has no default. The tests have the bytes of the builds so far.

use std::time::Duration;

use serde::Deserialize;

use super::endpoint::{EndpointCounts, EndpointId};
use super::frames::{self, FrameError};
use super::message::{FromWorker, ToWorker};
use super::short_text::ShortText;

/// The version of the messages. It has to be raised with the first change after a release, whatever
/// the change is: a field that an older worker does not know may be one that denies a request.
/// Workers that do not tell a version have version 0.
pub const MESSAGES: u32 = 1;

/// A message of a worker of any build.
#[derive(Deserialize)]
enum FrozenFromWorker {
    Hello {
        version: ShortText,
        #[serde(default)]
        messages: u32,
    },
    OnlyTunnels,
    Counts {
        connections: u32,
        endpoints: Vec<FrozenCounts>,
    },
    Pong(u64),
}

#[derive(Deserialize)]
struct FrozenCounts {
    id: EndpointId,
    in_flight: u32,
    tunnels: u32,
    requests: u64,
}

/// A message of a manager of any build.
#[derive(Deserialize)]
enum FrozenToWorker {
    Drain {
        idle: Duration,
        limit: Duration,
        tunnels: Duration,
    },
    Ping(u64),
}

/// Reads what one worker says: all of it once the worker has greeted with this build's version of
/// the messages, otherwise only the frozen part.
#[derive(Debug, Default)]
pub struct WorkerReader {
    speaks: bool,
}

impl WorkerReader {
    /// Reads one message. What belongs to another version is [`FromWorker::NotUnderstood`].
    pub fn read(&mut self, frame: &[u8]) -> Result<FromWorker, FrameError> {
        if self.speaks {
            return frames::decode(frame);
        }
        let Ok(message) = serde_json::from_slice(frame) else {
            return Ok(FromWorker::NotUnderstood);
        };
        Ok(match message {
            FrozenFromWorker::Hello { messages, .. } if messages == MESSAGES => {
                self.speaks = true;
                frames::decode(frame)?
            }
            FrozenFromWorker::Hello { version, messages } => FromWorker::Hello {
                version,
                messages,
                // Nothing is asked of this worker that would need them.
                unix_sockets: true,
            },
            FrozenFromWorker::OnlyTunnels => FromWorker::OnlyTunnels,
            FrozenFromWorker::Counts {
                connections,
                endpoints,
            } => FromWorker::Counts {
                connections,
                bounds: Default::default(),
                endpoints: endpoints.into_iter().map(EndpointCounts::from).collect(),
            },
            FrozenFromWorker::Pong(number) => FromWorker::Pong(number),
        })
    }
}

impl From<FrozenCounts> for EndpointCounts {
    fn from(counts: FrozenCounts) -> EndpointCounts {
        let FrozenCounts {
            id,
            in_flight,
            tunnels,
            requests,
        } = counts;
        EndpointCounts {
            id,
            in_flight,
            tunnels,
            requests,
            failures: 0,
        }
    }
}

/// Reads what one manager says: all of it until something comes that this build does not
/// understand, and from then on only the frozen part.
#[derive(Debug, Default)]
pub struct ManagerReader {
    is_foreign: bool,
}

impl ManagerReader {
    /// Reads one message. What belongs to another version is [`ToWorker::NotUnderstood`].
    pub fn read(&mut self, frame: &[u8]) -> ToWorker {
        if !self.is_foreign
            && let Ok(message) = frames::decode(frame)
        {
            return message;
        }
        // The messages that follow may build on this one.
        self.is_foreign = true;
        match serde_json::from_slice(frame) {
            Ok(FrozenToWorker::Drain {
                idle,
                limit,
                tunnels,
            }) => ToWorker::Drain {
                idle,
                limit,
                tunnels,
            },
            Ok(FrozenToWorker::Ping(number)) => ToWorker::Ping(number),
            Err(_) => ToWorker::NotUnderstood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::frames::encode;

    const DRAIN: &[u8] = b"\x65\0\0\0{\"Drain\":{\"idle\":{\"secs\":1,\"nanos\":0},\
        \"limit\":{\"secs\":30,\"nanos\":0},\"tunnels\":{\"secs\":60,\"nanos\":5}}}";
    const PING: &[u8] = b"\x0a\0\0\0{\"Ping\":7}";
    const PONG: &[u8] = b"\x0a\0\0\0{\"Pong\":7}";
    const ONLY_TUNNELS: &[u8] = b"\x0d\0\0\0\"OnlyTunnels\"";

    /// The greeting and the counts of the builds before versions.
    const OLD_HELLO: &[u8] = b"\x31\0\0\0{\"Hello\":{\"version\":\"0.1.0\",\"unix_sockets\":true}}";
    const OLD_COUNTS: &[u8] = b"\x73\0\0\0{\"Counts\":{\"connections\":3,\"bounds\":{},\
        \"endpoints\":[{\"id\":1,\"in_flight\":2,\"tunnels\":4,\"requests\":9,\"failures\":0}]}}";

    /// The greeting and the counts of any build, with what nobody knows yet.
    const ANY_HELLO: &[u8] =
        b"\x36\0\0\0{\"Hello\":{\"version\":\"9\",\"messages\":4294967295,\"x\":[]}}";
    const ANY_COUNTS: &[u8] = b"\x70\0\0\0{\"Counts\":{\"connections\":3,\"bounds\":\"x\",\
        \"endpoints\":[{\"id\":1,\"in_flight\":2,\"tunnels\":4,\"requests\":9,\"x\":null}]}}";

    fn drain() -> ToWorker {
        ToWorker::Drain {
            idle: Duration::from_secs(1),
            limit: Duration::from_secs(30),
            tunnels: Duration::new(60, 5),
        }
    }

    fn counts() -> FromWorker {
        FromWorker::Counts {
            connections: 3,
            bounds: Default::default(),
            endpoints: vec![EndpointCounts {
                id: EndpointId(1),
                in_flight: 2,
                tunnels: 4,
                requests: 9,
                failures: 0,
            }],
        }
    }

    /// Returns the message in a frame whose length is right.
    fn content(frame: &[u8]) -> &[u8] {
        let (head, content) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(u32::from_le_bytes(*head) as usize, content.len());
        content
    }

    #[test]
    fn the_frozen_messages_have_the_same_bytes_in_all_builds() {
        assert_eq!(encode(&drain()).unwrap(), DRAIN);
        assert_eq!(encode(&ToWorker::Ping(7)).unwrap(), PING);
        assert_eq!(encode(&FromWorker::Pong(7)).unwrap(), PONG);
        assert_eq!(encode(&FromWorker::OnlyTunnels).unwrap(), ONLY_TUNNELS);
    }

    #[test]
    fn a_manager_reads_the_frozen_part_of_workers_of_all_builds() {
        for (hello, counted, version, number) in [
            (OLD_HELLO, OLD_COUNTS, "0.1.0", 0),
            (ANY_HELLO, ANY_COUNTS, "9", u32::MAX),
        ] {
            let mut reader = WorkerReader::default();
            let mut read = |frame| reader.read(content(frame)).unwrap();
            let greeting = FromWorker::Hello {
                version: version.into(),
                messages: number,
                unix_sockets: true,
            };
            assert_eq!(read(hello), greeting);
            assert_eq!(read(counted), counts());
            assert_eq!(read(ONLY_TUNNELS), FromWorker::OnlyTunnels);
            assert_eq!(read(PONG), FromWorker::Pong(7));
            // Another version may mean something else by it.
            let table = encode(&FromWorker::Acknowledged(5)).unwrap();
            assert_eq!(read(&table), FromWorker::NotUnderstood);
            assert_eq!(read(b"\x01\0\0\0x"), FromWorker::NotUnderstood);
        }
    }

    #[test]
    fn a_manager_reads_everything_that_a_worker_of_its_version_says() {
        let mut reader = WorkerReader::default();
        let hello = FromWorker::Hello {
            version: "1".into(),
            messages: MESSAGES,
            unix_sockets: false,
        };
        for message in [hello, counts(), FromWorker::Acknowledged(5)] {
            let frame = encode(&message).unwrap();
            assert_eq!(reader.read(content(&frame)).unwrap(), message);
        }
        assert!(reader.read(b"x").is_err());
    }

    #[test]
    fn a_worker_takes_the_frozen_part_alone_from_a_manager_that_it_does_not_understand() {
        let mut reader = ManagerReader::default();
        let table = encode(&ToWorker::Table(Default::default())).unwrap();
        assert_eq!(
            reader.read(content(&table)),
            ToWorker::Table(Default::default())
        );
        assert_eq!(
            reader.read(b"{\"Table\":{\"number\":\"two\"}}"),
            ToWorker::NotUnderstood
        );
        assert_eq!(reader.read(content(&table)), ToWorker::NotUnderstood);
        assert_eq!(reader.read(content(PING)), ToWorker::Ping(7));
        assert_eq!(reader.read(content(DRAIN)), drain());
    }
}
