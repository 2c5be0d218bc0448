//! The root folder of a worker, in which there is nothing but the unix sockets of the instances.
//!
//! A worker connects to instances with `bind: unix`, so it must be able to connect to unix sockets.
//! Landlock and seccomp cannot tell one path from another there. With the root folder of this
//! machine, a worker that was taken over could connect to every socket that its user may connect
//! to, for example to the bus of the user who runs smoothserve.
//!
//! # Theory of operation
//! [`enter`] gives the process a mount namespace of its own and makes an empty file system in
//! memory the root folder there. The folder of the instances' sockets is mounted in it under the
//! path that it has outside, so a path means the same on both sides, and folders of later instances
//! appear as they are made, with the file systems that the manager mounts on them. Nothing that is
//! mounted here appears outside. journald's socket is mounted as well if the worker logs to
//! journald. Everything else is unmounted. From then on, the kernel follows each path inside this
//! folder, also that of a link that an instance has made.
//!
//! Mounting needs a right that root has. Another user gets it in a user namespace, in which the
//! process keeps its user and group; some systems and most containers do not permit that. The
//! folder is first mounted where the worker looks for nothing ([`ANCHOR`]). So if a step fails, all
//! paths that the worker needs still lead to where they have led before.

use std::fs::{File, create_dir_all};
use std::io;
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::Mode;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, getegid, geteuid, pivot_root, umask};

use crate::tmpfs;

/// Where the folder is mounted before it becomes the root folder.
const ANCHOR: &str = "/proc";

/// A step to the root folder that the kernel did not permit.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub(super) struct RootFolderError {
    step: &'static str,
    error: io::Error,
}

/// Gives the process a root folder in which there is nothing but `places`: folders and files, each
/// under the absolute path that it has outside. The process must have one thread.
pub(super) fn enter(places: &[&Path]) -> Result<(), RootFolderError> {
    own_namespace()?;
    // What is mounted from here on is mounted in this namespace alone, and what is mounted outside
    // appears here as well.
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", follow).map_err(at("keeping the mounts to itself"))?;
    let root = tmpfs::make(&[("mode", "0755")]).map_err(at("making an empty file system"))?;
    tmpfs::mount(&root, Path::new(ANCHOR)).map_err(at("mounting the root folder"))?;
    fchdir(&root).map_err(at("entering the root folder"))?;
    // All users have to be able to pass the folders.
    umask(Mode::from_raw_mode(0o022));
    for outside in places {
        let place = outside.strip_prefix("/").unwrap_or(outside);
        make_place(place, outside).map_err(at("making a place for the sockets"))?;
        // In one step, so that nothing that is mounted outside meanwhile is missed.
        mount_bind_recursive(*outside, place).map_err(at("mounting the sockets"))?;
        close_to_changes(place)?;
    }
    close_to_changes(Path::new("."))?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(at("unmounting the rest"))?,
        // The root folder of an initramfs cannot be replaced. A process that has no capabilities
        // can return to it no more than to one that is unmounted.
        Err(_) => chroot(".").map_err(at("changing the root folder"))?,
    }
    chdir("/").map_err(at("entering the root folder"))
}

/// Puts the process into a mount namespace of its own, and into a user namespace if it needs one to
/// be allowed to.
fn own_namespace() -> Result<(), RootFolderError> {
    let unshare = |flags| nix::sched::unshare(flags).map_err(at("a namespace of its own"));
    if geteuid().is_root() {
        return unshare(CloneFlags::CLONE_NEWNS);
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER)?;
    // The worker has to recognize its own user as that of the manager.
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{user} {user} 1")),
        ("/proc/self/gid_map", format!("{group} {group} 1")),
    ];
    for (file, map) in maps {
        std::fs::write(file, map).map_err(at("mapping its own user"))?;
    }
    Ok(())
}

/// Makes the folder or file on which what is `outside` can be mounted.
fn make_place(place: &Path, outside: &Path) -> io::Result<()> {
    if outside.metadata()?.is_dir() {
        return create_dir_all(place);
    }
    if let Some(folder) = place.parent() {
        create_dir_all(folder)?;
    }
    File::create(place).map(drop)
}

fn close_to_changes(place: &Path) -> Result<(), RootFolderError> {
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount_remount(place, flags, "").map_err(at("closing the root folder to changes"))
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> RootFolderError {
    move |error| RootFolderError {
        step,
        error: error.into(),
    }
}
