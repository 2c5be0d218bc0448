//! HTTP through the real worker process, to the byte.

mod differential;
mod front;
mod handling;
#[path = "../worker/kit.rs"]
#[allow(dead_code)]
mod kit;
mod messages;
mod peers;
mod races;
mod refusals;
mod retries;
mod transfer;
mod tunnels;
