//! The user that proxy workers run as.

use std::sync::OnceLock;

use nix::unistd::User;

/// The users that workers of a root manager may run as. The first one that exists is used.
pub const WORKER_USERS: [&str; 2] = ["smoothserve", "nobody"];

static WORKER_USER: OnceLock<Option<User>> = OnceLock::new();

/// Returns the user that workers run as, or `None` if they run as the manager's own user. The first
/// call asks the database of users, which may take any time; the later ones do not.
pub fn worker_user() -> Option<User> {
    let find = |name: &&str| User::from_name(name).ok().flatten();
    let is_root = rustix::process::geteuid().is_root();
    let first = || WORKER_USERS.iter().find_map(find).filter(|_| is_root);
    WORKER_USER.get_or_init(first).clone()
}
