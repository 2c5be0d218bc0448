//! The machine: whether it has what a service names, such as files, users, addresses and a valid
//! certificate.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};
use rustix::fs::FileType;

use super::certificate::Certificate;
use super::environment_file::EnvironmentFile;
use super::fault::shorten;
use super::process::{DEFAULT_PATH, ProcessConfig};
use super::service::ServiceConfig;
use crate::patience;
use crate::trust::{self, FileFault, NamedUser, Need, Purpose, Whom, obstacle, obstacle_of};
use crate::walk::{MOST_WATCHED, WalkBounds, walk};

/// What the files of a configuration are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// The files, users and addresses of this machine.
    Machine(Runner),
    /// Only each other.
    Nothing,
}

/// Who runs smoothserve with a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runner {
    /// Root, who may start a service as any user.
    Root,
    /// The user of this process, who is not root.
    Myself,
}

/// How many lines of an environment file are remarked upon.
const MOST_REMARKS: usize = 5;

/// A remark about what the machine has or lacks: the key that names it, and the text.
pub(super) type Remark = (&'static str, String);

/// Lists what the machine lacks for a service: the key that names it, the text, and whether it
/// hinders. Files and users that do not answer are lacking.
pub(super) fn missing(
    service: &ServiceConfig,
    default_user: &str,
    runner: Runner,
) -> Vec<(Remark, bool)> {
    let (copy, user) = (service.clone(), default_user.to_owned());
    let found = patience::within(&service.files(), move || all_missing(&copy, &user, runner));
    found.unwrap_or_else(|unanswered| vec![(("executable_path", unanswered.to_string()), true)])
}

fn all_missing(service: &ServiceConfig, default_user: &str, runner: Runner) -> Vec<(Remark, bool)> {
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
        Some(user) => check("user", usable(Database::Passwd, user, runner)),
        None if runner == Runner::Root => {
            check("executable_path", owner(&process.executable, default_user));
        }
        None => {}
    }
    if let Some(group) = &process.group {
        check("group", usable(Database::Group, group, runner));
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
            let advice = match (with_arguments(path), in_path(path)) {
                (Some(advice), _) => format!("; {advice}"),
                (None, Some(found)) => format!("; did you mean {}?", found.display()),
                (None, None) => String::new(),
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

/// Says what to write instead of a path with arguments behind it, as a shell takes it.
fn with_arguments(path: &Path) -> Option<String> {
    let mut words = path.to_str()?.split_whitespace();
    let program = words.next()?;
    let bare = |word: &str| shorten(word.trim_matches(['"', '\'']));
    let arguments: Vec<String> = words.map(|word| format!("\"{}\"", bare(word))).collect();
    if arguments.is_empty() {
        return None;
    }
    let program = match Path::new(program) {
        found if found.is_file() => found.to_owned(),
        other => in_path(other)?,
    };
    Some(format!(
        "arguments have a key of their own: write `executable_path: {}` and `args: [{}]`",
        program.display(),
        arguments.join(", ")
    ))
}

/// Finds a program of that name where a shell would look for it, which smoothserve does not.
fn in_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    // What the service would find comes first, then what is only in the `PATH` of this process.
    let own = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(DEFAULT_PATH).chain(std::env::split_paths(&own));
    folders
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
    let of_root =
        trust::find(path, Purpose::Program(None)).is_ok_and(|found| found.stat.st_uid == 0);
    if of_root && known(Database::Passwd, default_user).is_err() {
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

impl Database {
    /// Returns the key of a service's file that has a name of this database.
    fn key(self) -> &'static str {
        match self {
            Database::Passwd => "user",
            Database::Group => "group",
        }
    }

    /// Returns the command that makes an account with this number.
    fn command(self, number: &str) -> String {
        match self {
            Database::Passwd => format!("useradd --system --uid {number} NAME"),
            Database::Group => format!("groupadd --system --gid {number} NAME"),
        }
    }
}

/// Checks that there is a user or group of this name, and that whoever runs smoothserve may start a
/// service with it.
fn usable(database: Database, name: &str, runner: Runner) -> Result<(), String> {
    known(database, name)?;
    if runner == Runner::Root || is_own(database, name) {
        return Ok(());
    }
    let own = User::from_uid(geteuid()).ok().flatten();
    let own = own.map_or_else(|| geteuid().to_string(), |own| own.name);
    let (key, shown) = (database.key(), shorten(name));
    Err(format!(
        "only root can start a service as {key} `{shown}`, and a smoothserve of {own} cannot; \
         leave `{key}` out, or let root run smoothserve"
    ))
}

/// Returns true if this process runs as this user, or with this main group, anyway.
fn is_own(database: Database, name: &str) -> bool {
    match database {
        Database::Passwd => {
            User::from_name(name).is_ok_and(|user| user.is_some_and(|user| user.uid == geteuid()))
        }
        Database::Group => Group::from_name(name)
            .is_ok_and(|group| group.is_some_and(|group| group.gid == getegid())),
    }
}

/// Checks that there is a user or group of this name, where the C library looks for it (NSS: files,
/// LDAP, systemd), as the manager does when it starts an instance.
pub(super) fn known(database: Database, name: &str) -> Result<(), String> {
    let found = match database {
        Database::Passwd => User::from_name(name).is_ok_and(|user| user.is_some()),
        Database::Group => Group::from_name(name).is_ok_and(|group| group.is_some()),
    };
    if found {
        return Ok(());
    }
    let (key, shown) = (database.key(), shorten(name));
    let name_of_number = match (database, name.parse()) {
        (Database::Passwd, Ok(uid)) => {
            User::from_uid(Uid::from_raw(uid)).map(|user| user.map(|user| user.name))
        }
        (Database::Group, Ok(gid)) => {
            Group::from_gid(Gid::from_raw(gid)).map(|group| group.map(|group| group.name))
        }
        (_, Err(_)) => return Err(format!("this machine has no {key} `{shown}`")),
    };
    Err(match name_of_number {
        Ok(Some(name)) => format!("`{shown}` is a number; write the name of that {key}: `{name}`"),
        _ => format!(
            "this machine has no {key} `{shown}`, and a number needs a name here; make one by \
             `{}`, and write that",
            database.command(&shown)
        ),
    })
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

/// Lists remarks about what is no fault: permissions that the user of the instances lacks, lines of
/// the environment file that are ignored, and a certificate that expires soon or does not cover all
/// hosts.
pub(super) fn remarks(service: &ServiceConfig, default_user: &str) -> Vec<Remark> {
    let (copy, user) = (service.clone(), default_user.to_owned());
    let found = patience::within(&service.files(), move || {
        let mut remarks = remarks_about_permissions(&copy.process, &user);
        remarks.extend(remarks_about_environment_file(&copy));
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

/// Says what the user of the instances may not do with the program and the folder, which fails only
/// when an instance starts. The launcher says the same then.
fn remarks_about_permissions(process: &ProcessConfig, default_user: &str) -> Vec<Remark> {
    let program = &process.executable;
    // What other users may do can only root find out. A smoothserve of root runs a program as its
    // owner, and one of this user as this user.
    let is_own = |path: &Path| {
        process.user.is_none()
            && trust::find(path, Purpose::Content(None))
                .is_ok_and(|found| found.stat.st_uid == geteuid().as_raw())
    };
    let lacking = |path: &Path, need| match geteuid().is_root() {
        false if is_own(program) => obstacle(path, need),
        false => None,
        true => match (
            process.named_user(),
            trust::find(program, Purpose::Program(None)),
        ) {
            (Some(named), _) => obstacle_of(Whom::Named(named), path, need),
            (None, Ok(found)) if found.stat.st_uid != 0 => {
                obstacle_of(Whom::Number(found.stat.st_uid), path, need)
            }
            (None, Ok(_)) => {
                let (user, group) = (default_user, process.group.as_deref());
                obstacle_of(Whom::Named(NamedUser { user, group }), path, need)
            }
            (None, Err(_)) => None,
        },
    };
    let program = lacking(program, Need::Execute).map(|found| ("executable_path", found));
    let folder = process.working_directory.as_ref();
    let folder = folder.and_then(|folder| lacking(folder, Need::Enter));
    let folder = folder.map(|found| ("working_directory", found));
    let all = program.into_iter().chain(folder);
    all.map(|(key, found)| (key, format!("{found}; so no instance can start")))
        .collect()
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
