//! The proxy worker: accepts, routes, balances and forwards.

mod client;
mod endpoint;
mod listener;
mod router;
mod service;
mod stream;
mod table;
mod thread;
mod upstream;
