//! Checks the stored corpus of the fuzzer for the same properties as the fuzz targets do.

use std::path::Path;

use super::pieces::{Pieces, parts};

/// Calls `check` with every file of the corpus, with all flags, and in three ways: in the pieces of
/// the file, in one piece, and in pieces of one or two bytes. The corpus is only as large as it
/// must be to reach all code, so this tries more combinations.
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        count += 1;
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
    assert!(count > 0, "no corpus");
}

/// Calls `check` with every file of the corpus of `target` as it is.
fn replay_whole(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "no corpus");
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
