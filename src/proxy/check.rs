//! The floor `check`: gives the fuzz targets and the instruction counts access to private parts of
//! the proxy.
//!
//! The checks state what must hold of what is passed on, whatever bytes come and however they are
//! cut into pieces. The fuzz targets search for inputs that break these
//! properties, and a test runs the checks on the stored corpus. The checks live here and not in the
//! fuzzer's crate for two reasons: here they reach private code, and `cargo test` runs them, too.
//! [`reader`] reads again what the proxy has written; it shares no code with the proxy.
//!
//! This floor uses the floors that it checks. No other part of the proxy uses it.

#[cfg(test)]
mod corpus;
mod http2;
mod pieces;
mod proxy_header;
mod reader;
mod request;
mod response;
#[cfg(feature = "internals")]
pub mod workload;

pub use http2::check as http2;
pub use proxy_header::check as proxy_header;
pub use request::check as request;
pub use response::check as response;
