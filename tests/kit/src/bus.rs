//! A D-Bus client that uses the interface as a foreign program would: by the names in docs/dbus.md,
//! without smoothserve's own client.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::pin;

use zbus::export::ordered_stream::OrderedStreamExt;
use zbus::{Connection, MessageStream, OwnedObjectPath};

const MANAGER: &str = "/org/smoothserve1";
const INTERFACE: &str = "org.smoothserve1.Manager";

/// A connection to the private D-Bus socket of a running smoothserve.
#[derive(Debug)]
pub struct Bus {
    connection: Connection,
}

impl Bus {
    /// Connects to the private socket.
    pub async fn open(socket: &Path) -> zbus::Result<Bus> {
        let stream = UnixStream::connect(socket)?;
        let builder = zbus::connection::Builder::unix_stream(stream).p2p();
        Ok(Bus {
            connection: builder.build().await?,
        })
    }

    /// Returns the names of all services.
    pub async fn services(&self) -> zbus::Result<Vec<String>> {
        let reply = self
            .connection
            .call_method(None::<&str>, MANAGER, Some(INTERFACE), "ListServices", &())
            .await?;
        let body = reply.body();
        let services: Vec<(String, String, u32, u32, OwnedObjectPath)> = body.deserialize()?;
        Ok(services.into_iter().map(|(name, ..)| name).collect())
    }

    /// Calls a method that makes a job, and waits for the result of the job: `done`, `failed`, …
    pub async fn job(&self, method: &str, service: &str) -> zbus::Result<String> {
        let mut ended = pin!(self.ends());
        let job = self.begin(method, service).await?;
        loop {
            match ended.next().await {
                Some((ended, result)) if ended == job => return Ok(result),
                Some(_) => {}
                None => {
                    return Err(zbus::Error::InputOutput(
                        std::io::Error::other("the bus is gone").into(),
                    ));
                }
            }
        }
    }

    /// Calls a method that makes a job, and returns the path of the job at once.
    pub async fn begin(&self, method: &str, service: &str) -> zbus::Result<String> {
        let reply = self
            .connection
            .call_method(None::<&str>, MANAGER, Some(INTERFACE), method, &service)
            .await?;
        let job: OwnedObjectPath = reply.body().deserialize()?;
        Ok(job.to_string())
    }

    /// Returns a stream of the jobs that end from now on, with their results.
    fn ends(
        &self,
    ) -> impl OrderedStreamExt<Data = (String, String), Ordering = zbus::message::Sequence> {
        MessageStream::from(&self.connection).filter_map(|message| {
            let message = message.ok()?;
            let head = message.header();
            if head.member()?.as_str() != "JobRemoved" {
                return None;
            }
            let body = message.body();
            let (job, _service, result): (OwnedObjectPath, String, String) =
                body.deserialize().ok()?;
            Some((job.to_string(), result))
        })
    }
}
