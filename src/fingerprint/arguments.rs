//! The paths that the arguments of a service may name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::ServiceConfig;

/// The most paths that are looked at.
const MOST: usize = 200;

/// Folders of files that programs write, by the standard for the hierarchy of folders (FHS).
const FOLDERS_OF_DATA: &[&str] = &[
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/var/cache",
    "/var/lib",
    "/var/lock",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// How the names of files end that programs write.
const ENDS_OF_DATA: &[&str] = &[
    "db", "db3", "err", "lock", "log", "mdb", "out", "pid", "rdb", "sock", "socket", "sqlite",
    "sqlite3", "tmp",
];

/// Returns the paths that the arguments of a service may name: `server.js`, what follows the `=` in
/// `--config=shop.toml`, `@options`, `-c/etc/shop.conf`, and the parts of `a.jar:b.jar`. Most of
/// them will not exist. An argument that is different for each instance names none.
pub(crate) fn named_by_arguments(service: &ServiceConfig) -> BTreeSet<PathBuf> {
    let folder = service.process.folder();
    let mut paths = BTreeSet::new();
    for argument in &service.process.args {
        let argument = argument.replace("{name}", &service.name);
        for word in words(&argument) {
            let varies = ["{port}", "{instance}", "{socket}"];
            let is_name = !word.is_empty() && !word.contains('\0') && word.len() < 4096;
            if is_name && !varies.iter().any(|place| word.contains(place)) && paths.len() < MOST {
                paths.insert(folder.join(word));
            }
        }
    }
    paths
}

/// Returns the words in an argument that may be paths.
fn words(argument: &str) -> Vec<&str> {
    let value = match argument.split_once('=') {
        Some((_, value)) => value,
        None if argument.starts_with('-') => match argument.find('/') {
            Some(slash) => &argument[slash..],
            None => return Vec::new(),
        },
        None => argument.strip_prefix('@').unwrap_or(argument),
    };
    let mut words = vec![value];
    if !argument.starts_with('-') {
        words.push(argument);
    }
    if value.contains(':') {
        words.extend(value.split(':'));
    }
    words
}

/// Returns true if a file is one that the service itself writes, as far as its path tells.
pub(crate) fn is_data(path: &Path, service: &ServiceConfig) -> bool {
    let ends = path.extension().and_then(|end| end.to_str());
    let ends = ends.map(str::to_ascii_lowercase);
    path.file_name()
        .is_some_and(|name| service.watch_ignore.has(name))
        || ends.is_some_and(|end| ENDS_OF_DATA.contains(&end.as_str()))
        || FOLDERS_OF_DATA
            .iter()
            .any(|folder| path.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_may_be_paths_are_found() {
        assert_eq!(words("server.js"), ["server.js", "server.js"]);
        assert_eq!(words("--config=a.toml"), ["a.toml"]);
        assert_eq!(words("-c/etc/a"), ["/etc/a"]);
        assert_eq!(words("-v"), [""; 0]);
        assert_eq!(words("@options"), ["options", "@options"]);
        assert_eq!(
            words("-Dx=a.jar:/b.jar"),
            ["a.jar:/b.jar", "a.jar", "/b.jar"]
        );
    }
}
