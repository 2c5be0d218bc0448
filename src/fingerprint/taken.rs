//! A fingerprint that was taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::arguments::{is_data, named_by_arguments};
use super::effort::Effort;
use super::entry::Entry;
use super::interpreters::marks_of_interpreters;
use super::look::Look;
use super::mark::{Mark, Parts, digest, digest_of_bytes};
use super::watched::Watched;
use crate::config::{EnvironmentFile, ProcessConfig, ServiceConfig};
use crate::trust::{self, FoundFile, Purpose};

/// The files of a service at one moment.
#[derive(Debug)]
pub struct Fingerprint {
    /// What the version consists of.
    pub parts: Parts,
    /// The folder in which instances start, with all symlinks resolved. `None`: it cannot be found.
    pub folder: Option<PathBuf>,
    /// What people should know about the files, such as that they are too many to be watched.
    pub remarks: Vec<String>,
    executable: Executable,
    environment_file: Option<Contents>,
    watched: Watched,
}

/// The executable of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Executable {
    /// The path with all symlinks resolved.
    path: Option<PathBuf>,
    entry: Entry,
    owner: Option<u32>,
    can_be_executed: bool,
}

/// The contents of a small file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Contents {
    Absent,
    /// The length and a hash of the contents, which may hold secrets.
    Bytes {
        length: u64,
        hash: u64,
    },
    Unreadable,
}

impl Fingerprint {
    /// Takes the fingerprint of a service. This reads folders: with large `watch_files` it takes a
    /// while.
    pub fn take(service: &ServiceConfig, effort: Effort) -> Fingerprint {
        let process = &service.process;
        let named = process.named_user();
        let mut parts = Parts::default();

        let look = Look::at(&process.executable, Purpose::Program(named), effort);
        let executable = Executable {
            entry: match &look {
                Ok(look) => Entry::with(&look.stat),
                Err(fault) => Entry::without(fault),
            },
            owner: look.as_ref().ok().map(|look| look.stat.st_uid),
            can_be_executed: look
                .as_ref()
                .is_ok_and(|look| look.stat.st_mode & 0o111 != 0),
            path: look.as_ref().ok().map(|look| look.path.clone()),
        };
        let mut mark = match &look {
            Ok(look) => Mark::of((&executable, &look.unfollowed), &look.stat, look.contents),
            Err(_) => Mark::plain(&executable),
        };
        // The program of a virtual environment is a symlink that leads out of it.
        if let Ok(look) = &look
            && look.path != look.unfollowed
            && let Some(folder) = look.unfollowed.parent()
            && let Ok(found) = trust::find(folder, Purpose::Content(named))
        {
            mark = mark.in_folder(&found.stat);
        }
        parts.add("the executable", mark);

        let (environment_file, variables) = environment_file(process);
        if let Some(contents) = &environment_file {
            parts.add("the environment file", Mark::plain(contents));
        }

        let beside = look.as_ref().ok().and_then(|look| look.unfollowed.parent());
        let beside = beside.map(Path::to_owned);
        if let Ok(look) = look {
            let path = process.search_path(&variables);
            marks_of_interpreters(process, look, &path, effort, &mut parts);
        }

        let found = find_folder(process);
        let folder = found.as_ref().map(|found| found.path.clone());
        if process.working_directory.is_some() {
            let mark = Mark::plain(&folder);
            let mark = found.map_or(mark, |found| mark.in_folder(&found.stat));
            parts.add("the working directory", mark);
        }

        let start = match process.working_directory {
            Some(_) => folder.as_deref(),
            None => beside.as_deref(),
        };
        add_arguments(service, start, effort, &mut parts);
        let watched = Watched::take(service, effort, &mut parts);
        Fingerprint {
            remarks: watched.remarks.clone(),
            parts,
            folder,
            executable,
            environment_file,
            watched,
        }
    }

