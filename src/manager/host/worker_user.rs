//! The user that proxy workers run as.

use nix::unistd::User;

/// The users that workers of a root manager may run as. The first one that exists is used.
pub const WORKER_USERS: [&str; 2] = ["smoothserve", "nobody"];

/// Returns the user that workers run as, or `None` if they run as the manager's own user.
pub fn worker_user() -> Option<User> {
    let find = |name: &&str| User::from_name(name).ok().flatten();
    let is_root = rustix::process::geteuid().is_root();
    WORKER_USERS.iter().find_map(find).filter(|_| is_root)
}
