//! The connection to the manager, over D-Bus.

use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::{Connection, DBusError, DynamicType, MatchRule, MessageStream, OwnedObjectPath, Type};

use super::agent::PasswordAgent;
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
    /// Whether polkit decides what the caller may do, as on the system bus.
    has_polkit: bool,
}

impl ManagerClient {
    /// Connects to the private socket, or to a bus if one is named. A user who runs no smoothserve
    /// of their own means the system's, which is asked on the bus so that polkit knows who asks.
    pub(super) async fn connect(run_dir: &RunDir, bus: Bus) -> Result<ManagerClient, CtlError> {
        match bus {
            Bus::System => ManagerClient::on_system_bus().await,
            Bus::Session => ManagerClient::on_session_bus().await,
            Bus::Auto | Bus::None => {
                let own = ManagerClient::in_run_dir(run_dir).await;
                if own.is_err()
                    && means_any(run_dir)
                    && bus == Bus::Auto
                    && let Ok(client) = ManagerClient::on_system_bus().await
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
                return ManagerClient::in_run_dir(run_dir).await.ok();
            }
            Bus::Auto if means_any(run_dir) => ManagerClient::on_system_bus().await,
            Bus::Auto | Bus::None => return None,
            Bus::System => ManagerClient::on_system_bus().await,
            Bus::Session => ManagerClient::on_session_bus().await,
        };
        let client = client.ok()?;
        client.may_run().await.then_some(client)
    }

    /// Connects to the private socket in a run directory, unless another user may have made it.
    async fn in_run_dir(run_dir: &RunDir) -> Result<ManagerClient, CtlError> {
        let path = run_dir.path();
        match run_dir::check(&path) {
            Ok(()) => {
                let socket = path.join("bus");
                let connected = ManagerClient::on_socket(&socket).await;
                connected.map_err(|error| match error {
                    zbus::Error::InputOutput(error) => absent(run_dir, &socket, &error),
                    error => absent(run_dir, &socket, &error),
                })
            }
            Err(RunDirFault::Io(error)) => Err(absent(run_dir, &path, &error)),
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

    async fn on_socket(socket: &Path) -> zbus::Result<ManagerClient> {
        let stream = UnixStream::connect(socket)?;
        Ok(ManagerClient {
            connection: Builder::unix_stream(stream).p2p().build().await?,
            destination: None,
            has_polkit: false,
        })
    }

    async fn on_system_bus() -> Result<ManagerClient, CtlError> {
        let client = ManagerClient::on(Builder::system()).await?;
        Ok(ManagerClient {
            has_polkit: true,
            ..client
        })
    }

    async fn on_session_bus() -> Result<ManagerClient, CtlError> {
        ManagerClient::on(Builder::session()).await
    }

    async fn on(bus: Builder<'_>) -> Result<ManagerClient, CtlError> {
        let connection = bus.build().await;
        let connection = connection.map_err(|error| {
            CtlError::new(exit::UNAVAILABLE, format!("cannot reach the bus: {error}"))
        })?;
        Ok(ManagerClient {
            connection,
            destination: Some(BUS_NAME),
            has_polkit: false,
        })
    }

    /// Asks for the whole state, and returns it as it came and as it is understood.
    pub(super) async fn dump(&self) -> Result<(String, Snapshot), CtlError> {
        let json: String = self.call(MANAGER_PATH, MANAGER, "Dump", &()).await?;
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
        let path: OwnedObjectPath = self
            .call(MANAGER_PATH, MANAGER, "GetService", &(name,))
            .await?;
        self.call(&path, SERVICE, "GetLastErrorReport", &()).await
    }

    /// Asks why a job has failed, with what the failed instances have written.
    pub(super) async fn job_error_report(
        &self,
        path: &OwnedObjectPath,
    ) -> Result<String, CtlError> {
        self.call(path, JOB, "GetErrorReport", &()).await
    }

    /// Begins to give commands. If `may_ask` is set, polkit may ask for a password meanwhile.
    pub(super) fn commands(&self, may_ask: bool) -> Commands<'_> {
        let may_ask = may_ask && self.has_polkit;
        Commands {
            client: self,
            may_ask,
            _agent: may_ask.then(PasswordAgent::start).flatten(),
        }
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

    async fn call<B, R>(
        &self,
        path: &str,
        interface: &str,
        member: &str,
        arguments: &B,
    ) -> Result<R, CtlError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let reply = self
            .connection
            .call_method(self.destination, path, Some(interface), member, arguments)
            .await;
        match reply {
            Ok(reply) => {
                let reply = reply.body().deserialize();
                reply.map_err(|error| misunderstood(&error))
            }
            Err(error) => Err(not_done(error)),
        }
    }

    /// Calls a method of the manager's object, and lets polkit ask for a password.
    async fn call_asking<B, R>(&self, member: &str, arguments: &B) -> zbus::Result<R>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let manager: zbus::Proxy<'_> = zbus::proxy::Builder::new(&self.connection)
            .destination(BUS_NAME)
            .path(MANAGER_PATH)
            .interface(MANAGER)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
        let reply = manager.call_with_flags(member, flags, arguments).await?;
        Ok(reply.expect("a reply is asked for"))
    }
}

