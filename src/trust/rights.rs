//! The rights of other users on files, as a thread that borrows them has.
//!
//! The rights on files are those of a thread in Linux (setfsuid(2)), and only they change here: the
//! real, effective and saved user of the thread stay root, so the user whose rights are borrowed
//! can neither signal nor trace it. Without capabilities the thread can do nothing that this user
//! could not. It never gets them back, and ends.

use std::cell::Cell;
use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The group of a user number that is in no database.
const NO_GROUP: u32 = 65534;

/// The number that no user has: setfsuid(2) changes nothing then, and returns what holds.
const NOBODY_AT_ALL: u32 = u32::MAX;

thread_local! {
    /// True in a thread that has borrowed the rights of a user.
    static BORROWED: Cell<bool> = const { Cell::new(false) };
}

/// The user that a service's file names.
#[derive(Debug, Clone, Copy)]
pub struct NamedUser<'a> {
    /// The `user` of the service.
    pub user: &'a str,
    /// The `group` of the service, which replaces the main group of the user.
    pub group: Option<&'a str>,
}

/// The rights of a user on files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rights {
    /// The name of the user, or the number if the user has no name.
    pub(super) name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Returns true if this thread may read what it likes, so that it matters who leads it where.
pub(super) fn are_roots() -> bool {
    rustix::process::geteuid().is_root() && !BORROWED.get()
}

/// Returns the number of the user whose rights on files this thread has.
pub(super) fn on_files() -> u32 {
    // The call changes nothing, since nobody has this number, and returns what holds.
    setfsuid(Uid::from_raw(NOBODY_AT_ALL)).as_raw()
}

/// Returns the name of a user, or the number if the user has no name.
pub(super) fn name_of(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

impl Rights {
    /// Returns the rights of the user with this number. A number without a name has no groups.
    pub(super) fn of_number(uid: u32) -> io::Result<Rights> {
        match User::from_uid(Uid::from_raw(uid))? {
            Some(user) => Rights::of(&user, user.gid),
            None => Ok(Rights {
                name: uid.to_string(),
                uid,
                gid: NO_GROUP,
                groups: Vec::new(),
            }),
        }
    }

    /// Returns the rights that an instance of a service with this user has. `None`: those of root.
    pub(super) fn of_named(named: NamedUser<'_>) -> io::Result<Option<Rights>> {
        let unknown = |kind: &str, name: &str| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no {kind} {name:?}"),
            )
        };
        let user = User::from_name(named.user)?.ok_or_else(|| unknown("user", named.user))?;
        let gid = match named.group {
            Some(name) => {
                let group = Group::from_name(name)?;
                group.ok_or_else(|| unknown("group", name))?.gid
            }
            None => user.gid,
        };
        match user.uid.is_root() {
            true => Ok(None),
            false => Rights::of(&user, gid).map(Some),
        }
    }

    fn of(user: &User, gid: Gid) -> io::Result<Rights> {
        let name = CString::new(user.name.as_str())?;
        Ok(Rights {
            name: user.name.clone(),
            uid: user.uid.as_raw(),
            gid: gid.as_raw(),
            groups: getgrouplist(&name, gid)?
                .into_iter()
                .map(Gid::as_raw)
                .collect(),
        })
    }

    /// Does work in a thread that has these rights and no others.
    pub(super) fn lend<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let borrower = std::thread::Builder::new().name("other rights".to_owned());
            let thread = borrower.spawn_scoped(scope, || {
                self.borrow()?;
                Ok(work())
            })?;
            let panicked = |_| Err(io::Error::other("the thread with the rights has panicked"));
            thread.join().unwrap_or_else(panicked)
        })
    }

    /// Takes these rights instead of those of this thread, for good.
    fn borrow(&self) -> io::Result<()> {
        BORROWED.set(true);
        let groups = self.groups.iter().copied();
        let groups: Vec<_> = groups.map(rustix::thread::Gid::from_raw).collect();
        // Both of these, and the C library's calls below, are about this one thread.
        rustix::thread::set_thread_groups(&groups)?;
        setfsgid(Gid::from_raw(self.gid));
        setfsuid(Uid::from_raw(self.uid));
        // These calls report no errors, so this asks what holds now.
        let gid = setfsgid(Gid::from_raw(NOBODY_AT_ALL)).as_raw();
        let uid = on_files();
        if (uid, gid) != (self.uid, self.gid) {
            let message = format!("cannot take the rights of {}", self.name);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of this thread's status that are about its rights, without their names.
    fn status(of: &str) -> Vec<String> {
        let status = std::fs::read_to_string(format!("/proc/{of}/status")).unwrap();
        let line = |name: &str| {
            let mut lines = status.lines();
            let words = lines.find_map(|line| line.strip_prefix(name)).unwrap();
            words.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        ["Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:"]
            .map(line)
            .to_vec()
    }

    #[test]
    fn a_thread_has_the_rights_of_a_user_on_files_and_nothing_else_while_others_keep_theirs() {
        if !are_roots() {
            return;
        }
        let before = status("thread-self");
        let rights = Rights {
            name: "4711".into(),
            uid: 4711,
            gid: 4712,
            groups: vec![4713, 4714],
        };
        let nothing = "0000000000000000".to_owned();
        let (lent, still_roots) = rights
            .lend(|| (status("thread-self"), are_roots()))
            .unwrap();
        assert!(!still_roots);
        // Real, effective and saved users stay, so user 4711 cannot signal this thread.
        let expected = ["0 0 0 4711", "0 0 0 4712", "4713 4714"].map(str::to_owned);
        assert_eq!(lent[..3], expected);
        assert_eq!(lent[3..], [nothing.clone(), nothing]);
        assert_eq!(status("thread-self"), before);
        assert_eq!(status("self"), before);
        assert!(are_roots());
    }

    #[test]
    fn a_user_without_a_name_has_no_groups_and_root_needs_none() {
        let rights = Rights::of_number(4711).unwrap();
        assert_eq!((rights.gid, rights.groups), (NO_GROUP, Vec::new()));
        let named = |user, group| Rights::of_named(NamedUser { user, group });
        assert_eq!(named("root", None).unwrap(), None);
        let error = named("no-such-user", None).unwrap_err().to_string();
        assert_eq!(error, "there is no user \"no-such-user\"");
        let error = named("root", Some("no-such-group"))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "there is no group \"no-such-group\"");
    }
}
