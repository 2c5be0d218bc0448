//! Checks the stored corpus of the fuzzer for the same properties as the fuzz targets do.

use super::pieces::{Pieces, parts};
use crate::corpus::{inputs, replay};

/// Calls `check` with every file of the corpus, with all flags, and in three ways: in the pieces of
/// the file, in one piece, and in pieces of one or two bytes. The corpus is only as large as it
/// must be to reach all code, so this tries more combinations.
fn replay_in_ways(target: &str, check: fn(&[u8])) {
    for (path, input) in inputs(target) {
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

#[test]
fn the_corpus_of_proxy_headers_holds() {
    replay("proxy_header", super::proxy_header);
}

#[test]
fn the_corpus_of_http2_connections_holds() {
    replay("http2", super::http2);
}

#[test]
fn the_corpus_of_requests_holds() {
    replay_in_ways("request", super::request);
}

#[test]
fn the_corpus_of_responses_holds() {
    replay_in_ways("response", super::response);
}
