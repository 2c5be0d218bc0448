//! The inputs that the fuzz targets have found or somebody has written for them, which unit tests
//! check again.

use std::path::{Path, PathBuf};

/// Reads the corpus of a fuzz target. Returns each input with its file.
pub(crate) fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let entries = std::fs::read_dir(corpus.join(target)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let inputs: Vec<_> = paths
        .map(|path| {
            let input = std::fs::read(&path).unwrap();
            (path, input)
        })
        .collect();
    assert!(!inputs.is_empty(), "no corpus");
    inputs
}

/// Calls `check` with every input of the corpus of a fuzz target.
pub(crate) fn replay(target: &str, check: fn(&[u8])) {
    for (path, input) in inputs(target) {
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("{}", path.display());
        }
    }
}
