//! Where `make install` puts which files, and that the programs that read these files accept them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use smoothserve::config::{Config, load_files};
use smoothserve_kit::PATIENCE;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

/// Everything that is installed: paths with their modes, symlinks with their targets.
const INSTALLED: &str = "\
/etc/smoothserve/services 755
/etc/smoothserve/smoothserve.yaml 644
/usr/bin/smoothctl 755
/usr/bin/smoothserve 755
/usr/bin/smoothtool -> smoothctl
/usr/lib/systemd/catalog/smoothserve.catalog 644
/usr/lib/systemd/system-generators/smoothserve-generator -> ../../../bin/smoothserve
/usr/lib/systemd/system/run-smoothserve-.mount.d/smoothserve.conf 644
/usr/lib/systemd/system/smoothserve.service 644
/usr/lib/systemd/system/smoothserve.slice 644
/usr/lib/systemd/system/smoothserve.socket 644
/usr/lib/systemd/user-generators/smoothserve-generator -> ../../../bin/smoothserve
/usr/lib/systemd/user/smoothserve.service 644
/usr/lib/systemd/user/smoothserve.slice 644
/usr/lib/systemd/user/smoothserve.socket 644
/usr/lib/sysusers.d/smoothserve.conf 644
/usr/lib/tmpfiles.d/smoothserve.conf 644
/usr/share/bash-completion/completions/smoothctl 644
/usr/share/bash-completion/completions/smoothserve 644
/usr/share/dbus-1/system-services/org.smoothserve1.service 644
/usr/share/dbus-1/system.d/org.smoothserve1.conf 644
/usr/share/doc/smoothserve/README.md 644
/usr/share/doc/smoothserve/configuration.md 644
/usr/share/doc/smoothserve/dbus.md 644
/usr/share/doc/smoothserve/examples/example.yaml 644
/usr/share/doc/smoothserve/examples/python.yaml 644
/usr/share/doc/smoothserve/http.md 644
/usr/share/doc/smoothserve/logging.md 644
/usr/share/doc/smoothserve/security.md 644
/usr/share/fish/vendor_completions.d/smoothctl.fish 644
/usr/share/fish/vendor_completions.d/smoothserve.fish 644
/usr/share/man/man1/smoothctl.1 644
/usr/share/man/man1/smoothtool.1 644
/usr/share/man/man5/org.smoothserve1.5 644
/usr/share/man/man5/smoothserve.yaml.5 644
/usr/share/man/man8/smoothserve.8 644
/usr/share/polkit-1/actions/org.smoothserve1.policy 644
/usr/share/zsh/vendor-completions/_smoothctl 644
/usr/share/zsh/vendor-completions/_smoothserve 644
";

/// An installation in a temporary folder.
struct Installation {
    root: TempDir,
}

impl Installation {
    fn new() -> Installation {
        let installation = Installation {
            root: tempfile::tempdir().unwrap(),
        };
        installation.make();
        installation
    }

