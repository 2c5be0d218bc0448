//! A D-Bus client as a stranger would write it: it knows the names in `docs/dbus.md` and shares no
//! code with smoothserve.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::Path;

use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smoothserve_kit::PATIENCE;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::zvariant::Type as Signature;
use zbus::{
    Connection, DBusError, DynamicType, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant,
};

pub const MANAGER_PATH: &str = "/org/smoothserve1";
pub const MANAGER: &str = "org.smoothserve1.Manager";
pub const SERVICE: &str = "org.smoothserve1.Service";
pub const JOB: &str = "org.smoothserve1.Job";

/// A D-Bus connection, to the private socket or to a bus.
pub struct Client {
    pub connection: Connection,
    destination: Option<&'static str>,
}

impl Client {
    /// Connects to smoothserve's private socket.
    pub async fn private(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).unwrap();
        let builder = Builder::unix_stream(stream).p2p();
        Client {
            connection: builder.build().await.unwrap(),
            destination: None,
        }
    }

    /// Connects to the bus at this address.
    pub async fn on_bus(address: &str) -> Client {
        let builder = Builder::address(address);
        Client {
            connection: builder.build().await.unwrap(),
            destination: Some("org.smoothserve1"),
        }
    }

    /// Calls a method of an object.
    pub async fn call<R>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &(impl Serialize + DynamicType),
    ) -> zbus::Result<R>
    where
        R: DeserializeOwned + Signature,
    {
        self.ask(path, Some(interface), method, arguments).await
    }

    /// Calls a method of an object without naming its interface.
    pub async fn bare<R>(
        &self,
        path: &str,
        method: &str,
        arguments: &(impl Serialize + DynamicType),
    ) -> zbus::Result<R>
    where
        R: DeserializeOwned + Signature,
    {
        self.ask(path, None, method, arguments).await
    }

    async fn ask<R>(
        &self,
        path: &str,
        interface: Option<&str>,
        method: &str,
        arguments: &(impl Serialize + DynamicType),
    ) -> zbus::Result<R>
    where
        R: DeserializeOwned + Signature,
    {
        let call =
            self.connection
                .call_method(self.destination, path, interface, method, arguments);
        let reply = timeout(PATIENCE, call).await.expect("an answer in time")?;
        reply.body().deserialize()
    }

    /// Calls a method of the manager object.
    pub async fn manager<R>(
        &self,
        method: &str,
        arguments: &(impl Serialize + DynamicType),
    ) -> zbus::Result<R>
    where
        R: DeserializeOwned + Signature,
    {
        self.call(MANAGER_PATH, MANAGER, method, arguments).await
    }

    /// Calls a method of the manager that starts a job for a service, and returns the path of the
    /// job.
    pub async fn begin(&self, method: &str, service: &str) -> zbus::Result<OwnedObjectPath> {
        self.manager(method, &(service,)).await
    }

    /// Reads a property of an object.
    pub async fn property<T>(&self, path: &str, interface: &str, name: &str) -> zbus::Result<T>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: std::fmt::Debug,
    {
        let properties = "org.freedesktop.DBus.Properties";
        let value: OwnedVariant = self
            .call(path, properties, "Get", &(interface, name))
            .await?;
        Ok(T::try_from(value).expect("the type that is documented"))
    }

    /// Returns the introspection data of an object.
    pub async fn introspect(&self, path: &str) -> zbus::Result<String> {
        let interface = "org.freedesktop.DBus.Introspectable";
        self.call(path, interface, "Introspect", &()).await
    }

    /// Returns the names of the child objects that introspection shows.
    pub async fn children(&self, path: &str) -> Vec<String> {
        let description = self.introspect(path).await.unwrap();
        let children = description.split("<node name=\"").skip(1);
        let mut names: Vec<String> = children
            .map(|rest| rest.split('"').next().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Subscribes to all signals that smoothserve sends from now on.
    pub async fn signals(&self) -> Signals {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .path_namespace(MANAGER_PATH)
            .build();
        let stream = MessageStream::for_match_rule(rule.unwrap(), &self.connection, None);
        Signals(stream.await.unwrap())
    }
}

/// The received signals, in the order in which they came.
pub struct Signals(MessageStream);

impl Signals {
    /// Waits for the next signal that `pick` turns into a value.
    pub async fn find<T>(&mut self, mut pick: impl FnMut(&Message) -> Option<T>) -> T {
        let found = async {
            loop {
                let message = self.0.next().await.expect("the connection stays open");
                if let Some(found) = pick(&message.unwrap()) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("a signal in time")
    }

    /// Waits for the next `JobNew`, and returns the path of the job and the service.
    pub async fn job_new(&mut self) -> (OwnedObjectPath, String) {
        self.find(|message| body_of(message, "JobNew")).await
    }

    /// Waits for the next signal of this name about an object with this in its path, which is the
    /// first argument, and returns all arguments.
    pub async fn next_of<T>(&mut self, member: &str, path: &str) -> (OwnedObjectPath, T)
    where
        T: DeserializeOwned + Signature,
    {
        let pick = |message: &Message| {
            let arguments: (OwnedObjectPath, T) = body_of(message, member)?;
            arguments.0.contains(path).then_some(arguments)
        };
        self.find(pick).await
    }

    /// Waits for the end of a job, and returns its result.
    pub async fn result_of(&mut self, job: &OwnedObjectPath) -> String {
        let pick = |message: &Message| {
            let (ended, _service, result): (OwnedObjectPath, String, String) =
                body_of(message, "JobRemoved")?;
            (ended == *job).then_some(result)
        };
        self.find(pick).await
    }

    /// Waits for the next announced value of a property.
    pub async fn changed<T: TryFrom<OwnedVariant>>(&mut self, path: &str, property: &str) -> T {
        let pick = |message: &Message| {
            if message.header().path()?.as_str() != path {
                return None;
            }
            type Changed = (String, HashMap<String, OwnedVariant>, Vec<String>);
            let (_interface, mut changed, _): Changed = body_of(message, "PropertiesChanged")?;
            T::try_from(changed.remove(property)?).ok()
        };
        self.find(pick).await
    }
}

fn body_of<T: DeserializeOwned + Signature>(message: &Message, member: &str) -> Option<T> {
    if message.header().member()?.as_str() != member {
        return None;
    }
    Some(message.body().deserialize().expect("as documented"))
}

/// Returns the name of the D-Bus error that a method has returned.
pub fn error_name<T: std::fmt::Debug>(result: zbus::Result<T>) -> String {
    match result {
        Err(zbus::Error::MethodError(name, _, _)) => name.to_string(),
        Err(zbus::Error::FDO(error)) => error.name().to_string(),
        other => panic!("expected a named D-Bus error, got {other:?}"),
    }
}
