//! The Debian package: installed, upgraded, removed and purged as an administrator does it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{client, example, local};

use crate::scene::{PORT, SHOP, Scene, nothing_is_lost};

/// The environment variable that names the package, if it is not the one that `make deb` builds.
const PACKAGE: &str = "SMOOTHSERVE_DEB";

/// The path of the package on the machine.
pub const HERE: &str = "/srv/smoothserve.deb";

/// Shows whether the service runs, and the units that an upgrade must not touch.
const ACTIVE: &str = "systemctl is-active smoothserve.service smoothserve.socket smoothserve.slice \
                      smoothserve-port-8080.socket; true";

/// Returns the file of the package under test.
fn package() -> PathBuf {
    if let Some(file) = std::env::var_os(PACKAGE) {
        return file.into();
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deb");
    let files = fs::read_dir(&folder).into_iter().flatten();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("smoothserve_") && name.ends_with(".deb")
    };
    let mut packages = files.map(|file| file.unwrap().path()).filter(is_it);
    packages
        .next()
        .expect("this test needs the package: run `make deb`, or name one in SMOOTHSERVE_DEB")
}

/// Copies the package to the machine, and removes the files by which container images change how
/// packages behave. Removes man-db's switch for the index of all manual pages, too: building it
/// takes a minute of CPU time, and says nothing about smoothserve.
pub fn bring_package(machine: &Machine) {
    machine.install(&package(), HERE);
    machine.run(
        "rm -rf /usr/sbin/policy-rc.d /etc/dpkg/dpkg.cfg.d/* /etc/apt/apt.conf.d/docker-* \
         /var/lib/man-db/auto-update",
    );
}

/// Runs apt-get as an administrator does; no question is asked.
pub fn apt(machine: &Machine, what: &str) {
    machine.run(&format!(
        "DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet --quiet {what}"
    ));
}

fn install(machine: &Machine) {
    bring_package(machine);
    apt(machine, &format!("install {HERE}"));
}

/// Returns the version of the newer package of this number.
fn version(number: u32) -> String {
    format!("{}+{number}", env!("CARGO_PKG_VERSION"))
}

/// Makes a newer package from the one on the machine: it has another version and another file as
/// its program, and the shell command `change` edits more of its contents, in the folder `new`.
pub fn newer(machine: &Machine, number: u32, change: &str) -> String {
    let version = version(number);
    let package = format!("/srv/smoothserve-{number}.deb");
    machine.run(&format!(
        "cd /srv && rm -rf new && dpkg-deb --raw-extract {HERE} new \
         && sed -i 's/^Version: .*/Version: {version}/' new/DEBIAN/control \
         && echo '{version}' >>new/usr/bin/smoothserve && {change} \
         && dpkg-deb --root-owner-group -Znone --build new {package}"
    ));
    package
}

/// Installs the package on a machine that already has the file of the shop, so that systemd holds
/// its port from the beginning.
fn install_under_shop(machine: &Machine) -> Scene<'_> {
    machine.add_shop(&example("shop"), &format!("port: {PORT}\n{SHOP}"));
    install(machine);
    let scene = Scene { machine };
    assert_eq!(scene.settled().ready(), 3);
    scene
}

/// Lists the files of the machine where packages and their programs leave files, except those of
/// package managers, logs, and other services.
fn files(machine: &Machine) -> BTreeSet<String> {
    let list = machine.run(
        "find /etc /usr /var /run /srv /opt /root \
         -path /run/systemd -prune -o -path /run/log -prune -o -path /var/log -prune -o -path /var/cache -prune -o \
         -path /var/lib/dpkg -prune -o -path /var/lib/apt -prune -o -path /var/lib/PackageKit -prune -o -print",
    );
    list.lines().map(str::to_owned).collect()
}

/// Lists the units, processes and listening sockets of smoothserve and the shop.
fn running(machine: &Machine) -> String {
    machine.run(
        "systemctl list-units --all --state=loaded --plain --no-legend 'smoothserve*' '*org.smoothserve1*'; \
         find /run/systemd -name '*smoothserve*'; \
         pgrep -a 'smoothserve|shop'; ss -Hltnp 'sport = 8080'; ss -Hlxn | grep smoothserve; true",
    )
}

#[test]
fn it_has_the_version_of_the_program() {
    let shown = std::process::Command::new("dpkg-deb")
        .arg("--field")
        .arg(package())
        .arg("Version")
        .output()
        .unwrap();
    let version = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn it_runs_as_soon_as_it_is_installed_and_an_example_is_one_copy_away() {
    machine::test(async |machine| {
        install(machine);
        let services = machine.run(
            "busctl call org.smoothserve1 /org/smoothserve1 org.smoothserve1.Manager ListServices",
        );
        assert!(services.contains("0"), "{services}");
        for unit in ["smoothserve.socket", "smoothserve.service"] {
            machine.run(&format!(
                "systemctl is-active {unit} && systemctl is-enabled {unit}"
            ));
        }
        machine.run("getent passwd smoothserve");
        assert_eq!(
            machine.run("systemctl --user --global is-enabled smoothserve.service; true"),
            "disabled\n",
            "one's own is one's own matter"
        );

        machine.run(
            "cp /usr/share/doc/smoothserve/examples/python.yaml /etc/smoothserve/services/ \
             && systemctl reload smoothserve",
        );
        let page = client::get(local(8080), "localhost", "/").await.unwrap();
        assert!(page.text().contains("python.yaml"), "{}", page.text());
        assert_eq!(machine.run("systemctl --failed --no-legend"), "");
    });
}

#[test]
fn an_upgrade_loses_nothing_and_touches_neither_instances_nor_sockets() {
    machine::test(async |machine| {
        let scene = install_under_shop(machine);
        let load = scene.load().await;
        let instances = scene.shop().pids();
        // A unit that stops and starts again gets another invocation.
        let invocations = || {
            machine.run(
                "systemctl show --property=Id --property=InvocationID --property=ActiveState smoothserve.slice \
                 smoothserve.socket smoothserve-port-8080.socket",
            )
        };
        let before = invocations();
        assert_eq!(before.matches("ActiveState=active").count(), 3, "{before}");
        for number in 1..=3 {
            let (manager, worker) = (scene.manager(), scene.worker());
            let package = newer(machine, number, "true");
            apt(machine, &format!("install {package}"));
            let installed = machine.run("dpkg-query --show --showformat='${Version}' smoothserve");
            assert_eq!(installed, version(number));
            assert_ne!(scene.manager(), manager);
            machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
                text == "gone\n"
            });
            assert_ne!(scene.worker(), worker);
            load.go_on(100).await;
        }
        assert_eq!(scene.shop().pids(), instances);
        assert_eq!(invocations(), before);
        nothing_is_lost(load).await;
        assert_eq!(machine.run("systemctl --failed --no-legend"), "");
    });
}

