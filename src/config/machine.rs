//! The machine: whether it has what a service names, such as files, users, addresses and a valid
//! certificate.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::{Group, User};
use rustix::fs::FileType;

use super::certificate::Certificate;
use super::environment_file::EnvironmentFile;
use super::fields::shorten;
use super::process::ProcessConfig;
use super::service::ServiceConfig;
use crate::patience;
use crate::trust::{self, FileFault, NamedUser, Purpose};
use crate::walk::{MOST_WATCHED, WalkBounds, walk};

/// What the files of a configuration are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// The files, users and addresses of this machine.
    Machine,
    /// Only each other.
    Nothing,
}

/// How many lines of an environment file are remarked upon.
const MOST_REMARKS: usize = 5;

/// A remark about what the machine has or lacks: the key that names it, and the text.
pub(super) type Remark = (&'static str, String);

/// Lists what the machine lacks for a service: the key that names it, the text, and whether it
/// hinders. Files and users that do not answer are lacking.
pub(super) fn missing(service: &ServiceConfig, default_user: &str) -> Vec<(Remark, bool)> {
    let (copy, user) = (service.clone(), default_user.to_owned());
    let found = patience::within(&service.files(), move || all_missing(&copy, &user));
    found.unwrap_or_else(|unanswered| vec![(("executable_path", unanswered.to_string()), true)])
}

fn all_missing(service: &ServiceConfig, default_user: &str) -> Vec<(Remark, bool)> {
    let process = &service.process;
    let mut missing = Vec::new();
    let mut check = |key, result: Result<(), String>| {
        if let Err(message) = result {
            missing.push(((key, message), true));
        }
    };
    let named = process.named_user();
    check("executable_path", executable(&process.executable, named));
    if let Some(folder) = &process.working_directory {
        check("working_directory", directory(folder, named));
    }
    if let Some(file) = &process.environment_file {
        check("environment_file", environment_file(file, process));
    }
    match &process.user {
        Some(user) => check("user", known(Database::Passwd, user)),
        None => check("executable_path", owner(&process.executable, default_user)),
    }
    if let Some(group) = &process.group {
        check("group", known(Database::Group, group));
    }
    check("server_ip", local("server_ip", process.address));
    missing.extend(certificate(service));
    let mut addresses: Vec<IpAddr> = service.listen.iter().filter_map(|l| l.address).collect();
    addresses.dedup();
    for address in addresses {
        if let Err(message) = local("listen_address", address) {
            missing.push((("listen_address", message), false));
        }
    }
    missing
}

fn executable(path: &Path, named: Option<NamedUser<'_>>) -> Result<(), String> {
    let shown = path.display();
    let found = match trust::find(path, Purpose::Program(named)) {
        Ok(found) => found,
        Err(fault) if fault.is_missing() => {
            let advice = match in_path(path) {
                Some(found) => format!("; did you mean {}?", found.display()),
                None => String::new(),
            };
            return Err(format!("the executable {shown} does not exist{advice}"));
        }
        Err(fault @ FileFault::UnsafeProgram(_)) => {
            return Err(format!("the executable {shown} is not used: {fault}"));
        }
        Err(fault) => {
            return Err(format!(
                "the executable {shown} cannot be looked at: {fault}"
            ));
        }
    };
    match found.need_regular() {
        Err(FileFault::Folder) => Err(format!("{shown} is a folder; give the executable in it")),
        Err(_) => Err(format!("{shown} is no regular file")),
        Ok(()) if found.stat.st_mode & 0o111 == 0 => {
            Err(format!("{shown} is not executable; try `chmod +x {shown}`"))
        }
        Ok(()) => Ok(()),
    }
}

/// Finds a program of that name where a shell would look for it, which smoothserve does not.
fn in_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|found| found.is_file())
}

fn directory(path: &Path, named: Option<NamedUser<'_>>) -> Result<(), String> {
    let shown = path.display();
    match trust::find(path, Purpose::Content(named)) {
        Ok(found) if FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory => Ok(()),
        Ok(_) => Err(format!("{shown} is no folder")),
        Err(fault) if fault.is_missing() => Err(format!("the folder {shown} does not exist")),
        Err(fault) => Err(format!("the folder {shown} cannot be looked at: {fault}")),
    }
}

fn environment_file(path: &Path, process: &ProcessConfig) -> Result<(), String> {
    let shown = path.display();
    match process.read_environment_file() {
        Ok(_) => Ok(()),
        Err(FileFault::Folder | FileFault::NotRegular) => {
            Err(format!("{shown} is no regular file"))
        }
        Err(fault) if fault.is_missing() => Err(format!(
            "the file {shown} does not exist; put a `-` before the path if that is fine"
        )),
        Err(fault) => Err(format!("the file {shown} cannot be read: {fault}")),
    }
}