    /// Returns the digest by which earlier versions of smoothserve have compared. `None`: they
    /// would have seen other files.
    pub fn first_form(&self) -> Option<u64> {
        let entries = &self.watched.entries;
        let form = (&self.executable, &self.environment_file, entries);
        self.watched.is_as_ever.then(|| digest(form))
    }
}

/// Reads the environment file, and returns what is remembered of it and what it sets.
fn environment_file(process: &ProcessConfig) -> (Option<Contents>, BTreeMap<String, String>) {
    if process.environment_file.is_none() {
        return (None, BTreeMap::new());
    }
    match process.read_environment_file() {
        Ok(Some(text)) => {
            let contents = Contents::Bytes {
                length: text.len() as u64,
                hash: digest_of_bytes(text.as_bytes()),
            };
            (Some(contents), EnvironmentFile::parse(&text).variables)
        }
        Ok(None) => (Some(Contents::Absent), BTreeMap::new()),
        Err(fault) if fault.is_missing() => (Some(Contents::Absent), BTreeMap::new()),
        Err(_) => (Some(Contents::Unreadable), BTreeMap::new()),
    }
}

/// Finds the folder in which instances start, if the service's file names it.
fn find_folder(process: &ProcessConfig) -> Option<FoundFile> {
    let folder = process.working_directory.as_ref()?;
    trust::find(folder, Purpose::Content(process.named_user())).ok()
}

/// Adds the files that arguments name. Of what is no file, or a file that the service itself
/// writes, only symlinks on the way count, whether it is there or not. `folder` is the
/// folder in which instances start, without symlinks.
fn add_arguments(
    service: &ServiceConfig,
    folder: Option<&Path>,
    effort: Effort,
    parts: &mut Parts,
) {
    let purpose = Purpose::Content(service.process.named_user());
    for path in named_by_arguments(service) {
        if !is_data(&path, service)
            && let Ok(look) = Look::at(&path, purpose, effort)
            && look.is_regular()
        {
            parts.add_argument(&path, look.mark());
            continue;
        }
        let below = path.strip_prefix(service.process.folder()).ok();
        let expected = match folder.zip(below) {
            Some((folder, below)) => folder.join(below),
            None => path.clone(),
        };
        let leads_to = leads_to(&path, purpose);
        if let Some(leads_to) = leads_to.filter(|to| *to != expected) {
            parts.add_argument(&path, Mark::plain(leads_to));
        }
    }
}