/// Gives commands to the manager. As long as this lives, polkit can ask for a password on the
/// terminal.
pub(super) struct Commands<'a> {
    client: &'a ManagerClient,
    /// Whether polkit is on the way, and may ask for a password.
    may_ask: bool,
    _agent: Option<PasswordAgent>,
}

impl Commands<'_> {
    /// Gives a command that makes one job, and returns the job's path.
    pub(super) async fn give<B>(
        &self,
        member: &str,
        arguments: &B,
    ) -> Result<OwnedObjectPath, CtlError>
    where
        B: Serialize + DynamicType,
    {
        self.call(member, arguments).await
    }

    /// Gives a command that makes a job for each service, and returns the jobs' paths.
    pub(super) async fn give_to_all(&self, member: &str) -> Result<Vec<OwnedObjectPath>, CtlError> {
        self.call(member, &()).await
    }

    async fn call<B, R>(&self, member: &str, arguments: &B) -> Result<R, CtlError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let client = self.client;
        let reply = match self.may_ask {
            true => {
                let reply = client.call_asking(member, arguments).await;
                reply.map_err(not_done)
            }
            false => client.call(MANAGER_PATH, MANAGER, member, arguments).await,
        };
        reply.map_err(|error| match error.status() {
            exit::NO_PERMISSION if client.has_polkit => {
                error.with_cure("use sudo, or let a rule of polkit allow it, see smoothctl(1)")
            }
            exit::NO_PERMISSION => error.with_cure("use sudo"),
            _ => error,
        })
    }
}

/// Returns the error for a call that was refused or got no answer.
fn not_done(error: zbus::Error) -> CtlError {
    match error {
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
    }
}

/// The folder that exists if systemd runs the machine, see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Returns the error for a place where no smoothserve is found, with what starts one there.
fn absent(run_dir: &RunDir, path: &Path, error: &dyn std::fmt::Display) -> CtlError {
    let own = run_dir.path();
    let cure = match (run_dir.is_default(), rustix::process::geteuid().is_root()) {
        (false, _) => format!("smoothserve run --run-dir {}", own.display()),
        _ if !Path::new(BOOTED).exists() => "smoothserve run".to_owned(),
        (true, true) => "systemctl start smoothserve".to_owned(),
        (true, false) => "sudo systemctl start smoothserve`, or one of your own with \
             `systemctl --user start smoothserve"
            .to_owned(),
    };
    let path = path.display();
    let message = format!("smoothserve is not running ({path}: {error}); start it with `{cure}`");
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
            let message = format!(
                "smoothserve is not running, or not on this bus ({message}); \
                 `systemctl start smoothserve` starts it on the system bus"
            );
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
