//! The text that a person reads: services, instances, jobs. Pure.

use std::time::{Duration, SystemTime};

use super::files::{FileChange, WaitingFiles};
use super::text::{Color, Column, Piece, Text};
use crate::config::EXPIRES_SOON;
use crate::status::{
    InstanceState, InstanceStatus, JobKind, JobState, JobStatus, ServiceState, ServiceStatus,
    Snapshot, kept_in_words,
};

/// The columns of the overview.
const SERVICE_COLUMNS: [Column; 7] = [
    Column::text("SERVICE"),
    Column::whole("STATE"),
    Column::whole("READY"),
    Column::whole("IN FLIGHT"),
    Column::whole("REQUESTS"),
    Column::text("LISTEN"),
    Column::text("SITES"),
];

/// The columns of the instances of a service.
const INSTANCE_COLUMNS: [Column; 9] = [
    Column::text("INSTANCE"),
    Column::whole("PID"),
    Column::text("ADDRESS"),
    Column::text("STATE"),
    Column::whole("SINCE"),
    Column::whole("IN FLIGHT"),
    Column::whole("TUNNELS"),
    Column::whole("REQUESTS"),
    Column::whole("GENERATION"),
];

/// Renders all services, a line each, and below them what went wrong, and which files wait to be
/// applied.
pub(super) fn overview(snapshot: &Snapshot, waiting: &WaitingFiles, text: &mut Text) {
    let rows = snapshot.services.iter().map(|(name, service)| {
        let in_flight = service.instances.iter().map(|instance| instance.in_flight);
        let in_flight: u32 = in_flight.sum();
        [
            Piece::plain(name),
            state_of_service(service.state),
            Piece::plain(&format!("{}/{}", service.ready(), service.wanted)),
            Piece::plain(&in_flight.to_string()),
            Piece::plain(&service.requests.to_string()),
            Piece::plain(&addresses(&service.listen)),
            Piece::plain(&service.sites.join(" ")),
        ]
    });
    text.table(SERVICE_COLUMNS, rows.collect());
    let note = |text: &mut Text, name: &str, color: Color, words: &str| {
        text.gap();
        text.paragraph(vec![Piece::new(name, color), Piece::plain(": ")], words, 2);
    };
    for name in failing(snapshot) {
        if let Some(error) = &snapshot.services[&name].last_error {
            let mut words = format!("{} ago: {}", age(error.at), error.message);
            if has_given_up(&snapshot.services[&name]) {
                words += "; the version before serves on";
            }
            note(text, &name, Color::Red, &words);
        }
    }
    for (name, service) in &snapshot.services {
        if let Some(words) = standing(service) {
            note(text, name, Color::Plain, &words);
        }
        for words in warnings(service, waiting.services.get(name)) {
            note(text, name, Color::Yellow, &words);
        }
    }
    if let Some(change) = waiting.settings {
        note(text, "smoothserve.yaml", Color::Yellow, &waits(change));
    }
    for job in snapshot
        .jobs
        .values()
        .filter(|job| job.state == JobState::Running)
    {
        text.gap();
        text.paragraph(Vec::new(), &step(job), 2);
    }
    if let Some(measure) = &snapshot.proxy.overload {
        let [memory, most] =
            [snapshot.proxy.memory, snapshot.proxy.most_memory].map(|bytes| bytes >> 20);
        let words = format!("{memory} of {most} MiB of memory in use: {measure}");
        note(text, "proxy", Color::Yellow, &words);
    }
    text.gap();
    text.paragraph(Vec::new(), &snapshot.summary, 2);
}

/// Returns the JSON of a snapshot; if there are names, with these services and their jobs alone. A
/// reload is a job of all services.
pub(super) fn json(whole: &str, names: &[String]) -> String {
    let parsed = serde_json::from_str(whole);
    let (false, Ok(serde_json::Value::Object(mut snapshot))) = (names.is_empty(), parsed) else {
        return whole.to_owned();
    };
    if let Some(services) = snapshot
        .get_mut("services")
        .and_then(|it| it.as_object_mut())
    {
        services.retain(|name, _| names.contains(name));
    }
    if let Some(jobs) = snapshot.get_mut("jobs").and_then(|it| it.as_object_mut()) {
        jobs.retain(|_, job| {
            let service = job["service"].as_str().unwrap_or_default();
            service.is_empty() || names.iter().any(|name| name == service)
        });
    }
    serde_json::Value::Object(snapshot).to_string()
}

