//! The search for the place where an instance listens that is not ready.
//!
//! The usual cause of an instance that never becomes ready is that it listens elsewhere. This is
//! seen only while it runs, so the search goes on from the first failed probe until the instance is
//! ready or has ended. It reads much of `/proc`, so it is done on a thread of its own, with pauses.

use std::rc::Weak;
use std::time::Duration;

use crate::ipc::Address;
use crate::manager::event::{News, Sighting};
use crate::manager::host::sockets;
use crate::manager::process::Process;

/// The first and the longest pause between two looks. Most instances become ready before the first
/// one.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// Looks again and again where an instance listens, and reports what has changed. `address` is
/// where it should listen.
pub(super) async fn watch(process: Weak<Process>, address: Address, report: impl Fn(News)) {
    let mut pause = FIRST_LOOK;
    let mut last = None;
    loop {
        tokio::time::sleep(pause).await;
        let Some(members) = process.upgrade().map(|process| process.members()) else {
            return;
        };
        let wanted = match address {
            Address::Tcp(address) => Some(address),
            Address::Unix(_) => None,
        };
        let look = tokio::task::spawn_blocking(move || {
            let own = members.pids();
            let places = sockets::places(&own)?;
            // To find out who has a port costs more than the rest.
            let missed =
                wanted.filter(|address| !places.iter().any(|place| place.covers(*address)));
            let holder = missed.and_then(|address| sockets::holder(address, &own));
            Some(Sighting { places, holder })
        });
        let sighting = look.await.ok().flatten();
        if sighting != last {
            last.clone_from(&sighting);
            if let Some(sighting) = sighting {
                report(News::Seen(sighting));
            }
        }
        pause = LONGEST_LOOK.min(pause * 2);
    }
}
