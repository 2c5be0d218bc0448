//! The configuration: `smoothserve.yaml` and one file for each service, read into immutable,
//! validated values.
//!
//! Nothing downstream checks these values again. [`load()`] is all or nothing: a configuration with
//! any fault yields no [`Config`], only the report of all its faults. [`load_partial`] is for the
//! start, when the services without faults run even if others have some, and [`load_files`] is for
//! the boot, when users and addresses are not there yet to be checked.
//!
//! A file goes through these steps: bytes that are bounded text (`source`), a tree whose nodes know
//! their positions (`raw`, with advice about faults of `syntax`), known keys (`keys`, beside those
//! of other programs, `elsewhere`) that occur once (`fields`), typed values (`value`), the
//! parts of a service (`site`, `listen`, `tls`, `handling`, `process`, `limits`, each with its type
//! and its keys), the whole service (`service`), whose files and users this machine must have
//! (`machine`), and which must not collide with another service (`conflict`). `load` takes all
//! files of a folder through these steps.
//!
//! No worker knows the types of the configuration: the manager compiles them into those that go
//! over the control socket (`ipc`).

mod certificate;
mod conflict;
mod elsewhere;
mod environment_file;
mod fault;
mod fields;
mod global;
mod handling;
#[cfg(any(test, feature = "internals"))]
pub mod hostile;
mod keys;
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
mod syntax;
mod tls;
mod value;
mod written;

pub use certificate::{Certificate, CertificateFault, EXPIRES_SOON};
pub use conflict::{Conflict, conflicts, excludes};
pub use environment_file::EnvironmentFile;
pub use fault::{Fault, Faults, Lack, Position};
pub use handling::HandlingConfig;
pub use keys::{GLOBAL_KEYS, SERVICE_KEYS, TLS_KEYS};
pub use limits::{Amount, Limits, Nofile, ProcessLimits, ScopeLimits};
pub use listen::Listen;
pub use load::{
    CONFIG_DIR, Config, LoadedConfig, check, load, load_apart, load_files, load_partial,
};
pub use process::{Bind, DEFAULT_ARGUMENT, DEFAULT_PATH, ProcessConfig, Ready, UpstreamProtocol};
pub use service::{Rollout, ServiceConfig, Times};
pub use site::{HostPattern, Site};
pub use strip_prefix::StripPrefixConfig;
pub use tls::TlsConfig;
pub use written::Written;

pub use crate::walk::IgnoredNames;
