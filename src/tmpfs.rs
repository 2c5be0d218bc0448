//! File systems in memory, each with nothing in it at first.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

/// Makes an empty file system with these options of tmpfs(5). It is mounted nowhere yet, and
/// vanishes with its descriptor unless [`mount`] follows. Nothing in it can be executed.
pub fn make(options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in options {
        fsconfig_set_string(&system, *option, *value)?;
    }
    fsconfig_create(&system)?;
    let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, hardened)
}

/// Mounts a file system on a folder.
pub fn mount(system: &OwnedFd, folder: &Path) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(system.as_fd(), "", CWD, folder, flags)
}
