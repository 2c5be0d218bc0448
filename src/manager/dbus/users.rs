//! The users of the private socket: how many connections and calls each user may have.
//!
//! Root and the manager's own user have places of their own, so nobody can keep them out.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{MASTER, OTHERS, Share};

/// All users with connections, in groups that have places apart from each other.
#[derive(Debug)]
pub(super) struct Users {
    own: u32,
    root: Group,
    owner: Group,
    others: Group,
}

/// The place of a connection, which is free again when this value is dropped.
#[derive(Debug)]
pub(super) struct ClientPlace {
    _connections: [OwnedSemaphorePermit; 2],
    user: Arc<User>,
    calls: Arc<Semaphore>,
}

impl ClientPlace {
    /// Returns where the calls on this connection get their places: those of the user, and those of
    /// the group.
    pub(super) fn calls(&self) -> [Arc<Semaphore>; 2] {
        [self.user.calls.clone(), self.calls.clone()]
    }
}

impl Users {
    /// Makes the places of a manager that runs as user `own`.
    pub(super) fn new(own: u32) -> Users {
        Users {
            own,
            root: Group::new(MASTER),
            owner: Group::new(MASTER),
            others: Group::new(OTHERS),
        }
    }

    /// Returns a place for a connection of user `uid`, or `None` if the user has too many already.
    pub(super) fn place(&mut self, uid: u32) -> Option<ClientPlace> {
        let group = match uid {
            0 => &mut self.root,
            uid if uid == self.own => &mut self.owner,
            _ => &mut self.others,
        };
        group.place(uid)
    }
}

#[derive(Debug)]
struct Group {
    share: Share,
    connections: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    /// The users with connections, and some who had one.
    users: BTreeMap<u32, Weak<User>>,
}

#[derive(Debug)]
struct User {
    connections: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

impl Group {
    fn new(share: Share) -> Group {
        Group {
            share,
            connections: Arc::new(Semaphore::new(share.connections)),
            calls: Arc::new(Semaphore::new(share.calls)),
            users: BTreeMap::new(),
        }
    }

    fn place(&mut self, uid: u32) -> Option<ClientPlace> {
        let all = self.connections.clone().try_acquire_owned().ok()?;
        let user = match self.users.get(&uid).and_then(Weak::upgrade) {
            Some(user) => user,
            None => {
                self.users.retain(|_, user| user.strong_count() > 0);
                let user = Arc::new(User {
                    connections: Arc::new(Semaphore::new(self.share.connections_of_user)),
                    calls: Arc::new(Semaphore::new(self.share.calls_of_user)),
                });
                self.users.insert(uid, Arc::downgrade(&user));
                user
            }
        };
        let own = user.connections.clone().try_acquire_owned().ok()?;
        Some(ClientPlace {
            _connections: [all, own],
            user,
            calls: self.calls.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_keeps_others_out_and_strangers_never_root() {
        let mut users = Users::new(999);
        let mut take = |uid: u32, most: usize| {
            let places = std::iter::from_fn(|| users.place(uid));
            places.take(most).collect::<Vec<_>>()
        };
        let one = take(1000, 1000);
        assert_eq!(one.len(), OTHERS.connections_of_user);
        let more: Vec<_> = (1001..2000).flat_map(|uid| take(uid, 1000)).collect();
        assert_eq!(one.len() + more.len(), OTHERS.connections);
        assert_eq!(take(0, 1000).len(), MASTER.connections, "root");
        assert_eq!(take(999, 1000).len(), MASTER.connections, "the own user");
        drop(one);
        assert_eq!(take(3000, 1000).len(), OTHERS.connections_of_user);
    }

    #[test]
    fn users_who_have_gone_are_forgotten() {
        let mut users = Users::new(0);
        for uid in 1..10_000 {
            assert!(users.place(uid).is_some());
        }
        assert_eq!(users.others.users.len(), 1);
    }
}
