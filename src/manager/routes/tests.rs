use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::map::{SiteOwner, answering};
use super::*;
use crate::config::{Listen, Site};

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];

/// The hosts and paths of sites, and of requests: requests have those of the first four hosts.
const HOSTS: [&str; 7] = [
    "x.example",
    "y.x.example",
    "z.example",
    "example",
    "*.example",
    "*.x.example",
    "_",
];
const PATHS: [&str; 5] = ["/", "/p", "/p/q", "/p/q/r", "/px"];

fn site(text: &str) -> Site {
    Site::parse(text).unwrap()
}

fn entrance(tls: bool) -> Entrance {
    Entrance {
        listen: Listen {
            address: None,
            port: 80,
        },
        tls,
        proxy_protocol: false,
    }
}

fn map(sites: &[(&str, &str)]) -> RouteMap {
    let mut map = RouteMap::default();
    for (at, service) in sites {
        let owner = SiteOwner {
            service: (*service).to_owned(),
            strip: 0,
        };
        map.insert(entrance(false), site(at), owner);
    }
    map
}

/// How services stand.
#[derive(Debug, Clone, Default)]
struct Standings(BTreeMap<String, Standing>);

impl Standings {
    fn of(services: &[(&str, Standing)]) -> Standings {
        let services = services.iter();
        Standings(
            services
                .map(|(name, it)| ((*name).to_owned(), *it))
                .collect(),
        )
    }

    fn set(&mut self, service: &str, standing: Standing) {
        self.0.insert(service.to_owned(), standing);
    }

    fn get(&self, service: &str) -> Standing {
        self.0.get(service).copied().unwrap_or_default()
    }
}

const ARRIVED: Standing = Standing {
    running: true,
    ready: true,
    arrived: true,
};
const STARTING: Standing = Standing {
    running: true,
    ready: false,
    arrived: false,
};
const ROLLING: Standing = Standing {
    running: true,
    ready: true,
    arrived: false,
};

/// The owners, and how services stand.
#[derive(Default)]
struct Scene {
    owners: Ownership,
    standings: Standings,
}

impl Scene {
    fn want(&mut self, sites: &[(&str, &str)]) -> BTreeSet<String> {
        let standings = &self.standings;
        self.owners.want(map(sites), &|name| standings.get(name))
    }

    fn stands(&mut self, service: &str, standing: Standing) -> BTreeSet<String> {
        self.standings.set(service, standing);
        let standings = &self.standings;
        self.owners.advance(&|name| standings.get(name))
    }

    fn owner(&self, at: &str) -> Option<String> {
        owner(&self.owners, &site(at))
    }

    fn kept(&self) -> Vec<String> {
        let kept = self.owners.kept().iter();
        kept.map(|kept| format!("{} keeps {} until {}", kept.owner, kept.site, kept.awaited))
            .collect()
    }
}

fn owner(owners: &Ownership, at: &Site) -> Option<String> {
    let sites = SERVICES.iter().flat_map(|name| {
        let owned = owners.of(name).iter();
        owned.map(|owned| (owned.site.clone(), (*name).to_owned()))
    });
    let sites: BTreeMap<Site, String> = sites.collect();
    answering(&sites, at).cloned()
}

#[test]
fn a_renamed_service_keeps_its_site_until_the_new_one_has_arrived() {
    let mut scene = Scene {
        standings: Standings::of(&[("a", ARRIVED), ("b", STARTING)]),
        ..Scene::default()
    };
    scene.want(&[("x.example", "a")]);
    assert_eq!(scene.want(&[("x.example", "b")]), BTreeSet::new());
    assert_eq!(scene.kept(), ["a keeps x.example until b"]);
    assert!(scene.owners.keeps("a"));
    scene.stands("b", ROLLING);
    assert_eq!(scene.owner("x.example").as_deref(), Some("a"));
    let moved = scene.stands("b", ARRIVED);
    assert_eq!(moved, ["a", "b"].map(str::to_owned).into());
    assert_eq!(scene.owner("x.example").as_deref(), Some("b"));
    assert!(!scene.owners.keeps("a"));
}

