//! stub
use crate::config::Service;
/// stub
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint(Option<std::time::SystemTime>);
impl Fingerprint {
    /// stub
    pub fn take(spec: &Service) -> Fingerprint {
        Fingerprint(
            std::fs::metadata(&spec.process.executable)
                .and_then(|m| m.modified())
                .ok(),
        )
    }
}
