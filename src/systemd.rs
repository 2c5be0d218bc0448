//! All that speaks to systemd.
//!
//! * [`given`]: what systemd hands to a process that it starts: sockets, stored descriptors, the watchdog.
//! * [`supervisor`]: what a supervised process tells systemd: readiness, status, descriptors to keep.
//! * [`units`]: scopes, jobs and other units, by systemd's own D-Bus interface.
//! * [`journal`]: streams to journald.
//!
//! Everything works the same in the system's manager and in a user's (`systemctl --user`).

pub mod given;
pub mod journal;
pub mod supervisor;
pub mod units;

/// The slice of all that smoothserve starts.
pub const SLICE: &str = "smoothserve.slice";

/// The unit of the manager. What it starts is stopped after it.
pub const SERVICE: &str = "smoothserve.service";