#[test]
fn a_service_that_answers_nothing_keeps_nothing() {
    let mut scene = Scene::default();
    scene.want(&[("x.example", "a")]);
    scene.want(&[("x.example", "b")]);
    assert_eq!(scene.owner("x.example").as_deref(), Some("b"));
}

#[test]
fn an_owner_that_is_stopped_gives_its_sites_up_and_one_that_crashes_only_to_who_is_ready() {
    for (standing, next, expected) in [
        (Standing::default(), STARTING, "b"),
        (STARTING, STARTING, "a"),
        (STARTING, ROLLING, "b"),
    ] {
        let mut scene = Scene {
            standings: Standings::of(&[("a", ARRIVED), ("b", STARTING)]),
            ..Scene::default()
        };
        scene.want(&[("x.example", "a")]);
        scene.want(&[("x.example", "b")]);
        scene.stands("b", next);
        scene.stands("a", standing);
        assert_eq!(scene.owner("x.example").as_deref(), Some(expected));
    }
}

#[test]
fn a_site_that_nobody_wants_is_given_up_at_once() {
    let mut scene = Scene {
        standings: Standings::of(&[("a", ARRIVED)]),
        ..Scene::default()
    };
    scene.want(&[("x.example", "a"), ("z.example", "a")]);
    scene.want(&[("z.example", "a")]);
    assert_eq!(scene.owner("x.example"), None);
    assert_eq!(scene.owner("z.example").as_deref(), Some("a"));
}

#[test]
fn a_path_of_a_site_moves_when_its_new_owner_has_arrived_and_back_at_once() {
    let mut scene = Scene {
        standings: Standings::of(&[("a", ARRIVED), ("b", STARTING)]),
        ..Scene::default()
    };
    scene.want(&[("x.example", "a")]);
    scene.want(&[("x.example", "a"), ("x.example/p", "b")]);
    assert_eq!(scene.owner("x.example/p/q").as_deref(), Some("a"));
    assert_eq!(scene.kept(), ["a keeps x.example/p until b"]);
    scene.stands("b", ARRIVED);
    assert_eq!(scene.owner("x.example/p/q").as_deref(), Some("b"));
    scene.want(&[("x.example", "a")]);
    assert_eq!(scene.owner("x.example/p/q").as_deref(), Some("a"));
}

#[test]
fn a_wildcard_that_moves_in_parts_stays_whole() {
    let mut scene = Scene {
        standings: Standings::of(&[("a", ARRIVED), ("b", ARRIVED), ("c", STARTING)]),
        ..Scene::default()
    };
    scene.want(&[("_", "a")]);
    scene.want(&[("_", "b"), ("x.example", "c")]);
    assert_eq!(scene.owner("z.example").as_deref(), Some("b"));
    assert_eq!(scene.owner("x.example/p").as_deref(), Some("a"));
    scene.stands("c", ARRIVED);
    assert_eq!(scene.owner("x.example/p").as_deref(), Some("c"));
}

#[test]
fn a_site_whose_address_changes_with_its_owner_stays_with_the_old_one_until_the_new_one_has_arrived()
 {
    let at = |address: Option<&str>, owners: &[(&str, &str)]| {
        let mut map = RouteMap::default();
        for (host, service) in owners {
            let owner = SiteOwner {
                service: (*service).to_owned(),
                strip: 0,
            };
            let listen = Listen {
                address: address.map(|address| address.parse().unwrap()),
                port: 80,
            };
            let entrance = Entrance {
                listen,
                ..entrance(false)
            };
            map.insert(entrance, site(host), owner);
        }
        map
    };
    for (old, new) in [
        (Some("127.0.0.1"), None),
        (None, Some("127.0.0.1")),
        (Some("0.0.0.0"), Some("127.0.0.1")),
    ] {
        let mut scene = Scene {
            standings: Standings::of(&[("a", ARRIVED), ("b", STARTING)]),
            ..Scene::default()
        };
        let want = |scene: &mut Scene, wanted| {
            let standings = scene.standings.clone();
            scene.owners.want(wanted, &|name| standings.get(name))
        };
        want(&mut scene, at(old, &[("x.example", "a")]));
        want(&mut scene, at(new, &[("x.example", "b")]));
        assert_eq!(scene.kept(), ["a keeps x.example until b"]);
        let entrances: Vec<_> = scene.owners.of("a").iter().collect();
        assert_eq!(entrances.len(), 1, "the old address is given up");
        let address = new.map(|address| address.parse().unwrap());
        assert_eq!(entrances[0].entrance.listen.address, address);
        scene.stands("b", ARRIVED);
        assert_eq!(scene.owner("x.example").as_deref(), Some("b"));
    }
    // Another address has other clients.
    let mut scene = Scene {
        standings: Standings::of(&[("a", ARRIVED), ("b", STARTING)]),
        ..Scene::default()
    };
    let standings = scene.standings.clone();
    for (address, owner) in [("127.0.0.1", "a"), ("127.0.0.2", "b")] {
        let wanted = at(Some(address), &[("x.example", owner)]);
        scene.owners.want(wanted, &|name| standings.get(name));
    }
    assert_eq!(scene.kept(), [""; 0]);
}

