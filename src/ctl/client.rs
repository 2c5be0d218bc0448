//! The connection to smoothserve.

use std::os::unix::net::UnixStream;
use std::path::Path;

use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::{
    Connection, DBusError, DeserializeDict, MatchRule, MessageStream, OwnedObjectPath, Type,
};

use super::Failed;
use crate::cli::{RunDir, exit};
use crate::manager::dbus::{Bus, NAME};
use crate::manager::run_dir;
use crate::manager::status::{JobStatus, Snapshot};

const PATH: &str = "/org/smoothserve1";
const MANAGER: &str = "org.smoothserve1.Manager";
const JOB: &str = "org.smoothserve1.Job";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// An open connection.
pub(super) struct Client {
    connection: Connection,
    /// On a bus, whom to ask; on the private socket there is nobody else.
    destination: Option<&'static str>,
}

impl Client {
    /// Connects to the private socket, or to a bus if one is asked for. A user who runs no smoothserve of his own means
    /// the system's, which is asked on the bus so that polkit knows who asks.
    pub(super) async fn connect(run_dir: &RunDir, bus: Bus) -> Result<Client, Failed> {
        match bus {
            Bus::System => Client::on(Builder::system()).await,
            Bus::Session => Client::on(Builder::session()).await,
            Bus::Auto | Bus::None => {
                let own = Client::on_socket(&run_dir.path().join("bus")).await;
                if own.is_err()
                    && means_any(run_dir)
                    && bus == Bus::Auto
                    && let Ok(client) = Client::on(Builder::system()).await
                    && client.dump().await.is_ok()
                {
                    return Ok(client);
                }
                own
            }
        }
    }

    /// Connects to a smoothserve that runs. [`Client::connect`] would have systemd start one that does not.
    pub(super) async fn connect_to_running(run_dir: &RunDir, bus: Bus) -> Option<Client> {
        let run_path = run_dir.path();
        let client = match bus {
            Bus::Auto | Bus::None if run_dir::is_taken(&run_path) => {
                return Client::on_socket(&run_path.join("bus")).await.ok();
            }
            Bus::Auto if means_any(run_dir) => Client::on(Builder::system()).await,
            Bus::Auto | Bus::None => return None,
            Bus::System => Client::on(Builder::system()).await,
            Bus::Session => Client::on(Builder::session()).await,
        };
        let client = client.ok()?;
        let broker = DBusProxy::new(&client.connection).await.ok()?;
        let name = NAME.try_into().expect("it is a name");
        broker.name_has_owner(name).await.ok()?.then_some(client)
    }

    async fn on_socket(socket: &Path) -> Result<Client, Failed> {
        let absent = |error: &dyn std::fmt::Display| {
            let message = format!(
                "smoothserve is not running, or runs elsewhere ({}: {error})",
                socket.display()
            );
            Failed::new(exit::UNAVAILABLE, message)
        };
        let stream = UnixStream::connect(socket).map_err(|error| absent(&error))?;
        let connection = Builder::unix_stream(stream).p2p().build().await;
        Ok(Client {
            connection: connection.map_err(|error| absent(&error))?,
            destination: None,
        })
    }

    async fn on(bus: Builder<'_>) -> Result<Client, Failed> {
        let connection = bus.build().await;
        let connection = connection.map_err(|error| {
            Failed::new(exit::UNAVAILABLE, format!("cannot reach the bus: {error}"))
        })?;
        Ok(Client {
            connection,
            destination: Some(NAME),
        })
    }

    /// The whole state, as it came and as it is understood.
    pub(super) async fn dump(&self) -> Result<(String, Snapshot), Failed> {
        let reply = self.call(PATH, MANAGER, "Dump", &()).await?;
        let json: String = reply
            .body()
            .deserialize()
            .map_err(|error| misunderstood(&error))?;
        let snapshot = serde_json::from_str(&json).map_err(|error| misunderstood(&error))?;
        Ok((json, snapshot))
    }

