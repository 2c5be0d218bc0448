//! How sites change hands: the shell around the routes core.
//!
//! A site that changes hands stays with its owner until the new owner has arrived. Then one table
//! moves it, and marks the instances of an owner that has to go as draining. Each thread of a
//! worker takes a table over in one step, so a request meets either the old owner or the new one.
//! Requests that were routed to the old owner before are answered by it, also those that still
//! wait.

use std::collections::{BTreeMap, BTreeSet};

use super::manager::{Manager, Phase};
use super::services::Services;
use crate::manager::routes::{RouteMap, Standing};
use crate::manager::service::Service;

/// Says what the services want of the routes now, after a change of the configuration or a command.
pub(super) fn want_routes(manager: &mut Manager) {
    let routed = manager
        .services
        .values()
        .filter(|service| service.is_routed());
    let is_held = |service: &&Service| manager.held.contains(&service.spec().name);
    let (held, applied): (Vec<&Service>, Vec<&Service>) = routed.partition(is_held);
    let mut wanted = RouteMap::default();
    // What could not be applied keeps nothing from what could be.
    for service in applied.into_iter().chain(held) {
        wanted.add(service.spec());
    }
    let standing = |name: &str| standing(&manager.services, name);
    let changed = manager.routes.want(wanted, &standing);
    touch(manager, &changed);
    note_kept(manager);
}

/// Moves the sites whose new owners have arrived, and stops the services that have to go and keep
/// no site any more.
pub(super) fn move_routes(manager: &mut Manager) {
    if manager.phase != Phase::Serving {
        return;
    }
    let standing = |name: &str| standing(&manager.services, name);
    let changed = manager.routes.advance(&standing);
    if !changed.is_empty() {
        let services: Vec<&str> = changed.iter().map(String::as_str).collect();
        tracing::info!(note = services.join(", "), "sites have changed hands");
        touch(manager, &changed);
        note_kept(manager);
    }
    let leaving = manager.services.iter();
    let leaving =
        leaving.filter(|(name, service)| service.is_leaving() && !manager.routes.keeps(name));
    let leaving: Vec<String> = leaving.map(|(name, _)| name.clone()).collect();
    for name in leaving {
        if let Some(service) = manager.services.get_mut(&name) {
            service.stop(&mut manager.world);
        }
    }
}

fn standing(services: &Services, name: &str) -> Standing {
    services
        .get(name)
        .map(Service::standing)
        .unwrap_or_default()
}

/// Marks the services whose routes have changed.
fn touch(manager: &mut Manager, changed: &BTreeSet<String>) {
    for name in changed {
        manager.services.get_mut(name);
    }
}

/// Tells the services which sites they keep for others, and which services take sites over.
fn note_kept(manager: &mut Manager) {
    let mut keeps: BTreeMap<&str, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let mut awaited: BTreeSet<&str> = BTreeSet::new();
    for kept in manager.routes.kept() {
        let sites = keeps.entry(&kept.owner).or_default();
        let sites = sites.entry(kept.awaited.clone()).or_default();
        let site = kept.site.to_string();
        // A site on several ports is named once.
        if !sites.contains(&site) {
            sites.push(site);
        }
        awaited.insert(&kept.awaited);
    }
    let names: Vec<String> = manager.services.keys().cloned().collect();
    for name in names {
        let service = &manager.services[&name];
        let keeps = keeps.remove(name.as_str()).unwrap_or_default();
        let takes_over = awaited.contains(name.as_str());
        let (is_noted, is_told) = (*service.kept() == keeps, service.takes_over() == takes_over);
        if is_noted && is_told {
            continue;
        }
        if let Some(service) = manager.services.get_mut(&name) {
            if !is_noted {
                service.set_kept(keeps);
            }
            if !is_told {
                service.set_takes_over(takes_over, &mut manager.world);
            }
        }
    }
}
