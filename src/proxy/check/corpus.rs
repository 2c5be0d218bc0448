//! Checks the stored corpus of the fuzzer for the same properties as the fuzz targets do.

use std::path::{Path, PathBuf};

use super::pieces::{Pieces, parts};

/// Reads the corpus of `target`. Returns each input with its file.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
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

/// Calls `check` with every file of the corpus, with all flags, and in three ways: in the pieces of
/// the file, in one piece, and in pieces of one or two bytes. The corpus is only as large as it
/// must be to reach all code, so this tries more combinations.
fn replay(target: &str, check: fn(&[u8])) {
    for (path, input) in corpus(target) {
        let Some((_, sent, Pieces(cuts))) = parts(&input) else {
            continue;
        };
        for flags in 0..8 {
            for cuts in [cuts, [0, 0, 0], [1, 0, 0]] {
                let input = [&[flags], &cuts[..], sent].concat();
                if std::panic::catch_unwind(|| check(&input)).is_err() {
                    panic!("{} with flags {flags} and cuts {cuts:?}", path.display());
                }
            }
        }
    }
}

/// Calls `check` with every file of the corpus of `target` as it is.
fn replay_whole(target: &str, check: fn(&[u8])) {
    for (path, input) in corpus(target) {
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("{}", path.display());
        }
    }
}

#[test]
fn the_corpus_of_proxy_headers_holds() {
    replay_whole("proxy_header", super::proxy_header);
}

#[test]
fn the_corpus_of_http2_connections_holds() {
    replay_whole("http2", super::http2);
}

#[test]
fn the_corpus_of_requests_holds() {
    replay("request", super::request);
}

#[test]
fn the_corpus_of_responses_holds() {
    replay("response", super::response);
}
