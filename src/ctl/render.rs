//! The text that a person reads: services, instances, jobs. Pure.

use std::time::{Duration, SystemTime};

use crate::config::EXPIRES_SOON;
use crate::status::{
    InstanceState, InstanceStatus, JobKind, JobState, JobStatus, ServiceState, ServiceStatus,
    Snapshot, kept_in_words,
};

/// Renders all services, a line each, and below them what went wrong.
pub(super) fn overview(snapshot: &Snapshot) -> String {
    let mut rows = vec![
        [
            "SERVICE",
            "STATE",
            "READY",
            "IN FLIGHT",
            "REQUESTS",
            "LISTEN",
            "SITES",
        ]
        .map(str::to_owned),
    ];
    for (name, service) in &snapshot.services {
        let in_flight: u32 = service
            .instances
            .iter()
            .map(|instance| instance.in_flight)
            .sum();
        rows.push([
            name.clone(),
            service_state(service.state).to_owned(),
            format!("{}/{}", service.ready(), service.wanted),
            in_flight.to_string(),
            service.requests.to_string(),
            service.listen.join(" "),
            service.sites.join(" "),
        ]);
    }
    let mut text = table(&rows);
    for name in failing(snapshot) {
        if let Some(error) = &snapshot.services[&name].last_error {
            text += &format!("\n{name}: {} ago: {}\n", age(error.at), error.message);
        }
    }
    for (name, service) in &snapshot.services {
        for words in standing(service).into_iter().chain(warnings(service)) {
            text += &format!("\n{name}: {words}\n");
        }
    }
    for job in snapshot
        .jobs
        .values()
        .filter(|job| job.state == JobState::Running)
    {
        text += &format!("\n{}\n", step(job));
    }
    if let Some(measure) = &snapshot.proxy.overload {
        let [memory, most] =
            [snapshot.proxy.memory, snapshot.proxy.most_memory].map(|bytes| bytes >> 20);
        text += &format!("\nproxy: {memory} of {most} MiB of memory in use: {measure}\n");
    }
    text += &format!("\n{}\n", snapshot.summary);
    text
}

/// Returns the names of the services whose last error the overview shows.
pub(super) fn failing(snapshot: &Snapshot) -> Vec<String> {
    let services = snapshot.services.iter();
    let failing = services.filter(|(_, service)| {
        let is_fine = matches!(service.state, ServiceState::Running | ServiceState::Stopped);
        !is_fine && service.last_error.is_some()
    });
    failing.map(|(name, _)| name.clone()).collect()
}

/// Renders some services with all that is known of them.
pub(super) fn services(snapshot: &Snapshot, names: &[String]) -> String {
    let shown = names
        .iter()
        .filter_map(|name| Some((name, snapshot.services.get(name)?)));
    shown
        .map(|(name, service)| one(name, service))
        .collect::<Vec<_>>()
        .join("\n")
}

