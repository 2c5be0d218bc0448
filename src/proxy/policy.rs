//! The floor `policy`: the rules that the file of a service sets for a request before an instance
//! gets it, and for a response before the client gets it.
//!
//! Each rule is a file with a pure core, a few lines that attach it ([`Rule`](rule::Rule)), and its
//! tests. A new rule needs a new file, its `mod` line here, and its line in the list in
//! [`compiled`]; no file above this floor changes. A rule that denies a request makes the response
//! itself ([`denial`]).
//!
//! This floor uses `http` and types of `ipc`, and nothing of tables, threads or connections.

pub(crate) mod body_room;
pub(crate) mod compiled;
pub(crate) mod denial;
pub(crate) mod rule;

mod body_limit;
mod hsts;
mod redirect_to_tls;
mod strip_prefix;