#[test]
fn an_upgrade_starts_nothing_that_was_stopped() {
    machine::test(async |machine| {
        let scene = install_under_shop(machine);
        let mut number = 0;
        let mut upgrade = || {
            number += 1;
            let package = newer(machine, number, "true");
            apt(machine, &format!("install {package}"));
            machine.run(ACTIVE)
        };

        machine.run("systemctl stop smoothserve.service");
        assert_eq!(upgrade(), "inactive\nactive\nactive\nactive\n");

        machine.run("systemctl stop smoothserve.slice");
        assert_eq!(upgrade(), "inactive\ninactive\ninactive\ninactive\n");

        machine.run("systemctl disable smoothserve.service smoothserve.socket");
        assert_eq!(upgrade(), "inactive\ninactive\ninactive\ninactive\n");
        let enabled =
            machine.run("systemctl is-enabled smoothserve.service smoothserve.socket; true");
        assert_eq!(enabled, "disabled\ndisabled\n");

        // A service that is disabled but runs is replaced like any other.
        machine.run("systemctl start smoothserve.socket smoothserve.service");
        let manager = scene.manager();
        assert_eq!(upgrade(), "active\nactive\nactive\nactive\n");
        assert_ne!(scene.manager(), manager);
    });
}

#[test]
fn a_configuration_that_was_changed_is_kept() {
    machine::test(async |machine| {
        install(machine);
        let ours = "# ours\ndefault_user: nobody\n";
        machine.write("/etc/smoothserve/smoothserve.yaml", ours);
        let file = || machine.run("cat /etc/smoothserve/smoothserve.yaml");

        let package = newer(machine, 1, "true");
        apt(machine, &format!("install {package}"));
        assert_eq!(file(), ours);

        let change = "echo '# theirs' >>new/etc/smoothserve/smoothserve.yaml";
        let package = newer(machine, 2, change);
        apt(
            machine,
            &format!("-o Dpkg::Options::=--force-confold install {package}"),
        );
        assert_eq!(file(), ours);
        let theirs = machine.run("cat /etc/smoothserve/smoothserve.yaml.dpkg-dist");
        assert!(theirs.ends_with("# theirs\n"));
    });
}

#[test]
fn what_is_removed_has_ended_and_what_is_purged_is_gone() {
    machine::test(async |machine| {
        bring_package(machine);
        let shop = "/etc/smoothserve/services/shop.yaml";
        let before = files(machine);
        assert_eq!(running(machine), "");

        install_under_shop(machine);
        let there = running(machine);
        assert!(there.contains("smoothserve-port-8080.socket"), "{there}");
        // Something is mounted for it.
        let blog = "/etc/smoothserve/services/blog.yaml";
        machine.write(
            blog,
            "name: blog\nport: 8081\nexecutable_path: /opt/shop/shop\nbind: unix\nuser: www-data\n",
        );
        machine.run("smoothctl reload && grep -q /run/smoothserve/instances/ /proc/self/mountinfo");
        apt(machine, "remove smoothserve");
        machine.run(&format!("rm {blog}"));
        assert_eq!(running(machine), "");
        assert!(!machine.path("/run/smoothserve").exists());
        machine.run(&format!("cat /etc/smoothserve/smoothserve.yaml {shop}"));

        // An earlier installation is no reason not to start the service.
        install_under_shop(machine);
        assert_eq!(machine.run(ACTIVE), "active\nactive\nactive\nactive\n");

        apt(machine, "purge smoothserve");
        assert_eq!(running(machine), "");
        let known = "'smoothserve*' '*org.smoothserve1*'";
        let units = machine.run(&format!(
            "systemctl list-units --all --no-legend {known}; systemctl list-unit-files --no-legend {known}; true"
        ));
        assert_eq!(units, "");
        let left = machine.run("find /etc/smoothserve -type f");
        assert_eq!(left.trim(), shop, "it is the administrator's");
        machine.run("rm -r /etc/smoothserve /opt/shop");
        let after = files(machine);
        let new: Vec<_> = after.difference(&before).collect();
        let gone: Vec<_> = before.difference(&after).collect();
        assert!(new.is_empty() && gone.is_empty(), "{new:?} {gone:?}");
    });
}

#[test]
fn the_test_that_comes_with_it_succeeds() {
    machine::test(async |machine| {
        install(machine);
        let test = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian/tests/loss");
        machine.install(&test, "/srv/loss");
        let said = machine.run("/srv/loss 2>&1");
        println!("{said}");
        assert!(said.ends_with(" 0 lost\n"), "{said}");
        assert_eq!(machine.run("ls /etc/smoothserve/services"), "");
    });
}
