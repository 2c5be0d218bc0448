//! Trust in paths: who could have put a file where a path leads, and the one way to open and read
//! a file that may be somebody else's.
//!
//! # Theory of operation
//! smoothserve as root opens files at paths that lead through folders of ordinary users: programs,
//! environment files, certificates, services' files. Whoever owns a folder, or a symlink, on the
//! way decides where the path leads, so a path may be followed with root's rights only as far as
//! nobody can gain from it.
//!
//! The walk (`way`) goes folder by folder and link by link, as the kernel does, and collects the
//! *holders*: the ordinary users who own a folder or a link on the way. The way is **safe** if it
//! has no holder, or its only holder also owns the file at its end: then they can only lead to what
//! is theirs. Otherwise it has an **unsafe step** (systemd's CHASE_SAFE looks for the same, but
//! refuses links of a user with an absolute target inside the user's own folders, too, which
//! deployment tools make). What that means depends on the [`Purpose`]:
//!
//! * A program of a service without `user`: its owner is who the program runs as, so an unsafe
//!   step is a fault. With `user`, the file is opened with the rights of that user.
//! * Content: the file is opened with the rights of each holder. If that fails, and the service
//!   has a `user`, with the rights of that user: what is read is for this user only.
//!
//! Other rights (`rights`) are those of a thread, which has no others and ends after the work. The
//! walk and the opening happen in that thread, so nothing is decided by one user and done by
//! another. What the walk finds is an open descriptor (`O_PATH`), and only this descriptor is used
//! afterwards, never again the path: a file that takes its place meanwhile is not read.
//!
//! A file is read only if it is a regular file that is not in /proc. Nothing waits (`O_NONBLOCK`),
//! and no more than a given number of bytes is read. A fault names paths and owners, never anything
//! that was read.
//!
//! If a user lacks a permission, `obstacle` says which, and on which folder.
//!
//! If smoothserve does not run as root, it has only one user's rights, and all ways are safe.

mod fault;
mod file;
mod obstacle;
mod rights;
mod way;

pub use fault::FileFault;
pub use file::{FoundFile, Purpose, examine, find, on_behalf, read};
pub use obstacle::{Need, Whom, obstacle, obstacle_of};
pub use rights::NamedUser;
