//! The floor `policy`: what the file of a service says is done with a request before an instance
//! gets it, and with a response before the client gets it.
//!
//! Each rule is a file: a pure core, a few lines that attach it ([`Rule`](rule::Rule)), and its
//! tests. A new rule is a new file, its `mod` line here, and its line in the list in [`compiled`];
//! nothing above this floor changes. A rule that denies a request makes the response itself
//! ([`denial`]).
//!
//! This floor knows `http` and the words of `ipc`, and nothing of tables, threads or connections.

pub(crate) mod body_room;
pub(crate) mod compiled;
pub(crate) mod denial;
pub(crate) mod rule;

mod body_limit;
mod hsts;
mod redirect_to_tls;
mod strip_prefix;
