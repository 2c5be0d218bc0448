//! Deploys: the ways in which people replace the executable of a service.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::{Build, example};

/// Writes a build of the program `source` to `file`, which must not exist.
pub fn install(source: &Path, file: &Path, build: &Build) -> io::Result<()> {
    // `fs::copy` would make the file executable before it is complete.
    let mut source = File::open(source)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(file)?;
    io::copy(&mut source, &mut target)?;
    target.write_all(build.line().as_bytes())?;
    target.set_permissions(Permissions::from_mode(0o755))
}

/// The folder that holds the executable of an example service, and the deploys to it.
#[derive(Debug)]
pub struct App {
    folder: PathBuf,
    source: PathBuf,
}

impl App {
    /// Makes the folder for an example service. It has no executable until the first deploy.
    pub fn new(folder: PathBuf) -> App {
        fs::create_dir_all(&folder).expect("the folder of the service can be made");
        App {
            source: example("shop"),
            folder,
        }
    }

    /// Returns the path of the executable.
    pub fn executable(&self) -> PathBuf {
        self.folder.join("shop")
    }

    /// Returns the path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Deploys as most tools do: writes the new file beside the old one, then renames the new file.
    #[track_caller]
    pub fn replace(&self, build: &Build) {
        let new = self.folder.join(".shop.new");
        install(&self.source, &new, build).expect("the new file can be written");
        fs::rename(new, self.executable()).expect("the new file can be renamed");
    }

    /// Deploys as `rm` and `cp` do: for a while the file is missing, then incomplete.
    #[track_caller]
    pub fn overwrite(&self, build: &Build) {
        fs::remove_file(self.executable()).expect("the old file can be removed");
        install(&self.source, &self.executable(), build).expect("the new file can be written");
    }

    /// Deploys by pointing the executable, a symlink, to the folder of a new release.
    #[track_caller]
    pub fn link(&self, build: &Build) {
        let release = self.release(build);
        self.point(&release.join("shop"), &self.executable());
    }

    /// Deploys by pointing the symlink `current` to a new folder; the executable is `current/shop`.
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
