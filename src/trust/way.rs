//! The way that a path leads, step by step, with the ordinary users who could have led it there.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::fault::UnsafeStep;
use super::rights;

/// The most symlinks on a way; the kernel follows no more either.
const MAX_LINKS: u32 = 40;

/// How the walk opens each step: nothing is read, and a link is not followed.
const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Way {
    /// The path without symlinks.
    pub(super) path: PathBuf,
    /// The path without the symlinks of its folders. The last name is the given one, also if it is
    /// that of a symlink.
    pub(super) unfollowed: PathBuf,
    /// What is there, opened with `O_PATH`.
    pub(super) file: OwnedFd,
    /// The status of the file.
    pub(super) stat: Stat,
    /// The ordinary users who own a folder or a link on the way.
    pub(super) holders: Holders,
}

/// Why a way could not be gone to its end.
#[derive(Debug)]
pub(super) enum NoWay {
    /// The way ends within the folders of root, or of its only holder.
    System(io::Error),
    /// The way ends in a folder that a holder does not own. What is there, or is not there, is
    /// nothing that root tells this holder.
    Beyond(UnsafeStep, Holders),
}

/// The ordinary users who own a folder or a link on a way, by number, each with the last of these.
#[derive(Debug, Default)]
pub(super) struct Holders(BTreeMap<u32, Hold>);

/// A folder or link, and where it leads.
#[derive(Debug)]
struct Hold {
    from: PathBuf,
    to: PathBuf,
}

impl Holders {
    /// Returns the numbers of the users.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    /// Returns the step from a holder to something that belongs to `owner`, unless this is the only
    /// holder.
    fn step_to(&self, owner: u32) -> Option<UnsafeStep> {
        let (&holder, hold) = self.0.iter().find(|&(&holder, _)| holder != owner)?;
        Some(UnsafeStep {
            from: hold.from.clone(),
            owner: rights::name_of(holder),
            to: hold.to.clone(),
        })
    }
}

impl Way {
    /// Returns the unsafe step if there is a holder who does not own the file.
    pub(super) fn unsafe_step(&self) -> Option<UnsafeStep> {
        self.holders.step_to(self.stat.st_uid)
    }
}

/// Goes the way that a path leads.
pub(super) fn walk(path: &Path) -> Result<Way, NoWay> {
    let path = std::path::absolute(path).map_err(NoWay::System)?;
    let root = rustix::fs::open("/", STEP, Mode::empty());
    let root = root.map_err(|error| NoWay::System(error.into()))?;
    let mut walk = Walk {
        folder: root,
        at: PathBuf::from("/"),
        owner: 0,
        holders: Holders::default(),
        links: 0,
        unfollowed: None,
        ahead: VecDeque::new(),
    };
    walk.push_front(&path);
    let error = match walk.go() {
        Ok(stat) => {
            return Ok(Way {
                unfollowed: walk.unfollowed.unwrap_or_else(|| walk.at.clone()),
                path: walk.at,
                file: walk.folder,
                stat,
                holders: walk.holders,
            });
        }
        Err(error) => error,
    };
    match walk.holders.step_to(walk.owner) {
        Some(step) if rights::are_roots() => Err(NoWay::Beyond(step, walk.holders)),
        _ => Err(NoWay::System(error.into())),
    }
}

/// A walk that has come to a folder.
struct Walk {
    /// The folder, or at the end the file.
    folder: OwnedFd,
    /// The path of the folder, without symlinks.
    at: PathBuf,
    /// The owner of the folder.
    owner: u32,
    holders: Holders,
    links: u32,
    /// The path of the last given name, once the walk has come there.
    unfollowed: Option<PathBuf>,
    /// The names that are still to go.
    ahead: VecDeque<OsString>,
}

impl Walk {
    /// Goes to the end, and returns the status of what is there.
    fn go(&mut self) -> Result<Stat, Errno> {
        let mut stat = rustix::fs::fstat(&self.folder)?;
        while let Some(name) = self.ahead.pop_front() {
            stat = self.step(&name)?;
        }
        Ok(stat)
    }

    fn step(&mut self, name: &OsStr) -> Result<Stat, Errno> {
        let next = rustix::fs::openat(&self.folder, name, STEP, Mode::empty())?;
        let stat = rustix::fs::fstat(&next)?;
        let mut to = self.at.clone();
        match name.as_encoded_bytes() {
            b"." => {}
            b".." => drop(to.pop()),
            _ => to.push(name),
        }
        // What a symlink leads to is put before the given names, so the first name that has none
        // behind it is the last given one.
        if self.ahead.is_empty() && self.unfollowed.is_none() {
            self.unfollowed = Some(to.clone());
        }
        // The folder decides what its names stand for. `/` is nobody's but root's, also where root
        // has another number outside of its container.
        self.hold(self.at.clone(), self.owner, to.clone());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => self.follow(to, next.as_fd(), stat.st_uid)?,
            _ => {
                self.at = to;
                self.folder = next;
                self.owner = match self.at == Path::new("/") {
                    true => 0,
                    false => stat.st_uid,
                };
            }
        }
        Ok(stat)
    }

    fn follow(&mut self, link: PathBuf, file: impl AsFd, owner: u32) -> Result<(), Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(file, "", Vec::new())?.into_bytes();
        let target = PathBuf::from(OsString::from_vec(target));
        if target.as_os_str().is_empty() {
            return Err(Errno::NOENT);
        }
        self.hold(link, owner, self.at.join(&target));
        if target.is_absolute() {
            self.folder = rustix::fs::open("/", STEP, Mode::empty())?;
            self.at = PathBuf::from("/");
            self.owner = 0;
        }
        self.push_front(&target);
        // A link as the last name is not what is there: its target is still to go. A target such
        // as `/` has no names.
        if self.ahead.is_empty() {
            self.ahead.push_back(".".into());
        }
        Ok(())
    }

    /// Notes that the owner of `from` decides that the way goes on to `to`.
    fn hold(&mut self, from: PathBuf, owner: u32, to: PathBuf) {
        if owner != 0 {
            self.holders.0.insert(owner, Hold { from, to });
        }
    }

    /// Puts the steps of a path before those that are left.
    fn push_front(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.ahead.push_front(name.to_owned()),
                Component::ParentDir => self.ahead.push_front("..".into()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
    }
}
