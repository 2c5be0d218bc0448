//! What keeps a user from a file: the folder, or the file itself, whose permissions do not suffice.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::rights::{self, NamedUser, Rights, name_of};

/// The most symlinks on the way; the kernel follows no more either.
const MAX_LINKS: u32 = 40;

/// What a user wants to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Execute a program.
    Execute,
    /// Read a file.
    Read,
    /// Change to a folder.
    Enter,
}

/// Says which permission the user of this thread lacks for a file: `user www-data may not enter
/// /home/anna (0700 anna:anna)`. `None`: no permission that modes and owners show.
pub fn obstacle(path: &Path, need: Need) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    look(&path, need, MAX_LINKS)
}

/// Who wants to do something with a file.
#[derive(Debug, Clone, Copy)]
pub enum Whom<'a> {
    /// The user and group that a service's file names.
    Named(NamedUser<'a>),
    /// The user with this number.
    Number(u32),
}

/// Says which permission another user lacks for a file, as [`obstacle`] does for the user of this
/// thread. Only root can find that out.
pub fn obstacle_of(whom: Whom<'_>, path: &Path, need: Need) -> Option<String> {
    let rights = match whom {
        Whom::Named(named) => Rights::of_named(named).ok()??,
        Whom::Number(0) => return None,
        Whom::Number(uid) => Rights::of_number(uid).ok()?,
    };
    rights.lend(|| obstacle(path, need)).ok()?
}

fn look(path: &Path, need: Need, links: u32) -> Option<String> {
    let mut at = PathBuf::from("/");
    let mut ahead = path.components();
    while let Some(part) = ahead.next() {
        if is_denied(&at, Access::EXEC_OK) {
            return denied(&at, Need::Enter);
        }
        match part {
            Component::ParentDir => drop(at.pop()),
            part => at.push(part),
        }
        if let Ok(target) = at.read_link() {
            at.pop();
            let whole = at.join(target).join(ahead.as_path());
            return look(&whole, need, links.checked_sub(1)?);
        }
    }
    let access = match need {
        Need::Execute | Need::Enter => Access::EXEC_OK,
        Need::Read => Access::READ_OK,
    };
    is_denied(&at, access).then(|| denied(&at, need))?
}

/// Asks the kernel with the rights that this thread has on files.
fn is_denied(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS) == Err(Errno::ACCESS)
}

fn denied(path: &Path, need: Need) -> Option<String> {
    let found = path.metadata().ok()?;
    let may_not = match need {
        Need::Execute => "execute",
        Need::Read => "read",
        Need::Enter => "enter",
    };
    Some(format!(
        "user {} may not {may_not} {} ({})",
        name_of(rights::on_files()),
        path.display(),
        permissions(&found)
    ))
}

/// Formats mode, owner and group: `0700 anna:anna`.
fn permissions(found: &Metadata) -> String {
    let group = match Group::from_gid(Gid::from_raw(found.gid())) {
        Ok(Some(group)) => group.name,
        _ => found.gid().to_string(),
    };
    let mode = found.mode() & 0o7777;
    format!("{mode:04o} {}:{group}", name_of(found.uid()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn the_folder_or_file_that_a_user_may_not_use_is_named() {
        if !rights::are_roots() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let mode = |name: &str, mode| {
            fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir_all(top.join("home/7")).unwrap();
        fs::write(top.join("home/7/app"), "").unwrap();
        symlink(top.join("home/7"), top.join("current")).unwrap();
        mode("", 0o755);
        mode("home/7/app", 0o754);
        let found = |path: &str, need| {
            let found = obstacle_of(Whom::Number(4711), &top.join(path), need)?;
            Some(found.replace(top.to_str().unwrap(), ""))
        };
        assert_eq!(
            found("current/app", Need::Execute).as_deref(),
            Some("user 4711 may not execute /home/7/app (0754 root:root)")
        );
        assert_eq!(found("current/app", Need::Read), None);
        assert_eq!(found("current", Need::Enter), None);
        chown(top.join("home"), Some(4712), Some(0)).unwrap();
        mode("home", 0o700);
        for (path, need) in [
            ("current/app", Need::Execute),
            ("current/../7", Need::Enter),
            ("home", Need::Enter),
            ("home/nothing", Need::Read),
        ] {
            let expected = "user 4711 may not enter /home (0700 4712:root)";
            assert_eq!(found(path, need).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(
            obstacle_of(Whom::Number(0), &top.join("home"), Need::Enter),
            None
        );
        assert_eq!(found("nothing", Need::Read), None);
    }
}
