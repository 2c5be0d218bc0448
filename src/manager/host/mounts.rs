//! Mounts that this process makes, and that processes in other mount namespaces see.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::geteuid;

/// Sees to it that a namespace that is made from now on also gets what is mounted below `folder`
/// later. For this, the folder is mounted on itself, which hides nothing that is in it.
///
/// Fails if a mount would not outlive this process: that of a unit with a mount namespace of its
/// own, like one with `PrivateTmp=`, is lost to the next process of the unit.
pub fn share(folder: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
    if namespace("self")? != namespace("1")? {
        return Err(io::Error::other(
            "this unit has a mount namespace of its own",
        ));
    }
    // Namespaces that exist already would get nothing more from a folder that is made private.
    if !is_mounted(folder)? {
        mount_bind_recursive(folder, folder)?;
        // Otherwise, if the file system around the folder is shared, each mount would be there
        // twice: once below what is mounted on the folder.
        mount_change(folder, MountPropagationFlags::PRIVATE)?;
    }
    Ok(mount_change(folder, MountPropagationFlags::SHARED)?)
}

/// Unmounts everything that is mounted on the folder, with all that is mounted below it, even if it
/// is in use. Returns false if nothing was mounted, or this process may not unmount it.
pub fn unmount_all(folder: &Path) -> bool {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let mut any = false;
    while unmount(folder, flags).is_ok() {
        any = true;
    }
    any
}

/// Returns true if something is mounted on the folder. Kernels before 5.8 do not tell.
fn is_mounted(folder: &Path) -> io::Result<bool> {
    let found = statx(
        CWD,
        folder,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )?;
    let root = StatxAttributes::MOUNT_ROOT;
    match found.stx_attributes_mask.contains(root) {
        true => Ok(found.stx_attributes.contains(root)),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}
