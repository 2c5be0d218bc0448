//! The demo of the README ends by itself when asked to, and reports that smoothserve has lost no
//! request, and a plain restart some.

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
    // Nobody has to guess what is shown.
    let first = shown.split(": starting").next().unwrap_or_default();
    for words in [
        "the same load",
        "`systemctl restart`",
        "A request is lost if",
    ] {
        assert!(first.contains(words), "{shown}");
    }
    let lost = |shop: &str, phase: &str| -> u64 {
        let begin = format!("  {shop} ");
        let row = shown.lines().find(|line| {
            line.starts_with(&begin) && line.contains(&format!("{phase} the rollouts"))
        });
        let row: Vec<&str> = row
            .expect("the table has a row for each phase")
            .split_whitespace()
            .collect();
        number(row[row.len() - 5])
    };
    for phase in ["before", "during", "after"] {
        assert_eq!(lost("smoothserve", phase), 0, "lost requests\n{shown}");
    }
    assert!(lost("plain restart", "during") > 0, "{shown}");
    let sentence = shown.trim_end().lines().next_back().unwrap_or_default();
    let words: Vec<&str> = sentence.split(' ').collect();
    let [
        "smoothserve:",
        "0",
        "of",
        smooth,
        "requests",
        "lost;",
        "plain",
        "restart:",
        lost,
        "of",
        plain,
        "requests",
        "lost.",
    ] = words[..]
    else {
        panic!("the sentence at the end: {sentence}");
    };
    assert!(number(smooth) > 1000, "{sentence}");
    assert!(
        number(lost) > 0 && number(lost) < number(plain),
        "{sentence}"
    );
}

/// Reads a number such as `12,345`.
fn number(text: &str) -> u64 {
    text.replace(',', "").parse().expect("it is a number")
}
