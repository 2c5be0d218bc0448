//! All services, and which of them somebody has laid hands on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::service::Service;

/// By name. To be read it is a map; whatever is changed goes through here, so that what was made of a service that
/// nobody has touched can be used again.
#[derive(Default)]
pub struct Services {
    all: BTreeMap<String, Service>,
    touched: BTreeSet<String>,
}

impl Services {
    /// A service, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Service> {
        let service = self.all.get_mut(name)?;
        self.touched.insert(name.to_owned());
        Some(service)
    }

    /// All of them, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        self.touched.extend(self.all.keys().cloned());
        self.all.values_mut()
    }

    /// Takes one in.
    pub fn insert(&mut self, name: String, service: Service) {
        self.touched.insert(name.clone());
        self.all.insert(name, service);
    }

    /// Drops one.
    pub fn remove(&mut self, name: &str) {
        self.touched.insert(name.to_owned());
        self.all.remove(name);
    }

    /// The names of those that may be others than at the last question, or are no more.
    pub fn take_touched(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched)
    }
}

impl Deref for Services {
    type Target = BTreeMap<String, Service>;

    fn deref(&self) -> &BTreeMap<String, Service> {
        &self.all
    }
}
