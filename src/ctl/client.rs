//! The connection to the manager, over D-Bus.

use std::os::unix::net::UnixStream;
use std::path::Path;

use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::{Connection, DBusError, MatchRule, MessageStream, OwnedObjectPath};

use super::error::CtlError;
use crate::bus::{BUS_NAME, Bus, MANAGER_PATH};
use crate::cli::{RunDir, exit};
use crate::run_dir::{self, RunDirFault};
use crate::status::Snapshot;

const MANAGER: &str = "org.smoothserve1.Manager";
const SERVICE: &str = "org.smoothserve1.Service";
const JOB: &str = "org.smoothserve1.Job";

/// An open connection to the manager.
pub(super) struct ManagerClient {
    connection: Connection,
    /// The bus name of smoothserve. `None` on the private socket, where there is nobody else.
    destination: Option<&'static str>,
}

impl ManagerClient {
    /// Connects to the private socket, or to a bus if one is named. A user who runs no smoothserve
    /// of their own means the system's, which is asked on the bus so that polkit knows who asks.
    pub(super) async fn connect(run_dir: &RunDir, bus: Bus) -> Result<ManagerClient, CtlError> {
        match bus {
            Bus::System => ManagerClient::on(Builder::system()).await,
            Bus::Session => ManagerClient::on(Builder::session()).await,
            Bus::Auto | Bus::None => {
                let own = ManagerClient::in_run_dir(&run_dir.path()).await;
                if own.is_err()
                    && means_any(run_dir)
                    && bus == Bus::Auto
                    && let Ok(client) = ManagerClient::on(Builder::system()).await
                    && client.dump().await.is_ok()
                {
                    return Ok(client);
                }
                own
            }
        }
    }

    /// Connects to a smoothserve that runs. [`ManagerClient::connect`] would have systemd start one
    /// that does not.
    pub(super) async fn connect_to_running(run_dir: &RunDir, bus: Bus) -> Option<ManagerClient> {
        let run_path = run_dir.path();
        let client = match bus {
            Bus::Auto | Bus::None if run_dir::is_taken(&run_path) => {
                return ManagerClient::in_run_dir(&run_path).await.ok();
            }
            Bus::Auto if means_any(run_dir) => ManagerClient::on(Builder::system()).await,
            Bus::Auto | Bus::None => return None,
            Bus::System => ManagerClient::on(Builder::system()).await,
            Bus::Session => ManagerClient::on(Builder::session()).await,
        };
        let client = client.ok()?;
        client.may_run().await.then_some(client)
    }

    /// Connects to the private socket in a run directory, unless another user may have made it.
    async fn in_run_dir(path: &Path) -> Result<ManagerClient, CtlError> {
        match run_dir::check(path) {
            Ok(()) => ManagerClient::on_socket(&path.join("bus")).await,
            Err(RunDirFault::Io(error)) => Err(absent(path, &error)),
            Err(fault) => {
                let path = path.display();
                let message = format!(
                    "the run directory {path} {fault}, so somebody else may answer there; \
                     name another with --run-dir, or set XDG_RUNTIME_DIR"
                );
                Err(CtlError::new(exit::NO_PERMISSION, message))
            }
        }
    }

    async fn on_socket(socket: &Path) -> Result<ManagerClient, CtlError> {
        let stream = UnixStream::connect(socket).map_err(|error| absent(socket, &error))?;
        let connection = Builder::unix_stream(stream).p2p().build().await;
        Ok(ManagerClient {
            connection: connection.map_err(|error| absent(socket, &error))?,
            destination: None,
        })
    }

    async fn on(bus: Builder<'_>) -> Result<ManagerClient, CtlError> {
        let connection = bus.build().await;
        let connection = connection.map_err(|error| {
            CtlError::new(exit::UNAVAILABLE, format!("cannot reach the bus: {error}"))
        })?;
        Ok(ManagerClient {
            connection,
            destination: Some(BUS_NAME),
        })
    }

    /// Asks for the whole state, and returns it as it came and as it is understood.
    pub(super) async fn dump(&self) -> Result<(String, Snapshot), CtlError> {
        let reply = self.call(MANAGER_PATH, MANAGER, "Dump", &()).await?;
        let json: String = reply
            .body()
            .deserialize()
            .map_err(|error| misunderstood(&error))?;
        let snapshot = serde_json::from_str(&json).map_err(|error| misunderstood(&error))?;
        Ok((json, snapshot))
    }