fn one(name: &str, service: &ServiceStatus) -> String {
    let mut text = format!("{name}: {}\n", in_short(service));
    for (label, value) in [
        ("file", service.file.clone()),
        ("listen", service.listen.join(" ")),
        ("sites", service.sites.join(" ")),
        ("generation", service.generation.to_string()),
        ("requests", service.requests.to_string()),
        ("crashes", service.crashes.to_string()),
    ] {
        text += &format!("  {label:<11} {value}\n");
    }
    if let Some(words) = standing(service) {
        text += &format!("  {:<11} {words}\n", "routes");
    }
    for words in warnings(service) {
        text += &format!("  {:<11} {words}\n", "warning");
    }
    if let Some(error) = &service.last_error {
        text += &format!(
            "  {:<11} {} ago: {}\n",
            "last error",
            age(error.at),
            error.message
        );
    }
    if service.instances.is_empty() {
        return text;
    }
    let head = [
        "INSTANCE",
        "PID",
        "ADDRESS",
        "STATE",
        "SINCE",
        "IN FLIGHT",
        "TUNNELS",
        "REQUESTS",
        "GENERATION",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(service.instances.iter().map(|instance| row(name, instance)));
    text + "\n" + &table(&rows)
}

fn row(name: &str, instance: &InstanceStatus) -> [String; 9] {
    let state = match &instance.fault {
        Some(fault) => format!("{} (unhealthy: {fault})", instance_state(instance.state)),
        None => instance_state(instance.state).to_owned(),
    };
    let pid = if instance.pid == 0 {
        "-".to_owned()
    } else {
        instance.pid.to_string()
    };
    [
        format!("{name}/{}", instance.slot),
        pid,
        instance.address.clone(),
        state,
        age(instance.since),
        instance.in_flight.to_string(),
        instance.tunnels.to_string(),
        instance.requests.to_string(),
        instance.generation.to_string(),
    ]
}

/// Words what a service does that it should not do for long: `removed, keeps shop.example until web
/// is ready`.
fn standing(service: &ServiceStatus) -> Option<String> {
    let removed = service.removed.then(|| "removed".to_owned());
    let keeps = (!service.keeps.is_empty()).then(|| kept_in_words(&service.keeps));
    let words: Vec<String> = removed.into_iter().chain(keeps).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Words what is wrong with a service although its instances run.
fn warnings(service: &ServiceStatus) -> impl Iterator<Item = String> + '_ {
    let closed = (!service.not_listening.is_empty()).then(|| {
        let addresses = service.not_listening.join(" ");
        format!(
            "not reachable on {addresses}, where another program listens or the address is missing"
        )
    });
    let refused = service.refused_change.as_ref().map(|refused| {
        let age = age(refused.at.0);
        format!("a change was not applied {age} ago: {}", refused.message)
    });
    let remarks = service.remarks.iter().cloned();
    let all = closed.into_iter().chain(certificate(service));
    all.chain(remarks).chain(refused)
}

/// Words the warning about a certificate that should have been renewed by now.
fn certificate(service: &ServiceStatus) -> Option<String> {
    let expires = service.certificate_expires?.0;
    match expires.duration_since(SystemTime::now()) {
        Ok(left) if left > EXPIRES_SOON => None,
        Ok(left) => Some(format!("the certificate expires in {}", span(left))),
        Err(_) => Some(format!("the certificate expired {} ago", age(expires))),
    }
}

/// Says what a running job is doing: `restart shop 1/3: shop/2 starting`.
pub(super) fn step(job: &JobStatus) -> String {
    let mut text = title(job);
    if job.total > 0 {
        text += &format!(" {}/{}", job.done, job.total);
    }
    if !job.step.is_empty() {
        text += &format!(": {}", job.step);
    }
    text
}

/// Says how a job has ended.
pub(super) fn ended(job: &JobStatus) -> String {
    let title = title(job);
    match (job.state, &job.error) {
        (JobState::Done, _) => match job.changes.as_slice() {
            [] => format!("{title}: done"),
            [change] => format!("{title}: done: {change}"),
            changes => format!("{title}: done:{}", listed(changes)),
        },
        (JobState::Failed, Some(error)) if job.changes.is_empty() => {
            format!("{title} failed: {error}")
        }
        (JobState::Failed, Some(error)) => {
            format!(
                "{title} failed: {error}\ndone all the same:{}",
                listed(&job.changes)
            )
        }
        (JobState::Failed, None) => format!("{title} failed"),
        (JobState::Canceled, _) => format!("{title} was cancelled"),
        (JobState::Superseded, _) => format!("{title} was superseded by a newer command"),
        (JobState::Running, _) => format!("{title} is still running"),
    }
}

/// Lists texts, each in a line of its own.
fn listed(texts: &[String]) -> String {
    texts.iter().map(|text| format!("\n  {text}")).collect()
}

fn title(job: &JobStatus) -> String {
    let kind = match job.kind {
        JobKind::Reload => "reload",
        JobKind::Start => "start",
        JobKind::Stop => "stop",
        JobKind::Restart => "restart",
    };
    if job.service.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind} {}", job.service)
    }
}

/// Cuts the first line of a text to the width of a terminal.
pub(super) fn cut(text: &str, width: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() < width {
        return line.to_owned();
    }
    line.chars()
        .take(width.saturating_sub(2))
        .chain(['…'])
        .collect()
}

/// Describes a service in a few words.
pub(super) fn in_short(service: &ServiceStatus) -> String {
    let state = service_state(service.state);
    let (ready, wanted) = (service.ready(), service.wanted);
    format!("{state}, {ready}/{wanted} instances ready")
}

fn service_state(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Stopped => "stopped",
        ServiceState::Starting => "starting",
        ServiceState::Running => "running",
        ServiceState::Rolling => "rolling",
        ServiceState::Degraded => "degraded",
        ServiceState::Stopping => "stopping",
        ServiceState::Failed => "failed",
    }
}

fn instance_state(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Ready => "ready",
        InstanceState::Draining => "draining",
        InstanceState::Stopping => "stopping",
        InstanceState::Backoff => "backoff",
    }
}