/// Returns the names of the services whose last error the overview shows.
pub(super) fn failing(snapshot: &Snapshot) -> Vec<String> {
    let services = snapshot.services.iter();
    let failing = services.filter(|(_, service)| {
        let is_fine = matches!(service.state, ServiceState::Running | ServiceState::Stopped);
        (!is_fine || has_given_up(service)) && service.last_error.is_some()
    });
    failing.map(|(name, _)| name.clone()).collect()
}

/// Returns true if a service runs, but not the version that was asked for last.
fn has_given_up(service: &ServiceStatus) -> bool {
    let is_old = |instance: &InstanceStatus| instance.generation < service.generation;
    let instances = &service.instances;
    service.state == ServiceState::Running && !instances.is_empty() && instances.iter().all(is_old)
}

/// Renders some services with all that is known of them, and whether their files wait to be
/// applied.
pub(super) fn services(
    snapshot: &Snapshot,
    names: &[String],
    waiting: &WaitingFiles,
    text: &mut Text,
) {
    let found = names
        .iter()
        .filter_map(|name| Some((name, snapshot.services.get(name)?)));
    for (index, (name, service)) in found.enumerate() {
        if index > 0 {
            text.gap();
        }
        one(name, service, waiting.services.get(name), text);
    }
}

fn one(name: &str, service: &ServiceStatus, change: Option<&FileChange>, text: &mut Text) {
    let (ready, wanted) = (service.ready(), service.wanted);
    let first = vec![
        Piece::plain(name),
        Piece::plain(": "),
        state_of_service(service.state),
        Piece::plain(", "),
    ];
    text.paragraph(first, &format!("{ready}/{wanted} instances ready"), 2);
    let line = |text: &mut Text, label: &str, color: Color, value: &str| {
        let label = format!("{label:<11}");
        let begin = vec![
            Piece::plain("  "),
            Piece::new(&label, color),
            Piece::plain(" "),
        ];
        text.paragraph(begin, value, 14);
    };
    for (label, value) in [
        ("file", service.file.clone()),
        ("listen", addresses(&service.listen)),
        ("sites", service.sites.join(" ")),
        ("generation", service.generation.to_string()),
        ("requests", service.requests.to_string()),
        ("crashes", service.crashes.to_string()),
    ] {
        line(text, label, Color::Plain, &value);
    }
    if let Some(words) = standing(service) {
        line(text, "routes", Color::Plain, &words);
    }
    for words in warnings(service, change) {
        line(text, "warning", Color::Yellow, &words);
    }
    if let Some(error) = &service.last_error {
        let words = format!("{} ago: {}", age(error.at), error.message);
        let color = color_of_service(service.state);
        let color = if color == Color::Green {
            Color::Plain
        } else {
            color
        };
        line(text, "last error", color, &words);
    }
    if !service.instances.is_empty() {
        text.gap();
        let rows = service.instances.iter().map(|instance| row(name, instance));
        text.table(INSTANCE_COLUMNS, rows.collect());
    }
}

fn row(name: &str, instance: &InstanceStatus) -> [Piece; 9] {
    let state = match &instance.fault {
        Some(fault) => {
            let state = instance_state(instance.state);
            Piece::new(&format!("{state} (unhealthy: {fault})"), Color::Yellow)
        }
        None => {
            let color = match instance.state {
                InstanceState::Ready => Color::Green,
                InstanceState::Starting | InstanceState::Backoff => Color::Yellow,
                InstanceState::Draining | InstanceState::Stopping => Color::Plain,
            };
            Piece::new(instance_state(instance.state), color)
        }
    };
    let pid = match instance.pid {
        0 => "-".to_owned(),
        pid => pid.to_string(),
    };
    let address = match instance.address.as_str() {
        "" => "-",
        address => address,
    };
    [
        Piece::plain(&format!("{name}/{}", instance.slot)),
        Piece::plain(&pid),
        Piece::plain(address),
        state,
        Piece::plain(&age(instance.since)),
        Piece::plain(&instance.in_flight.to_string()),
        Piece::plain(&instance.tunnels.to_string()),
        Piece::plain(&instance.requests.to_string()),
        Piece::plain(&instance.generation.to_string()),
    ]
}

/// Lists addresses that the proxy listens on. All addresses of the machine are not named: `80` is
/// short for `[::]:80`.
fn addresses(listen: &[String]) -> String {
    let short = listen
        .iter()
        .map(|address| port_alone(address).unwrap_or(address));
    short.collect::<Vec<_>>().join(" ")
}

/// Returns the port of an address that stands for all addresses of the machine.
fn port_alone(address: &str) -> Option<&str> {
    address.strip_prefix("[::]:")
}

