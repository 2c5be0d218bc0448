//! The manager: owns the desired and the actual state of all services.

pub mod status;
