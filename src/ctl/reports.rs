//! The last lines that failed instances have written, for callers who may read them. Others are
//! told how to get them.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use zbus::OwnedObjectPath;

use super::client::ManagerClient;
use super::error::CtlError;
use crate::cli::exit;
use crate::status::{JobStatus, Snapshot};

/// Adds the last output to the last errors of these services.
pub(super) async fn add_to_services<'a>(
    client: &ManagerClient,
    snapshot: &mut Snapshot,
    names: impl Iterator<Item = &'a String>,
) {
    let (uid, journal) = (snapshot.uid, snapshot.journal);
    for name in names {
        let Some(service) = snapshot.services.get_mut(name) else {
            continue;
        };
        let Some(error) = &mut Arc::make_mut(service).last_error else {
            continue;
        };
        if !error.has_output {
            continue;
        }
        match client.last_error_report(name).await {
            // The service may have failed once more in between.
            Ok((time, report)) if !report.is_empty() => {
                error.at = UNIX_EPOCH + Duration::from_micros(time);
                error.message = report;
            }
            Ok(_) => {}
            Err(refusal) => error.message += &hint(&refusal, name, uid, journal),
        }
    }
}

/// Adds the last output of the instances that a job has failed with to the error of the job.
pub(super) async fn add_to_job(
    client: &ManagerClient,
    path: &OwnedObjectPath,
    job: &mut JobStatus,
) {
    let Some(error) = &mut job.error else {
        return;
    };
    match client.job_error_report(path).await {
        Ok(report) if !report.is_empty() => *error = report,
        Ok(_) => {}
        Err(refusal) => *error += &hint(&refusal, &job.service, 0, false),
    }
}

/// Says where the output can be seen, if the caller may not read it. An older smoothserve does not
/// know the question.
fn hint(refusal: &CtlError, service: &str, uid: u32, journal: bool) -> String {
    if refusal.status() != exit::NO_PERMISSION {
        return String::new();
    }
    if uid != 0 {
        return format!("\n  (only root and the user {uid} may see its last output)");
    }
    let status = format!("sudo smoothctl status {service}");
    match journal {
        true => format!(
            "\n  (its last output: `{}`, or `sudo smoothctl logs {service}`)",
            status.trim_end()
        ),
        false => format!("\n  (its last output: `{}`)", status.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_read_output_is_told_where_it_is() {
        let refused = CtlError::new(exit::NO_PERMISSION, "no");
        assert_eq!(
            hint(&refused, "shop", 0, true),
            "\n  (its last output: `sudo smoothctl status shop`, or `sudo smoothctl logs shop`)"
        );
        assert_eq!(
            hint(&refused, "", 0, false),
            "\n  (its last output: `sudo smoothctl status`)"
        );
        let other = hint(&refused, "shop", 1000, true);
        assert_eq!(
            other,
            "\n  (only root and the user 1000 may see its last output)"
        );
        assert_eq!(
            hint(&CtlError::new(1, "unknown method"), "shop", 0, true),
            ""
        );
    }
}
