//! Who calls, what that one may do, and the errors that are given back.

use zbus::message::Header;
use zbus::{Connection, DBusError};

use crate::manager::status::CommandError;

/// `org.smoothserve1.Error.…`
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.smoothserve1.Error")]
pub(super) enum Error {
    #[zbus(error)]
    Bus(zbus::Error),
    NoSuchService(String),
    NoSuchJob(String),
    InvalidConfig(String),
    ShuttingDown(String),
    AccessDenied(String),
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Error {
        let message = error.to_string();
        match error {
            CommandError::NoSuchService(_) => Error::NoSuchService(message),
            CommandError::NoSuchJob(_) => Error::NoSuchJob(message),
            CommandError::InvalidConfig(_) => Error::InvalidConfig(message),
            CommandError::ShuttingDown => Error::ShuttingDown(message),
        }
    }
}

/// How it is known who calls.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// The user at the other end of the private socket.
    Peer(u32),
    /// The bus knows.
    Bus,
}

impl Access {
    /// Refuses those who may change nothing.
    pub(super) async fn check(
        self,
        connection: &Connection,
        header: &Header<'_>,
    ) -> Result<(), Error> {
        let caller = match self {
            Access::Peer(uid) => uid,
            Access::Bus => {
                let sender = header
                    .sender()
                    .ok_or_else(|| Error::AccessDenied("the caller has no name".to_owned()))?;
                let bus = zbus::fdo::DBusProxy::new(connection).await?;
                let user = bus.get_connection_unix_user(sender.clone().into()).await;
                user.map_err(|error| {
                    Error::AccessDenied(format!("the caller is unknown: {error}"))
                })?
            }
        };
        if may_change(caller) {
            return Ok(());
        }
        Err(Error::AccessDenied(
            "only root and the user of smoothserve may change anything".to_owned(),
        ))
    }
}

/// Whether this user is root or smoothserve's own.
pub(super) fn may_change(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
