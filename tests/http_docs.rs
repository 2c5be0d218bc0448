//! The tables of `docs/http.md` and `docs/security.md` name only tests that exist.

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

/// Checks that each row of a table names tests in its last cell, and that they exist. Returns the
/// number of rows.
fn check<'a>(lines: impl Iterator<Item = &'a str>, cells: usize) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    functions(&root.join("src"), &mut tests);
    functions(&root.join("tests"), &mut tests);
    let rows = lines.filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let mut count = 0;
    for row in rows {
        let found: Vec<&str> = row.trim_matches('|').split('|').collect();
        assert_eq!(found.len(), cells, "{row}");
        let named: Vec<&str> = found[cells - 1].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "a row names no test: {row}");
        for name in named {
            assert!(tests.contains(name), "there is no test {name}");
        }
        count += 1;
    }
    count
}

fn page(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join("docs").join(name)).unwrap()
}

#[test]
fn every_point_names_tests_that_exist() {
    let text = page("http.md");
    // Another test reads the table of the fields.
    let lines = text.lines();
    let lines = lines.take_while(|line| *line != "## Fields about the client");
    let rows = lines.filter(|row| !row.ends_with("| tests |"));
    assert!(check(rows, 3) > 50);
}

#[test]
fn every_threat_names_tests_that_exist() {
    let text = page("security.md");
    let rows = text.lines().skip_while(|line| *line != "## Threats");
    let rows = rows.skip(1).take_while(|line| !line.starts_with("## "));
    let rows = rows.filter(|row| !row.starts_with("| who |"));
    assert!(check(rows, 4) > 5);
}
