//! The folders of one smoothserve: its configuration, its run directory, the executables of its
//! services, its log.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::script::PYTHON;
use crate::{App, Build};

/// A temporary folder for one smoothserve, removed at the end of the test.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
}

impl Home {
    /// Makes the folder, with a configuration without services.
    pub fn new() -> Home {
        let folder = tempfile::Builder::new()
            .prefix("smoothserve-")
            .tempdir()
            .expect("a temporary folder can be made");
        // A smoothserve of root runs services as another user, who must reach their executables.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))
            .expect("the mode of the folder can be set");
        let home = Home { folder };
        fs::create_dir_all(home.config().join("services")).expect("folders can be made");
        write(
            &home.config().join("smoothserve.yaml"),
            "default_user: nobody\n",
        );
        home
    }

    /// Returns the folder that holds all others.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the folder that `--config` names.
    pub fn config(&self) -> PathBuf {
        self.path().join("config")
    }

    /// Returns the folder that `--run-dir` names.
    pub fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    /// Returns the file that gets the messages of smoothserve.
    pub fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// Makes the folder for the executable of a service.
    pub fn app(&self, name: &str) -> App {
        App::new(self.path().join("apps").join(name))
    }

    /// Returns the configuration file of a service.
    pub fn service(&self, name: &str) -> PathBuf {
        self.config().join("services").join(format!("{name}.yaml"))
    }

    /// Writes the configuration file of a service atomically, as editors do.
    #[track_caller]
    pub fn write_service(&self, name: &str, yaml: &str) {
        write(&self.service(name), yaml);
    }

    /// Installs version 1 of the example service, and writes its configuration file: the required
    /// keys, and these lines.
    #[track_caller]
    pub fn add_shop(&self, name: &str, port: u16, lines: &str) -> App {
        let app = self.app(name);
        app.replace(&Build::good("1"));
        self.write_shop(name, port, lines);
        app
    }

    /// Writes the configuration file of an example service: the required keys, and these lines.
    #[track_caller]
    pub fn write_shop(&self, name: &str, port: u16, lines: &str) {
        self.write_service(
            name,
            &format!(
                "name: {name}\n\
                 server_name: {name}.example\n\
                 port: {port}\n\
                 executable_path: ../../apps/{name}/shop\n\
                 {lines}"
            ),
        );
    }

    /// Installs a Python script as a service for `shop.example` on this port, with these further
    /// lines in its configuration file.
    pub fn add_python(&self, name: &str, port: u16, script: &str, lines: &str) {
        let file = self.path().join(format!("{name}.py"));
        write(&file, script);
        let yaml = format!(
            "name: {name}\nserver_name: shop.example\nport: {port}\nexecutable_path: {PYTHON}\nargs: [{file:?}]\n{lines}"
        );
        self.write_service(name, &yaml);
    }

    /// Removes the configuration file of a service.
    #[track_caller]
    pub fn remove_service(&self, name: &str) {
        fs::remove_file(self.service(name)).expect("the file of the service is there");
    }
}

impl Default for Home {
    fn default() -> Home {
        Home::new()
    }
}

/// Writes a file atomically, by renaming a new file.
#[track_caller]
pub fn write(file: &Path, text: &str) {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text).expect("a file can be written");
    fs::rename(&new, file).expect("a file can be renamed");
}