    fn make(&self) {
        let programs = Path::new(env!("CARGO_BIN_EXE_smoothserve"))
            .parent()
            .unwrap();
        let mut destination = std::ffi::OsString::from("DESTDIR=");
        destination.push(self.root.path());
        let mut programs_in = std::ffi::OsString::from("BIN=");
        programs_in.push(programs);
        let manual = tempfile::tempdir().unwrap();
        smoothserve_manual::write(manual.path()).unwrap();
        let mut manual_in = std::ffi::OsString::from("MANUAL=");
        manual_in.push(manual.path());
        // The modes must not depend on the umask of the caller. MAKEFLAGS of an outer `make` must
        // not reach the inner one.
        let output = Command::new("sh")
            .args(["-c", "umask 077; exec make --silent install \"$@\"", "sh"])
            .args([destination, programs_in, manual_in])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// Lists files, symlinks and empty folders below a folder, as in [`INSTALLED`].
    fn list(&self, folder: &Path, found: &mut BTreeSet<String>) {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let mut entries = fs::read_dir(folder).unwrap().peekable();
        let shown = |path: &Path| {
            let path = path.strip_prefix(self.root.path()).unwrap();
            format!("/{}", path.display())
        };
        if folder != self.root.path() {
            assert_eq!(mode(folder), 0o755, "{}", folder.display());
        }
        if entries.peek().is_none() {
            found.insert(format!("{} {:o}", shown(folder), mode(folder)));
        }
        for entry in entries {
            let path = entry.unwrap().path();
            if let Ok(target) = fs::read_link(&path) {
                assert!(path.metadata().is_ok(), "{} leads nowhere", path.display());
                found.insert(format!("{} -> {}", shown(&path), target.display()));
            } else if path.is_dir() {
                self.list(&path, found);
            } else {
                found.insert(format!("{} {:o}", shown(&path), mode(&path)));
            }
        }
    }
}

/// Checks that a program succeeded and printed no warning.
fn assert_silent(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn every_file_is_installed_in_its_place_with_its_mode() {
    let installation = Installation::new();
    let mut found = BTreeSet::new();
    installation.list(installation.root.path(), &mut found);
    let expected: BTreeSet<String> = INSTALLED.lines().map(str::to_owned).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_second_installation_keeps_the_configuration() {
    let installation = Installation::new();
    let file = installation.path("/etc/smoothserve/smoothserve.yaml");
    fs::write(&file, "default_user: web\n").unwrap();
    installation.make();
    assert_eq!(fs::read_to_string(&file).unwrap(), "default_user: web\n");
}

#[test]
fn the_installed_configuration_states_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let load = || -> Config {
        let (mut config, faults) = load_files(folder.path());
        assert!(faults.is_empty(), "{faults}");
        // A file without a level means the default level.
        config.log_level.get_or_insert_default();
        config
    };
    fs::create_dir(folder.path().join("services")).unwrap();
    let without = load();
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("smoothserve.yaml");
    let text = fs::read_to_string(installed).unwrap();
    let file = folder.path().join("smoothserve.yaml");
    fs::write(&file, &text).unwrap();
    assert_eq!(load(), without);

    // The commented settings of the installed file are the defaults, too.
    let setting = |line: &str| {
        line.strip_prefix("# ")
            .filter(|l| l.contains(": "))
            .map(str::to_owned)
    };
    let settings: Vec<String> = text
        .split("\n\n")
        .skip(1)
        .flat_map(str::lines)
        .filter_map(setting)
        .collect();
    assert_eq!(settings.len(), 4, "{settings:?}");
    fs::write(&file, settings.join("\n")).unwrap();
    assert_eq!(load(), without);
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let installation = Installation::new();
    let programs = installation.path("/usr/bin");
    for scope in ["system", "user"] {
        let units = installation.path("/usr/lib/systemd").join(scope);
        let service = units.join("smoothserve.service");
        // systemd-analyze checks that the programs exist.
        let text = fs::read_to_string(&service).unwrap();
        let text = text.replace("/usr/bin/", &format!("{}/", programs.display()));
        fs::write(&service, text).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", &format!("--{scope}")])
            .args(
                ["service", "socket", "slice"]
                    .map(|kind| units.join(format!("smoothserve.{kind}"))),
            )
            .env("XDG_RUNTIME_DIR", installation.root.path())
            .output()
            .expect("this test needs systemd-analyze");
        assert_silent(&output);
    }
}

#[test]
fn systemd_sysusers_can_make_the_user() {
    let installation = Installation::new();
    let users = Command::new("systemd-sysusers")
        .args(["--dry-run", "smoothserve.conf", "--root"])
        .arg(installation.root.path())
        .output()
        .unwrap();
    assert!(users.status.success(), "{users:?}");
    let said = String::from_utf8_lossy(&users.stderr);
    assert!(said.contains("Creating user 'smoothserve'"), "{said}");
}

/// Returns the path of a manual page such as `smoothctl(1)`.
fn page_file(page: &str) -> String {
    let (name, section) = page.strip_suffix(')').unwrap().split_once('(').unwrap();
    format!("/usr/share/man/man{section}/{name}.{section}")
}

#[test]
fn documents_named_by_the_units_and_the_catalog_are_installed() {
    let installation = Installation::new();
    for unit in INSTALLED
        .lines()
        .filter(|line| line.contains("/smoothserve."))
    {
        let path = installation.path(unit.split(' ').next().unwrap());
        let text = fs::read_to_string(path).unwrap();
        // The catalog writes a colon where units write an equals sign.
        let lines = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("Documentation")?;
            rest.strip_prefix('=').or(rest.strip_prefix(": "))
        });
        for address in lines.flat_map(|line| line.split(' ')) {
            let file = match address.strip_prefix("man:") {
                Some(page) => page_file(page),
                None => address.strip_prefix("file://").unwrap().to_owned(),
            };
            assert!(installation.path(&file).exists(), "{file}");
        }
    }
}

/// A bus with the installed policy lets only root own the name. A bus would not start with a faulty
/// policy.
#[tokio::test]
async fn a_bus_lets_only_root_own_the_name() {
    let installation = Installation::new();
    let policy = installation.path("/usr/share/dbus-1/system.d/org.smoothserve1.conf");
    let address = format!("unix:path={}/bus", installation.root.path().display());
    let config = installation.path("/bus.conf");
    let text = format!(
        "<busconfig><listen>{address}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><deny own=\"*\"/>\
         <allow send_destination=\"org.freedesktop.DBus\"/><allow receive_type=\"method_return\"/>\
         <allow receive_type=\"error\"/><allow receive_type=\"signal\"/></policy>\
         <include>{}</include></busconfig>",
        policy.display()
    );
    fs::write(&config, text).unwrap();
    let mut daemon = tokio::process::Command::new("dbus-daemon")
        .arg("--config-file")
        .arg(&config)
        .args(["--nofork", "--nopidfile", "--print-address"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("this test needs a dbus-daemon");
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    // The daemon prints its address once it listens.
    let address_line = timeout(PATIENCE, lines.next_line()).await.unwrap();
    address_line.unwrap().expect("the daemon starts");

    let builder = zbus::connection::Builder::address(address.as_str());
    let connection = builder.build().await.unwrap();
    let request = |name| timeout(PATIENCE, connection.request_name(name));
    let owned = request("org.smoothserve1").await.unwrap();
    assert_eq!(
        owned.is_ok(),
        rustix::process::geteuid().is_root(),
        "{owned:?}"
    );
    let other = request("org.smoothserve2").await.unwrap();
    assert!(other.is_err(), "{other:?}");
}

#[test]
fn installed_xml_files_are_well_formed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    for name in ["org.smoothserve1.conf", "org.smoothserve1.policy"] {
        let output = Command::new("python3")
            .args([
                "-c",
                "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])",
            ])
            .arg(folder.join(name))
            .output()
            .expect("this test needs python3");
        assert_silent(&output);
    }
}
