//! Why the kernel does not execute a program, with what to do about it.
//!
//! The kernel's errors name no cause: `ENOENT` is said of a program that is there, and `EACCES` of
//! a folder far above it. So the launcher, which has the rights of the instance by then, looks for
//! the cause.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::trust::{Need, obstacle};

/// How many bytes at the beginning of a program are looked at: its first line, or its headers.
const BEGINNING: u64 = 4096;

/// The most programs that need each other, a script and its interpreter for one. The kernel follows
/// no more either.
const MOST_LINKED: u32 = 5;

/// Says why a program that is there is not executed. `None`: the error says all that is known.
pub(super) fn explain(program: &Path, error: Errno) -> Option<String> {
    look_at(program, error, MOST_LINKED)
}

fn look_at(program: &Path, error: Errno, most: u32) -> Option<String> {
    let beginning = match beginning(program) {
        // Whoever may execute a file may perhaps not read it.
        Err(_) if error != Errno::EACCES => return None,
        beginning => beginning.unwrap_or_default(),
    };
    let needed = match Script::read(&beginning) {
        Some(script) => Some((script.interpreter.clone(), script.lacking())),
        None => loader(&beginning).map(|loader| {
            let lacking = lacking_loader(&loader);
            (loader, lacking)
        }),
    };
    match (error, needed) {
        (Errno::EACCES, needed) => no_permission(program).or_else(|| {
            let (path, _) = needed?;
            let cause = no_permission(&path)?;
            Some(format!("it needs {}: {cause}", path.display()))
        }),
        (Errno::ENOENT | Errno::ENOEXEC, Some((path, lacking))) => {
            let other_machine = other_machine(&beginning);
            other_machine.or_else(|| match path.exists() {
                false => Some(lacking),
                true => look_at(&path, error, most.checked_sub(1)?),
            })
        }
        (Errno::ENOEXEC, None) => Some(no_program(&beginning)),
        _ => None,
    }
}

/// Says that a script would fail at once because `env` cannot find the program of its first line.
/// Nobody would see more of it than the status 127.
pub(super) fn not_found_by_env(program: &Path, search_path: Option<&str>) -> Option<String> {
    let beginning = beginning(program).ok()?;
    let script = Script::read(&beginning)?;
    let name = script.looked_up()?;
    let mut folders = std::env::split_paths(search_path?);
    if folders.any(|folder| folder.join(name).is_file()) {
        return None;
    }
    Some(if name.ends_with('\r') {
        carriage_return()
    } else if name.contains([' ', '\t']) {
        format!(
            "its first line asks for one program of the name `{name}`; write `#!{} -S {name}`",
            script.interpreter.display()
        )
    } else {
        format!(
            "its first line asks for `{name}`, which is in no folder of the service's PATH; install \
             it, give `PATH` in `environment`, or write the whole path of `{name}` in that line"
        )
    })
}

