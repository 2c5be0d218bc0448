//! The generator: turns the configured ports into socket units, see systemd.generator(7).
//!
//! systemd runs it at boot and at every `daemon-reload`, before it has loaded any unit. With a unit for each port systemd
//! holds all ports before smoothserve runs, and a first connection starts it. One port is one unit, so that one that
//! cannot be opened takes no other with it. The units are wanted by `smoothserve.socket` alone: enabling, starting and
//! stopping that one does the same to all of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::CONFIG_DIR;
use crate::config::{self, Config, Listen};
use crate::systemd::SERVICE;

/// The file that systemd calls.
pub const NAME: &str = "smoothserve-generator";

/// What the units belong to.
const PARENT: &str = "smoothserve.socket";

/// Writes the units for what is configured. Faults are said and left out: they must not keep the good ports closed.
pub fn run(config_dir: Option<PathBuf>, normal: &Path) -> anyhow::Result<()> {
    let dir = match config_dir {
        Some(dir) => dir,
        None => default_config_dir().context("neither XDG_CONFIG_HOME nor HOME is set")?,
    };
    if !dir.exists() {
        return Ok(());
    }
    let (config, faults) = config::load_files(&dir);
    if !faults.is_empty() {
        tracing::error!(error = %faults, "configuration has faults, its good services get their ports");
    }
    let wants = normal.join(format!("{PARENT}.wants"));
    for (name, text) in units(&config) {
        let unit = normal.join(&name);
        let problem = || format!("cannot write {}", unit.display());
        fs::create_dir_all(&wants).with_context(problem)?;
        fs::write(&unit, text).with_context(problem)?;
        symlink(Path::new("..").join(&name), wants.join(&name)).with_context(problem)?;
    }
    Ok(())
}

/// systemd says for whom it asks since version 251; before that only a user's manager has these variables.
fn default_config_dir() -> Option<PathBuf> {
    let is_users = match std::env::var("SYSTEMD_SCOPE") {
        Ok(scope) => scope == "user",
        Err(_) => !rustix::process::geteuid().is_root(),
    };
    if !is_users {
        return Some(PathBuf::from(CONFIG_DIR));
    }
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let configs = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(configs.join("smoothserve"))
}

/// The units by name.
fn units(config: &Config) -> BTreeMap<String, String> {
    let services = config.services.values().filter(|service| service.enabled);
    let mut users: BTreeMap<Listen, Vec<&config::Service>> = BTreeMap::new();
    for service in services {
        for listen in &service.listen {
            users.entry(*listen).or_default().push(service);
        }
    }
    let units = users.iter();
    units
        .map(|(listen, services)| (unit_name(listen), unit(listen, services)))
        .collect()
}

fn unit_name(listen: &Listen) -> String {
    match listen.address {
        None => format!("smoothserve-port-{}.socket", listen.port),
        Some(address) => format!("smoothserve-port-{address}-{}.socket", listen.port),
    }
}

/// The same socket as the manager would open by itself.
fn unit(listen: &Listen, services: &[&config::Service]) -> String {
    let names: Vec<&str> = services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    let source = services.first().and_then(|service| service.file.to_str());
    let source = source
        .filter(|path| !path.contains(char::is_control))
        .map(|path| format!("SourcePath={}\n", path.replace('%', "%%")))
        .unwrap_or_default();
    let address = match listen.address {
        // Both protocols, whatever net.ipv6.bindv6only says; IPv4 alone where there is no IPv6.
        None => format!("ListenStream={}\nBindIPv6Only=both\n", listen.port),
        // The address may be assigned later than the socket is made.
        Some(address) => {
            let address = std::net::SocketAddr::new(address, listen.port);
            format!("ListenStream={address}\nFreeBind=yes\n")
        }
    };
    format!(
        "# Made by {NAME}.
[Unit]
Description=Port {listen} of smoothserve, for {}
Documentation=man:smoothserve(8)
{source}PartOf={PARENT}

[Socket]
{address}Service={SERVICE}
Backlog=4096
NoDelay=yes
# A second queue would lose what is in it when one is closed.
ReusePort=no
# Otherwise systemd closes the socket for good when the service fails often while there are clients.
TriggerLimitIntervalSec=0
",
        names.join(", ")
    )
}
