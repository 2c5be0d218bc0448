//! Which services change together, if files change without a command. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Config, ServiceConfig, conflicts};

/// Returns the services that have changed together with `name`, because what one of them had or has
/// is what another one of them gets: they can be applied together only.
pub(super) fn bound_together(applied: &Config, disk: &Config, name: &str) -> BTreeSet<String> {
    let versions = |name: &str| -> Vec<&ServiceConfig> {
        let both = [applied.services.get(name), disk.services.get(name)];
        let both = both.into_iter().flatten().map(Arc::as_ref);
        both.filter(|spec| spec.enabled).collect()
    };
    let names = applied.services.keys().chain(disk.services.keys());
    let mut changed: BTreeSet<&String> = names
        .filter(|name| applied.services.get(*name) != disk.services.get(*name))
        .collect();
    let mut group = BTreeSet::new();
    let mut next = vec![name.to_owned()];
    while let Some(name) = next.pop() {
        changed.remove(&name);
        let own = versions(&name);
        let collides =
            |other: &&ServiceConfig| own.iter().any(|own| !conflicts([*own, *other]).is_empty());
        let is_bound = |other: &&&String| versions(other).iter().any(collides);
        let bound: Vec<String> = changed
            .iter()
            .filter(is_bound)
            .map(|it| (*it).clone())
            .collect();
        for name in &bound {
            changed.remove(name);
        }
        next.extend(bound);
        group.insert(name);
    }
    group
}
