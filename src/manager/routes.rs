//! The routes core: decides which service answers for which site, and from when on.
//!
//! The core is pure: it takes what the configuration wants and how services stand, and says who
//! owns each site. The shell around it publishes that, and drains services.
//!
//! # Theory of operation
//! A site is a host and a path on one [`Entrance`]. Who owns a site is state, wanted and actual,
//! like instances are. [`Ownership::want`] takes what a new configuration wants, and
//! [`Ownership::advance`] looks again when services have moved:
//!
//! * A site that nobody owns goes to the service that wants it at once: its requests wait until
//!   that service is ready.
//! * A site that no service wants any more is given up at once.
//! * A site that another service is to own from now on stays with its owner until the new owner
//!   has *arrived*: every slot has a ready instance of what the new configuration wants. All sites
//!   that a service has waited for move at the same moment, so one table moves them.
//! * An owner that has no ready instance when the configuration changes keeps nothing, because it
//!   answers nothing. An owner whose only instance is just being replaced in place is no such: its
//!   requests wait for a moment. An owner that loses its last ready instance later keeps its sites
//!   until the new owner has any instance that is ready.
//! * A site whose address changes, such as from `127.0.0.1:80` to `[::]:80`, is owned at the new
//!   address by whoever owned it at the old one.
//!
//! A service that should not run any more may drain once it keeps nothing. A new owner that fails
//! changes nothing: its sites stay where they are.
//!
//! A request that one service answers may be for a site that the service names only by a wildcard
//! or a shorter path. So the core compares what is answered, and not what is written in the files:
//! a new service for `shop.example/api` gets its requests when it has arrived, and until then the
//! service for `shop.example` answers them as before. `map` explains how.
//!
//! # Invariant, held by the property tests
//! A site that was answered before a change, and is configured after it, is answered at every
//! moment between, by a ready instance of an owner that some accepted configuration has named.

mod map;
mod ownership;
#[cfg(test)]
mod tests;

pub use map::{Entrance, RouteMap};
pub use ownership::{Ownership, SavedOwnership, Standing};
