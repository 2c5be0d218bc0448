//! Deploys: the ways in which people put a new executable in the place of the old one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::{Build, example};

/// Writes a build of `source` to a file that must not exist.
pub fn install(source: &Path, file: &Path, build: &Build) -> io::Result<()> {
    // `fs::copy` would also take over the mode of the source before the file is complete.
    let mut source = File::open(source)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(file)?;
    io::copy(&mut source, &mut target)?;
    target.write_all(build.line().as_bytes())?;
    target.set_permissions(Permissions::from_mode(0o755))
}

/// The folder of a service's executable.
#[derive(Debug)]
pub struct App {
    folder: PathBuf,
    source: PathBuf,
}

impl App {
    /// The example service in this folder, which is made.
    pub fn new(folder: PathBuf) -> App {
        fs::create_dir_all(&folder).expect("the folder of the service can be made");
        App {
            source: example("shop"),
            folder,
        }
    }

    /// The executable.
    pub fn executable(&self) -> PathBuf {
        self.folder.join("shop")
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Deploys as most tools do: writes the new file beside the old one, then renames it.
    #[track_caller]
    pub fn replace(&self, build: &Build) {
        let new = self.folder.join(".shop.new");
        install(&self.source, &new, build).expect("the new file can be written");
        fs::rename(new, self.executable()).expect("the new file can be renamed");
    }

    /// Deploys as `cp` does after `rm`: for a while there is no file, then a part of it.
    #[track_caller]
    pub fn overwrite(&self, build: &Build) {
        fs::remove_file(self.executable()).expect("the old file can be removed");
        install(&self.source, &self.executable(), build).expect("the new file can be written");
    }

    /// Deploys by turning the executable into a symlink to a release of its own.
    #[track_caller]
    pub fn link(&self, build: &Build) {
        let release = self.release(build);
        self.point(&release.join("shop"), &self.executable());
    }

    /// Deploys by turning `current` into a symlink to a new folder; the executable is `current/shop`.
    #[track_caller]
    pub fn flip(&self, build: &Build) {
        let release = self.release(build);
        self.point(&release, &self.folder.join("current"));
    }

    #[track_caller]
    fn release(&self, build: &Build) -> PathBuf {
        let release = self.folder.join("releases").join(&build.version);
        fs::create_dir_all(&release).expect("the folder of the release can be made");
        install(&self.source, &release.join("shop"), build).expect("the release can be written");
        release
    }

    #[track_caller]
    fn point(&self, target: &Path, link: &Path) {
        let new = self.folder.join(".link.new");
        symlink(target, &new).expect("the symlink can be made");
        fs::rename(new, link).expect("the symlink can be renamed");
    }
}
