//! Access control on D-Bus: who calls, what the caller may do, and the errors that a call can
//! return.
//!
//! Any user may read the state. Root and smoothserve's own user may change everything. For other
//! users polkit decides, but only on the system bus, because polkit cannot identify callers
//! elsewhere. What instances have written is for those who may control the services, and for those
//! who find the same lines in the journal.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{Group, Uid, User, getgrouplist};
use zbus::message::{Flags, Header};
use zbus::{Connection, DBusError, Variant};

use super::limits::{QUESTIONS, QUESTIONS_OF_USER};
use crate::manager::handle::CommandError;

/// Why a call fails: `org.smoothserve1.Error.…` on D-Bus.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.smoothserve1.Error")]
pub(super) enum CallError {
    #[zbus(error)]
    Bus(zbus::Error),
    NoSuchService(String),
    NoSuchJob(String),
    InvalidConfig(String),
    ShuttingDown(String),
    AccessDenied(String),
}

impl From<CommandError> for CallError {
    fn from(error: CommandError) -> CallError {
        let message = error.to_string();
        match error {
            CommandError::NoSuchService(_) => CallError::NoSuchService(message),
            CommandError::NoSuchJob(_) => CallError::NoSuchJob(message),
            CommandError::InvalidConfig(_) => CallError::InvalidConfig(message),
            CommandError::ShuttingDown => CallError::ShuttingDown(message),
        }
    }
}

/// How the manager finds out which user calls.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// On the private socket: the user number of the client.
    Peer(u32),
    /// On a bus: the bus tells the user of each caller, and polkit is asked about some.
    Bus(Arc<Questions>),
}

/// The callers that wait for polkit, by their users. polkit may ask a person for a password and
/// wait as long as that takes, so strangers could have it asked without an end.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: Mutex<Vec<u32>>,
}

impl Questions {
    /// Returns a place for a question about a user, or `None` if there are too many.
    fn place(&self, uid: u32) -> Option<Question<'_>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = open.iter().filter(|other| **other == uid).count();
        if of_user >= QUESTIONS_OF_USER || open.len() >= QUESTIONS {
            return None;
        }
        open.push(uid);
        Some(Question {
            questions: self,
            uid,
        })
    }
}

/// A question about a user that polkit has not answered yet.
struct Question<'a> {
    questions: &'a Questions,
    uid: u32,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let open = &self.questions.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = open.iter().position(|uid| *uid == self.uid) {
            open.swap_remove(index);
        }
    }
}

impl Access {
    /// Makes the access over a bus.
    pub(super) fn on_bus() -> Access {
        Access::Bus(Arc::default())
    }

    /// Returns an error if the caller may not change anything.
    pub(super) async fn check(
        &self,
        connection: &Connection,
        header: &Header<'_>,
    ) -> Result<(), CallError> {
        let uid = self.caller(connection, header).await?;
        if may_change(uid) {
            return Ok(());
        }
        let _question = self.question(uid)?;
        if matches!(self, Access::Peer(_)) {
            return Err(CallError::AccessDenied(format!(
                "only root and the user of smoothserve may change anything over this socket; \
                 on the system bus, polkit decides, by the action {MANAGE}"
            )));
        }
        let verdict = ask_polkit(MANAGE, connection, header, may_ask(header)).await;
        match verdict.refusal(uid, MANAGE) {
            None => Ok(()),
            Some(refusal) => Err(CallError::AccessDenied(refusal)),
        }
    }

    /// Returns an error if the caller may not read what instances have written. `in_journal` says
    /// whether the same lines are in the journal, where members of certain groups can read them.
    pub(super) async fn check_reader(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        in_journal: bool,
    ) -> Result<(), CallError> {
        let uid = self.caller(connection, header).await?;
        if may_change(uid) {
            return Ok(());
        }
        let _question = self.question(uid)?;
        // A person who may control the services is not asked for a password.
        if (in_journal && reads_journal(uid).await)
            || self.polkit_allows(MANAGE, connection, header, false).await
            || self
                .polkit_allows(READ, connection, header, may_ask(header))
                .await
        {
            return Ok(());
        }
        Err(CallError::AccessDenied(format!(
            "only root, the user of smoothserve, those who may read the journal (group {}), and on the system bus \
             those whom polkit allows {READ} may read what instances have written",
            JOURNAL_GROUPS.join(" or ")
        )))
    }

    /// Returns the user number of the caller.
    async fn caller(&self, connection: &Connection, header: &Header<'_>) -> Result<u32, CallError> {
        match self {
            Access::Peer(uid) => Ok(*uid),
            Access::Bus(_) => {
                let sender = header
                    .sender()
                    .ok_or_else(|| CallError::AccessDenied("the caller has no name".to_owned()))?;
                let bus = zbus::fdo::DBusProxy::new(connection).await?;
                let user = bus.get_connection_unix_user(sender.clone().into()).await;
                user.map_err(|error| {
                    CallError::AccessDenied(format!("the caller is unknown: {error}"))
                })
            }
        }
    }

