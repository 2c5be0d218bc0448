//! Whom proxy workers run as.

use nix::unistd::User;

/// The names of the users whom the workers of root run as: the first of them that the machine has.
pub const WORKER_USERS: [&str; 2] = ["smoothserve", "nobody"];

/// The user whom workers run as; `None` if that is the manager's own.
pub fn worker_user() -> Option<User> {
    let find = |name: &&str| User::from_name(name).ok().flatten();
    let is_root = rustix::process::geteuid().is_root();
    WORKER_USERS.iter().find_map(find).filter(|_| is_root)
}
