//! The configuration: `smoothserve.yaml` and one file for each service, read into immutable,
//! validated values.
//!
//! Nothing downstream checks these values again. [`load()`] is all or nothing: a configuration with
//! any fault yields no [`Config`], only the report of all its faults. [`load_partial`] is for the
//! start, when the good services run whatever the others are, and [`load_files`] for the boot, when
//! there is no machine yet to compare them with.
//!
//! A file goes through these steps: bytes that are bounded text (`source`), a tree whose nodes know
//! their positions (`raw`), known keys that occur once (`fields`), values that mean something
//! (`value`), the parts of a service (`site`, `listen`, `tls`, `handling`, `process`, `limits`,
//! each with its type and its keys), the whole service (`service`) that this machine has all files
//! and users for (`machine`) and that does not collide with another service (`conflict`). `load`
//! goes these steps for all files of a folder.
//!
//! These words are the configuration's own, and no worker knows them: the manager compiles them
//! into what goes over the control socket (`ipc`).

mod certificate;
mod conflict;
mod fault;
mod fields;
mod global;
mod handling;
#[cfg(test)]
mod hostile;
mod limits;
mod listen;
mod load;
mod machine;
mod process;
mod raw;
mod reader;
mod service;
mod site;
mod source;
mod strip_prefix;
mod tls;
mod value;

pub use certificate::{Certificate, CertificateFault, EXPIRES_SOON};
pub use conflict::{Conflict, conflicts};
pub use fault::{Fault, Faults, Position};
pub use global::GLOBAL_KEYS;
pub use handling::HandlingConfig;
pub use limits::{Amount, Limits, Nofile, ProcessLimits, ScopeLimits};
pub use listen::Listen;
pub use load::{CONFIG_DIR, Config, check, load, load_files, load_partial};
pub use process::{Bind, ProcessConfig, Ready, UpstreamProtocol};
pub use service::{Rollout, SERVICE_KEYS, ServiceConfig, Times};
pub use site::{HostPattern, Site};
pub use strip_prefix::StripPrefixConfig;
pub use tls::{TLS_KEYS, TlsConfig};
