//! Calls as the D-Bus specification allows them and zbus does not understand them.
//!
//! A call may name no interface, and the methods of `org.freedesktop.DBus.Properties` take an empty
//! text for any interface. Every object here has one interface of its own, so there is one meaning;
//! a call gets it before zbus sees the call.

use zbus::Message;
use zbus::message::Type;
use zbus::names::InterfaceName;
use zbus::object_server::Interface;
use zbus::zvariant::DynamicType;

use super::job_object::JobObject;
use super::limits::LONGEST_MESSAGE;
use super::manager_object::ManagerObject;
use super::paths::{JOBS, SERVICES};
use super::service_object::ServiceObject;
use crate::bus::MANAGER_PATH;

/// The standard interfaces, see the D-Bus specification.
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
const PEER: &str = "org.freedesktop.DBus.Peer";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// Returns a call with all that zbus needs of it, and every other message as it is. A call that
/// would be too long then is left as it is.
pub(super) fn complete(message: Message) -> Message {
    let completed = with_interface(&message).or_else(|| with_any_interface(&message));
    let fits = |message: &Message| message.data().len() <= LONGEST_MESSAGE;
    completed.filter(fits).unwrap_or(message)
}

/// Returns a call that names no interface with the one that it means.
fn with_interface(call: &Message) -> Option<Message> {
    let header = call.header();
    if call.message_type() != Type::MethodCall || header.interface().is_some() {
        return None;
    }
    let own = own_interface(header.path()?.as_str());
    let interface = match header.member()?.as_str() {
        "Get" | "GetAll" | "Set" => PROPERTIES,
        "Introspect" => INTROSPECTABLE,
        "Ping" | "GetMachineId" => PEER,
        "GetManagedObjects" => OBJECT_MANAGER,
        // An object that is not there has no interface, whichever is asked for.
        _ => own.as_ref().map_or(PROPERTIES, |own| own.as_str()),
    };
    let body = call.body();
    // No method that a stranger can leave the interface of takes anything else. zbus refuses a call
    // that lacks arguments.
    let named = if let Ok(arguments) = body.deserialize::<(&str, &str)>() {
        again(call, interface, &arguments)
    } else if let Ok(argument) = body.deserialize::<&str>() {
        again(call, interface, &argument)
    } else if let Ok(arguments) = body.deserialize::<(&str, &str, zbus::Variant<'_>)>() {
        again(call, interface, &arguments)
    } else {
        again(call, interface, &())
    };
    let named = named.ok()?;
    Some(with_any_interface(&named).unwrap_or(named))
}

/// Returns a call about properties of any interface with the one that the object has.
fn with_any_interface(call: &Message) -> Option<Message> {
    let header = call.header();
    if call.message_type() != Type::MethodCall || header.interface()?.as_str() != PROPERTIES {
        return None;
    }
    let own = own_interface(header.path()?.as_str())?;
    let body = call.body();
    match header.member()?.as_str() {
        "GetAll" if body.deserialize::<&str>().ok()?.is_empty() => {
            again(call, PROPERTIES, &own.as_str())
        }
        "Get" => match body.deserialize::<(&str, &str)>().ok()? {
            ("", property) => again(call, PROPERTIES, &(own.as_str(), property)),
            _ => return None,
        },
        _ => return None,
    }
    .ok()
}

/// Returns the interface of the object that this path is for.
fn own_interface(path: &str) -> Option<InterfaceName<'static>> {
    let below = path.strip_prefix(MANAGER_PATH)?;
    match below {
        "" => Some(ManagerObject::name()),
        below if below.starts_with(SERVICES) => Some(ServiceObject::name()),
        below if below.starts_with(JOBS) => Some(JobObject::name()),
        _ => None,
    }
}

/// Returns true for a call that would set a property.
pub(super) fn is_set(call: &Message) -> bool {
    let header = call.header();
    let is_about_properties = header
        .interface()
        .is_some_and(|name| name.as_str() == PROPERTIES);
    is_about_properties && header.member().is_some_and(|name| name.as_str() == "Set")
}

/// Makes the same call again, with this interface and these arguments.
fn again(
    call: &Message,
    interface: &str,
    arguments: &(impl serde::Serialize + DynamicType),
) -> zbus::Result<Message> {
    let header = call.header();
    let (Some(path), Some(member)) = (header.path(), header.member()) else {
        return Err(zbus::Error::MissingField);
    };
    let mut new = Message::method_call(path.to_owned(), member.to_owned())
        .interface(interface.to_owned())
        .with_flags(header.primary().flags())
        .serial(header.primary().serial_num());
    if let Some(sender) = header.sender() {
        new = new.sender(sender.to_owned());
    }
    if let Some(destination) = header.destination() {
        new = new.destination(destination.to_owned());
    }
    new.build(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(message: Message) -> (String, Vec<u8>, u32) {
        let message = complete(message);
        let header = message.header();
        let interface = header.interface().map(|name| name.to_string());
        (
            interface.unwrap_or_default(),
            message.body().data().to_vec(),
            header.primary().serial_num().get(),
        )
    }

    #[test]
    fn a_call_gets_the_interface_that_it_means() {
        for (path, member, interface) in [
            ("/org/smoothserve1", "Reload", "org.smoothserve1.Manager"),
            (
                "/org/smoothserve1/service/a",
                "Stop",
                "org.smoothserve1.Service",
            ),
            ("/org/smoothserve1/job/1", "Cancel", "org.smoothserve1.Job"),
            ("/org/smoothserve1", "Introspect", INTROSPECTABLE),
            ("/anything", "Ping", PEER),
            ("/anything", "Reload", PROPERTIES),
            ("/org/smoothserve1", "GetManagedObjects", OBJECT_MANAGER),
        ] {
            let call = Message::method_call(path, member).sender(":1.7");
            let call = call.build(&"shop").unwrap();
            let (serial, body) = (call.primary_header().serial_num(), call.body());
            let body = body.data().to_vec();
            assert_eq!(shown(call), (interface.to_owned(), body, serial.get()));
        }
    }

    #[test]
    fn an_empty_interface_is_that_of_the_object() {
        let path = "/org/smoothserve1/service/shop";
        let call = |member: &'static str| Message::method_call(path, member).interface(PROPERTIES);
        let own = "org.smoothserve1.Service";
        let wanted = call("GetAll").build(&own).unwrap().body().data().to_vec();
        assert_eq!(shown(call("GetAll").build(&"").unwrap()).1, wanted);
        let without = Message::method_call(path, "GetAll").build(&"").unwrap();
        assert_eq!(shown(without).1, wanted);
        let wanted = call("Get")
            .build(&(own, "State"))
            .unwrap()
            .body()
            .data()
            .to_vec();
        assert_eq!(shown(call("Get").build(&("", "State")).unwrap()).1, wanted);
        let unchanged = call("Get").build(&("a.b", "State")).unwrap();
        let body = unchanged.body().data().to_vec();
        assert_eq!(shown(unchanged).1, body);
    }
}
