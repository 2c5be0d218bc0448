//! The floor `check`: what the fuzz targets and the instruction counts need of what is private to
//! the proxy.
//!
//! The checks state what must hold of the heads and bodies that are passed on, whatever bytes come
//! and however they are cut: the properties that the fuzz targets look for counterexamples to, and
//! that a test holds the kept corpus against. They live here and not in the fuzzer's crate, because
//! only here they can reach what they are about without making it public, and because so they are
//! run by `cargo test`, too. What was written is read again by [`reader`], which shares no code
//! with the proxy.
//!
//! This floor knows the floors that it checks: `connection`, `shared` and `http`. No other part of
//! the proxy knows it.

#[cfg(test)]
mod corpus;
mod pieces;
mod proxy_header;
mod reader;
mod request;
mod response;
#[cfg(feature = "internals")]
pub mod workload;

pub use proxy_header::check as proxy_header;
pub use request::check as request;
pub use response::check as response;