    /// How a job stands.
    pub(super) async fn job(&self, path: &OwnedObjectPath) -> Result<JobStatus, Failed> {
        let reply = self.call(path, PROPERTIES, "GetAll", &(JOB,)).await?;
        let job = reply.body().deserialize::<JobProperties>();
        let job = job.map_err(|error| misunderstood(&error))?;
        job.try_into()
            .map_err(|error: serde_json::Error| misunderstood(&error))
    }

    /// Gives a command that makes one job.
    pub(super) async fn command<B>(
        &self,
        member: &str,
        arguments: &B,
    ) -> Result<OwnedObjectPath, Failed>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let reply = self.call(PATH, MANAGER, member, arguments).await?;
        reply
            .body()
            .deserialize()
            .map_err(|error| misunderstood(&error))
    }

    /// Gives a command that makes a job for each service.
    pub(super) async fn command_all(&self, member: &str) -> Result<Vec<OwnedObjectPath>, Failed> {
        let reply = self.call(PATH, MANAGER, member, &()).await?;
        reply
            .body()
            .deserialize()
            .map_err(|error| misunderstood(&error))
    }

    /// What is signalled from now on.
    pub(super) async fn signals(&self) -> Result<MessageStream, Failed> {
        let mut rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface(MANAGER);
        if let Some(name) = self.destination {
            rule = rule.sender(name);
        }
        let rule = rule.build().map_err(|error| misunderstood(&error))?;
        let stream = MessageStream::for_match_rule(rule, &self.connection, None).await;
        stream.map_err(|error| misunderstood(&error))
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &str,
        member: &str,
        arguments: &B,
    ) -> Result<zbus::Message, Failed>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let reply = self
            .connection
            .call_method(self.destination, path, Some(interface), member, arguments)
            .await;
        reply.map_err(|error| match error {
            zbus::Error::MethodError(name, message, _) => {
                refused(name.as_str(), message.unwrap_or_default())
            }
            // The standard errors have a type of their own.
            zbus::Error::FDO(error) => {
                let message = error.description().unwrap_or_default().to_owned();
                refused(error.name().as_str(), message)
            }
            error => Failed::new(
                exit::UNAVAILABLE,
                format!("smoothserve does not answer: {error}"),
            ),
        })
    }
}

/// Whether a user asks who may have no smoothserve of his own, and has not said which one he means.
fn means_any(run_dir: &RunDir) -> bool {
    run_dir.is_default() && !rustix::process::geteuid().is_root()
}

fn refused(name: &str, message: String) -> Failed {
    let status = match name.rsplit('.').next() {
        Some("InvalidConfig") => exit::CONFIG,
        Some("AccessDenied") => exit::NO_PERMISSION,
        Some("ShuttingDown") => exit::UNAVAILABLE,
        Some("ServiceUnknown" | "NameHasNoOwner") => {
            let message = format!("smoothserve is not running, or not on this bus ({message})");
            return Failed::new(exit::UNAVAILABLE, message);
        }
        Some("NoReply" | "Disconnected") => exit::UNAVAILABLE,
        Some("UnknownObject") => {
            let message = "smoothserve was restarted and knows nothing of the job any more";
            return Failed::new(exit::UNAVAILABLE, message);
        }
        _ => 1,
    };
    Failed::new(status, message)
}

/// The properties of a job.
#[derive(DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
struct JobProperties {
    kind: String,
    service: String,
    state: String,
    step: String,
    done: u32,
    total: u32,
    error: String,
}

impl TryFrom<JobProperties> for JobStatus {
    type Error = serde_json::Error;

    fn try_from(job: JobProperties) -> Result<JobStatus, serde_json::Error> {
        Ok(JobStatus {
            kind: serde_json::from_value(job.kind.into())?,
            service: job.service,
            state: serde_json::from_value(job.state.into())?,
            step: job.step,
            done: job.done,
            total: job.total,
            error: (!job.error.is_empty()).then_some(job.error),
        })
    }
}

fn misunderstood(error: &dyn std::fmt::Display) -> Failed {
    let message = format!("smoothserve's answer is not understood (another version?): {error}");
    Failed::new(exit::SOFTWARE, message)
}
