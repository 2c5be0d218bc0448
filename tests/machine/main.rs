//! smoothserve on a real systemd.

mod harness;
