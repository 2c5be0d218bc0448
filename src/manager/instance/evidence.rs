//! What shows, besides an answered probe, that it is the instance that answers.

use std::net::SocketAddr;
use std::rc::Weak;
use std::time::Duration;

use crate::manager::event::News;
use crate::manager::host::sockets;
use crate::manager::process::Process;

/// The first and the longest pause between two looks at whether it is the instance that answers.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Where to look for evidence that the instance itself answers.
pub(super) struct Evidence {
    pub(super) process: Weak<Process>,
    pub(super) address: SocketAddr,
    pub(super) kind: EvidenceKind,
}

/// What shows that an answered probe was answered by the instance.
pub(super) enum EvidenceKind {
    /// The connection of the probe was taken from the queue of the socket that was passed on.
    TakesFromQueue,
    /// The instance, and no other program, listens on its port.
    Listens,
}

impl Evidence {
    /// Returns whether the evidence is there; `None` if the instance is gone.
    pub(super) fn is_there(&self) -> Option<bool> {
        let process = self.process.upgrade()?;
        Some(match self.kind {
            EvidenceKind::TakesFromQueue => {
                sockets::queue_length(self.address).is_ok_and(|length| length == 0)
            }
            EvidenceKind::Listens => sockets::listens(process.pid, self.address.port()),
        })
    }
}

/// Looks for the evidence until it is there, and then reports [`News::Ready`].
pub(super) async fn watch(evidence: Evidence, report: impl Fn(News)) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        match evidence.is_there() {
            Some(true) => return report(News::Ready),
            Some(false) => pause = LONGEST_LOOK.min(pause * 2),
            None => return,
        }
    }
}