#[test]
fn a_port_that_gets_tls_has_other_sites() {
    let mut scene = Scene {
        standings: Standings::of(&[("a", ARRIVED)]),
        ..Scene::default()
    };
    scene.want(&[("x.example", "a")]);
    let mut wanted = RouteMap::default();
    let owner = SiteOwner {
        service: "b".to_owned(),
        strip: 0,
    };
    wanted.insert(entrance(true), site("x.example"), owner);
    let standings = scene.standings.clone();
    scene.owners.want(wanted, &|name| standings.get(name));
    assert_eq!(scene.owners.of("a"), []);
    assert_eq!(scene.owners.of("b").len(), 1);
    assert_eq!(scene.kept(), Vec::<String>::new());
}

/// Something that happens to smoothserve.
#[derive(Debug, Clone)]
enum Step {
    /// A configuration is applied, which gives these sites to these services. Services of which
    /// `redeployed` is true get new instances.
    Reload(Vec<(usize, usize, usize)>, Vec<bool>),
    /// A service has arrived.
    Arrive(usize),
    /// Some instances of a service are ready.
    Begin(usize),
    /// A service that answers nothing loses its instances, and tries again.
    Fail(usize),
    /// A command stops a service that answers nothing.
    Stop(usize),
    /// Another manager continues.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let services = 0..SERVICES.len();
    let sites = (0..HOSTS.len(), 0..PATHS.len(), services.clone());
    prop_oneof![
        3 => (prop::collection::vec(sites, 0..12), prop::collection::vec(any::<bool>(), 4))
            .prop_map(|(sites, redeployed)| Step::Reload(sites, redeployed)),
        6 => services.clone().prop_map(Step::Arrive),
        2 => services.clone().prop_map(Step::Begin),
        2 => services.clone().prop_map(Step::Fail),
        1 => services.prop_map(Step::Stop),
        1 => Just(Step::Restart),
    ]
}

/// The whole of smoothserve, as far as sites are concerned.
#[derive(Default)]
struct Model {
    scene: Scene,
    wanted: RouteMap,
    /// For each request that must be answered at every moment: who may answer it.
    promised: BTreeMap<Site, BTreeSet<String>>,
}

fn requests() -> impl Iterator<Item = Site> {
    let hosts = HOSTS[..4].iter();
    hosts.flat_map(|host| PATHS.iter().map(move |path| site(&format!("{host}{path}"))))
}

impl Model {
    fn take(&mut self, step: &Step) {
        let standing = |model: &Model, name: &str| model.scene.standings.get(name);
        match step {
            Step::Reload(sites, redeployed) => self.reload(sites, redeployed),
            Step::Arrive(index) => {
                let name = SERVICES[*index];
                if standing(self, name).running {
                    self.scene.stands(name, ARRIVED);
                }
            }
            Step::Begin(index) => {
                let name = SERVICES[*index];
                if standing(self, name).running && !standing(self, name).arrived {
                    self.scene.stands(name, ROLLING);
                }
            }
            Step::Fail(index) | Step::Stop(index) => {
                let name = SERVICES[*index];
                if self.scene.owners.of(name).is_empty() {
                    let running = standing(self, name).running && matches!(step, Step::Fail(_));
                    self.scene.stands(
                        name,
                        Standing {
                            running,
                            ..Standing::default()
                        },
                    );
                }
            }
            Step::Restart => {
                self.scene.owners = Ownership::restore(self.scene.owners.save());
                self.want();
            }
        }
        self.drain();
        self.check();
    }

