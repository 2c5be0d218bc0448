//! The owners of all sites, wanted and actual.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::map::{Entrance, RouteMap, SiteMap, SiteOwner, answering, points};
use crate::config::Site;

/// How a service stands, as far as it matters for sites that change hands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// True: the service is kept running, and not told to stop.
    pub running: bool,
    /// True: at least one instance gets requests, or requests wait for a moment only, because one
    /// is just being replaced in place.
    pub ready: bool,
    /// True: every slot has a ready instance of what the configuration wants, and none is watched
    /// any more.
    pub arrived: bool,
}

/// A site that stays with its owner until the service that should own it has arrived.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptSite {
    /// Where requests for the site come in.
    pub entrance: Entrance,
    /// The host and the path.
    pub site: Site,
    /// The name of the service that answers.
    pub owner: String,
    /// The name of the service that is to answer.
    pub awaited: String,
}

/// A site of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnedSite {
    /// Where requests for the site come in.
    pub entrance: Entrance,
    /// The host and the path.
    pub site: Site,
    /// How many bytes of the path, from its beginning, instances do not get.
    pub strip: usize,
}

/// The owners of all sites, wanted and actual.
#[derive(Debug, Default)]
pub struct Ownership {
    wanted: RouteMap,
    actual: RouteMap,
    /// The sites that the actual owners have by name, by service.
    owned: BTreeMap<String, Vec<OwnedSite>>,
    kept: Vec<KeptSite>,
    /// Who keeps anything for whom.
    pairs: BTreeSet<(String, String)>,
}

/// The actual owners of all sites, as they are saved for the next manager.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedOwnership(Vec<(Entrance, Site, SiteOwner)>);

/// Decides whether a site goes from an owner that stands like this to one that stands like that.
type Rule = fn(Standing, Standing) -> bool;

impl Ownership {
    /// Takes what a new configuration wants. Returns the services whose sites have changed.
    pub fn want(
        &mut self,
        wanted: RouteMap,
        standing: &dyn Fn(&str) -> Standing,
    ) -> BTreeSet<String> {
        if self.wanted == wanted {
            return self.advance(standing);
        }
        self.wanted = wanted;
        self.decide(standing, |owner, next| next.arrived || !owner.ready)
    }

    /// Moves the sites whose new owners have arrived. Returns the services whose sites have
    /// changed.
    pub fn advance(&mut self, standing: &dyn Fn(&str) -> Standing) -> BTreeSet<String> {
        let moves: Rule =
            |owner, next| next.arrived || !owner.running || (!owner.ready && next.ready);
        let mut pairs = self.pairs.iter();
        // Nothing else can have changed since the last decision.
        match pairs.any(|(owner, awaited)| moves(standing(owner), standing(awaited))) {
            true => self.decide(standing, moves),
            false => BTreeSet::new(),
        }
    }

    /// Returns the sites that a service owns. All their requests go to it, except those for more
    /// specific sites of others.
    pub fn of(&self, service: &str) -> &[OwnedSite] {
        self.owned.get(service).map_or(&[], Vec::as_slice)
    }

    /// Returns true if an entrance is in use: the configuration wants sites there.
    pub fn has_entrance(&self, entrance: &Entrance) -> bool {
        self.actual.has(entrance)
    }

    /// Returns the sites that stay with their owners until others have arrived.
    pub fn kept(&self) -> &[KeptSite] {
        &self.kept
    }

    /// Returns true if a service keeps sites for others. It must not drain then.
    pub fn keeps(&self, service: &str) -> bool {
        self.pairs.iter().any(|(owner, _)| owner == service)
    }

    /// Returns the state that the next manager needs.
    pub fn save(&self) -> SavedOwnership {
        let sites = self.actual.iter().flat_map(|(entrance, sites)| {
            let sites = sites.iter();
            sites.map(move |(site, owner)| (entrance.clone(), site.clone(), owner.clone()))
        });
        SavedOwnership(sites.collect())
    }

    /// Continues from a saved state. What is wanted has to be said by [`Ownership::want`].
    pub fn restore(saved: SavedOwnership) -> Ownership {
        let mut actual = RouteMap::default();
        for (entrance, site, owner) in saved.0 {
            actual.insert(entrance, site, owner);
        }
        let owned = owned(&actual);
        Ownership {
            actual,
            owned,
            ..Ownership::default()
        }
    }

    fn decide(&mut self, standing: &dyn Fn(&str) -> Standing, moves: Rule) -> BTreeSet<String> {
        let mut actual = RouteMap::default();
        self.kept.clear();
        for (entrance, wanted) in self.wanted.iter() {
            let before = &*self.actual.before(entrance);
            let mut sites = SiteMap::new();
            let mut kept = BTreeMap::new();
            if before == wanted {
                sites.clone_from(wanted);
            } else {
                for point in points(before, wanted) {
                    // What nobody wants is wanted by nobody in all its parts.
                    let Some(next) = answering(wanted, &point) else {
                        continue;
                    };
                    let owner = answering(before, &point).filter(|owner| {
                        owner.service != next.service
                            && !moves(standing(&owner.service), standing(&next.service))
                    });
                    if let Some(owner) = owner {
                        let pair = (&owner.service, &next.service);
                        if answering(&kept, &point) != Some(&pair) {
                            kept.insert(point.clone(), pair);
                        }
                    }
                    let owner = owner.unwrap_or(next);
                    let is_named = owner == next && wanted.contains_key(&point);
                    if is_named || answering(&sites, &point) != Some(owner) {
                        sites.insert(point, owner.clone());
                    }
                }
            }
            self.kept
                .extend(kept.into_iter().map(|(site, (owner, awaited))| KeptSite {
                    entrance: entrance.clone(),
                    site,
                    owner: owner.clone(),
                    awaited: awaited.clone(),
                }));
            actual.set(entrance.clone(), sites);
        }
        let pairs = self.kept.iter();
        let pairs = pairs.map(|kept| (kept.owner.clone(), kept.awaited.clone()));
        self.pairs = pairs.collect();
        self.actual = actual;
        let before = std::mem::replace(&mut self.owned, owned(&self.actual));
        let names = before.keys().chain(self.owned.keys());
        let changed = names.filter(|name| before.get(*name) != self.owned.get(*name));
        changed.cloned().collect()
    }
}

fn owned(actual: &RouteMap) -> BTreeMap<String, Vec<OwnedSite>> {
    let mut owned: BTreeMap<String, Vec<OwnedSite>> = BTreeMap::new();
    for (entrance, sites) in actual.iter() {
        for (site, owner) in sites {
            let sites = owned.entry(owner.service.clone()).or_default();
            sites.push(OwnedSite {
                entrance: entrance.clone(),
                site: site.clone(),
                strip: owner.strip,
            });
        }
    }
    owned
}