/// Words what a service does that it should not do for long: `removed, keeps shop.example until web
/// is ready`.
fn standing(service: &ServiceStatus) -> Option<String> {
    let removed = service.removed.then(|| "removed".to_owned());
    let keeps = (!service.keeps.is_empty()).then(|| kept_in_words(&service.keeps));
    let words: Vec<String> = removed.into_iter().chain(keeps).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Words what is wrong with a service although its instances run. `change` is what has become of
/// its file since it was applied.
fn warnings<'a>(
    service: &'a ServiceStatus,
    change: Option<&FileChange>,
) -> impl Iterator<Item = String> + 'a {
    let closed = (!service.not_listening.is_empty()).then(|| {
        let named = service.not_listening.iter().map(|address| {
            let port = port_alone(address);
            port.map_or_else(|| address.clone(), |port| format!("port {port}"))
        });
        let addresses = named.collect::<Vec<_>>().join(" and ");
        format!(
            "not reachable on {addresses}, where another program listens, which `ss -ltnp` names, or \
             the address is missing"
        )
    });
    let waits = change.map(|change| format!("its file {}", waits(*change)));
    let refused = service.refused_change.as_ref().map(|refused| {
        let age = age(refused.at.0);
        format!("a change was not applied {age} ago: {}", refused.message)
    });
    let remarks = service.remarks.iter().cloned();
    let all = closed.into_iter().chain(certificate(service));
    all.chain(remarks).chain(refused).chain(waits)
}