    /// Returns true unless smoothserve is known not to run. A call on a bus would then start it.
    pub(super) async fn may_run(&self) -> bool {
        let Some(name) = self.destination else {
            return true;
        };
        let name = name.try_into().expect("it is a name");
        match DBusProxy::new(&self.connection).await {
            Ok(broker) => broker.name_has_owner(name).await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Asks for the last error of a service, with what the instance has written: the time in
    /// microseconds since 1970, and the text.
    pub(super) async fn last_error_report(&self, name: &str) -> Result<(u64, String), CtlError> {
        let reply = self
            .call(MANAGER_PATH, MANAGER, "GetService", &(name,))
            .await?;
        let path = reply.body().deserialize::<OwnedObjectPath>();
        let path = path.map_err(|error| misunderstood(&error))?;
        let reply = self.call(&path, SERVICE, "GetLastErrorReport", &()).await?;
        let report = reply.body().deserialize();
        report.map_err(|error| misunderstood(&error))
    }

    /// Asks why a job has failed, with what the failed instances have written.
    pub(super) async fn job_error_report(
        &self,
        path: &OwnedObjectPath,
    ) -> Result<String, CtlError> {
        let reply = self.call(path, JOB, "GetErrorReport", &()).await?;
        let report = reply.body().deserialize();
        report.map_err(|error| misunderstood(&error))
    }

    /// Gives a command that makes one job, and returns the job's path.
    pub(super) async fn command<B>(
        &self,
        member: &str,
        arguments: &B,
    ) -> Result<OwnedObjectPath, CtlError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let reply = self.call(MANAGER_PATH, MANAGER, member, arguments).await?;
        reply
            .body()
            .deserialize()
            .map_err(|error| misunderstood(&error))
    }

    /// Gives a command that makes a job for each service, and returns the jobs' paths.
    pub(super) async fn command_all(&self, member: &str) -> Result<Vec<OwnedObjectPath>, CtlError> {
        let reply = self.call(MANAGER_PATH, MANAGER, member, &()).await?;
        reply
            .body()
            .deserialize()
            .map_err(|error| misunderstood(&error))
    }

    /// Subscribes to the manager's signals from now on.
    pub(super) async fn signals(&self) -> Result<MessageStream, CtlError> {
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
    ) -> Result<zbus::Message, CtlError>
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
            error => CtlError::new(
                exit::UNAVAILABLE,
                format!("smoothserve does not answer: {error}"),
            ),
        })
    }
}

/// Returns the error for a place where no smoothserve is found.
fn absent(path: &Path, error: &dyn std::fmt::Display) -> CtlError {
    let path = path.display();
    let message = format!("smoothserve is not running, or runs elsewhere ({path}: {error})");
    CtlError::new(exit::UNAVAILABLE, message)
}

/// Returns true if a user asks who may have no smoothserve of their own, and the command line does
/// not say which one is meant.
fn means_any(run_dir: &RunDir) -> bool {
    run_dir.is_default() && !rustix::process::geteuid().is_root()
}

fn refused(name: &str, message: String) -> CtlError {
    let status = match name.rsplit('.').next() {
        Some("InvalidConfig") => exit::CONFIG,
        Some("AccessDenied") => exit::NO_PERMISSION,
        Some("ShuttingDown") => exit::UNAVAILABLE,
        Some("ServiceUnknown" | "NameHasNoOwner") => {
            let message = format!("smoothserve is not running, or not on this bus ({message})");
            return CtlError::new(exit::UNAVAILABLE, message);
        }
        Some("NoReply" | "Disconnected") => exit::UNAVAILABLE,
        Some("UnknownObject") => {
            let message = "smoothserve was restarted and knows nothing of the job any more";
            return CtlError::new(exit::UNAVAILABLE, message);
        }
        _ => 1,
    };
    CtlError::new(status, message)
}

fn misunderstood(error: &dyn std::fmt::Display) -> CtlError {
    let message = format!("smoothserve's answer is not understood (another version?): {error}");
    CtlError::new(exit::SOFTWARE, message)
}