/// Formats the time since a moment: `5s`, `12min`, `3h`, `9d`.
fn age(since: SystemTime) -> String {
    span(
        SystemTime::now()
            .duration_since(since)
            .unwrap_or(Duration::ZERO),
    )
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}min", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Lays rows out in columns that are as wide as they must be.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |row: &[String; COLUMNS]| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{FailureReport, LastError, Moment, ProxyStatus, RefusedChange};

    fn snapshot() -> Snapshot {
        let instance = InstanceStatus {
            id: 4,
            slot: 1,
            generation: 2,
            pid: 77,
            address: "127.0.0.1:9001".into(),
            state: InstanceState::Ready,
            since: SystemTime::now() - Duration::from_secs(130),
            in_flight: 3,
            tunnels: 1,
            requests: 12,
            fault: None,
        };
        let service = ServiceStatus {
            state: ServiceState::Degraded,
            wanted: 2,
            generation: 2,
            file: "/etc/smoothserve/services/shop.yaml".into(),
            listen: vec!["*:80".into()],
            not_listening: vec!["[::]:81".into()],
            sites: vec!["shop.example".into(), "_".into()],
            instances: vec![instance],
            crashes: 1,
            requests: 20,
            last_error: Some(LastError {
                at: SystemTime::now(),
                message: "shop/2 exited with status 1".into(),
                has_output: false,
                report: FailureReport::default(),
            }),
            certificate_expires: Some(Moment(SystemTime::now() + Duration::from_secs(864_100))),
            remarks: vec!["watch_files: too many".into()],
            removed: true,
            keeps: [("web".to_owned(), vec!["shop.example".to_owned()])].into(),
            refused_change: Some(RefusedChange {
                at: Moment(SystemTime::now()),
                message: "the port 81 is not open yet".into(),
            }),
        };
        let job = JobStatus {
            kind: JobKind::Restart,
            service: "shop".into(),
            state: JobState::Running,
            step: "shop/2 starting".into(),
            done: 1,
            total: 2,
            error: None,
            changes: Vec::new(),
            report: FailureReport::default(),
        };
        Snapshot {
            summary: "1 service, 1/2 instances ready".into(),
            uid: 0,
            journal: true,
            proxy: ProxyStatus::default(),
            services: [("shop".to_owned(), service.into())].into(),
            jobs: [(1, job.into())].into(),
        }
    }

    #[test]
    fn the_overview_names_all_services_and_what_went_wrong() {
        let expected = "\
SERVICE  STATE     READY  IN FLIGHT  REQUESTS  LISTEN  SITES
shop     degraded  1/2    3          20        *:80    shop.example _

shop: 0s ago: shop/2 exited with status 1

shop: removed, keeps shop.example until web is ready

shop: not reachable on [::]:81, where another program listens or the address is missing

shop: the certificate expires in 10d

shop: watch_files: too many

shop: a change was not applied 0s ago: the port 81 is not open yet

restart shop 1/2: shop/2 starting

1 service, 1/2 instances ready
";
        let mut snapshot = snapshot();
        assert_eq!(overview(&snapshot), expected);
        snapshot.proxy.overload = Some("accepting no connections".into());
        (snapshot.proxy.memory, snapshot.proxy.most_memory) = (95 << 20, 100 << 20);
        let measure = "\nproxy: 95 of 100 MiB of memory in use: accepting no connections\n";
        assert!(overview(&snapshot).contains(measure));
    }

    #[test]
    fn a_service_is_shown_with_its_instances() {
        let expected = "\
shop: degraded, 1/2 instances ready
  file        /etc/smoothserve/services/shop.yaml
  listen      *:80
  sites       shop.example _
  generation  2
  requests    20
  crashes     1
  routes      removed, keeps shop.example until web is ready
  warning     not reachable on [::]:81, where another program listens or the address is missing
  warning     the certificate expires in 10d
  warning     watch_files: too many
  warning     a change was not applied 0s ago: the port 81 is not open yet
  last error  0s ago: shop/2 exited with status 1

INSTANCE  PID  ADDRESS         STATE  SINCE  IN FLIGHT  TUNNELS  REQUESTS  GENERATION
shop/1    77   127.0.0.1:9001  ready  2min   3          1        12        2
";
        assert_eq!(services(&snapshot(), &["shop".to_owned()]), expected);
    }

    #[test]
    fn a_reload_says_what_it_has_done() {
        let ended = |state, error: Option<&str>, changes: &[&str]| {
            ended(&JobStatus {
                kind: JobKind::Reload,
                service: String::new(),
                state,
                step: String::new(),
                done: 0,
                total: 0,
                error: error.map(str::to_owned),
                changes: changes.iter().map(|it| (*it).to_owned()).collect(),
                report: FailureReport::default(),
            })
        };
        let nothing = ended(JobState::Done, None, &["nothing had changed (16 services)"]);
        assert_eq!(nothing, "reload: done: nothing had changed (16 services)");
        let both = ["shop: 3 instances replaced", "blog: stopped"];
        assert_eq!(
            ended(JobState::Done, None, &both),
            "reload: done:\n  shop: 3 instances replaced\n  blog: stopped"
        );
        assert_eq!(
            ended(JobState::Failed, Some("web/1 exited"), &both[..1]),
            "reload failed: web/1 exited\ndone all the same:\n  shop: 3 instances replaced"
        );
    }

    #[test]
    fn lines_are_cut_to_the_terminal() {
        assert_eq!(
            (cut("abcdef", 7), cut("abcdef", 6), cut("a\nb", 9)),
            ("abcdef".into(), "abcd…".into(), "a".into())
        );
    }
}
