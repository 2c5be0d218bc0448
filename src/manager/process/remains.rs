//! Removes a folder that others have filled with whatever they liked.
//!
//! # Theory of operation
//! The folder may hold any number of entries, nested to any depth, and somebody may change it
//! meanwhile. So nothing is followed, every name is looked up in an open folder, and no folder is
//! entered from within another: what is two folders deep is first moved up into the top folder.
//! Depth therefore costs neither stack nor descriptors. The number of steps and the time are
//! bounded; what is left then stays.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, fchown, fstat, openat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The most entries that are looked at. What is nested counts several times.
const MOST_STEPS: usize = 200_000;

/// The longest time that is spent on one folder.
const LONGEST: Duration = Duration::from_secs(10);

/// Removes `folder` with all that is in it. Follows no link, and stays on one file system.
pub fn remove(folder: &Path) -> io::Result<()> {
    Removal {
        top: open(CWD, folder)?,
        steps: MOST_STEPS,
        end: Instant::now() + LONGEST,
        moved: 0,
    }
    .run(folder)
}

/// A removal that is under way.
struct Removal {
    top: OwnedFd,
    /// How many steps are left.
    steps: usize,
    end: Instant,
    /// How many folders were moved up.
    moved: u64,
}

impl Removal {
    fn run(mut self, folder: &Path) -> io::Result<()> {
        // From here on, nobody else adds anything to the top folder. Who is not root owns it.
        if geteuid().is_root() {
            fchown(&self.top, Some(geteuid()), None)?;
        }
        let mut is_empty = false;
        while !is_empty {
            is_empty = true;
            for entry in Dir::read_from(&self.top)? {
                let entry = entry?;
                if !is_self_or_parent(entry.file_name()) {
                    is_empty = false;
                    self.remove(entry.file_name())?;
                }
            }
        }
        Ok(unlinkat(CWD, folder, AtFlags::REMOVEDIR)?)
    }

    /// Removes an entry of the top folder.
    fn remove(&mut self, name: &CStr) -> io::Result<()> {
        if self.remove_flat(None, name)? {
            return Ok(());
        }
        let inner = open(&self.top, name)?;
        if fstat(&inner)?.st_dev != fstat(&self.top)?.st_dev {
            return Err(io::Error::other("another file system is mounted in it"));
        }
        for entry in Dir::read_from(&inner)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_self_or_parent(name) && !self.remove_flat(Some(&inner), name)? {
                self.move_up(&inner, name)?;
            }
        }
        // If somebody has added something meanwhile, the next pass comes here again.
        match unlinkat(&self.top, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => Ok(()),
            result => Ok(result.or_else(if_gone)?),
        }
    }

    /// Removes a file or an empty folder. Returns false for a folder that is not empty.
    fn remove_flat(&mut self, inner: Option<&OwnedFd>, name: &CStr) -> io::Result<bool> {
        self.step()?;
        let folder = inner.unwrap_or(&self.top);
        match unlinkat(folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            result => return Ok(result.or_else(if_gone).map(|()| true)?),
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => Ok(false),
            result => Ok(result.or_else(if_gone).map(|()| true)?),
        }
    }

    /// Moves a folder in `inner` into the top folder, under a name that is free.
    fn move_up(&mut self, inner: &OwnedFd, name: &CStr) -> io::Result<()> {
        loop {
            self.step()?;
            self.moved += 1;
            let free = format!("moved-{}", self.moved);
            match renameat_with(inner, name, &self.top, &free, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => return Ok(result.or_else(if_gone)?),
            }
        }
    }

    fn step(&mut self) -> io::Result<()> {
        self.steps = self
            .steps
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("there is too much in it, the rest is left to you"))?;
        match Instant::now() < self.end {
            true => Ok(()),
            false => Err(io::Error::other(
                "it takes too long, the rest is left to you",
            )),
        }
    }
}

fn open(at: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn if_gone(error: Errno) -> rustix::io::Result<()> {
    match error {
        Errno::NOENT => Ok(()),
        error => Err(error),
    }
}

fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    /// Makes folders in folders below `top`, more than a path can name.
    fn nest(top: &Path, depth: usize) {
        let mut folder = open(CWD, top).unwrap();
        for _ in 0..depth {
            mkdirat(&folder, "deeper", Mode::RWXU).unwrap();
            folder = open(&folder, "deeper").unwrap();
        }
    }

    #[test]
    fn depth_needs_no_stack_and_links_are_not_followed() {
        // Run directories are in memory as well.
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let kept = place.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let folder = place.path().join("1");
        fs::create_dir_all(folder.join("several/in/one")).unwrap();
        fs::create_dir(folder.join("moved-1")).unwrap();
        fs::write(folder.join("moved-1/file"), "").unwrap();
        fs::write(folder.join("several/file"), "").unwrap();
        symlink(&kept, folder.join("link")).unwrap();
        symlink(&kept, folder.join("several/link")).unwrap();
        nest(&folder, 5_000);
        let shown = folder.clone();
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let removed = thread.spawn(move || remove(&folder)).unwrap();
        removed.join().unwrap().unwrap();
        assert!(!shown.exists());
        assert!(kept.join("file").exists());
    }

    #[test]
    fn what_is_too_much_is_left() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("1");
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        let removal = Removal {
            top: open(CWD, &folder).unwrap(),
            steps: 2,
            end: Instant::now() + LONGEST,
            moved: 0,
        };
        let error = removal.run(&folder).unwrap_err();
        assert!(error.to_string().contains("too much"), "{error}");
        assert!(folder.exists());
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_link_in_the_place_of_the_folder_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let kept = place.path().join("kept");
        fs::create_dir(&kept).unwrap();
        let link = place.path().join("1");
        symlink(&kept, &link).unwrap();
        assert!(remove(&link).is_err());
        assert!(kept.exists());
    }
}
