//! The paths of the objects on D-Bus.

use zbus::OwnedObjectPath;

use crate::bus::MANAGER_PATH;

/// The beginning of the path of a service's object, below that of the manager.
pub(super) const SERVICES: &str = "/service/";

/// The beginning of the path of a job's object, below that of the manager.
pub(super) const JOBS: &str = "/job/";

/// Returns the path of a service's object, `/org/smoothserve1/service/<name>`. The name is escaped
/// as systemd escapes unit names in paths.
pub(super) fn service_path(name: &str) -> String {
    let escaped: String = name
        .bytes()
        .enumerate()
        .map(|(position, byte)| match byte {
            b'0'..=b'9' if position == 0 => format!("_{byte:02x}"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("_{byte:02x}"),
        })
        .collect();
    format!("{MANAGER_PATH}{SERVICES}{escaped}")
}

/// Returns the path of a job's object: `/org/smoothserve1/job/<n>`.
pub(super) fn job_path(id: u32) -> String {
    format!("{MANAGER_PATH}{JOBS}{id}")
}

/// Converts a path that has only allowed characters into the type that D-Bus messages carry.
pub(super) fn path(path: String) -> OwnedObjectPath {
    OwnedObjectPath::try_from(path).expect("made of allowed characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_does() {
        assert_eq!(service_path("shop"), "/org/smoothserve1/service/shop");
        assert_eq!(
            service_path("1.a-b_c"),
            "/org/smoothserve1/service/_31_2ea_2db_5fc"
        );
    }
}