/// Checks the user of a service without `user`: the owner of its executable, but never root.
fn owner(path: &Path, default_user: &str) -> Result<(), String> {
    let by_root = rustix::process::geteuid().is_root();
    let of_root =
        trust::find(path, Purpose::Program(None)).is_ok_and(|found| found.stat.st_uid == 0);
    if by_root && of_root && known(Database::Passwd, default_user).is_err() {
        return Err(format!(
            "{} belongs to root, and this machine has no user `{default_user}` to run it; give `user`",
            path.display()
        ));
    }
    Ok(())
}

/// Checks that an address is one of this machine, by binding to it.
fn local(key: &str, address: IpAddr) -> Result<(), String> {
    match TcpListener::bind((address, 0)) {
        Ok(_) => Ok(()),
        Err(error)
            if error.kind() == ErrorKind::AddrNotAvailable
                || error.kind() == ErrorKind::InvalidInput
                || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            Err(format!(
                "`{key}` is {address}, which is no address of this machine"
            ))
        }
        // Out of descriptors or the like says nothing about the address.
        Err(_) => Ok(()),
    }
}

/// A database of accounts that names are looked up in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Database {
    /// Users.
    Passwd,
    /// Groups.
    Group,
}

/// Checks that there is a user or group of this name, where the C library looks for it (NSS: files,
/// LDAP, systemd), as the manager does when it starts an instance.
pub(super) fn known(database: Database, name: &str) -> Result<(), String> {
    let (kind, found) = match database {
        Database::Passwd => (
            "user",
            User::from_name(name).is_ok_and(|user| user.is_some()),
        ),
        Database::Group => (
            "group",
            Group::from_name(name).is_ok_and(|group| group.is_some()),
        ),
    };
    if found {
        Ok(())
    } else {
        let shown = shorten(name);
        Err(format!("this machine has no {kind} `{shown}`"))
    }
}

/// Says what is wrong with the certificate of a service, which key names it, and whether that
/// hinders.
fn certificate(service: &ServiceConfig) -> Option<(Remark, bool)> {
    let tls = service.tls.as_ref()?;
    match Certificate::read(tls) {
        Ok(certificate) => {
            let invalid = certificate.invalidity(SystemTime::now())?;
            let message = format!("the certificate {} {invalid}", tls.certificate.display());
            Some((("tls.certificate", message), false))
        }
        Err(fault) if fault.of_key => Some((("tls.key", fault.message), true)),
        Err(fault) => Some((("tls.certificate", fault.message), true)),
    }
}

/// Lists remarks about what is no fault: lines of the environment file that are ignored, and a
/// certificate that expires soon or does not cover all hosts.
pub(super) fn remarks(service: &ServiceConfig) -> Vec<Remark> {
    let copy = service.clone();
    let found = patience::within(&service.files(), move || {
        let mut remarks = remarks_about_environment_file(&copy);
        remarks.extend(remarks_about_certificate(&copy));
        remarks
    });
    // What does not answer is lacking, so there is nothing to be remarked about it.
    found.unwrap_or_default()
}

/// Says which of a service's files are too many to be watched, if there are any.
pub(super) fn unwatched(service: &ServiceConfig) -> Option<String> {
    let mut bounds = WalkBounds::entries(MOST_WATCHED);
    for root in &service.watch_files {
        trust::on_behalf(root, || {
            walk(root, &service.watch_ignore, &mut bounds, &mut |_| {})
        });
    }
    let stop = bounds.stopped.filter(|_| service.auto_restart)?;
    Some(format!("{}: {}", service.file.display(), stop.unwatched()))
}

fn remarks_about_environment_file(service: &ServiceConfig) -> Vec<Remark> {
    let Ok(Some(text)) = service.process.read_environment_file() else {
        return Vec::new();
    };
    let path = service.process.environment_file.as_deref();
    let path = path.unwrap_or(Path::new("")).display().to_string();
    let remarks = EnvironmentFile::parse(&text).remarks.into_iter();
    let remarks = remarks.map(|remark| ("environment_file", format!("{path}: {remark}")));
    remarks.take(MOST_REMARKS).collect()
}

fn remarks_about_certificate(service: &ServiceConfig) -> Vec<Remark> {
    let certificate = service
        .tls
        .as_ref()
        .map(|tls| (tls, Certificate::read(tls)));
    let Some((tls, Ok(certificate))) = certificate else {
        return Vec::new();
    };
    let remarks = certificate.remarks(&service.sites, SystemTime::now());
    let path = tls.certificate.display();
    let words = remarks
        .into_iter()
        .map(|remark| format!("the certificate {path} {remark}"));
    words.map(|words| ("tls.certificate", words)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_users_and_groups() {
        assert!(known(Database::Passwd, "root").is_ok());
        assert!(known(Database::Group, "root").is_ok());
        for name in ["no-such-account", "", "0", "-h", "root:x"] {
            assert!(known(Database::Passwd, name).is_err(), "{name}");
        }
    }

    #[test]
    fn knows_its_addresses() {
        assert!(local("server_ip", IpAddr::from([127, 0, 0, 1])).is_ok());
        // TEST-NET-1 of RFC 5737 is nobody's.
        assert!(local("server_ip", IpAddr::from([192, 0, 2, 1])).is_err());
    }
}
