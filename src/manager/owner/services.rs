//! All services, and which of them somebody has laid hands on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::manager::service::Service;

/// All services by name. To be read it is a map; whatever is changed goes through here, so that
/// what was made of a service that nobody has touched can be used again.
#[derive(Default)]
pub(super) struct Services {
    all: BTreeMap<String, Service>,
    touched: BTreeSet<String>,
}

impl Services {
    /// A service, to be changed.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Service> {
        let service = self.all.get_mut(name)?;
        self.touched.insert(name.to_owned());
        Some(service)
    }

    /// All services, to be changed.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        self.touched.extend(self.all.keys().cloned());
        self.all.values_mut()
    }

    /// Takes a service in.
    pub(super) fn insert(&mut self, name: String, service: Service) {
        self.touched.insert(name.clone());
        self.all.insert(name, service);
    }

    /// Drops a service.
    pub(super) fn remove(&mut self, name: &str) {
        self.touched.insert(name.to_owned());
        self.all.remove(name);
    }

    /// The names of the touched services that may stand elsewhere than when this was last asked.
    /// They stay touched.
    pub(super) fn take_moved(&mut self) -> Vec<String> {
        let has_moved = |name: &&String| {
            let service = self.all.get_mut(*name);
            service.is_some_and(Service::take_moved)
        };
        self.touched.iter().filter(has_moved).cloned().collect()
    }

    /// The names of the services that may be others than when this was last asked, or are no more.
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
