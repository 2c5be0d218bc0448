//! The user that an instance runs as.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::launch::Credentials;
use crate::patience;

/// The user that an instance runs as, with what a login of this user would set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIdentity {
    /// The user and groups to switch to, or `None` if the instance runs as the manager's own user.
    pub credentials: Option<Credentials>,
    /// The name of the user, for `USER` and `LOGNAME`.
    pub name: String,
    /// The home folder of the user, for `HOME`.
    pub home: PathBuf,
    /// The login shell of the user, for `SHELL`.
    pub shell: PathBuf,
}

/// Why the user of an instance cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No user has this name or number.
    #[error("there is no user {0:?}")]
    NoUser(String),
    /// No group has this name.
    #[error("there is no group {0:?}")]
    NoGroup(String),
    /// Only root can run a service as this user or group.
    #[error(
        "smoothserve does not run as root, so it cannot run a service as {0:?}; remove `user` and `group`"
    )]
    NotRoot(String),
    /// The system's databases cannot be read.
    #[error(transparent)]
    System(#[from] nix::Error),
}

/// The settings from which the user of an instance is determined.
#[derive(Debug, Clone, Copy)]
pub struct IdentityWish<'a> {
    /// The `user` of the service.
    pub user: Option<&'a str>,
    /// The `group` of the service.
    pub group: Option<&'a str>,
    /// The user number of the executable's owner.
    pub owner: u32,
    /// The user for services without `user` whose executable belongs to root.
    pub default_user: &'a str,
}

impl UserIdentity {
    /// Determines the user of an instance in a thread of its own: the databases may be on another
    /// machine, which need not answer.
    pub async fn ask(wish: IdentityWish<'_>) -> anyhow::Result<UserIdentity> {
        let (user, group) = (wish.user.map(str::to_owned), wish.group.map(str::to_owned));
        let (owner, default_user) = (wish.owner, wish.default_user.to_owned());
        // One user may be looked up on another machine, and the next one in a local file.
        let asked = user.clone().unwrap_or_else(|| owner.to_string());
        let subject = format!("the database of users, asked for {asked},");
        let find = move || {
            UserIdentity::find(IdentityWish {
                user: user.as_deref(),
                group: group.as_deref(),
                owner,
                default_user: &default_user,
            })
        };
        let asked = tokio::task::spawn_blocking(move || {
            patience::renew();
            patience::within(&subject, find)
        });
        Ok(asked.await???)
    }

    /// Determines the user of an instance, with the system's user and group databases.
    pub fn find(wish: IdentityWish<'_>) -> Result<UserIdentity, IdentityError> {
        let own = Uid::effective();
        let user = match chosen(wish, own.as_raw()) {
            Chosen::Named(name) => named(name)?,
            Chosen::Number(uid) => by_number(uid)?,
        };
        let gid = match wish.group {
            Some(name) => group(name)?,
            None => user.gid,
        };
        if own.is_root() {
            let groups = CString::new(user.name.as_str())
                .map_err(|_| nix::Error::EINVAL)
                .and_then(|name| getgrouplist(&name, gid))?;
            return Ok(UserIdentity {
                credentials: Some(Credentials {
                    uid: user.uid.as_raw(),
                    gid: gid.as_raw(),
                    groups: groups.into_iter().map(Gid::as_raw).collect(),
                }),
                ..UserIdentity::plain(user)
            });
        }
        if user.uid != own {
            return Err(IdentityError::NotRoot(user.name));
        }
        if wish.group.is_some() && gid != Gid::effective() {
            return Err(IdentityError::NotRoot(
                wish.group.unwrap_or_default().to_owned(),
            ));
        }
        Ok(UserIdentity::plain(user))
    }

    fn plain(user: User) -> UserIdentity {
        UserIdentity {
            credentials: None,
            name: user.name,
            home: user.dir,
            shell: user.shell,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Chosen<'a> {
    Named(&'a str),
    Number(u32),
}

/// Chooses the user. A service without `user` never runs as root.
fn chosen<'a>(wish: IdentityWish<'a>, own: u32) -> Chosen<'a> {
    match wish.user {
        Some(user) => Chosen::Named(user),
        None if own != 0 => Chosen::Number(own),
        None if wish.owner == 0 => Chosen::Named(wish.default_user),
        None => Chosen::Number(wish.owner),
    }
}

fn named(name: &str) -> Result<User, IdentityError> {
    User::from_name(name)?.ok_or_else(|| IdentityError::NoUser(name.to_owned()))
}

/// Finds the user with this number. A number may have no name, as in containers.
fn by_number(uid: u32) -> Result<User, IdentityError> {
    let uid = Uid::from_raw(uid);
    User::from_uid(uid)?.ok_or_else(|| IdentityError::NoUser(uid.to_string()))
}

fn group(name: &str) -> Result<Gid, IdentityError> {
    let group = Group::from_name(name)?.ok_or_else(|| IdentityError::NoGroup(name.to_owned()))?;
    Ok(group.gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISH: IdentityWish<'_> = IdentityWish {
        user: None,
        group: None,
        owner: 1000,
        default_user: "www-data",
    };

    #[test]
    fn without_a_user_it_is_the_owner_of_the_executable_and_never_root() {
        assert_eq!(chosen(WISH, 0), Chosen::Number(1000));
        assert_eq!(
            chosen(IdentityWish { owner: 0, ..WISH }, 0),
            Chosen::Named("www-data")
        );
        assert_eq!(
            chosen(
                IdentityWish {
                    user: Some("root"),
                    ..WISH
                },
                0
            ),
            Chosen::Named("root")
        );
        assert_eq!(chosen(WISH, 1001), Chosen::Number(1001));
    }

    #[test]
    fn an_unknown_user_is_named() {
        let wish = IdentityWish {
            user: Some("no-such-user"),
            ..WISH
        };
        assert_eq!(
            UserIdentity::find(wish).unwrap_err().to_string(),
            "there is no user \"no-such-user\""
        );
    }
}
