//! The run directory: sockets and state of one running manager.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

/// Makes the directory and takes it for this manager, as long as the returned file is open.
pub fn prepare(path: &Path) -> anyhow::Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .with_context(|| format!("cannot make the run directory {}", path.display()))?;
    let owner = std::fs::metadata(path)?.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner != own {
        bail!(
            "the run directory {} belongs to user {owner}, not to user {own}",
            path.display()
        );
    }
    let lock_path = path.join("lock");
    let lock = File::create(&lock_path)
        .with_context(|| format!("cannot write {}", lock_path.display()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "smoothserve is already running with the run directory {}",
                path.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
    }
}