fn beginning(program: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(program)?
        .take(BEGINNING)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first line of a script, as the kernel reads it.
struct Script {
    interpreter: PathBuf,
    argument: String,
}

impl Script {
    fn read(beginning: &[u8]) -> Option<Script> {
        let line = beginning
            .strip_prefix(b"#!")?
            .split(|&byte| byte == b'\n')
            .next()?;
        // The kernel leaves a carriage return where it is.
        let line = String::from_utf8_lossy(line);
        let line = line.trim_matches([' ', '\t']);
        let (interpreter, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        Some(Script {
            interpreter: PathBuf::from(interpreter),
            argument: argument.trim_matches([' ', '\t']).to_owned(),
        })
    }

    /// Returns the name of the program that `env` looks for in `PATH`, if this is `env` without
    /// options: the kernel passes on the rest of the line as one argument.
    fn looked_up(&self) -> Option<&str> {
        let name = self.argument.as_str();
        let is_name = !name.is_empty() && !name.starts_with('-') && !name.contains(['=', '/']);
        (is_name && self.interpreter.file_name()? == "env").then_some(name)
    }

    fn lacking(&self) -> String {
        let interpreter = self.interpreter.display().to_string();
        match interpreter.strip_suffix('\r') {
            Some(_) => carriage_return(),
            None if interpreter.is_empty() => {
                "its first line `#!` names no interpreter; complete it, as in `#!/bin/sh`"
                    .to_owned()
            }
            None => format!(
                "its first line names the interpreter {interpreter}, which does not exist; install \
                 it, or mend that line"
            ),
        }
    }
}

fn carriage_return() -> String {
    "its first line ends with a carriage return, as files of Windows do, and Linux takes it for a \
     part of the name; remove them, as by `sed -i 's/\\r$//'`"
        .to_owned()
}

/// Returns the path of the dynamic loader that an ELF program names.
fn loader(beginning: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let elf = Elf::of(beginning)?;
    let (table, size, count) = match elf.is_64_bit {
        true => (elf.number(32, 8)?, elf.number(54, 2)?, elf.number(56, 2)?),
        false => (elf.number(28, 4)?, elf.number(42, 2)?, elf.number(44, 2)?),
    };
    let mut headers = (0..count).map(|n| usize::try_from(table + n * size).ok());
    let header = headers.find(|&at| at.and_then(|at| elf.number(at, 4)) == Some(PT_INTERP))??;
    let (begin, length) = match elf.is_64_bit {
        true => (elf.number(header + 8, 8)?, elf.number(header + 32, 8)?),
        false => (elf.number(header + 4, 4)?, elf.number(header + 16, 4)?),
    };
    let begin = usize::try_from(begin).ok()?;
    let path = beginning.get(begin..begin.checked_add(usize::try_from(length).ok()?)?)?;
    let path = std::str::from_utf8(path).ok()?.trim_end_matches('\0');
    Some(PathBuf::from(path))
}

fn lacking_loader(loader: &Path) -> String {
    let name = loader
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let (built_for, cure) = match &*name {
        name if name.starts_with("ld-musl") => (
            "a system with musl, such as Alpine",
            "build it for this system, link it statically, or install musl",
        ),
        name if name.starts_with("ld-linux") || name.starts_with("ld64") => (
            "a system with the GNU C library",
            "build it for this system, or link it statically",
        ),
        _ => ("another system", "build it for this system"),
    };
    format!(
        "it was built for {built_for}, and its loader {} does not exist here; {cure}",
        loader.display()
    )
}

/// The header of an ELF program.
struct Elf<'b> {
    bytes: &'b [u8],
    is_64_bit: bool,
    is_little_endian: bool,
}

impl<'b> Elf<'b> {
    fn of(bytes: &'b [u8]) -> Option<Elf<'b>> {
        let is_elf = bytes.starts_with(b"\x7fELF");
        is_elf.then_some(Elf {
            bytes,
            is_64_bit: *bytes.get(4)? == 2,
            is_little_endian: *bytes.get(5)? == 1,
        })
    }

    fn number(&self, at: usize, length: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        let add = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        Some(match self.is_little_endian {
            true => bytes.iter().rev().fold(0, add),
            false => bytes.iter().fold(0, add),
        })
    }

    /// Returns the name of the kind of processor that the program is for.
    fn machine(&self) -> Option<String> {
        Some(match self.number(18, 2)? {
            3 => "x86 (32 bits)".to_owned(),
            8 => "MIPS".to_owned(),
            21 => "ppc64".to_owned(),
            22 => "s390x".to_owned(),
            40 => "arm (32 bits)".to_owned(),
            62 => "x86_64".to_owned(),
            183 => "aarch64".to_owned(),
            243 => "riscv64".to_owned(),
            258 => "loongarch64".to_owned(),
            number => format!("processors with the number {number} (e_machine)"),
        })
    }
}

fn other_machine(beginning: &[u8]) -> Option<String> {
    let built_for = Elf::of(beginning)?.machine()?;
    // smoothserve itself runs here, so it is a program for this machine.
    let own = self::beginning(Path::new("/proc/self/exe")).ok()?;
    let here = Elf::of(&own)?.machine()?;
    (built_for != here).then(|| {
        format!(
            "it was built for {built_for}, and this machine is {here}; build it for this machine"
        )
    })
}

fn no_program(beginning: &[u8]) -> String {
    const MACH_O: [[u8; 4]; 3] = [
        *b"\xcf\xfa\xed\xfe",
        *b"\xce\xfa\xed\xfe",
        *b"\xca\xfe\xba\xbe",
    ];
    let is_text = !beginning
        .iter()
        .any(|&byte| byte < 0x20 && !byte.is_ascii_whitespace());
    let text = match beginning {
        [] => "the file is empty; deploy it again",
        [b'M', b'Z', ..] => "it is a program for Windows; build it for Linux",
        [b'P', b'K', ..] => {
            "it is an archive, as those of Java are; give the program that runs it as \
             `executable_path`, and its path in `args`"
        }
        _ if MACH_O.iter().any(|magic| beginning.starts_with(magic)) => {
            "it is a program for macOS; build it for Linux"
        }
        _ if is_text => {
            "it is a text without `#!` in its first line; add that line, as in `#!/bin/sh`, or give \
             the interpreter as `executable_path` and this path in `args`"
        }
        _ => {
            return other_machine(beginning)
                .unwrap_or_else(|| "it is no program for Linux".to_owned());
        }
    };
    text.to_owned()
}

fn no_permission(program: &Path) -> Option<String> {
    let is_for_nobody = |found: Metadata| found.permissions().mode() & 0o111 == 0;
    if program.metadata().is_ok_and(is_for_nobody) {
        let shown = program.display();
        return Some(format!("it is not executable; try `chmod +x {shown}`"));
    }
    // The kernel denies execution there to everybody, so this comes before the permissions.
    let flags = statvfs(program).map(|found| found.flags());
    if flags.is_ok_and(|flags| flags.contains(FsFlags::ST_NOEXEC)) {
        let text = "its file system is mounted with `noexec`; move the program to another one, or \
                    mount this one with `exec`";
        return Some(text.to_owned());
    }
    obstacle(program, Need::Execute).map(|obstacle| format!("{obstacle}; {PERMIT}"))
}

/// Says why the instance may not change to a folder. `None`: the error says all that is known.
pub(super) fn not_entered(folder: &Path) -> Option<String> {
    obstacle(folder, Need::Enter).map(|obstacle| format!("{obstacle}; {PERMIT}"))
}

/// What to do about a permission that the user of an instance lacks.
const PERMIT: &str = "permit it by mode or group, or give the service another `user`";
