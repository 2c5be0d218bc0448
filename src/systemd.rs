//! All that speaks to systemd.

pub mod journal;
