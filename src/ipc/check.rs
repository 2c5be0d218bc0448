//! The properties of what a worker sends, for a fuzz target and for tests: whatever bytes come, and
//! however they are cut into pieces, the manager sees the same messages, and none is larger than it
//! may be.

use super::frames::{FrameBuffer, WireMessage, decode, encode};
use super::frozen::WorkerReader;
use super::message::FromWorker;
use super::short_text::ShortText;

/// Takes bytes as the manager takes those of a worker, and returns the messages until the first
/// fault. Panics if a property does not hold.
pub fn from_worker(input: &[u8]) -> Vec<FromWorker> {
    let whole = take(input, input.len().max(1));
    assert_eq!(take(input, 1), whole, "byte by byte");
    assert_eq!(take(input, 7), whole, "in pieces");
    take_as_of_any_build(input);
    for message in &whole {
        let frame = encode(message).expect("what was received can be sent");
        assert!(frame.len() <= 4 + FromWorker::LONGEST);
        assert_eq!(take(&frame, frame.len()), std::slice::from_ref(message));
    }
    whole
}

/// Returns the messages until the first fault.
fn take(input: &[u8], piece: usize) -> Vec<FromWorker> {
    let mut buffer = FrameBuffer::default();
    let mut messages = Vec::new();
    for piece in input.chunks(piece) {
        buffer.extend(piece);
        loop {
            match buffer.next(decode) {
                Ok(Some(message)) => {
                    assert_bounded(&message);
                    messages.push(message);
                }
                Ok(None) => break,
                Err(_) => return messages,
            }
        }
        assert!(buffer.len() < 4 + FromWorker::LONGEST);
    }
    messages
}

/// Takes bytes as the manager takes those of a worker of any build.
fn take_as_of_any_build(input: &[u8]) {
    let (mut buffer, mut reader) = (FrameBuffer::default(), WorkerReader::default());
    buffer.extend(input);
    while let Ok(Some(message)) = buffer.next(|frame| reader.read(frame)) {
        assert_bounded(&message);
    }
}

fn assert_bounded(message: &FromWorker) {
    let longest = match message {
        FromWorker::Hello { version, .. } => version.len(),
        FromWorker::Probed { result, .. } => result.as_ref().err().map_or(0, |text| text.len()),
        FromWorker::Health { fault, .. } => fault.as_ref().map_or(0, |text| text.len()),
        FromWorker::Acknowledged(_)
        | FromWorker::Refused(_)
        | FromWorker::Idle(_)
        | FromWorker::OnlyTunnels
        | FromWorker::Counts { .. }
        | FromWorker::Pong(_)
        | FromWorker::NotUnderstood => 0,
    };
    assert!(longest <= ShortText::LONGEST, "{longest} bytes");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipc::EndpointId;

    fn frame(json: &str) -> Vec<u8> {
        let length = u32::try_from(json.len()).unwrap().to_le_bytes();
        [&length, json.as_bytes()].concat()
    }

    #[test]
    fn a_long_reason_and_what_follows_arrive() {
        let reason = format!(
            r#"{{"Probed":{{"endpoint":7,"result":{{"Err":"{}"}}}}}}"#,
            "x".repeat(1 << 20)
        );
        let bytes = [frame(&reason), frame(r#"{"Idle":9}"#)].concat();
        let messages = take(&bytes, 4096);
        let expected = FromWorker::Probed {
            endpoint: EndpointId(7),
            result: Err("x".repeat(ShortText::LONGEST).into()),
        };
        assert_eq!(messages, [expected, FromWorker::Idle(EndpointId(9))]);
    }

    #[test]
    fn a_frame_that_is_too_long_ends_it() {
        let length = u32::try_from(FromWorker::LONGEST + 1).unwrap();
        assert_eq!(take(&length.to_le_bytes(), 4), []);
    }

    /// Frames of what looks like messages, with faults.
    fn nearly_messages() -> impl Strategy<Value = Vec<u8>> {
        let json = prop_oneof![
            any::<u64>().prop_map(|number| format!(r#"{{"Pong":{number}}}"#)),
            any::<u64>().prop_map(|id| format!(r#"{{"Idle":{id}}}"#)),
            any::<i128>().prop_map(|number| format!(r#"{{"Acknowledged":{number}}}"#)),
            (any::<u64>(), ".{0,3000}").prop_map(|(id, text)| {
                let text = serde_json::to_string(&text).unwrap();
                format!(r#"{{"Health":{{"endpoint":{id},"fault":{text}}}}}"#)
            }),
            "[\"{}:a-z0-9\\[\\],]{0,40}",
            Just(r#""OnlyTunnels""#.to_owned()),
            Just("[".repeat(10_000)),
        ];
        prop::collection::vec(json, 0..6)
            .prop_map(|messages| messages.iter().flat_map(|json| frame(json)).collect())
    }

    proptest! {
        #[test]
        fn whatever_a_worker_sends_is_bounded(
            bytes in prop_oneof![nearly_messages(), prop::collection::vec(any::<u8>(), 0..300)],
        ) {
            from_worker(&bytes);
        }
    }
}
