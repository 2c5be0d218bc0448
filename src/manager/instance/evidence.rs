//! Evidence that a probe was answered by the instance itself and not by another program.
//!
//! A look for the evidence reads much of `/proc`, so it is done on a thread of its own, and there
//! is one look at a time for an instance, however often a worker reports that a probe was answered.

use std::net::SocketAddr;
use std::rc::Weak;
use std::time::Duration;

use crate::manager::event::News;
use crate::manager::host::sockets;
use crate::manager::process::Process;

/// The first and the longest pause between two looks for the evidence. The kernel notifies nobody
/// of a change in `/proc`, so there is nothing to wait for but time.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Where to look for the evidence, and which kind to look for.
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) process: Weak<Process>,
    pub(super) address: SocketAddr,
    pub(super) kind: EvidenceKind,
}

/// The kind of evidence.
#[derive(Debug, Clone, Copy)]
pub(super) enum EvidenceKind {
    /// The instance has accepted the connection of the probe from the queue of its inherited
    /// socket.
    TakesFromQueue,
    /// The instance, and no other program, listens on its port.
    Listens,
}

impl Evidence {
    /// Returns whether the evidence exists, or `None` if the instance is gone.
    async fn is_there(&self) -> Option<bool> {
        let process = self.process.upgrade()?;
        let (pid, root) = (process.pid, process.root());
        drop(process);
        let (address, kind) = (self.address, self.kind);
        let look = tokio::task::spawn_blocking(move || match kind {
            EvidenceKind::TakesFromQueue => {
                sockets::queue_length(address).is_ok_and(|length| length == 0)
            }
            EvidenceKind::Listens => sockets::listens(pid, root, address.port()),
        });
        let found = look.await.unwrap_or(false);
        // The number was that of the instance all the time if the instance is still there.
        self.process.upgrade().map(|_| found)
    }
}

/// Looks for the evidence until it exists, and then reports [`News::Ready`].
pub(super) async fn watch(evidence: Evidence, report: impl Fn(News)) {
    let mut pause = FIRST_LOOK;
    loop {
        match evidence.is_there().await {
            Some(true) => return report(News::Ready),
            Some(false) => {}
            None => return,
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_LOOK.min(pause * 2);
    }
}
