//! The fingerprint of a service: the state of its files on disk, in a form that can be compared
//! with their state when its instances started.
//!
//! # What a version is
//! A version has parts, and is another one if one of them is:
//!
//! * the executable: the file, the paths that it is found by, its owner, as whom it may run, and
//!   whether it can be executed at all (`chmod +x` mends a deploy that forgot it);
//! * if the executable is a script, its interpreter, and if that is `env`, the program that `env`
//!   finds;
//! * the folder in which instances start, as which folder it is: a `current` that leads to another
//!   release is another version, whatever runs in it;
//! * files that arguments name, such as `server.js` and `--config=shop.toml`; of folders, and of
//!   files that programs write themselves, such as logs and databases, only where symlinks lead;
//! * the environment file, by its contents: editors and tools rewrite it without changing anything;
//! * what `watch_files` names.
//!
//! A missing file is part of a version too, so a file that appears later is a change.
//!
//! # How files are compared
//! A file is another one if its device, inode, size or time of modification is another one. If only
//! the time of the last *status* change is, somebody may have written other bytes and set the time
//! of modification back, as `tar` and `cp -p` do. Or somebody has changed the mode, made a hard
//! link or a backup, which is nothing that a service would see. The contents tell, if they are not
//! too large and could be read in time, or else the mode, owner and number of links: if these have
//! changed, they explain the status time (`mark`, `contents`).
//!
//! Everything is bounded, in number, bytes and time (`effort`, `watched`). A folder that could not
//! be gone through in time is not compared, and a remark says so.
//!
//! # Older forms
//! Earlier versions of smoothserve have saved one digest for the executable, the environment file
//! and `watch_files`. [`Fingerprint::first_form`] computes it as they did, so an upgrade replaces
//! no instances because the form is a new one.

mod arguments;
mod contents;
mod effort;
mod entry;
mod interpreters;
mod look;
mod mark;
mod taken;
mod watched;

pub use effort::Effort;
pub use mark::{Parts, are_of_arguments};
pub use taken::Fingerprint;

pub(crate) use arguments::{is_data, named_by_arguments};
pub(crate) use interpreters::interpreters_of;
