//! Holds `src/` to the plan in ARCHITECTURE.md: which folder may use which, and how things are
//! named.
//!
//! The plan is the table under "The house". A row is a floor: the path of a folder (or file), what
//! it holds, and the floors it may use. Floors are listed from the top down, so a floor may only
//! use those below it.

mod arrows;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use arrows::Arrow;
use source::{Source, Tree};

/// One row of the plan.
struct Floor {
    path: String,
    may_use: Vec<String>,
}

#[test]
fn every_arrow_between_floors_is_in_the_plan() {
    let plan = plan();
    let mut unplanned = Vec::new();
    let mut seen = BTreeSet::new();
    for arrow in arrows() {
        let (from, to) = (floor_of(&plan, &arrow.from), floor_of(&plan, &arrow.to));
        if from == to {
            continue;
        }
        seen.insert((plan[from].path.clone(), plan[to].path.clone()));
        if !plan[from].may_use.contains(&plan[to].path) {
            let (from, to) = (&plan[from].path, &plan[to].path);
            unplanned.push(format!("{from} may not use {to}: {arrow}"));
        }
    }
    let planned = plan.iter().flat_map(|floor| {
        let uses = floor.may_use.iter();
        uses.map(|used| (floor.path.clone(), used.clone()))
    });
    let unused: Vec<_> = planned.filter(|pair| !seen.contains(pair)).collect();
    assert!(
        unplanned.is_empty(),
        "arrows that the plan in ARCHITECTURE.md does not have:\n{}",
        unplanned.join("\n")
    );
    assert!(
        unused.is_empty(),
        "arrows of the plan in ARCHITECTURE.md that the code does not have: {unused:?}"
    );
}

#[test]
fn smoothctl_prints_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folder = std::fs::read_dir(root.join("ctl")).unwrap();
    let files = folder.map(|entry| entry.unwrap().path());
    let mut seen = 0;
    for file in files.chain([root.join("ctl.rs")]) {
        let text = std::fs::read_to_string(&file).unwrap();
        let prints = ["print!(", "println!(", "stdout()", "stderr().write"];
        let found = prints.iter().find(|how| text.contains(**how));
        if file.ends_with("screen.rs") {
            seen += 1;
            assert!(found.is_some(), "this is the place");
        } else {
            // There, text of others is made safe for terminals.
            assert_eq!(
                found,
                None,
                "{} prints; use src/ctl/screen.rs",
                file.display()
            );
        }
    }
    assert_eq!(seen, 1);
}

#[test]
fn the_plan_points_down() {
    let plan = plan();
    for (index, floor) in plan.iter().enumerate() {
        for used in &floor.may_use {
            let below = plan[index + 1..].iter().any(|below| below.path == *used);
            assert!(
                below,
                "{} is to use {used}, which is not a floor below it",
                floor.path
            );
        }
    }
}

#[test]
fn no_circle_of_files() {
    let mut uses: BTreeMap<PathBuf, BTreeMap<PathBuf, Arrow>> = BTreeMap::new();
    for arrow in arrows().into_iter().filter(|arrow| !arrow.to_module) {
        let from = uses.entry(arrow.from.clone()).or_default();
        from.entry(arrow.to.clone()).or_insert(arrow);
    }
    let circles = arrows::circles(&uses);
    let told: Vec<String> = circles
        .iter()
        .map(|files| {
            let inside = files.iter().flat_map(|file| uses[file].values());
            let inside = inside.filter(|arrow| files.contains(&arrow.to));
            let lines: Vec<String> = inside.map(|arrow| format!("  {arrow}")).collect();
            format!("{} files:\n{}", files.len(), lines.join("\n"))
        })
        .collect();
    assert!(
        circles.is_empty(),
        "files that use each other in a circle:\n{}",
        told.join("\n")
    );
}

#[test]
fn a_visible_name_stands_for_one_thing() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in tree().sources() {
        for item in source.items().iter().filter(|item| item.is_named) {
            let place = format!("{}:{}", source.path.display(), item.line);
            places.entry(item.name.clone()).or_default().push(place);
        }
    }
    places.retain(|_, places| places.len() > 1);
    assert!(
        places.is_empty(),
        "visible types and constants that share a name: {places:#?}"
    );
}

#[test]
fn every_visible_item_has_its_line() {
    let tree = tree();
    let silent: Vec<String> = tree
        .sources()
        .flat_map(|source| {
            let silent = source.items().iter().filter(|item| !item.is_documented);
            silent.map(|item| format!("{}:{} {}", source.path.display(), item.line, item.name))
        })
        .collect();
    assert!(
        silent.is_empty(),
        "visible items without a `///` line:\n{}",
        silent.join("\n")
    );
}

#[test]
fn every_file_says_what_it_is() {
    let tree = tree();
    let silent: Vec<&Path> = tree
        .sources()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path.as_path())
        .collect();
    assert!(
        silent.is_empty(),
        "files that begin without `//!`: {silent:?}"
    );
}

#[test]
fn comments_keep_to_100_columns() {
    let mut wide = Vec::new();
    for folder in ["src", "tests", "benches", "manual", "fuzz", "examples"] {
        for path in source::rust_files(&source::root().join(folder)) {
            let text = std::fs::read_to_string(&path).unwrap();
            for (number, line) in (1..).zip(text.lines()) {
                if line.trim_start().starts_with("//") && line.chars().count() > 100 {
                    wide.push(format!("{}:{number}", source::relative(&path).display()));
                }
            }
        }
    }
    assert!(
        wide.is_empty(),
        "{} comment lines are wider than 100 columns:\n{}",
        wide.len(),
        wide.join("\n")
    );
}

fn tree() -> Tree {
    Tree::read(&source::root().join("src"))
}

fn arrows() -> Vec<Arrow> {
    arrows::find(&tree())
}

/// Reads the plan. A floor's path, in backquotes, begins its row; the floors it may use, in
/// backquotes, end it.
fn plan() -> Vec<Floor> {
    let page = std::fs::read_to_string(source::root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = page
        .split_once("\n## The house\n")
        .expect("ARCHITECTURE.md has a section \"The house\"");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `src"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [path, _, may_use] = cells[..] else {
            panic!("a row of the plan has three cells: {row}");
        };
        Floor {
            path: quoted(path).pop().unwrap(),
            may_use: quoted(may_use),
        }
    })
    .collect()
}

/// The parts of a cell that are in backquotes, each as a path below `src`.
fn quoted(cell: &str) -> Vec<String> {
    let parts = cell.split('`').skip(1).step_by(2);
    parts
        .map(|part| match part.starts_with("src") {
            true => part.to_owned(),
            false => format!("src/{part}"),
        })
        .collect()
}

/// Returns the row that a file belongs to: the one with the longest path that holds it.
fn floor_of(plan: &[Floor], file: &Path) -> usize {
    let module = file.with_extension("");
    let holds = |floor: &Floor| {
        let path = Path::new(&floor.path);
        module.starts_with(path.with_extension("")) && (path.extension().is_none() || path == file)
    };
    let floors = plan.iter().enumerate().filter(|(_, floor)| holds(floor));
    let longest = floors.max_by_key(|(_, floor)| floor.path.len());
    let (index, _) = longest.unwrap_or_else(|| {
        panic!(
            "no row of the plan in ARCHITECTURE.md holds {}",
            file.display()
        )
    });
    index
}

#[test]
fn what_the_plan_is_held_against_is_not_empty() {
    let tree = tree();
    assert!(tree.sources().count() > 100);
    assert!(arrows().len() > 500);
    assert!(
        tree.sources()
            .any(|source: &Source| source.items().len() > 5)
    );
}