/// Words what has become of a file, and what applies it.
fn waits(change: FileChange) -> String {
    let change = match change {
        FileChange::Written => "has changed on disk",
        FileChange::Removed => "was removed from disk",
    };
    format!("{change}; `smoothctl reload` applies that, if `smoothctl check` finds no fault")
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

/// Describes a service in a few words.
pub(super) fn in_short(service: &ServiceStatus) -> String {
    let state = service_state(service.state);
    let (ready, wanted) = (service.ready(), service.wanted);
    format!("{state}, {ready}/{wanted} instances ready")
}

fn state_of_service(state: ServiceState) -> Piece {
    Piece::new(service_state(state), color_of_service(state))
}

fn color_of_service(state: ServiceState) -> Color {
    match state {
        ServiceState::Running => Color::Green,
        ServiceState::Failed => Color::Red,
        ServiceState::Starting | ServiceState::Degraded => Color::Yellow,
        ServiceState::Rolling | ServiceState::Stopping | ServiceState::Stopped => Color::Plain,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{
        FailureReport, LastError, Moment, ProxyStatus, RefusedChange, SettingsStatus,
    };

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
            file_written: None,
            listen: vec!["[::]:80".into(), "127.0.0.1:8000".into()],
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
            settings: SettingsStatus::default(),
            proxy: ProxyStatus::default(),
            services: [("shop".to_owned(), service.into())].into(),
            jobs: [(1, job.into())].into(),
        }
    }

    fn waiting() -> WaitingFiles {
        WaitingFiles {
            settings: Some(FileChange::Removed),
            services: [("shop".to_owned(), FileChange::Written)].into(),
        }
    }

    fn shown_overview(snapshot: &Snapshot, room: Option<usize>, has_colors: bool) -> String {
        let mut text = Text::new(room);
        overview(snapshot, &waiting(), &mut text);
        text.lines(has_colors)
    }

    fn shown_service(room: Option<usize>, has_colors: bool) -> String {
        let mut text = Text::new(room);
        services(&snapshot(), &["shop".to_owned()], &waiting(), &mut text);
        text.lines(has_colors)
    }

    #[test]
    fn the_overview_names_all_services_and_what_went_wrong() {
        let expected = "\
SERVICE  STATE     READY  IN FLIGHT  REQUESTS  LISTEN             SITES
shop     degraded  1/2    3          20        80 127.0.0.1:8000  shop.example _

shop: 0s ago: shop/2 exited with status 1

shop: removed, keeps shop.example until web is ready

shop: not reachable on port 81, where another program listens, which `ss -ltnp` names, or the address is missing

shop: the certificate expires in 10d

shop: watch_files: too many

shop: a change was not applied 0s ago: the port 81 is not open yet

shop: its file has changed on disk; `smoothctl reload` applies that, if `smoothctl check` finds no fault

smoothserve.yaml: was removed from disk; `smoothctl reload` applies that, if `smoothctl check` finds no fault

restart shop 1/2: shop/2 starting

1 service, 1/2 instances ready
";
        let mut snapshot = snapshot();
        assert_eq!(shown_overview(&snapshot, None, false), expected);
        snapshot.proxy.overload = Some("accepting no connections".into());
        (snapshot.proxy.memory, snapshot.proxy.most_memory) = (95 << 20, 100 << 20);
        let measure = "\nproxy: 95 of 100 MiB of memory in use: accepting no connections\n";
        assert!(shown_overview(&snapshot, None, false).contains(measure));
    }

    #[test]
    fn the_overview_says_that_a_version_was_given_up() {
        let mut snapshot = snapshot();
        let mut service = ServiceStatus::clone(&snapshot.services["shop"]);
        service.state = ServiceState::Running;
        let mut shown = |service: &ServiceStatus| {
            let shop = "shop".to_owned();
            snapshot.services.insert(shop, service.clone().into());
            shown_overview(&snapshot, None, false)
        };
        // A crash of an instance that has been replaced since.
        assert!(!shown(&service).contains("exited with status 1"));
        service.generation = 3;
        let told = "ago: shop/2 exited with status 1; the version before serves on\n";
        assert!(shown(&service).contains(told));
    }

    #[test]
    fn a_narrow_terminal_shows_what_matters_most() {
        let head = |room| {
            let text = shown_overview(&snapshot(), Some(room), false);
            assert!(
                text.lines().all(|line| line.chars().count() <= room),
                "{text}"
            );
            text.lines().take(2).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            head(74),
            "\
SERVICE STATE    READY IN FLIGHT REQUESTS LISTEN            SITES
shop    degraded 1/2   3         20       80 127.0.0.1:8000 shop.example _"
        );
        assert_eq!(
            head(60),
            "\
SERVICE STATE    READY IN FLIGHT REQUESTS LISTEN    SITES
shop    degraded 1/2   3         20       80 127.0… shop.ex…"
        );
        assert_eq!(
            head(40),
            "\
SERVICE  STATE     READY  IN FLIGHT
shop     degraded  1/2    3"
        );
    }

    #[test]
    fn states_have_colors() {
        let overview = shown_overview(&snapshot(), None, true);
        assert!(overview.contains("\nshop     \x1b[33mdegraded\x1b[0m  1/2"));
        assert!(overview.contains("\n\x1b[31mshop\x1b[0m: 0s ago"));
        let service = shown_service(None, true);
        assert!(service.contains("\x1b[32mready\x1b[0m"), "{service}");
    }

    #[test]
    fn json_can_be_that_of_some_services() {
        let mut snapshot = snapshot();
        let shop = snapshot.services["shop"].clone();
        snapshot.services.insert("blog".to_owned(), shop);
        let reload = JobStatus {
            service: String::new(),
            ..JobStatus::clone(&snapshot.jobs[&1])
        };
        snapshot.jobs.insert(2, reload.into());
        let whole = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(json(&whole, &[]), whole);
        let read = |names: &[&str]| -> Snapshot {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            serde_json::from_str(&json(&whole, &names)).unwrap()
        };
        let blog = read(&["blog"]);
        assert!(blog.services.keys().eq(["blog"]) && blog.jobs.keys().eq(&[2]));
        assert_eq!(blog.summary, snapshot.summary);
        let shop = read(&["shop"]);
        assert!(shop.services.keys().eq(["shop"]) && shop.jobs.keys().eq(&[1, 2]));
    }

    #[test]
    fn a_service_is_shown_with_its_instances() {
        let expected = "\
shop: degraded, 1/2 instances ready
  file        /etc/smoothserve/services/shop.yaml
  listen      80 127.0.0.1:8000
  sites       shop.example _
  generation  2
  requests    20
  crashes     1
  routes      removed, keeps shop.example until web is ready
  warning     not reachable on port 81, where another program listens, which `ss -ltnp` names, or the address is missing
  warning     the certificate expires in 10d
  warning     watch_files: too many
  warning     a change was not applied 0s ago: the port 81 is not open yet
  warning     its file has changed on disk; `smoothctl reload` applies that, if `smoothctl check` finds no fault
  last error  0s ago: shop/2 exited with status 1

INSTANCE  PID  ADDRESS         STATE  SINCE  IN FLIGHT  TUNNELS  REQUESTS  GENERATION
shop/1    77   127.0.0.1:9001  ready  2min   3          1        12        2
";
        assert_eq!(shown_service(None, false), expected);
        let narrow = shown_service(Some(44), false);
        for lines in [
            "  warning     not reachable on port 81,\n              where another program listens,\n",
            "\nINSTANCE PID ADDRESS   STATE SINCE IN FLIGHT\nshop/1   77  127.0.0.… ready 2min  3\n",
        ] {
            assert!(narrow.contains(lines), "{narrow}");
        }
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
}