    /// Returns a place for a question about the caller, or an error if too many wait already.
    fn question(&self, uid: u32) -> Result<Option<Question<'_>>, CallError> {
        let Access::Bus(questions) = self else {
            return Ok(None);
        };
        let place = questions.place(uid);
        place.map(Some).ok_or_else(|| {
            CallError::AccessDenied("too many calls wait until polkit allows them".to_owned())
        })
    }

    /// Returns true if the caller is on a bus and polkit allows the action.
    async fn polkit_allows(
        &self,
        action: &str,
        connection: &Connection,
        header: &Header<'_>,
        may_ask: bool,
    ) -> bool {
        matches!(self, Access::Bus(_))
            && ask_polkit(action, connection, header, may_ask).await == Verdict::Allowed
    }
}

/// What polkit says about a caller and an action.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The caller has the right, by a rule or because a password was entered.
    Allowed,
    /// The caller has no right, also if a password were entered, or whatever was entered.
    Refused,
    /// The caller would have the right by a password, and the call does not let polkit ask for it.
    NeedsPassword,
    /// polkit cannot be asked, or does not answer.
    Unanswered(String),
}

impl Verdict {
    /// Says why a user may not do what needs this action; `None` if it is allowed.
    fn refusal(&self, uid: u32, action: &str) -> Option<String> {
        let lacks = format!("user {uid} lacks the polkit action {action}");
        match self {
            Verdict::Allowed => None,
            Verdict::Refused => Some(lacks),
            Verdict::NeedsPassword => Some(format!(
                "{lacks}, and the call does not let polkit ask for a password"
            )),
            Verdict::Unanswered(error) => Some(format!(
                "only root and the user of smoothserve may do this, because polkit does not \
                 answer ({error}), which decides about others by the action {action}"
            )),
        }
    }
}

/// The polkit action that callers need who change something.
const MANAGE: &str = "org.smoothserve1.manage-services";

/// The polkit action that callers need who read what instances have written.
const READ: &str = "org.smoothserve1.read-output";

/// The groups whose members may read the whole journal, see systemd-journald.service(8).
const JOURNAL_GROUPS: [&str; 2] = ["systemd-journal", "adm"];

/// Returns true if the user is in one of [`JOURNAL_GROUPS`]. The database of users may be on
/// another machine, so a thread of its own asks it.
async fn reads_journal(uid: u32) -> bool {
    let asked = tokio::task::spawn_blocking(move || {
        let user = User::from_uid(Uid::from_raw(uid)).ok()??;
        let groups = getgrouplist(&CString::new(user.name).ok()?, user.gid).ok()?;
        let mut readers = JOURNAL_GROUPS.iter();
        let reads = readers.any(|name| {
            let group = Group::from_name(name).ok().flatten();
            group.is_some_and(|group| groups.contains(&group.gid))
        });
        Some(reads)
    });
    asked.await.ok().flatten().unwrap_or(false)
}

/// Returns true if polkit may ask the user for a password.
fn may_ask(header: &Header<'_>) -> bool {
    let flags = header.primary().flags();
    flags.contains(Flags::ALLOW_INTERACTIVE_AUTH)
}

/// Asks polkit about the caller and an action. polkit may ask a person for a password and answers
/// then, if the call allows that.
async fn ask_polkit(
    action: &str,
    connection: &Connection,
    header: &Header<'_>,
    may_ask: bool,
) -> Verdict {
    let Some(sender) = header.sender() else {
        return Verdict::Unanswered("the caller has no name".to_owned());
    };
    let subject = (
        "system-bus-name",
        HashMap::from([("name", Variant::from(sender.as_str()))]),
    );
    let details: HashMap<&str, &str> = HashMap::new();
    let reply = connection
        .call_method(
            Some("org.freedesktop.PolicyKit1"),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &(subject, action, details, u32::from(may_ask), ""),
        )
        .await;
    let answer = reply.and_then(|reply| {
        let answer: (bool, bool, HashMap<String, String>) = reply.body().deserialize()?;
        Ok(answer)
    });
    match answer {
        Ok((true, ..)) => Verdict::Allowed,
        Ok((false, true, _)) if !may_ask => Verdict::NeedsPassword,
        Ok(_) => Verdict::Refused,
        Err(error) => Verdict::Unanswered(error.to_string()),
    }
}

/// Returns true if the user with this number is root or smoothserve's own user.
fn may_change(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_action_and_the_user() {
        let of = |verdict: Verdict| verdict.refusal(1000, MANAGE);
        assert_eq!(of(Verdict::Allowed), None);
        let lacks = "user 1000 lacks the polkit action org.smoothserve1.manage-services";
        assert_eq!(of(Verdict::Refused).as_deref(), Some(lacks));
        for verdict in [Verdict::NeedsPassword, Verdict::Unanswered("gone".into())] {
            let words = of(verdict).expect("it is refused");
            assert!(words.contains(MANAGE), "{words}");
        }
    }

    #[test]
    fn one_user_does_not_ask_polkit_without_an_end() {
        let questions = Questions::default();
        let first: Vec<_> = (0..9).filter_map(|_| questions.place(1000)).collect();
        assert_eq!(first.len(), QUESTIONS_OF_USER);
        let others: Vec<_> = (2000..3000)
            .filter_map(|uid| questions.place(uid))
            .collect();
        assert_eq!(first.len() + others.len(), QUESTIONS);
        drop(first);
        assert!(questions.place(1000).is_some());
    }
}
