//! `tls`: the certificate of a service, and the ports that it is for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fields::{At, Fields, Report};
use super::keys;
use super::raw::{Node, Value};
use super::reader::Reader;
use super::source::join;
use super::value;

/// The port of https.
const HTTPS: u16 = 443;

/// A certificate with its key, and the ports where clients are served with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsConfig {
    /// A file in PEM: the service's own certificate, then those of the authorities between it and
    /// the root.
    pub certificate: PathBuf,
    /// The file of the private key, in PEM.
    pub key: PathBuf,
    /// The ports of the service that have TLS.
    pub ports: Vec<u16>,
}

impl TlsConfig {
    /// Reads the section `tls` of a service's file. `plain` are the ports without TLS.
    pub(super) fn read(reader: &mut Reader<'_>, plain: &[u16]) -> Option<TlsConfig> {
        let Section {
            certificate,
            key,
            ports,
        } = reader.get("tls", section)?;
        let certificate = certificate?;
        reader.mark("tls.certificate", certificate.at);
        let key_at = key.as_ref().map_or(certificate.at, |key| key.at);
        reader.mark("tls.key", key_at);
        let (certificate, key) = files(
            join(&reader.folder, &certificate.value),
            key.map(|key| join(&reader.folder, &key.value)),
        );
        let mut tls = TlsConfig {
            certificate,
            key,
            ports: Vec::new(),
        };
        for At { at, value: port } in ports {
            if plain.contains(&port) {
                let message = format!(
                    "port {port} is in `port`, too; a port is either with TLS or without, so keep one"
                );
                reader.report.at(at, message);
            }
            tls.ports.push(port);
        }
        tls.ports.sort_unstable();
        tls.ports.dedup();
        Some(tls)
    }

    /// Returns the port that clients are redirected to: 443, which addresses need not name, or else
    /// the first.
    pub fn main_port(&self) -> Option<u16> {
        let usual = self.ports.iter().find(|port| **port == HTTPS);
        usual.or(self.ports.first()).copied()
    }
}

/// What stands below `tls`.
struct Section {
    certificate: Option<At<String>>,
    key: Option<At<String>>,
    ports: Vec<At<u16>>,
}

fn section(node: &Node, key: &str, report: &mut Report<'_>) -> Option<Section> {
    if !matches!(node.value, Value::Map(_)) {
        let kind = node.kind();
        report.at(
            node.at,
            format!("`{key}` is {kind}; give lines of `certificate: …` and `key: …` below it"),
        );
        return None;
    }
    let fields = Fields::new(node.clone(), keys::TLS_SET, report)?;
    let certificate = fields.need("certificate", report, value::path);
    let key = fields.get("key", report, value::path);
    let ports = fields.get("port", report, value::ports);
    let ports = ports.map_or_else(
        || {
            vec![At {
                at: node.at,
                value: HTTPS,
            }]
        },
        |ports| ports.value,
    );
    Some(Section {
        certificate,
        key,
        ports,
    })
}

/// Finds the files of certificate and key. Without a key, `certificate` is a folder that has both,
/// under the names that the ACME clients use.
fn files(certificate: PathBuf, key: Option<PathBuf>) -> (PathBuf, PathBuf) {
    match key {
        Some(key) => (certificate, key),
        None => (
            certificate.join("fullchain.pem"),
            certificate.join("privkey.pem"),
        ),
    }
}
