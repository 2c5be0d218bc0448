//! What must hold of the file of a service whatever is in it, also of hostile files, which nobody
//! would write on purpose, or only to do harm. A fuzz target and the tests search for files that
//! break it.

use std::path::Path;

use super::fault::Fault;
use super::service::{Draft, read};
use super::source::Source;

/// Reads the bytes of a service's file. Panics if a fault stands nowhere in the file, or is shown
/// in more lines than a fault has.
pub fn service_file(bytes: &[u8]) {
    let _ = read_bytes(bytes);
}

/// Reads a file without comparing it with the machine.
fn read_bytes(bytes: &[u8]) -> Result<Draft, Vec<Fault>> {
    let source = Source::decode(Path::new("/x/x.yaml"), bytes.to_vec()).map_err(|f| vec![f])?;
    let lines = source.text.split(['\n', '\r']).count();
    let root = super::raw::parse(&source).map_err(|fault| vec![fault]);
    let draft = root.and_then(|root| read(source, root, &mut Vec::new()));
    let faults = match &draft {
        Ok(draft) => &draft.faults,
        Err(faults) => faults,
    };
    for fault in faults {
        if let Some(at) = fault.position {
            assert!((1..=lines).contains(&at.line), "{fault}");
            assert!(at.column >= 1, "{fault}");
        }
        let shown = fault.to_string();
        assert!(shown.lines().count() <= 3, "{shown}");
    }
    draft
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::super::keys::SERVICE_KEYS;
    use super::*;

    const EVERY_KEY: &str = include_str!("../../services/example.yaml");

    #[test]
    fn the_corpus_of_files_of_services_holds() {
        crate::corpus::replay("service_file", service_file);
    }

    #[test]
    fn the_example_has_every_key() {
        let draft = read_bytes(EVERY_KEY.as_bytes()).unwrap();
        assert_eq!(draft.faults, []);
        for key in SERVICE_KEYS {
            let line = |line: &str| {
                line.trim_start_matches("# ")
                    .starts_with(&format!("{key}:"))
            };
            assert!(EVERY_KEY.lines().any(line), "{key}");
        }
    }

    /// Reads large texts that are made to be slow. The test is that it ends.
    #[test]
    fn no_large_file_takes_long() {
        let begin = "name: x\nport: 80\nexecutable_path: x\n";
        let fill = |head: &str, part: &str| {
            let rest = 256 * 1024;
            let text = format!("{begin}{head}{}", part.repeat(rest / part.len()));
            read_bytes(text.as_bytes())
        };
        for (head, part) in [
            ("", "zebra: 1\n"),
            ("", "? a\n"),
            ("", "#"),
            ("server_name: ", "a,"),
            ("server_name: [", "a:1,"),
            ("server_name:\n", "- a:1\n"),
            ("args: ", "{a}"),
            ("args: [", "'{a}{a}{a}',"),
            ("environment:\n", " - a\n"),
            ("environment: {", "a: b,"),
            ("user: ", "a\n  "),
            ("user: \"", "\\n"),
            ("user: |\n", " a\n"),
            ("log: ", "a "),
            ("user: ", "&a "),
            ("user: ", "!a "),
            ("a: ", "a: "),
            ("", "\t"),
            ("", "\"a\": "),
        ] {
            let read = fill(head, part);
            assert!(
                !matches!(&read, Ok(draft) if draft.faults.len() > 100),
                "{head}{part}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..300)) {
            let _ = read_bytes(&bytes);
        }

        #[test]
        fn no_yaml_like_text_does_harm(text in "[-a:?,#&*!|>'\"%@`{}\\[\\]<0 \\\\\n\t\r~.é]{0,80}") {
            let _ = read_bytes(text.as_bytes());
        }

        #[test]
        fn no_typing_error_does_harm(
            edits in vec((any::<Index>(), 0..4_usize, "[-a:,#&*!|>'\"{}\\[\\]0 \n\t~]"), 1..6)
        ) {
            let mut text: Vec<char> = EVERY_KEY.replace("# ", "").chars().collect();
            for (place, removed, added) in edits {
                let start = place.index(text.len());
                let end = (start + removed).min(text.len());
                text.splice(start..end, added.chars());
            }
            let text: String = text.into_iter().collect();
            let _ = read_bytes(text.as_bytes());
        }
    }
}
