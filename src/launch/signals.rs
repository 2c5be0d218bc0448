//! The dispositions of signals, as a new program expects them.
#![allow(unsafe_code)]

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// Undoes what this process, or whoever started the manager (nohup(1), for one), has set: an
/// instance gets all signals, and each has its default action.
pub(super) fn reset() -> nix::Result<()> {
    for number in Signal::iterator() {
        if !matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: the default action is no handler of ours that could be run at a bad moment.
            unsafe { signal(number, SigHandler::SigDfl)? };
        }
    }
    SigSet::empty().thread_set_mask()
}
