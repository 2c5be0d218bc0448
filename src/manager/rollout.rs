//! The rollout core: decides, for one service, the next step from the actual state toward the
//! desired state.
//!
//! The core is pure: [`Reconciler::handle`] takes an event and the time, and returns actions. The
//! shell around it performs the actions and reports what happened. If anything is interrupted, the
//! next event finds the difference again and continues.
//!
//! # Theory of operation
//! A **target** is what every slot should run: a generation, which grows with every deploy and
//! restart, of a version, which is equal for generations with the same content. The **good** target
//! is the last one that has proved itself. The shell keeps its executable open, so it can always be
//! started again.
//!
//! The states of an instance are `Starting → Ready → Draining → Closing → Stopping`, and then it is
//! gone; it never moves back. An instance enters `Closing` only if it has tunnels when it is told
//! to stop: it then has up to `tunnel_drain_timeout` to close them itself. After that its tunnels
//! are cut off, and `stop_timeout` begins. Each slot `1..=count` should hold one ready instance
//! that fits the target:
//!
//! * A slot with neither a starting nor a ready instance is **missing**: an instance is started in
//!   it after the backoff of its failures. Missing slots are started in parallel, and nothing is
//!   rotated before every slot is ready, so a crash in the middle of a rotation is repaired first.
//! * A slot whose ready instance does not fit the target is **rotated**. Only one slot is rotated
//!   at a time. Start-first: a second instance starts in the slot, and when it is ready the old
//!   instance drains. In place: the old instance drains and stops, which makes the slot missing.
//! * A ready instance of a target that is not reached yet **soaks** before the rotation continues;
//!   in a start-first rotation the old instance stays beside it. The first instance of a new
//!   version soaks for long, and then the version is **proven**. Every other instance soaks for a
//!   short **pause**. The same pause follows the end of an old instance. So a version that crashes
//!   at once has replaced nothing, and processes that start and end do not slow down requests.
//!   A soak ends when its time is over and the instance has then answered one more health probe. So
//!   an instance that stops answering while it is watched replaces nothing either.
//! * If an instance of an unfinished target fails to start, crashes or becomes unhealthy, the
//!   target is **given up**: the good target becomes the target again, and slots that were already
//!   replaced are rotated back by the same rules. If there is no good target, the target is not
//!   given up but tried again with backoff.
//! * If another program takes the port of a starting instance, that says nothing about the target:
//!   another instance is started, on another port. Only the last of a few tries counts as a
//!   failure.
//! * In place, an instance that starts while no other one of the service is ready is **awaited**:
//!   it becomes ready or fails before a newer target replaces it, and then soaks, so that it
//!   answers the requests that wait. Otherwise commands that follow each other fast would leave the
//!   service without an instance for as long as they come.
//!
//! # Invariants, held by the property tests
//! * A start-first rotation never lowers the number of ready instances, and an in-place rotation
//!   lowers it by at most one.
//! * No instance is told to stop before it is quiescent, unless its drain time is over or it has
//!   never been routed.
//! * A failed start takes no ready instance away.
//! * If nothing fails any more, every state leads to the newest desired state.
//! * All of this also holds when the core is saved and restored at any moment, see
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
pub use life::{HeldInstance, InstanceId, LifeStage, LifeState, Soak};
pub use reconciler::Reconciler;
pub use saved::{FrozenRollout, SavedRollout};
