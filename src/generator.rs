//! The generator: makes a socket unit for each address that the proxy listens on.
//!
//! systemd runs the generator at boot, before any unit is started, and at each `daemon-reload`. So
//! systemd holds every port before smoothserve runs, keeps it while smoothserve is gone, and starts
//! smoothserve at the first connection.
//!
//! Nothing is there yet when the generator runs: no network, perhaps no other file system than the
//! root, nobody to ask about users. It reads the files of the configuration and nothing else. A
//! fault of one service neither keeps the others from their ports nor fails the boot: the generator
//! logs it, and the manager will say more. A port without a unit does no harm, since the manager
//! opens the port itself. See systemd.generator(7).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::{self, CONFIG_DIR, Config, Faults, Listen, ServiceConfig};

/// The name under which systemd starts the generator.
pub const GENERATOR_NAME: &str = "smoothserve-generator";

/// The unit with which the generated units start and stop. systemd uses them only while this unit
/// is enabled.
const PARENT: &str = "smoothserve.socket";

/// The most messages of one run: the kernel's log takes 10 at a time from one program.
const MOST_MESSAGES: usize = 8;

/// A generated socket unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketUnit {
    /// The name of its file.
    pub name: String,
    /// The contents of its file.
    pub text: String,
}

/// Writes the units into a folder that systemd has named. Without `config_dir`, reads the
/// configuration of the system or of the user, as `$SYSTEMD_SCOPE` says.
pub fn run(config_dir: Option<&Path>, folder: &Path) -> anyhow::Result<()> {
    let Some(config_dir) = config_dir.map(Path::to_owned).or_else(default_config_dir) else {
        return Ok(());
    };
    // smoothserve is installed but not configured, as for most users of a machine.
    if !config_dir.exists() {
        return Ok(());
    }
    let (config, faults) = config::load_files(&config_dir);
    report(&faults);
    let wants = folder.join(format!("{PARENT}.wants"));
    for unit in units(&config) {
        let path = folder.join(&unit.name);
        fs::write(&path, unit.text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::create_dir_all(&wants)
            .and_then(|()| symlink(Path::new("..").join(&unit.name), wants.join(&unit.name)))
            .with_context(|| format!("cannot make a symlink in {}", wants.display()))?;
    }
    Ok(())
}

/// Returns what `%E/smoothserve` is for the units. `None`: a user without a home.
fn default_config_dir() -> Option<PathBuf> {
    let for_user = match std::env::var_os("SYSTEMD_SCOPE") {
        Some(scope) => scope == "user",
        // The variable is missing if a person tries the generator out.
        None => !rustix::process::geteuid().is_root(),
    };
    if !for_user {
        return Some(PathBuf::from(CONFIG_DIR));
    }
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let folder = absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("smoothserve"))
}

/// Makes a unit for each address of the enabled services, in the order of the addresses.
pub fn units(config: &Config) -> Vec<SocketUnit> {
    let mut addresses: BTreeMap<Listen, Vec<&ServiceConfig>> = BTreeMap::new();
    for service in config.services.values().filter(|service| service.enabled) {
        for &listen in &service.listen {
            addresses.entry(listen).or_default().push(service);
        }
    }
    addresses
        .iter()
        .map(|(&listen, services)| SocketUnit {
            name: unit_name(listen),
            text: text(listen, services),
        })
        .collect()
}

/// Names the unit of an address: `smoothserve-port-80.socket`, or
/// `smoothserve-port-127.0.0.1-80.socket`.
pub fn unit_name(Listen { address, port }: Listen) -> String {
    match address {
        None => format!("smoothserve-port-{port}.socket"),
        Some(address) => format!("smoothserve-port-{address}-{port}.socket"),
    }
}

/// Writes the unit. The socket is as the manager would open it itself: without `ReusePort=` for
/// one, which would split its queue.
fn text(listen: Listen, services: &[&ServiceConfig]) -> String {
    let Listen { address, port } = listen;
    let names: Vec<&str> = services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    let mut text = format!(
        "# Made by {GENERATOR_NAME} at boot and at each `systemctl daemon-reload`.\n\
         # For: {}\n\
         \n\
         [Unit]\n\
         Description=smoothserve on {}\n\
         Documentation=man:smoothserve(8) man:smoothserve.yaml(5)\n",
        names.join(", "),
        place(listen),
    );
    if let Some(path) = services.first().and_then(|first| setting(&first.file)) {
        let _ = writeln!(text, "SourcePath={path}");
    }
    text.push_str(
        "PartOf=smoothserve.socket\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Socket]\n",
    );
    match address {
        None => {
            let _ = writeln!(text, "ListenStream={port}\nBindIPv6Only=both");
        }
        Some(address) => {
            let _ = writeln!(text, "ListenStream={}", SocketAddr::new(address, port));
            if !address.is_unspecified() {
                text.push_str(
                    "# The network may give the machine this address only later.\n\
                     FreeBind=yes\n",
                );
            }
        }
    }
    text.push_str(
        "Service=smoothserve.service\n\
         # The name of the unit, which it would be otherwise, may have colons, and colons separate such names.\n\
         FileDescriptorName=port\n\
         Backlog=4096\n\
         NoDelay=yes\n\
         # If smoothserve fails again and again while requests come, systemd is to go on trying. By default it would\n\
         # close the port for good (https://github.com/systemd/systemd/issues/15633).\n\
         TriggerLimitIntervalSec=0\n\
         Slice=smoothserve.slice\n",
    );
    text
}

/// Describes an address for people.
fn place(Listen { address, port }: Listen) -> String {
    match address {
        None => format!("port {port}"),
        Some(IpAddr::V4(address)) if address.is_unspecified() => format!("port {port} (IPv4)"),
        Some(address) => SocketAddr::new(address, port).to_string(),
    }
}

/// Escapes a path as the value of a setting. `None`: a unit cannot hold it.
fn setting(path: &Path) -> Option<String> {
    let path = path.to_str()?;
    // `%` begins a specifier.
    (!path.contains(char::is_control)).then(|| path.replace('%', "%%"))
}

/// Reports the faults of the configuration, a line each.
fn report(faults: &Faults) {
    let mut lines: Vec<String> = faults
        .iter()
        .take(MOST_MESSAGES)
        .map(|fault| fault.summary())
        .collect();
    if faults.len() > MOST_MESSAGES {
        let more = faults.len() - MOST_MESSAGES;
        lines.push(format!("{more} more faults; `smoothserve check` shows all"));
    }
    // The system's systemd has no use for standard error, and at boot nobody listens but the
    // kernel.
    let by_system = std::env::var_os("SYSTEMD_SCOPE").is_some_and(|scope| scope == "system");
    let mut kernel = match by_system {
        true => File::options().write(true).open("/dev/kmsg").ok(),
        false => None,
    };
    for line in lines {
        // One write is one message there. 4 is a warning.
        let written = match &mut kernel {
            Some(kernel) => kernel.write_all(
                format!("<4>{GENERATOR_NAME}[{}]: {line}\n", std::process::id()).as_bytes(),
            ),
            None => writeln!(io::stderr(), "{GENERATOR_NAME}: {line}"),
        };
        // If the report cannot be written, the units are made all the same.
        drop(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_it_was() {
        let setting = |path| setting(Path::new(path));
        assert_eq!(setting("/etc/50%/a b.yaml").unwrap(), "/etc/50%%/a b.yaml");
        assert_eq!(setting("/etc/a\nListenStream=1.yaml"), None);
    }
}
