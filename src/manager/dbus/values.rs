//! Values as D-Bus shows them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::status::{InstanceStatus, LastError};

/// An instance as D-Bus shows it; the order is that of `docs/dbus.md`.
pub(super) type InstanceTuple = (u64, u32, u64, u32, String, String, u64, String);

/// An instance as D-Bus shows it.
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

/// What an instance has to do, as D-Bus shows it: its number, requests in flight, tunnels, requests
/// ever.
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

/// An error with its time, as D-Bus shows it.
pub(super) fn failure(failure: &LastError) -> (u64, String) {
    (microseconds(failure.at), failure.message.clone())
}

/// A time as D-Bus shows it: microseconds since 1970.
pub(super) fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

/// The word for a value, the same as in JSON.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("not a word: {other:?}"),
    }
}