    fn reload(&mut self, sites: &[(usize, usize, usize)], redeployed: &[bool]) {
        let answered: Vec<(Site, String)> = requests()
            .filter_map(|request| {
                let owner = owner(&self.scene.owners, &request)?;
                let ready = self.scene.standings.get(&owner).ready;
                ready.then_some((request, owner))
            })
            .collect();
        let named: Vec<(String, &str)> = sites
            .iter()
            .map(|&(host, path, service)| {
                (format!("{}{}", HOSTS[host], PATHS[path]), SERVICES[service])
            })
            .collect();
        let named: Vec<(&str, &str)> = named.iter().map(|(at, name)| (&**at, *name)).collect();
        self.wanted = map(&named);
        for (index, name) in SERVICES.iter().enumerate() {
            let wanted = named.iter().any(|(_, service)| service == name);
            let now = self.scene.standings.get(name);
            let then = match (wanted, now.running) {
                (true, false) => STARTING,
                (true, true) if redeployed[index] => Standing {
                    arrived: false,
                    ..now
                },
                _ => now,
            };
            self.scene.standings.set(name, then);
        }
        self.want();
        let wanted = self.wanted.before(&entrance(false));
        let promised = answered.into_iter().filter_map(|(request, owner)| {
            let next = answering(&wanted, &request)?;
            let mut may = self.promised.get(&request).cloned().unwrap_or_default();
            may.extend([owner, next.service.clone()]);
            Some((request, may))
        });
        self.promised = promised.collect();
    }

    fn want(&mut self) {
        let standings = &self.scene.standings;
        let wanted = self.wanted.clone();
        self.scene.owners.want(wanted, &|name| standings.get(name));
    }

    /// Drains the services that should not run and keep nothing.
    fn drain(&mut self) {
        for name in SERVICES {
            let sites = self.wanted.before(&entrance(false));
            let wanted = sites.values().any(|owner| owner.service == name);
            if !wanted && !self.scene.owners.keeps(name) {
                assert_eq!(self.scene.owners.of(name), [], "{name} drains with sites");
                self.scene.standings.set(name, Standing::default());
            }
        }
    }

    fn check(&self) {
        for (request, may) in &self.promised {
            let owner = owner(&self.scene.owners, request);
            let owner = owner.unwrap_or_else(|| panic!("{request} has no owner"));
            assert!(may.contains(&owner), "{request} is answered by {owner}");
            let standing = self.scene.standings.get(&owner);
            assert!(
                standing.ready,
                "{request} is answered by {owner}: {standing:?}"
            );
        }
        for request in requests() {
            let sites = self.wanted.before(&entrance(false));
            let wanted = answering(&sites, &request);
            let actual = owner(&self.scene.owners, &request);
            assert_eq!(wanted.is_some(), actual.is_some(), "{request}");
        }
        for kept in self.scene.owners.kept() {
            assert_ne!(kept.owner, kept.awaited);
            let actual = owner(&self.scene.owners, &kept.site);
            assert_eq!(actual.as_ref(), Some(&kept.owner), "{kept:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_was_answered_and_is_configured_is_answered_at_every_moment(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut model = Model::default();
        for step in &steps {
            model.take(step);
        }
        // When all have arrived, the actual state is the wanted one, name by name.
        for (index, name) in SERVICES.iter().enumerate() {
            if model.scene.standings.get(name).running {
                model.take(&Step::Arrive(index));
            } else {
                model.scene.stands(name, ARRIVED);
            }
        }
        prop_assert_eq!(model.scene.owners.kept(), &[]);
        let saved = Ownership::restore(model.scene.owners.save());
        let mut wanted = Ownership::default();
        wanted.want(model.wanted.clone(), &|_| ARRIVED);
        for name in SERVICES {
            prop_assert_eq!(saved.of(name), wanted.of(name));
        }
    }
}
