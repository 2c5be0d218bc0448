//! The types and conversions of values in D-Bus messages.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::status::{InstanceStatus, LastError};

/// An instance as a D-Bus struct. `docs/dbus.md` names the fields in this order.
pub(super) type InstanceTuple = (u64, u32, u64, u32, String, String, u64, String);

/// Converts an instance into its D-Bus struct.
pub(super) fn instance(instance: &InstanceStatus) -> InstanceTuple {
    (
        instance.id,
        instance.slot,
        instance.generation,
        instance.pid,
        instance.address.clone(),
        word(&instance.state),
        microseconds(instance.since),
        instance.fault.clone().unwrap_or_default(),
    )
}

/// Returns the load of an instance as a D-Bus struct: its number, its requests in flight, its open
/// tunnels, and all requests that it was chosen for.
pub(super) fn load(instance: &InstanceStatus) -> (u64, u32, u32, u64) {
    let InstanceStatus {
        id,
        in_flight,
        tunnels,
        requests,
        ..
    } = *instance;
    (id, in_flight, tunnels, requests)
}

/// Converts an error and its time into a D-Bus struct.
pub(super) fn failure(failure: &LastError) -> (u64, String) {
    (microseconds(failure.at), failure.message.clone())
}

/// Converts an error and its time into a D-Bus struct, with the last output of the instance.
pub(super) fn report(failure: &LastError) -> (u64, String) {
    (microseconds(failure.at), failure.report.text().to_owned())
}

/// Converts a time into microseconds since 1970.
pub(super) fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// Returns the word for a value of an enum, the same word as in JSON.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("not a word: {other:?}"),
    }
}
