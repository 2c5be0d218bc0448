//! A file that a path leads to: found, opened and read with the rights that fit.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::fault::{FileFault, UnsafeStep};
use super::obstacle::{Need, obstacle};
use super::rights::{self, NamedUser, Rights};
use super::way::{Holders, NoWay, Way, walk};

/// The most holders of a way with whose rights a file is opened. Nobody has more on purpose.
const MOST_HOLDERS: usize = 8;

/// What a file is needed for, which decides what an unsafe step on the way to it means.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// The file is a program, which runs as this user or, without one, as the owner of the file.
    Program(Option<NamedUser<'a>>),
    /// The content or the state of the file counts, and is for nobody but this user, if there is
    /// one.
    Content(Option<NamedUser<'a>>),
}

/// A file that a path leads to.
#[derive(Debug)]
pub struct FoundFile {
    /// The path without symlinks.
    pub path: PathBuf,
    /// The path without the symlinks of its folders. The last name is the given one, also if it is
    /// that of a symlink.
    pub unfollowed: PathBuf,
    /// The file, opened with `O_PATH`.
    pub file: OwnedFd,
    /// The status of the file.
    pub stat: Stat,
}

/// Finds what a path leads to, which may also be a folder or the like, with the rights that the
/// purpose calls for.
pub fn find(path: &Path, purpose: Purpose<'_>) -> Result<FoundFile, FileFault> {
    open(path, purpose, &|found| Ok(found))
}

/// Finds what a path leads to, and looks at it with the rights that the purpose calls for.
pub fn examine<T: Send>(
    path: &Path,
    purpose: Purpose<'_>,
    look: impl Fn(FoundFile) -> T + Sync,
) -> Result<T, FileFault> {
    open(path, purpose, &|found| Ok(look(found)))
}

/// Reads a file that has at most `limit` bytes. It is for nobody but the user `named`, if there is
/// one.
pub fn read(path: &Path, limit: u64, named: Option<NamedUser<'_>>) -> Result<Vec<u8>, FileFault> {
    open(path, Purpose::Content(named), &|found| found.content(limit))
}

/// Does work on what a path leads to, with the rights of whoever could have put it there: those of
/// this thread if the way is safe, else those of the holder. Returns `None` if there is more than
/// one holder.
pub fn on_behalf<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Option<T> {
    let holders = match walk(path) {
        Ok(way) if !rights::are_roots() || way.unsafe_step().is_none() => return Some(work()),
        Ok(way) => way.holders,
        Err(NoWay::System(_)) => return Some(work()),
        Err(NoWay::Beyond(_, holders)) => holders,
    };
    let mut numbers = holders.numbers();
    match (numbers.next(), numbers.next()) {
        (Some(holder), None) => Rights::of_number(holder).ok()?.lend(work).ok(),
        _ => None,
    }
}

impl FoundFile {
    /// Checks that this is a regular file.
    pub fn need_regular(&self) -> Result<(), FileFault> {
        match FileType::from_raw_mode(self.stat.st_mode) {
            FileType::RegularFile => Ok(()),
            FileType::Directory => Err(FileFault::Folder),
            _ => Err(FileFault::NotRegular),
        }
    }

    /// Reads the file with the rights of this thread. It has at most `limit` bytes.
    pub fn content(&self, limit: u64) -> Result<Vec<u8>, FileFault> {
        let file = self.open()?;
        if self.stat.st_size > limit as i64 {
            return Err(FileFault::TooLarge(limit));
        }
        let bytes = read_from(file, limit + 1)?;
        match bytes.len() as u64 > limit {
            true => Err(FileFault::TooLarge(limit)),
            false => Ok(bytes),
        }
    }

    /// Reads the first bytes of the file with the rights of this thread.
    pub fn beginning(&self, most: u64) -> Result<Vec<u8>, FileFault> {
        Ok(read_from(self.open()?, most)?)
    }

    /// Opens the file for reading with the rights of this thread. The descriptor is opened, not the
    /// path: what was looked at is what is read.
    pub fn open(&self) -> Result<File, FileFault> {
        self.need_regular()?;
        if rustix::fs::fstatfs(&self.file)
            .map_err(io::Error::from)?
            .f_type
            == rustix::fs::PROC_SUPER_MAGIC
        {
            return Err(FileFault::InProc);
        }
        let this = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        // Even a regular file can make somebody wait who opens it: one with a lease (fcntl(2)).
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(this, flags, Mode::empty()).map_err(io::Error::from)?;
        Ok(File::from(file))
    }
}

fn read_from(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl From<Way> for FoundFile {
    fn from(way: Way) -> FoundFile {
        FoundFile {
            path: way.path,
            unfollowed: way.unfollowed,
            file: way.file,
            stat: way.stat,
        }
    }
}

/// Puts the permission that this thread lacks in the place of the system's error, which names none.
fn with_obstacle(fault: FileFault, path: &Path) -> FileFault {
    match fault {
        FileFault::System(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            match obstacle(path, Need::Read) {
                Some(obstacle) => io::Error::new(error.kind(), obstacle).into(),
                None => error.into(),
            }
        }
        fault => fault,
    }
}

/// Something that is done with a file that was found, in the thread whose rights count.
type Use<'u, T> = &'u (dyn Fn(FoundFile) -> Result<T, FileFault> + Sync);

fn open<T: Send>(path: &Path, purpose: Purpose<'_>, then: Use<'_, T>) -> Result<T, FileFault> {
    let (step, holders) = match walk(path) {
        Ok(way) => match way.unsafe_step().filter(|_| rights::are_roots()) {
            None => return then(way.into()).map_err(|fault| with_obstacle(fault, path)),
            Some(step) => (step, way.holders),
        },
        Err(NoWay::System(error)) => return Err(with_obstacle(error.into(), path)),
        Err(NoWay::Beyond(step, holders)) => (step, holders),
    };
    match purpose {
        Purpose::Program(None) => Err(FileFault::UnsafeProgram(step)),
        Purpose::Program(Some(named)) => as_named(path, named, &step, then),
        Purpose::Content(named) => {
            let refused = match as_holders(path, holders, &step, then) {
                Err(fault @ FileFault::Refused { .. }) => fault,
                done => return done,
            };
            match named.map(Rights::of_named).transpose()?.flatten() {
                Some(rights) => as_user(path, &rights, &step, then).map(|(_, done)| done),
                None => Err(refused),
            }
        }
    }
}

/// Opens a file with the rights of the user that a service names. If that is root, whoever named
/// it has decided that.
fn as_named<T: Send>(
    path: &Path,
    named: NamedUser<'_>,
    step: &UnsafeStep,
    then: Use<'_, T>,
) -> Result<T, FileFault> {
    match Rights::of_named(named)? {
        Some(rights) => as_user(path, &rights, step, then).map(|(_, done)| done),
        None => match walk(path) {
            Ok(way) => then(way.into()),
            Err(NoWay::System(error)) => Err(error.into()),
            Err(NoWay::Beyond(..)) => Err(io::Error::from(io::ErrorKind::NotFound).into()),
        },
    }
}

/// Opens a file with the rights of each holder. All of them must find the same file.
fn as_holders<T: Send>(
    path: &Path,
    holders: Holders,
    step: &UnsafeStep,
    then: Use<'_, T>,
) -> Result<T, FileFault> {
    let mut numbers: Vec<u32> = holders.numbers().collect();
    let mut found = None;
    let mut next = 0;
    while let Some(&number) = numbers.get(next) {
        next += 1;
        let rights = Rights::of_number(number)?;
        let (seen, done) = as_user(path, &rights, step, then)?;
        for holder in seen.holders {
            if !numbers.contains(&holder) {
                numbers.push(holder);
            }
        }
        let same = match &found {
            None => true,
            Some((file, _)) => *file == seen.file,
        };
        if !same || numbers.len() > MOST_HOLDERS {
            let error = io::Error::other("too many users lead this path, or it has just changed");
            return Err(error.into());
        }
        found = Some((seen.file, done));
    }
    let (_, done) = found.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
    Ok(done)
}

/// What a user has seen on the way to a file.
struct Seen {
    /// The device and the inode of the file.
    file: (u64, u64),
    holders: Vec<u32>,
}

/// Goes the way to a file and uses the file with the rights of a user.
fn as_user<T: Send>(
    path: &Path,
    rights: &Rights,
    step: &UnsafeStep,
    then: Use<'_, T>,
) -> Result<(Seen, T), FileFault> {
    let done = rights.lend(|| {
        let done = match walk(path) {
            Ok(way) => {
                let seen = Seen {
                    file: (way.stat.st_dev, way.stat.st_ino),
                    holders: way.holders.numbers().collect(),
                };
                then(way.into()).map(|done| (seen, done))
            }
            Err(NoWay::System(error)) => Err(error.into()),
            Err(NoWay::Beyond(..)) => Err(io::Error::from(io::ErrorKind::PermissionDenied).into()),
        };
        done.map_err(|fault| with_obstacle(fault, path))
    })?;
    done.map_err(|fault| match fault {
        FileFault::System(error) => FileFault::Refused {
            step: step.clone(),
            who: rights.name.clone(),
            error,
        },
        fault => fault,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Two ordinary users without names.
    const ALICE: u32 = 4711;
    const BOB: u32 = 4712;

    /// A folder of root's, with the folders `alice`, `bob` and, of root, `system`. Alice and Bob
    /// may look into all of them.
    struct Place(tempfile::TempDir);

    impl Place {
        /// Returns `None` if the test does not run as root, since all files are of one user then.
        fn new() -> Option<Place> {
            if !rights::are_roots() {
                return None;
            }
            let place = Place(tempfile::tempdir().unwrap());
            place.mode("", 0o755);
            for (name, owner) in [("alice", ALICE), ("bob", BOB), ("system", 0)] {
                fs::create_dir(place.path(name)).unwrap();
                place.own(name, owner);
            }
            Some(place)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn mode(&self, name: &str, mode: u32) {
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn own(&self, name: &str, owner: u32) {
            std::os::unix::fs::lchown(self.path(name), Some(owner), Some(owner)).unwrap();
        }

        /// Makes a file whose content is its name.
        fn file(&self, name: &str, owner: u32, mode: u32) {
            fs::write(self.path(name), name).unwrap();
            self.own(name, owner);
            self.mode(name, mode);
        }

        fn link(&self, name: &str, owner: u32, target: &str) {
            symlink(target, self.path(name)).unwrap();
            self.own(name, owner);
        }

        fn link_to(&self, name: &str, owner: u32, target: &str) {
            self.link(name, owner, self.path(target).to_str().unwrap());
        }

        /// Reads a file, and returns its content or the fault, without the folder of this place.
        fn read(&self, name: &str, named: Option<NamedUser<'_>>) -> Result<String, String> {
            let read = read(&self.path(name), 100, named);
            read.map(|bytes| String::from_utf8(bytes).unwrap())
                .map_err(|fault| self.shown(&fault))
        }

        /// Finds a program, and returns its owner or the fault.
        fn program(&self, name: &str, named: Option<NamedUser<'_>>) -> Result<u32, String> {
            let found = find(&self.path(name), Purpose::Program(named));
            found
                .map(|found| found.stat.st_uid)
                .map_err(|fault| self.shown(&fault))
        }

        fn shown(&self, fault: &FileFault) -> String {
            fault
                .to_string()
                .replace(self.path("").to_str().unwrap().trim_end_matches('/'), "")
        }
    }

    const NOBODY: Option<NamedUser<'_>> = Some(NamedUser {
        user: "nobody",
        group: None,
    });
    const ROOT: Option<NamedUser<'_>> = Some(NamedUser {
        user: "root",
        group: None,
    });

    #[test]
    fn a_way_is_safe_if_its_holders_lead_to_what_is_theirs() {
        let Some(place) = Place::new() else { return };
        // A file that only its owner may read, in a folder of root's.
        place.file("system/env", 0, 0o600);
        assert_eq!(place.read("system/env", None).unwrap(), "system/env");
        place.file("system/alices", ALICE, 0o600);
        assert_eq!(place.read("system/alices", None).unwrap(), "system/alices");
        // Releases as deployment tools make them, by relative and absolute links, also by root.
        fs::create_dir_all(place.path("alice/releases/7")).unwrap();
        place.own("alice/releases", ALICE);
        place.own("alice/releases/7", ALICE);
        place.file("alice/releases/7/app", ALICE, 0o700);
        place.link("alice/relative", ALICE, "releases/7");
        place.link_to("alice/absolute", ALICE, "alice/releases/7");
        place.link("alice/roots", 0, "releases/../releases/7/");
        place.link_to("system/app", 0, "alice/absolute/app");
        for path in [
            "alice/relative/app",
            "alice/absolute/app",
            "alice/roots/app",
            "system/app",
        ] {
            assert_eq!(place.program(path, None), Ok(ALICE), "{path}");
            assert_eq!(place.read(path, None).unwrap(), "alice/releases/7/app");
            let found = find(&place.path(path), Purpose::Program(None)).unwrap();
            assert_eq!(found.path, place.path("alice/releases/7/app"));
            let unfollowed = match path {
                "system/app" => "system/app",
                _ => "alice/releases/7/app",
            };
            assert_eq!(found.unfollowed, place.path(unfollowed));
        }
        // Root's own links lead anywhere.
        place.link_to("system/env2", 0, "system/env");
        assert_eq!(place.read("system/env2", None).unwrap(), "system/env");
        assert_eq!(place.program("system/env2", None), Ok(0));
    }

    #[test]
    fn what_a_holder_may_not_read_is_not_read() {
        let Some(place) = Place::new() else { return };
        place.file("system/secret", 0, 0o600);
        place.file("system/public", 0, 0o644);
        place.link_to("alice/env", ALICE, "system/secret");
        let expected = "/alice/env, which 4711 owns, leads to /system/secret, which 4711 does not own; so it \
            is opened with the rights of 4711: user 4711 may not read /system/secret (0600 root:root); let 4711 read it, or give a \
            path whose folders and links belong to root";
        assert_eq!(
            place.read("alice/env", None).unwrap_err(),
            expected.replace("            ", "")
        );
        assert!(place.read("alice/env", NOBODY).is_err());
        place.link_to("alice/fine", ALICE, "system/public");
        assert_eq!(place.read("alice/fine", None).unwrap(), "system/public");
        // The same by a hard link, which the file system may allow.
        fs::hard_link(place.path("system/secret"), place.path("alice/hard")).unwrap();
        let error = place.read("alice/hard", None).unwrap_err();
        assert!(
            error.contains("may not read /alice/hard (0600 root:root)"),
            "{error}"
        );
        // Over a second user: each of them must be allowed to read it.
        place.file("alice/private", ALICE, 0o600);
        place.link_to("bob/link", BOB, "alice/private");
        place.link_to("alice/round", ALICE, "bob/link");
        let error = place.read("alice/round", None).unwrap_err();
        assert!(
            error
                .contains("rights of 4712: user 4712 may not read /alice/private (0600 4711:4711)"),
            "{error}"
        );
        place.mode("alice/private", 0o644);
        assert_eq!(place.read("alice/round", None).unwrap(), "alice/private");
        // With `user`, what this user may read is read for this user.
        place.file("system/nobodys", 65534, 0o400);
        place.link_to("alice/nobodys", ALICE, "system/nobodys");
        assert_eq!(
            place.read("alice/nobodys", NOBODY).unwrap(),
            "system/nobodys"
        );
        assert!(place.read("alice/nobodys", None).is_err());
        // A `user` root does not make Alice's links root's.
        let secret = place.read("alice/env", ROOT).unwrap_err();
        assert!(secret.contains("rights of 4711"), "{secret}");
    }

    #[test]
    fn nothing_is_told_about_folders_that_a_holder_may_not_look_into() {
        let Some(place) = Place::new() else { return };
        place.mode("system", 0o700);
        place.file("system/there", 0, 0o644);
        place.link_to("alice/there", ALICE, "system/there");
        place.link_to("alice/missing", ALICE, "system/missing");
        for purpose in [
            Purpose::Content(None),
            Purpose::Program(None),
            Purpose::Program(NOBODY),
        ] {
            let told = |name: &str| {
                let fault = find(&place.path(name), purpose).unwrap_err();
                assert!(!fault.is_missing());
                place
                    .shown(&fault)
                    .replace(name.rsplit('/').next().unwrap(), "NAME")
            };
            assert_eq!(told("alice/there"), told("alice/missing"));
        }
        // In folders that are open to all, it is known what is missing.
        place.mode("system", 0o755);
        let fault = find(&place.path("alice/missing"), Purpose::Content(None)).unwrap_err();
        assert!(fault.is_missing());
        let fault = find(&place.path("alice/nothing"), Purpose::Program(None)).unwrap_err();
        assert!(
            matches!(&fault, FileFault::System(_)) && fault.is_missing(),
            "{fault}"
        );
    }

    #[test]
    fn a_link_to_a_program_of_another_user_is_a_fault_without_a_user() {
        let Some(place) = Place::new() else { return };
        place.file("bob/program", BOB, 0o755);
        place.file("system/program", 0, 0o755);
        place.link_to("alice/app", ALICE, "bob/program");
        place.link("alice/python3", ALICE, "../system/program");
        let expected = "/alice/app, which 4711 owns, leads to /bob/program, which 4711 does not own; who \
            owns the program decides as which user it runs, so give the service a `user`";
        assert_eq!(
            place.program("alice/app", None).unwrap_err(),
            expected.replace("            ", "")
        );
        assert!(place.program("alice/python3", None).is_err());
        assert_eq!(place.program("alice/python3", NOBODY), Ok(0));
        assert_eq!(place.program("alice/app", NOBODY), Ok(BOB));
        assert_eq!(place.program("alice/app", ROOT), Ok(BOB));
        place.mode("bob", 0o700);
        assert!(place.program("alice/app", NOBODY).is_err());
        // The folder is Alice's, so that the file is there is her doing.
        place.file("alice/roots", 0, 0o755);
        assert!(place.program("alice/roots", None).is_err());
    }

    #[test]
    fn in_a_folder_of_all_each_has_what_is_theirs() {
        let Some(place) = Place::new() else { return };
        fs::create_dir(place.path("tmp")).unwrap();
        place.mode("tmp", 0o1777);
        place.file("tmp/alices", ALICE, 0o700);
        place.file("bob/program", BOB, 0o755);
        place.file("tmp/roots", 0, 0o600);
        place.link_to("tmp/link", ALICE, "bob/program");
        assert_eq!(place.program("tmp/alices", None), Ok(ALICE));
        assert_eq!(place.read("tmp/roots", None).unwrap(), "tmp/roots");
        assert!(place.program("tmp/link", None).is_err());
    }

    #[test]
    fn only_regular_files_within_bounds_are_read_and_nothing_waits() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), fifo, 0o600.into(), 0).unwrap();
        let sparse = fs::File::create(path("sparse")).unwrap();
        sparse.set_len(6 << 30).unwrap();
        fs::write(path("fits"), [b'x'; 2048]).unwrap();
        fs::write(path("more"), [b'x'; 2049]).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        symlink("round", path("round")).unwrap();
        let environ = format!("/proc/{}/environ", std::process::id());
        symlink(environ, path("environ")).unwrap();
        symlink("/", path("top")).unwrap();
        let told = |name: &str| match read(&path(name), 2048, None) {
            Ok(bytes) => format!("{} bytes", bytes.len()),
            Err(fault) => fault.to_string(),
        };
        assert_eq!(told("fits"), "2048 bytes");
        assert_eq!(told("more"), "it is larger than 2 KiB");
        assert_eq!(told("sparse"), "it is larger than 2 KiB");
        assert_eq!(told("fifo"), "it is no regular file");
        assert_eq!(told("zero"), "it is no regular file");
        assert_eq!(
            told("environ"),
            "it is a file of /proc; give a file on a disk"
        );
        assert_eq!(told("top"), "it is a folder");
        assert!(told("round").starts_with("Too many levels of symbolic links"));
        assert!(told("fits/more").starts_with("Not a directory"));
        assert!(told("nothing").starts_with("No such file"));
    }

    #[test]
    fn work_is_done_with_the_rights_of_a_holder() {
        let Some(place) = Place::new() else { return };
        place.file("system/secret", 0, 0o600);
        place.link_to("alice/link", ALICE, "system");
        place.link_to("bob/link", BOB, "alice/link");
        let can_read = || fs::read(place.path("system/secret")).is_ok();
        assert_eq!(on_behalf(&place.path("system"), can_read), Some(true));
        assert_eq!(on_behalf(&place.path("alice"), can_read), Some(true));
        assert_eq!(on_behalf(&place.path("alice/link"), can_read), Some(false));
        assert_eq!(on_behalf(&place.path("bob/link"), can_read), None);
    }

    #[test]
    fn what_was_found_is_what_is_read() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("env");
        fs::write(&path, "first").unwrap();
        let found = find(&path, Purpose::Content(None)).unwrap();
        fs::write(place.path().join("other"), "second").unwrap();
        fs::rename(place.path().join("other"), &path).unwrap();
        assert_eq!(found.content(100).unwrap(), b"first");
        assert_eq!(read(&path, 100, None).unwrap(), b"second");
    }

    #[test]
    fn a_file_with_a_lease_of_somebody_makes_nobody_wait() {
        let Some(place) = Place::new() else { return };
        place.file("alice/env", ALICE, 0o644);
        let held = fs::File::options()
            .write(true)
            .read(true)
            .open(place.path("alice/env"))
            .unwrap();
        let lease = nix::libc::F_WRLCK;
        // The kernel asks for the lease back with SIGIO, which would end this process.
        // SAFETY: no handler is set, the descriptor is open, and the calls have no pointers.
        #[allow(unsafe_code)]
        let done = unsafe {
            nix::libc::signal(nix::libc::SIGIO, nix::libc::SIG_IGN);
            nix::libc::fcntl(held.as_raw_fd(), nix::libc::F_SETLEASE, lease)
        };
        assert_eq!(done, 0);
        let error = place.read("alice/env", None).unwrap_err();
        assert!(error.contains("temporarily unavailable"), "{error}");
    }
}
