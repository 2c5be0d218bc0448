//! The rollout core: decides, for one service, what to do next so that the actual state becomes the
//! desired one.
//!
//! Pure: [`Reconciler::handle`] takes an event and the time and returns actions; the shell around
//! it performs them and feeds back what happened. Whatever is interrupted, the next event finds the
//! difference again and goes on.
//!
//! # Theory of operation
//! A **target** is what every slot is to run: a generation (grows with every deploy and restart) of
//! a version (equal for generations with the same content). The **good** target is the last one
//! that proved itself; its executable is kept open by the shell, so it can always be started again.
//!
//! An instance lives `Starting → Ready → Draining → Closing → Stopping` and is then gone; it never
//! moves back. It is `Closing` only if it has tunnels when it is told to stop: as long as they are
//! open, but no longer than `tunnel_drain_timeout`, it can end them itself. Then they are cut off,
//! and `stop_timeout` begins. Each slot `1..=count` is to hold one ready instance that fits the
//! target:
//!
//! * A slot with neither a starting nor a ready instance is **missing**: one is started, after the
//!   backoff of its failures. Missing slots are started side by side, and nothing is rotated before
//!   every slot is ready, so a crash in the middle of a rotation is repaired first.
//! * A slot whose ready instance does not fit is **rotated**, one at a time. Start-first: a second
//!   instance starts in the slot, and when it is ready the old one drains. In place: the old one
//!   drains and stops, which makes the slot missing.
//! * A ready instance of a target that is not reached yet **soaks** before the next thing happens,
//!   beside the old one if the rotation is start-first: the first of a new version for long, after
//!   which the version is proven, every other for a short **pause**. There is a pause, too, between
//!   the end of an old instance and the start of the next new one. So what crashes at once has
//!   replaced nothing, and those who are being served are not crowded out by processes that start
//!   and end.
//! * If an instance of an unfinished target fails to start or crashes, the target is **given up**:
//!   the good one becomes the target again, and slots that were already replaced are rotated back
//!   by the same rules. A version that has nothing good before it is not given up but tried again
//!   with backoff.
//!
//! # Invariants, held by the property tests
//! * A rotation never lowers the number of ready instances below what it was (start-first), or by
//!   more than one (in place).
//! * No instance is told to stop before it is quiescent, unless its drain time is over or it was
//!   never routed.
//! * A failed start takes no ready instance away.
//! * From every state, a world that behaves leads to the newest desired state.
//! * All of this holds, too, when the core is saved and restored at any moment, see
//!   [`SavedRollout`].

mod action;
mod desired;
mod event;
mod life;
mod reconciler;
mod saved;
#[cfg(test)]
mod tests;

pub use action::{InstanceFailure, RolloutAction};
pub use desired::{Desired, RolloutPolicy, RolloutTarget};
pub use event::RolloutEvent;
pub use life::{HeldInstance, InstanceId, LifeStage, LifeState};
pub use reconciler::Reconciler;
pub use saved::SavedRollout;
