//! Evidence that a probe was answered by the instance itself and not by another program.

use std::net::SocketAddr;
use std::rc::Weak;
use std::time::Duration;

use crate::manager::event::News;
use crate::manager::host::sockets;
use crate::manager::process::Process;

/// The first and the longest pause between two looks for the evidence.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Where to look for the evidence, and which kind to look for.
pub(super) struct Evidence {
    pub(super) process: Weak<Process>,
    pub(super) address: SocketAddr,
    pub(super) kind: EvidenceKind,
}

/// The kind of evidence.
pub(super) enum EvidenceKind {
    /// The instance has accepted the connection of the probe from the queue of its inherited
    /// socket.
    TakesFromQueue,
    /// The instance, and no other program, listens on its port.
    Listens,
}

impl Evidence {
    /// Returns whether the evidence exists, or `None` if the instance is gone.
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

/// Looks for the evidence until it exists, and then reports [`News::Ready`].
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
