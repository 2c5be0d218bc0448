//! The interpreters of an executable that is a script.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::effort::Effort;
use super::look::{Interpreter, Look};
use super::mark::Parts;
use crate::config::ProcessConfig;
use crate::trust::Purpose;

/// The most interpreters of which each runs the one before; the kernel follows no more either.
const MOST: usize = 5;

/// Adds a part for each interpreter of an executable.
pub(super) fn marks_of_interpreters(
    process: &ProcessConfig,
    executable: Look,
    search_path: &OsStr,
    effort: Effort,
    parts: &mut Parts,
) {
    for (path, look) in chain(process, executable, search_path, effort) {
        parts.add(format!("the interpreter {}", path.display()), look.mark());
    }
}

/// Returns the paths of all interpreters of a service's executable. This reads files.
pub(crate) fn interpreters_of(process: &ProcessConfig) -> Vec<PathBuf> {
    let effort = Effort::without_contents();
    let purpose = Purpose::Program(process.named_user());
    let Ok(executable) = Look::at(&process.executable, purpose, effort) else {
        return Vec::new();
    };
    // What the environment file sets as `PATH` is not worth reading it.
    let search_path = process.search_path(&Default::default());
    let chain = chain(process, executable, &search_path, effort);
    chain.into_iter().map(|(path, _)| path).collect()
}

fn chain(
    process: &ProcessConfig,
    executable: Look,
    search_path: &OsStr,
    effort: Effort,
) -> Vec<(PathBuf, Look)> {
    let purpose = Purpose::Content(process.named_user());
    let mut chain: Vec<(PathBuf, Look)> = Vec::new();
    let mut next = executable.interpreter;
    while let Some(interpreter) = next.filter(|_| chain.len() < MOST) {
        let path = process.folder().join(&interpreter.program);
        let Ok(look) = Look::at(&path, purpose, effort) else {
            break;
        };
        next = look.interpreter.clone();
        chain.push((path, look));
        let Some((path, look)) = looked_up(process, &interpreter, search_path, effort) else {
            continue;
        };
        next = look.interpreter.clone();
        chain.push((path, look));
    }
    chain
}

/// Finds the program that `env` starts, as `env` does.
fn looked_up(
    process: &ProcessConfig,
    interpreter: &Interpreter,
    search_path: &OsStr,
    effort: Effort,
) -> Option<(PathBuf, Look)> {
    let name = interpreter.looked_up()?;
    let folders: Vec<PathBuf> = match name.contains('/') {
        true => vec![PathBuf::new()],
        false => std::env::split_paths(search_path).collect(),
    };
    let purpose = Purpose::Content(process.named_user());
    folders.into_iter().find_map(|folder| {
        let path = process.folder().join(folder).join(name);
        let look = Look::at(&path, purpose, effort).ok()?;
        let runs = look.is_regular() && look.stat.st_mode & 0o111 != 0;
        runs.then_some((path, look))
    })
}
