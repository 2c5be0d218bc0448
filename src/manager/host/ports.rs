//! The choice of a port for each instance.
//!
//! An instance prefers the port `start_instance_port` plus its slot − 1, then any other port of the
//! service's range, then the ports above the range that no service claims. A start-first rollout
//! needs one more port than there are instances: the new process must have a port of its own, or a
//! readiness probe might reach another instance. A service without a range gets ports from a quiet
//! area, below the ports that the kernel gives to outgoing connections.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use socket2::{Domain, Socket, Type};

use crate::config::{Bind, Config};
use crate::manager::rollout::InstanceId;

/// How many ports above a range may be tried.
const BESIDE: u16 = 1000;

/// The quiet area: the ports for services without a range. The kernel gives higher ports to
/// outgoing connections, see `ip_local_port_range` in ip(7).
const QUIET: RangeInclusive<u16> = 21_000..=32_000;

/// The ports that are claimed by services or taken by instances.
#[derive(Debug, Default)]
pub struct Ports {
    /// The range of each service that claims one: the first port, and the number of ports.
    ranges: BTreeMap<String, (u16, u16)>,
    /// The owner of each claimed port: the service for a port in a range, or an empty name for a
    /// port that the proxy listens on.
    claimed: BTreeMap<u16, String>,
    taken: BTreeMap<InstanceId, u16>,
    /// Where the next search in the quiet area begins. It moves on with each search, so that a port
    /// that has just become free is not used again at once.
    next_quiet: u16,
}

impl Ports {
    /// Replaces all claims with the ports that `config` names.
    pub fn claim(&mut self, config: &Config) {
        self.ranges.clear();
        self.claimed.clear();
        for service in config.services.values() {
            if let (Bind::Port, Some(start)) =
                (service.process.bind, service.process.start_instance_port)
            {
                self.ranges
                    .insert(service.name.clone(), (start, service.instance_count));
                let range = start..start.saturating_add(service.instance_count);
                self.claimed
                    .extend(range.map(|port| (port, service.name.clone())));
            }
        }
        let listening = config.services.values().flat_map(|service| &service.listen);
        self.claimed
            .extend(listening.map(|listen| (listen.port, String::new())));
    }

    /// Chooses a port that no other service claims and that can be bound at the moment.
    pub fn take(
        &mut self,
        id: InstanceId,
        address: IpAddr,
        service: &str,
        slot: u32,
    ) -> io::Result<u16> {
        let taken: BTreeSet<u16> = self.taken.values().copied().collect();
        let candidates = self.candidates(service, slot);
        let port = candidates
            .filter(|port| !taken.contains(port))
            .find(|&port| {
                let free = is_free(SocketAddr::new(address, port));
                if !free {
                    tracing::info!(
                        service,
                        port,
                        "port is in use by another program, trying the next"
                    );
                }
                free
            })
            .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "no free port is left"))?;
        self.next_quiet = port.saturating_add(1);
        self.taken.insert(id, port);
        Ok(port)
    }

    /// Marks the port of an instance that an earlier manager has started as taken.
    pub fn take_again(&mut self, id: InstanceId, port: u16) {
        self.taken.insert(id, port);
    }

    /// Gives back the port of an instance that is gone.
    pub fn release(&mut self, id: InstanceId) {
        self.taken.remove(&id);
    }

    /// Returns all ports that an instance may use, in order of preference.
    fn candidates<'a>(&'a self, service: &'a str, slot: u32) -> Box<dyn Iterator<Item = u16> + 'a> {
        let unclaimed = move |port: &u16| self.claimed.get(port).is_none_or(|by| by == service);
        match self.ranges.get(service) {
            Some(&(start, count)) => {
                let preferred =
                    start.checked_add(slot.saturating_sub(1).try_into().unwrap_or(u16::MAX));
                let end = start.saturating_add(count);
                let range = (start..end).filter(move |&port| Some(port) != preferred);
                let beside = end..=end.saturating_add(BESIDE);
                let in_range = preferred
                    .into_iter()
                    .filter(move |&port| port < end)
                    .chain(range);
                Box::new(in_range.chain(beside).filter(unclaimed))
            }
            None => {
                let start = if QUIET.contains(&self.next_quiet) {
                    self.next_quiet
                } else {
                    first_quiet()
                };
                let around = (start..=*QUIET.end()).chain(*QUIET.start()..start);
                Box::new(around.filter(move |port| !self.claimed.contains_key(port)))
            }
        }
    }
}

/// Returns where the first search begins. The value differs between managers, so that two managers
/// on one machine do not try the same ports.
fn first_quiet() -> u16 {
    let span = u32::from(QUIET.end() - QUIET.start());
    let offset = std::process::id().wrapping_mul(0x9E37_79B9) % span;
    QUIET.start() + u16::try_from(offset).unwrap_or_default()
}

/// Returns true if a server could bind the address now. If another program takes the port first,
/// the instance fails and is started again.
fn is_free(address: SocketAddr) -> bool {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        // With SO_REUSEPORT two sockets can be bound to one port, so only listen(2) shows that it
        // is free.
        socket.listen(1)
    };
    bind().is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use proptest::prelude::*;

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn with_range(start: u16, count: u16) -> Ports {
        let mut ports = Ports::default();
        ports.ranges.insert("shop".to_owned(), (start, count));
        ports
    }

    fn first(ports: &Ports, slot: u32, count: usize) -> Vec<u16> {
        ports.candidates("shop", slot).take(count).collect()
    }

    #[test]
    fn a_slot_prefers_its_own_port_then_the_range_then_what_is_beside() {
        let mut ports = with_range(9001, 3);
        ports.claimed.insert(9001, "shop".into());
        ports.claimed.insert(9004, "other".into());
        assert_eq!(first(&ports, 2, 5), [9002, 9001, 9003, 9005, 9006]);
        assert_eq!(first(&ports, 7, 2), [9001, 9002]);
    }

    #[test]
    fn race_14_and_15_a_port_in_use_is_passed_over() {
        let stranger = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let port = stranger.local_addr().unwrap().port();
        let mut ports = with_range(port, 1);
        let given = ports.take(1, LOCALHOST, "shop", 1).unwrap();
        assert_ne!(given, port);
        let second = ports.take(2, LOCALHOST, "shop", 1).unwrap();
        assert!(
            second != port && second != given,
            "a live instance's port is not given twice"
        );
    }

    #[test]
    fn picked_ports_are_not_used_again_at_once() {
        let mut ports = Ports::default();
        let one = ports.take(1, LOCALHOST, "shop", 1).unwrap();
        ports.release(1);
        let two = ports.take(2, LOCALHOST, "shop", 1).unwrap();
        assert!(QUIET.contains(&one) && QUIET.contains(&two) && one != two);
    }

    proptest! {
        #[test]
        fn nothing_claimed_by_others_is_ever_offered(
            slot in 1u32..20,
            start: u16,
            count in 1u16..10,
            others in prop::collection::btree_set(any::<u16>(), 0..50),
            ranged: bool,
        ) {
            let mut ports = if ranged { with_range(start, count) } else { Ports::default() };
            ports.claimed.extend(others.iter().map(|&port| (port, "other".to_owned())));
            let offered: Vec<u16> = ports.candidates("shop", slot).collect();
            prop_assert!(offered.iter().all(|port| !others.contains(port)));
            let unique: BTreeSet<u16> = offered.iter().copied().collect();
            prop_assert_eq!(unique.len(), offered.len());
        }
    }
}
