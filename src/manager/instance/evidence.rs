//! Evidence that a probe was answered by the instance itself and not by another program.
//!
//! A look for the evidence reads much of `/proc`, so it is done on a thread of its own, and there
//! is one look at a time for an instance, however often a worker reports that a probe was answered.

use std::net::SocketAddr;
use std::rc::Weak;
use std::time::Duration;

use crate::manager::event::News;
use crate::manager::host::sockets::{self, PortHolder};
use crate::manager::process::Process;

/// The first and the longest pause between two looks for the evidence. The kernel notifies nobody
/// of a change in `/proc`, so there is nothing to wait for but time.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// After how many looks in a row that find another program the instance is given up, which is 0.6 s
/// after the first one. A program may begin to listen before its port is handed to the instance.
const STRANGE_LOOKS: u32 = 6;

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
    /// A connection to the port of the instance reaches the instance, and no other program.
    Listens,
}

/// Reports [`News::PortTaken`] if another program listens at the address of an instance that has
/// just ended.
pub(super) async fn look_at_end(address: Option<SocketAddr>, report: impl Fn(News)) {
    if let Some(address) = address {
        let look = tokio::task::spawn_blocking(move || sockets::is_taken(address));
        if look.await.unwrap_or(false) {
            report(News::PortTaken);
        }
    }
}

impl Evidence {
    /// Returns who was found, or `None` if the instance is gone.
    async fn look(&self) -> Option<PortHolder> {
        let process = self.process.upgrade()?;
        let (pid, root) = (process.pid, process.root());
        drop(process);
        let (address, kind) = (self.address, self.kind);
        let look = tokio::task::spawn_blocking(move || match kind {
            EvidenceKind::TakesFromQueue => match sockets::queue_length(address) {
                Ok(0) => PortHolder::Instance,
                _ => PortHolder::Nobody,
            },
            EvidenceKind::Listens => sockets::port_holder(pid, root, address),
        });
        let found = look.await.unwrap_or(PortHolder::Nobody);
        // The number was that of the instance all the time if the instance is still there.
        self.process.upgrade().map(|_| found)
    }
}

/// Looks for the evidence until it exists, and then reports [`News::Ready`]. Reports
/// [`News::PortTaken`] if there is evidence of the contrary.
pub(super) async fn watch(evidence: Evidence, report: impl Fn(News)) {
    let mut pause = FIRST_LOOK;
    let mut strange = 0;
    loop {
        match evidence.look().await {
            Some(PortHolder::Instance) => return report(News::Ready),
            Some(PortHolder::Other) => {
                strange += 1;
                if strange == STRANGE_LOOKS {
                    report(News::PortTaken);
                }
            }
            Some(PortHolder::Nobody) => strange = 0,
            None => return,
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_LOOK.min(pause * 2);
    }
}
