//! Who calls on D-Bus, what the caller may do, and the errors that a caller gets.
//!
//! Reading is for everyone. Root and smoothserve's own user may change everything; for others
//! polkit decides, which knows callers on the system bus only.

use std::collections::HashMap;

use zbus::message::{Flags, Header};
use zbus::{Connection, DBusError, Variant};

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

/// How the manager knows who calls.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// The user at the other end of the private socket.
    Peer(u32),
    /// The bus knows the caller.
    Bus,
}

impl Access {
    /// Refuses callers who may change nothing.
    pub(super) async fn check(
        self,
        connection: &Connection,
        header: &Header<'_>,
    ) -> Result<(), CallError> {
        let allowed = match self {
            Access::Peer(uid) => may_change(uid),
            Access::Bus => {
                let sender = header
                    .sender()
                    .ok_or_else(|| CallError::AccessDenied("the caller has no name".to_owned()))?;
                let bus = zbus::fdo::DBusProxy::new(connection).await?;
                let user = bus.get_connection_unix_user(sender.clone().into()).await;
                let user = user.map_err(|error| {
                    CallError::AccessDenied(format!("the caller is unknown: {error}"))
                })?;
                may_change(user) || polkit_allows(connection, header).await
            }
        };
        if allowed {
            return Ok(());
        }
        Err(CallError::AccessDenied(format!(
            "only root, the user of smoothserve, and on the system bus those whom polkit allows {ACTION} may change \
             anything"
        )))
    }
}

/// The action that polkit is asked about.
const ACTION: &str = "org.smoothserve1.manage-services";

/// Returns true if polkit allows the caller, by a rule or because somebody has entered a password.
async fn polkit_allows(connection: &Connection, header: &Header<'_>) -> bool {
    let Some(sender) = header.sender() else {
        return false;
    };
    let subject = (
        "system-bus-name",
        HashMap::from([("name", Variant::from(sender.as_str()))]),
    );
    let details: HashMap<&str, &str> = HashMap::new();
    let may_ask = header
        .primary()
        .flags()
        .contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let reply = connection
        .call_method(
            Some("org.freedesktop.PolicyKit1"),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &(subject, ACTION, details, u32::from(may_ask), ""),
        )
        .await;
    // Where there is no polkit, nobody is allowed anything by it.
    let Ok(reply) = reply else { return false };
    let answer: zbus::Result<(bool, bool, HashMap<String, String>)> = reply.body().deserialize();
    answer.is_ok_and(|(is_authorized, ..)| is_authorized)
}

/// Returns true if this user is root or smoothserve's own.
pub(super) fn may_change(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
