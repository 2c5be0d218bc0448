//! The demo of the README ends by itself when asked to and reports that no request was lost.

use std::process::{Command, Stdio};

use smoothserve_kit::example;

#[test]
fn the_demo_loses_no_request() {
    // The demo looks for the programs where Cargo puts them; naming them here has Cargo build them.
    let _ = smoothserve_kit::programs!();
    let output = Command::new(example("demo"))
        .env("DEMO_ONCE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{shown}\n{errors}",
        output.status
    );
    for state in ["starting", "ready", "draining", "gone"] {
        assert!(
            shown.contains(&format!(": {state}")),
            "no instance was {state}\n{shown}"
        );
    }
    for phase in ["before", "during", "after"] {
        let row = shown
            .lines()
            .find(|line| line.contains(&format!("{phase} the rollouts")));
        let row: Vec<&str> = row
            .expect("the table has a row for each phase")
            .split_whitespace()
            .collect();
        assert_eq!(row[row.len() - 5], "0", "lost requests\n{shown}");
    }
}
