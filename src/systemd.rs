//! All that speaks to systemd.
//!
//! * [`given`]: what systemd hands to a process that it starts: sockets, stored descriptors, the
//!   watchdog.
//! * [`supervisor`]: what a supervised process tells systemd: readiness, status, descriptors to
//!   keep.
//! * [`units`]: scopes, jobs and other units, by systemd's own D-Bus interface.
//! * [`journal`]: streams to journald.
//!
//! Everything works the same with the system's manager and with a user's (`systemctl --user`).

pub mod given;
pub mod journal;
pub mod supervisor;
pub mod units;
