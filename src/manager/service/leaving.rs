//! How a service goes: it is removed, or should not run any more, but may have to keep sites for
//! others until they are ready to take them over.

use std::collections::BTreeMap;

use super::service::Service;
use crate::manager::rollout::{Desired, HeldInstance, RolloutEvent};
use crate::manager::routes::Standing;
use crate::manager::world::World;

impl Service {
    /// Returns true if the service was removed and nothing of it is left.
    pub fn is_gone(&self) -> bool {
        // An owner that keeps a site comes back after a crash.
        self.removed && !self.leaving && self.instances.is_empty()
    }

    /// Returns true if the service is no longer configured.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Returns true if the service should not run any more, and runs on for the sites that it
    /// keeps.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Returns true if people should see the service: it is configured, or still answers requests.
    pub fn is_shown(&self) -> bool {
        !self.removed || self.leaving
    }

    /// Takes in that the service is no longer configured. Its instances run on until
    /// [`Service::stop`] is called, because sites may have to stay with it for a while.
    pub fn remove(&mut self) {
        self.removed = true;
        self.leaving = self.core.desired().running;
        self.moved = true;
    }

    /// Takes in which sites the service keeps until others have arrived, by the names of those.
    pub fn set_kept(&mut self, keeps: BTreeMap<String, Vec<String>>) {
        self.keeps = keeps;
        self.moved = true;
    }

    /// Returns the sites that the service keeps until others have arrived, by the names of those.
    pub fn kept(&self) -> &BTreeMap<String, Vec<String>> {
        &self.keeps
    }

    /// Returns true if the service is to take over sites that another one serves.
    pub fn takes_over(&self) -> bool {
        self.core.desired().takes_over
    }

    /// Takes in whether the service is to take over sites that another one serves.
    pub fn set_takes_over(&mut self, takes_over: bool, world: &mut World) {
        let wanted = Desired {
            takes_over,
            ..self.core.desired().clone()
        };
        self.step(RolloutEvent::Desire(wanted), world);
    }

    /// Returns true if the service should have its sites: it is enabled or should run. Requests to
    /// a stopped service get an answer that says so.
    pub fn is_routed(&self) -> bool {
        !self.removed && (self.spec.enabled || self.is_wanted())
    }

    /// Returns how the service stands, as far as it matters for sites that change hands.
    pub fn standing(&self) -> Standing {
        let mut instances = self.core.instances().iter();
        Standing {
            running: self.is_running(),
            ready: instances.any(HeldInstance::is_ready) || self.core.is_replacing_in_place(),
            arrived: self.is_wanted() && self.core.arrived(),
        }
    }
}