/// Returns where a path leads, also if only the folder of its last name is there.
fn leads_to(path: &Path, purpose: Purpose<'_>) -> Option<PathBuf> {
    match trust::find(path, purpose) {
        Ok(found) => Some(found.path),
        Err(_) => {
            let folder = trust::find(path.parent()?, purpose).ok()?;
            Some(folder.path.join(path.file_name()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::FileIdentity;
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A service whose executable is `current/app` and that watches `current/config` and
    /// `current/view`.
    struct Place {
        dir: tempfile::TempDir,
        service: ServiceConfig,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for release in ["1", "2"] {
                fs::create_dir_all(path(release).join("view/deep")).unwrap();
                fs::write(path(release).join("app"), "app").unwrap();
                fs::set_permissions(path(release).join("app"), PermissionsExt::from_mode(0o755))
                    .unwrap();
            }
            symlink("1", path("current")).unwrap();
            fs::create_dir_all(path("conf/services")).unwrap();
            let file = format!(
                "name: x\nport: 80\nexecutable_path: {}\n\
                 watch_files: [config, view]\nenvironment_file: -../../env\n",
                path("current/app").display()
            );
            fs::write(path("conf/services/x.yaml"), file).unwrap();
            let config = crate::config::load(&path("conf")).unwrap();
            let service = ServiceConfig::clone(&config.services["x"]);
            Place { dir, service }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Moves a folder away, and makes an empty one in its place.
        fn replace(&self, name: &str) {
            fs::rename(self.path(name), self.path("away")).unwrap();
            fs::create_dir(self.path(name)).unwrap();
            fs::remove_dir_all(self.path("away")).unwrap();
        }

        fn take(&self) -> Fingerprint {
            Fingerprint::take(&self.service, Effort::begin())
        }

        /// What has changed after something was done.
        fn change(&self, act: impl FnOnce()) -> String {
            let before = self.take();
            let changes = before.parts.changes(&self.take().parts);
            assert!(changes.is_empty(), "{changes:?}");
            assert_eq!(before.first_form(), self.take().first_form());
            act();
            let changes = before.parts.changes(&self.take().parts);
            let shown = changes.join(", ");
            shown.replace(&format!("{}/", self.dir.path().display()), "")
        }
    }

    #[test]
    fn a_new_executable_is_seen() {
        let place = Place::new();
        let app = place.path("1/app");
        assert_eq!(
            place.change(|| fs::write(&app, "other").unwrap()),
            "the executable"
        );
        let replace = || {
            fs::write(place.path("new"), "other").unwrap();
            fs::rename(place.path("new"), &app).unwrap();
        };
        assert_eq!(place.change(replace), "the executable");
        assert_eq!(
            place.change(|| fs::remove_file(&app).unwrap()),
            "the executable"
        );
        assert_eq!(
            place.change(|| fs::write(&app, "x").unwrap()),
            "the executable"
        );
    }

    #[test]
    fn a_flipped_symlink_is_seen_even_if_it_leads_to_the_same_file() {
        let place = Place::new();
        fs::remove_file(place.path("2/app")).unwrap();
        fs::hard_link(place.path("1/app"), place.path("2/app")).unwrap();
        let flip = || {
            symlink("2", place.path("next")).unwrap();
            fs::rename(place.path("next"), place.path("current")).unwrap();
        };
        assert_eq!(place.change(flip), "the executable");
    }

    #[test]
    fn what_changes_nothing_for_the_service_is_no_change() {
        let place = Place::new();
        let app = place.path("1/app");
        let mode = |mode| fs::set_permissions(&app, PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(place.change(|| mode(0o700)), "");
        assert_eq!(
            place.change(|| fs::hard_link(&app, place.path("link")).unwrap()),
            ""
        );
        assert_eq!(
            place.change(|| fs::write(place.path("1/other"), "").unwrap()),
            ""
        );
        assert_eq!(place.change(|| mode(0o600)), "the executable");
        assert_eq!(place.change(|| mode(0o755)), "the executable");
    }

    #[test]
    fn the_environment_file_is_compared_by_contents() {
        let place = Place::new();
        let env = place.path("env");
        let write = |text: &str| fs::write(&env, text).unwrap();
        assert_eq!(place.change(|| write("A=1")), "the environment file");
        assert_eq!(place.change(|| write("A=1")), "");
        assert_eq!(place.change(|| write("A=2")), "the environment file");
        assert_eq!(
            place.change(|| fs::remove_file(&env).unwrap()),
            "the environment file"
        );
    }

    #[test]
    fn files_that_appear_later_and_deep_in_folders_are_seen() {
        let place = Place::new();
        let config = place.path("1/config");
        let (seen_config, seen_view) =
            ("current/config (watch_files)", "current/view (watch_files)");
        assert_eq!(
            place.change(|| fs::write(&config, "a").unwrap()),
            seen_config
        );
        let deep = place.path("1/view/deep/page.html");
        assert_eq!(place.change(|| fs::write(&deep, "a").unwrap()), seen_view);
        assert_eq!(place.change(|| fs::write(&deep, "ab").unwrap()), seen_view);
        let all = place.change(|| fs::remove_dir_all(place.path("1/view")).unwrap());
        assert_eq!(all, seen_view);
    }

    #[test]
    fn symlinks_in_folders_are_followed_to_files_and_never_in_circles() {
        let place = Place::new();
        symlink("..", place.path("1/view/circle")).unwrap();
        fs::write(place.path("target"), "a").unwrap();
        let link = || symlink("../../target", place.path("1/view/target")).unwrap();
        assert_eq!(place.change(link), "current/view (watch_files)");
        let write = || fs::write(place.path("target"), "ab").unwrap();
        assert_eq!(place.change(write), "current/view (watch_files)");
    }

    /// Writes other bytes of the same length into a file, and sets its times back.
    fn rewrite_in_place(path: &Path, text: &str) {
        let before = fs::metadata(path).unwrap();
        assert_eq!(before.len(), text.len() as u64);
        let file = fs::File::options().write(true).open(path).unwrap();
        std::io::Write::write_all(&mut &file, text.as_bytes()).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        let after = fs::metadata(path).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    }

    #[test]
    fn other_bytes_with_the_same_size_and_times_are_seen() {
        let place = Place::new();
        let app = place.path("1/app");
        assert_eq!(
            place.change(|| rewrite_in_place(&app, "ppa")),
            "the executable"
        );
        assert_eq!(place.change(|| rewrite_in_place(&app, "ppa")), "");
        let page = place.path("1/view/page");
        fs::write(&page, "one").unwrap();
        let seen = "current/view (watch_files)";
        assert_eq!(place.change(|| rewrite_in_place(&page, "two")), seen);
        // Of large files in folders, the contents are not read.
        let (large, other) = ("x".repeat(2 << 20), "y".repeat(2 << 20));
        fs::write(&page, &large).unwrap();
        assert_eq!(place.change(|| rewrite_in_place(&page, &large)), seen);
        fs::write(&app, &large).unwrap();
        assert_eq!(place.change(|| rewrite_in_place(&app, &large)), "");
        let changed = place.change(|| rewrite_in_place(&app, &other));
        assert_eq!(changed, "the executable");
        // Without the contents, the number of links explains the status time.
        let before = Fingerprint::take(&place.service, Effort::without_contents());
        fs::hard_link(&app, place.path("link")).unwrap();
        let after = Fingerprint::take(&place.service, Effort::without_contents());
        assert_eq!(before.parts.changes(&after.parts), [""; 0]);
        let before = after;
        rewrite_in_place(&app, &large);
        let after = Fingerprint::take(&place.service, Effort::without_contents());
        assert_eq!(before.parts.changes(&after.parts), ["the executable"]);
    }

    #[test]
    fn the_interpreters_of_a_script_are_part_of_the_version() {
        let mut place = Place::new();
        let bin = place.path("bin");
        fs::create_dir(&bin).unwrap();
        let program = |name: &str, text: &str| {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        };
        program("runner", "#!/bin/sh\n");
        program("other", "binary");
        let script = format!("#!{}/runner -x\n", bin.display());
        fs::write(place.path("1/app"), script).unwrap();
        let runner = || program("runner", "#!/bin/sh -e\n");
        assert_eq!(place.change(runner), "the interpreter bin/runner");

        fs::write(place.path("1/app"), "#!/usr/bin/env other\n").unwrap();
        let variables = &mut place.service.process.environment;
        variables.insert("PATH".to_owned(), format!("/nowhere:{}", bin.display()));
        let change = place.change(|| program("other", "new binary"));
        assert_eq!(change, "the interpreter bin/other");
    }

    #[test]
    fn a_working_directory_is_the_folder_that_it_leads_to() {
        let mut place = Place::new();
        place.service.process.working_directory = Some(place.path("current"));
        place.service.process.executable = "/bin/sh".into();
        place.service.watch_files = Vec::new();
        let flip = |to: &str| {
            symlink(to, place.path("next")).unwrap();
            fs::rename(place.path("next"), place.path("current")).unwrap();
        };
        assert_eq!(
            place.take().folder,
            Some(place.path("1").canonicalize().unwrap())
        );
        assert_eq!(place.change(|| flip("2")), "the working directory");
        assert_eq!(place.change(|| flip("./2")), "");
        let other = || fs::write(place.path("2/other"), "").unwrap();
        assert_eq!(place.change(other), "");
        assert_eq!(place.change(|| place.replace("2")), "the working directory");
    }

    /// The program of a virtual environment is a symlink that leads out of it.
    #[test]
    fn another_folder_under_the_same_path_is_another_one() {
        let mut place = Place::new();
        symlink("/bin/sh", place.path("1/python")).unwrap();
        place.service.process.executable = place.path("1/python");
        place.service.watch_files = Vec::new();
        let change = place.change(|| {
            place.replace("1");
            symlink("/bin/sh", place.path("1/python")).unwrap();
        });
        assert_eq!(change, "the executable");
    }

    /// An upgrade replaces nothing because of what the earlier build has not looked at, and neither
    /// does the way back.
    #[test]
    fn what_an_earlier_build_has_not_looked_at_is_no_change() {
        let mut place = Place::new();
        place.service.process.working_directory = Some(place.path("current"));
        let now = place.take().parts;
        let mut earlier = serde_json::to_value(&now).unwrap();
        let marks = earlier["marks"].as_object_mut().unwrap();
        let folder = marks["the working directory"].as_object_mut().unwrap();
        folder.remove("folder").unwrap();
        assert_eq!(folder["changed"], 0);
        let earlier: Parts = serde_json::from_value(earlier).unwrap();
        assert!(earlier.changes(&now).is_empty() && now.changes(&earlier).is_empty());
    }

    #[test]
    fn files_that_arguments_name_are_part_of_the_version() {
        let mut place = Place::new();
        place.service.process.executable = "/bin/sh".into();
        place.service.process.working_directory = Some(place.path("current"));
        place.service.watch_files = Vec::new();
        let absolute = place.path("shared.toml").display().to_string();
        let args = [
            "server.js",
            "--config=conf/{name}.toml",
            "-c",
            &absolute,
            "--port={port}",
            "--log=app.log",
            "--data",
            "../current/view",
        ];
        place.service.process.args = args.map(str::to_owned).into();
        fs::create_dir(place.path("1/conf")).unwrap();
        for (file, name) in [
            ("1/server.js", "current/server.js (args)"),
            ("1/conf/x.toml", "current/conf/x.toml (args)"),
            ("shared.toml", "shared.toml (args)"),
        ] {
            let write = |text: &str| fs::write(place.path(file), text).unwrap();
            assert_eq!(place.change(|| write("a")), name);
            assert_eq!(place.change(|| write("ab")), name);
            assert_eq!(
                place.change(|| rewrite_in_place(&place.path(file), "ba")),
                name
            );
        }
        // What the service writes itself.
        assert_eq!(
            place.change(|| fs::write(place.path("1/app.log"), "x").unwrap()),
            ""
        );
        assert_eq!(
            place.change(|| fs::write(place.path("1/view/x"), "x").unwrap()),
            ""
        );
        let flip = || {
            symlink("2", place.path("next")).unwrap();
            fs::rename(place.path("next"), place.path("current")).unwrap();
        };
        let change = place.change(flip);
        for part in [
            "the working directory",
            "current/server.js (args)",
            "current/../current/view (args)",
        ] {
            assert!(change.contains(part), "{part}: {change}");
        }
    }

    #[test]
    fn what_nobody_means_counts_by_its_top_and_its_lock_files() {
        let place = Place::new();
        let modules = place.path("1/view/node_modules");
        let seen = "current/view (watch_files)";
        assert_eq!(place.change(|| fs::create_dir(&modules).unwrap()), seen);
        let inside = || fs::write(modules.join("x.js"), "").unwrap();
        assert_eq!(place.change(inside), "");
        let lock = || fs::write(modules.join(".package-lock.json"), "{}").unwrap();
        assert_eq!(place.change(lock), seen);
        assert_eq!(place.take().first_form(), None);
        let cache = || fs::create_dir_all(place.path("1/view/__pycache__/x")).unwrap();
        assert_eq!(place.change(cache), "");
        let replace = || {
            fs::rename(&modules, place.path("away")).unwrap();
            fs::create_dir(&modules).unwrap();
            fs::copy(
                place.path("away/.package-lock.json"),
                modules.join(".package-lock.json"),
            )
            .unwrap();
        };
        assert_eq!(place.change(replace), seen);
    }

    #[test]
    fn more_files_than_are_watched_are_compared_and_remarked_upon() {
        let mut place = Place::new();
        place.service.auto_restart = true;
        let many = place.path("1/view/many");
        fs::create_dir(&many).unwrap();
        for number in 0..21_000 {
            fs::File::create(many.join(number.to_string())).unwrap();
        }
        assert_eq!(
            place.change(|| fs::write(many.join("9"), "x").unwrap()),
            "current/view (watch_files)"
        );
        let remarks = place.take().remarks;
        assert!(
            remarks[0].starts_with("watch_files: of 21003 files and folders, 20000 are watched"),
            "{remarks:?}"
        );
        assert_eq!(place.take().first_form(), None);
        // A folder that takes too long is not compared.
        let before = place.take();
        fs::write(many.join("8"), "x").unwrap();
        let late = Effort::over();
        let after = Fingerprint::take(&place.service, late);
        assert!(before.parts.changes(&after.parts).is_empty());
        assert!(
            after.remarks[0].contains("current/view"),
            "{:?}",
            after.remarks
        );
    }

    /// What earlier versions have saved is compared with this digest after an upgrade. The digest
    /// depends on how the standard library hashes values, too.
    #[test]
    fn the_first_form_is_that_of_earlier_versions() {
        let file = |inode| {
            Entry::File(FileIdentity::of_numbers(
                65_024,
                inode,
                7,
                (1_700_000_000, 5),
            ))
        };
        let identity = FileIdentity::of_numbers(65_024, 3, 0, (-1, 999));
        let watched = [
            ("/srv/x/absent", Entry::Absent),
            ("/srv/x/view", Entry::Folder),
            (
                "/srv/x/view/link",
                Entry::Link("../y".into(), Some(identity)),
            ),
            ("/srv/x/view/dead", Entry::Link("nowhere".into(), None)),
            ("/srv/x/view/page", file(2)),
            ("/srv/x/view/pipe", Entry::Other),
        ];
        let mut taken = Fingerprint {
            parts: Parts::default(),
            folder: None,
            remarks: Vec::new(),
            executable: Executable {
                path: Some("/srv/x/app".into()),
                entry: file(1),
                owner: Some(1000),
                can_be_executed: true,
            },
            environment_file: Some(Contents::Bytes {
                length: 3,
                hash: digest_of_bytes(b"A=1"),
            }),
            watched: Watched {
                entries: watched.map(|(path, entry)| (path.into(), entry)).into(),
                is_as_ever: true,
                remarks: Vec::new(),
            },
        };
        let mut forms = vec![taken.first_form()];
        taken.environment_file = Some(Contents::Absent);
        taken.executable.path = None;
        taken.executable.owner = None;
        forms.push(taken.first_form());
        taken.environment_file = Some(Contents::Unreadable);
        forms.push(taken.first_form());
        taken.environment_file = None;
        taken.watched.entries.clear();
        forms.push(taken.first_form());
        assert_eq!(
            forms,
            [
                17_868_978_556_586_937_024,
                14_772_448_251_879_241_515,
                14_316_162_000_001_845_717,
                11_277_146_935_365_745_089
            ]
            .map(Some)
        );
        taken.watched.is_as_ever = false;
        assert_eq!(taken.first_form(), None);
    }
}
