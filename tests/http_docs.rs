//! `docs/http.md` names only tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Collects the names of all tests in the source files below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let parts = text.split("#[test]").skip(1);
            let tests = parts.chain(text.split("#[tokio::test").skip(1));
            let names = tests.filter_map(|part| part.split_once("fn ")?.1.split_once('('));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_point_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    functions(&root.join("src"), &mut tests);
    functions(&root.join("tests"), &mut tests);
    let text = fs::read_to_string(root.join("docs/http.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|row| !row.starts_with("| ---") && !row.ends_with("| tests |"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [_, _, named] = cells[..] else {
            panic!("expected a row of three cells: {row}");
        };
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "a row names no test: {row}");
        for name in named {
            assert!(tests.contains(name), "there is no test {name}");
        }
        count += 1;
    }
    assert!(count > 50);
}
