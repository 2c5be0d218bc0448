//! HTTP through the real worker process, compared byte by byte.

mod bounds;
mod differential;
mod frames;
mod front;
mod handling;
mod http2_attacks;
mod http2_early;
mod http2_end;
mod http2_smuggling;
mod identity;
mod interims;
#[path = "../worker/kit.rs"]
#[allow(dead_code)]
mod kit;
mod memory;
mod messages;
mod paths;
mod peers;
mod pins;
mod races;
mod recorder;
mod refusals;
mod retries;
mod scene;
mod slow;
mod smuggling;
mod streams;
mod transfer;
mod tunnels;
mod varnishtest;
mod websockets;
