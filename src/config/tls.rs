//! `tls`: the certificate of a service, and the ports that it is for.

use std::time::SystemTime;

use super::fault::Position;
use super::fields::{At, Fields, Report};
use super::raw::{Node, Value};
use super::service::Reader;
use super::{HTTPS, ServiceConfig, TlsConfig, join, value};
use crate::certificate::{self, Certificate};

/// Every key below `tls`.
pub const TLS_KEYS: &[&str] = &["certificate", "key", "port"];

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
    let fields = Fields::new(node.clone(), TLS_KEYS, report)?;
    let certificate = fields.need("certificate", report, value::text);
    let key = fields.get("key", report, value::text);
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

impl Reader<'_> {
    /// `plain` are the ports without TLS.
    pub(super) fn tls(&mut self, plain: &[u16]) -> Option<TlsConfig> {
        let Section {
            certificate,
            key,
            ports,
        } = self.get("tls", section)?;
        let certificate = certificate?;
        self.mark("tls.certificate", certificate.at);
        let key_at = key.as_ref().map_or(certificate.at, |key| key.at);
        self.mark("tls.key", key_at);
        let mut tls = certificate::paths(
            join(&self.folder, &certificate.value),
            key.map(|key| join(&self.folder, &key.value)),
        );
        for At { at, value: port } in ports {
            if plain.contains(&port) {
                let message = format!("port {port} is one of `port`, too; it has TLS or has not");
                self.report.at(at, message);
            }
            tls.ports.push(port);
        }
        tls.ports.sort_unstable();
        tls.ports.dedup();
        Some(tls)
    }

    fn mark(&mut self, key: &'static str, at: Position) {
        self.marks.insert(key, at);
    }
}

/// What is wrong with the files, and the key that names them.
pub(super) fn missing(service: &ServiceConfig) -> Option<(&'static str, String)> {
    let tls = service.tls.as_ref()?;
    match Certificate::read(tls) {
        Ok(certificate) => {
            let invalid = certificate.invalidity(SystemTime::now())?;
            let message = format!("the certificate {} {invalid}", tls.certificate.display());
            Some(("tls.certificate", message))
        }
        Err(fault) if fault.of_key => Some(("tls.key", fault.message)),
        Err(fault) => Some(("tls.certificate", fault.message)),
    }
}

/// What should be looked after before it is wrong, and the key that names it.
pub(super) fn remarks(service: &ServiceConfig) -> Vec<(&'static str, String)> {
    let certificate = service
        .tls
        .as_ref()
        .map(|tls| (tls, Certificate::read(tls)));
    let Some((tls, Ok(certificate))) = certificate else {
        return Vec::new();
    };
    let remarks = certificate.remarks(&service.sites, SystemTime::now());
    let path = tls.certificate.display();
    let words = remarks
        .into_iter()
        .map(|remark| format!("the certificate {path} {remark}"));
    words.map(|words| ("tls.certificate", words)).collect()
}
