//! The answer to a call that would set a property: all of them can only be read.

use std::collections::HashMap;

use zbus::names::InterfaceName;
use zbus::object_server::Interface;
use zbus::{Connection, Message, OwnedVariant, Variant};

use super::job_object::JobObject;
use super::manager_object::ManagerObject;
use super::service_object::ServiceObject;

/// An interface of an object, with its properties.
type Own = (InterfaceName<'static>, HashMap<String, OwnedVariant>);

/// Returns the name of the error that answers the call, and a text.
pub(super) async fn refusal(connection: &Connection, call: &Message) -> (&'static str, String) {
    let header = call.header();
    let body = call.body();
    let arguments = body.deserialize::<(&str, &str, Variant<'_>)>();
    let (Some(path), Ok((interface, property, _))) = (header.path(), arguments) else {
        let text = "the arguments are an interface, a property and a value".to_owned();
        return ("org.freedesktop.DBus.Error.InvalidArgs", text);
    };
    match own(connection, path.as_str()).await {
        None => (
            "org.freedesktop.DBus.Error.UnknownObject",
            format!("Unknown object '{path}'"),
        ),
        Some((name, _)) if !["", name.as_str()].contains(&interface) => (
            "org.freedesktop.DBus.Error.UnknownInterface",
            format!("Unknown interface '{interface}'"),
        ),
        Some((_, properties)) if !properties.contains_key(property) => (
            "org.freedesktop.DBus.Error.UnknownProperty",
            format!("Unknown property '{property}'"),
        ),
        Some(_) => (
            "org.freedesktop.DBus.Error.PropertyReadOnly",
            format!("Property '{property}' can only be read"),
        ),
    }
}

/// Returns the interface of the object at a path, if there is one.
async fn own(connection: &Connection, path: &str) -> Option<Own> {
    if let Some(own) = of_kind::<ServiceObject>(connection, path).await {
        return Some(own);
    }
    match of_kind::<JobObject>(connection, path).await {
        Some(own) => Some(own),
        None => of_kind::<ManagerObject>(connection, path).await,
    }
}

async fn of_kind<T: Interface>(connection: &Connection, path: &str) -> Option<Own> {
    let server = connection.object_server();
    let object = server.interface::<_, T>(path).await.ok()?;
    let (object, emitter) = (object.get().await, object.signal_emitter());
    let properties = object.get_all(server, connection, None, emitter).await;
    Some((T::name(), properties.ok()?))
}
