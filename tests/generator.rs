//! The units that the generator makes of a configuration folder when it is started as systemd
//! starts it. Each folder in `tests/fixtures/generator` has a `config`, the expected `units` and,
//! where the configuration has faults, in `said` what the generator prints about them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The three output folders that systemd gives to a generator, and the generator under the name by
/// which systemd starts it.
struct Boot {
    root: TempDir,
}

impl Boot {
    fn new() -> Boot {
        let root = tempfile::tempdir().unwrap();
        for folder in ["normal", "early", "late"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        let program = env!("CARGO_BIN_EXE_smoothserve");
        symlink(program, root.path().join("smoothserve-generator")).unwrap();
        Boot { root }
    }

    /// Runs the generator with this environment alone.
    fn run(&self, environment: &[(&str, &Path)], options: &[&Path]) -> Output {
        let path = self.root.path();
        Command::new(path.join("smoothserve-generator"))
            .args(options)
            .args([path.join("normal"), path.join("early"), path.join("late")])
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir("/")
            .output()
            .unwrap()
    }

    /// Runs the generator for this configuration folder.
    fn run_for(&self, config: &Path) -> Output {
        self.run(&[], &[Path::new("--config"), config])
    }

    fn normal(&self) -> PathBuf {
        self.root.path().join("normal")
    }

    /// Returns the names of the units that were made.
    fn units(&self) -> Vec<String> {
        read(&self.normal()).into_keys().collect()
    }
}

/// Reads the files of a folder, by name.
fn read(folder: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeMap::new();
    };
    entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

/// Reads the targets of the symlinks in a folder, by name.
fn links(folder: &Path) -> BTreeMap<String, PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeMap::new();
    };
    entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_link(entry.path()).unwrap())
        })
        .collect()
}

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generator");
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_generator_makes_the_expected_units_of_every_fixture() {
    for fixture in fixtures() {
        let shown = fixture.display();
        let boot = Boot::new();
        let config = fixture.join("config");
        let output = boot.run_for(&config);
        assert!(output.status.success(), "{shown}: {output:?}");

        let neutral = |text: String| text.replace(config.to_str().unwrap(), "CONFIG");
        let said = neutral(String::from_utf8(output.stderr).unwrap());
        let expected = fs::read_to_string(fixture.join("said")).unwrap_or_default();
        assert_eq!(said, expected, "{shown}");

        let made = read(&boot.normal());
        let made: BTreeMap<String, String> = made
            .into_iter()
            .map(|(name, text)| (name, neutral(text)))
            .collect();
        assert_eq!(made, read(&fixture.join("units")), "{shown}");

        let wanted = links(&boot.normal().join("smoothserve.socket.wants"));
        let expected = made
            .keys()
            .map(|name| (name.clone(), Path::new("..").join(name)));
        assert_eq!(wanted, expected.collect(), "{shown}");
        for unused in ["early", "late"] {
            let mut entries = fs::read_dir(boot.root.path().join(unused)).unwrap();
            assert!(entries.next().is_none(), "{shown}");
        }
    }
}

/// Checks the generated units together with the installed ones; a warning fails the test, too.
#[test]
fn systemd_finds_no_fault_in_the_units() {
    for fixture in fixtures() {
        let boot = Boot::new();
        assert!(boot.run_for(&fixture.join("config")).status.success());
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
        for (name, text) in read(&installed) {
            if name.starts_with("smoothserve.") && !name.ends_with(".conf") {
                let programs = Path::new(env!("CARGO_BIN_EXE_smoothserve"))
                    .parent()
                    .unwrap();
                let programs = format!("{}/", programs.display());
                let text = text.replace("/usr/bin/", &programs);
                fs::write(boot.normal().join(name), text).unwrap();
            }
        }
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            // systemd-analyze takes what follows a colon in a file name for an alias. So only this
            // unit is named, and the port units are found because it wants them.
            .arg(boot.normal().join("smoothserve.socket"))
            .output()
            .expect("this test needs systemd-analyze");
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success(), "{said}");
        assert_eq!(said, "");
    }
}

#[test]
fn a_user_manager_gets_units_of_the_users_own_configuration() {
    let home = tempfile::tempdir().unwrap();
    let user = ("SYSTEMD_SCOPE", Path::new("user"));
    let write = |folder: &str, port: u16| {
        let services = home.path().join(folder).join("smoothserve/services");
        fs::create_dir_all(&services).unwrap();
        let text = format!("name: shop\nport: {port}\nexecutable_path: /srv/shop\n");
        fs::write(services.join("shop.yaml"), text).unwrap();
        home.path().join(folder)
    };
    write(".config", 8001);
    let elsewhere = write("elsewhere", 8002);

    let boot = Boot::new();
    let output = boot.run(&[user, ("HOME", home.path())], &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(boot.units(), ["smoothserve-port-8001.socket"]);

    let boot = Boot::new();
    let environment = [user, ("HOME", home.path()), ("XDG_CONFIG_HOME", &elsewhere)];
    let output = boot.run(&environment, &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(boot.units(), ["smoothserve-port-8002.socket"]);
}

#[test]
fn without_a_configuration_the_generator_does_and_prints_nothing() {
    let home = tempfile::tempdir().unwrap();
    let user = ("SYSTEMD_SCOPE", Path::new("user"));
    for environment in [&[user, ("HOME", home.path())][..], &[user]] {
        let boot = Boot::new();
        let output = boot.run(environment, &[]);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        assert!(boot.units().is_empty());
    }
}

#[test]
fn many_faults_are_summarized_in_a_few_messages() {
    let config = tempfile::tempdir().unwrap();
    let services = config.path().join("services");
    fs::create_dir(&services).unwrap();
    for number in 0..100 {
        fs::write(services.join(format!("{number}.yaml")), "port: x\n").unwrap();
    }
    fs::write(
        services.join("good.yaml"),
        "name: good\nport: 80\nexecutable_path: /srv/good\n",
    )
    .unwrap();
    let boot = Boot::new();
    let output = boot.run_for(config.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(boot.units(), ["smoothserve-port-80.socket"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 9, "{said}");
    assert!(said.ends_with("`smoothserve check` shows all\n"), "{said}");
}

#[test]
fn an_output_folder_that_cannot_be_written_fails_the_generator() {
    let boot = Boot::new();
    fs::remove_dir(boot.normal()).unwrap();
    let config =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generator/ports/config");
    let output = boot.run_for(&config);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot write"), "{said}");
}
