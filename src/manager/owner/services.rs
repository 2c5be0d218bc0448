//! All services, and which of them were changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::manager::service::Service;

/// All services by name. Reading works as with a map, but every change goes through the methods
/// here, which mark the service as touched. What was built for an untouched service can be used
/// again.
#[derive(Default)]
pub(super) struct Services {
    all: BTreeMap<String, Service>,
    touched: BTreeSet<String>,
}

impl Services {
    /// Returns a service for changes, and marks it as touched.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Service> {
        let service = self.all.get_mut(name)?;
        self.touched.insert(name.to_owned());
        Some(service)
    }

    /// Returns all services for changes, and marks all of them as touched.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        self.touched.extend(self.all.keys().cloned());
        self.all.values_mut()
    }

    /// Adds a service.
    pub(super) fn insert(&mut self, name: String, service: Service) {
        self.touched.insert(name.clone());
        self.all.insert(name, service);
    }

    /// Removes a service.
    pub(super) fn remove(&mut self, name: &str) {
        self.touched.insert(name.to_owned());
        self.all.remove(name);
    }

    /// Returns the names of the touched services whose progress may have changed since the last
    /// call. These services stay touched.
    pub(super) fn take_moved(&mut self) -> Vec<String> {
        let has_moved = |name: &&String| {
            let service = self.all.get_mut(*name);
            service.is_some_and(Service::take_moved)
        };
        self.touched.iter().filter(has_moved).cloned().collect()
    }

    /// Returns the names of the services that were touched or removed since the last call.
    pub(super) fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }
}

impl Deref for Services {
    type Target = BTreeMap<String, Service>;

    fn deref(&self) -> &BTreeMap<String, Service> {
        &self.all
    }
}
