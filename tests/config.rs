//! Whole configuration folders, valid ones and faulty ones.
//!
//! The report that is expected for a faulty folder stands in its `report.txt`, which calls the
//! folder itself `DIR`. With `SMOOTHSERVE_BLESS=1` in the environment the tests write these files
//! instead of comparing them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use smoothserve::config::{
    self, Amount, Bind, Config, Faults, HandlingConfig, HostPattern, IgnoredNames, Limits, Listen,
    Nofile, ProcessConfig, ProcessLimits, Ready, Rollout, ScopeLimits, ServiceConfig, Site,
    StripPrefixConfig, Times, UpstreamProtocol, Written, load, load_partial,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/config")
        .join(name)
}

/// Compares a report with the folder's `report.txt`.
fn assert_report(dir: &Path, faults: &Faults) {
    let fixtures = fixture("");
    let fixtures = fixtures.to_str().unwrap().trim_end_matches('/');
    let report = faults.to_string();
    let report = report
        .replace(dir.to_str().unwrap(), "DIR")
        .replace(fixtures, "FIXTURES")
        + "\n";
    let expected = dir.join("report.txt");
    if std::env::var_os("SMOOTHSERVE_BLESS").is_some() {
        fs::write(&expected, &report).unwrap();
    }
    let expected = fs::read_to_string(&expected).unwrap();
    assert_eq!(report, expected, "\n--- the report is:\n{report}");
}

fn good(dir: &Path) -> Config {
    load(dir).unwrap_or_else(|faults| panic!("{faults}"))
}

/// Makes a folder with these files and an executable `app`.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("services")).unwrap();
    fs::copy(fixture("app"), dir.path().join("app")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Loads a folder with one service, whose file has the required lines and these, and returns that
/// service.
fn service(lines: &str) -> ServiceConfig {
    let text = format!("name: x\nport: 8080\nexecutable_path: ../app\n{lines}\n");
    let dir = folder(&[("services/x.yaml", &text)]);
    ServiceConfig::clone(&good(dir.path()).services["x"])
}

#[test]
fn files_of_the_original_program_load_unchanged() {
    let dir = fixture("original");
    let config = good(&dir);
    assert_eq!(config.services.len(), 1);
    let file = dir.join("services/center.yaml");
    let folder = dir.join("services/../..");
    assert_eq!(
        *config.services["center"],
        ServiceConfig {
            name: "center".into(),
            file,
            written: Written::default(),
            enabled: true,
            sites: vec![Site {
                host: HostPattern::Exact("local.example.com".into()),
                path: "/center".into()
            }],
            tls: None,
            listen: vec![Listen {
                address: None,
                port: 8020
            }],
            strip_prefix: StripPrefixConfig::Nothing,
            proxy_protocol: false,
            handling: HandlingConfig::default(),
            instance_count: 2,
            process: ProcessConfig {
                executable: folder.join("app"),
                args: vec!["-port={port}".into()],
                environment: BTreeMap::new(),
                environment_file: None,
                environment_file_optional: false,
                working_directory: None,
                user: None,
                group: None,
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                start_instance_port: Some(8021),
                bind: Bind::Port,
                protocol: UpstreamProtocol::Http1,
                ready: Ready::Tcp,
                stop_signal: 15,
                limits: Limits::default(),
            },
            auto_restart: true,
            watch_files: vec![
                folder.join("view"),
                folder.join("config"),
                folder.join("view/common/server_error.html"),
            ],
            watch_ignore: IgnoredNames::default(),
            delay_update_time: Duration::from_secs(5),
            times: Times {
                delay_running_time: Duration::from_secs(3),
                start_timeout: Duration::from_secs(63),
                drain_timeout: Duration::from_secs(30),
                tunnel_drain_timeout: Duration::from_secs(60),
                stop_timeout: Duration::from_secs(10),
            },
            rollout: Rollout::StartFirst,
        }
    );
    let note = "CommandPort, ProxyAddr, log: not used: control is D-Bus, logs are the journal";
    let [only] = config.notes.as_slice() else {
        panic!("{:?}", config.notes)
    };
    assert!(only.ends_with(note), "{only}");
}

#[test]
fn without_a_global_file_every_setting_has_its_default() {
    let config = good(&fixture("minimal"));
    assert_eq!(config.default_user, "www-data");
    assert!(config.trusted_proxies.is_empty());
    assert_eq!((config.forwarded, config.max_connections), (false, None));
    assert_eq!(config.proxy_memory_max, None);
    assert!(config.notes.is_empty(), "{:?}", config.notes);
    assert_eq!(config.services.keys().collect::<Vec<_>>(), ["shop"]);
    let shop = &config.services["shop"];
    assert_eq!(shop.instance_count, 1);
    assert!(shop.enabled && !shop.auto_restart);
    assert_eq!(shop.sites[0].to_string(), "_");
    assert_eq!(shop.listen[0].to_string(), "[::]:8080");
    assert_eq!(shop.times.start_timeout, Duration::from_secs(60));
    assert_eq!(shop.delay_update_time, Duration::from_secs(1));
}

#[test]
fn services_on_one_port_must_agree_about_the_proxy_protocol() {
    let text = |name: &str, lines: &str| {
        format!(
            "name: {name}\nserver_name: {name}.example\nport: 80\nexecutable_path: ../app\n{lines}"
        )
    };
    let with = |second: &str| {
        folder(&[
            ("smoothserve.yaml", "trusted_proxies: 10.0.0.0/8\n"),
            ("services/a.yaml", &text("a", "proxy_protocol: true\n")),
            ("services/b.yaml", &text("b", second)),
        ])
    };
    let agreed = with("proxy_protocol: true\n");
    assert!(good(agreed.path()).services["b"].proxy_protocol);
    for (other, line) in [("", 1), ("proxy_protocol: false\n", 5)] {
        let dir = with(other);
        let faults = load(dir.path()).unwrap_err().to_string();
        let place = format!("b.yaml:{line}:");
        assert!(faults.contains(&place), "{faults}");
        let message = "port 80 is with `proxy_protocol` for `a`";
        assert!(faults.contains(message), "{faults}");
    }
}

#[test]
fn the_proxy_protocol_without_trusted_proxies_causes_a_note() {
    let text = "name: x\nport: 80\nexecutable_path: ../app\nproxy_protocol: true\n";
    let dir = folder(&[("services/x.yaml", text)]);
    let notes = good(dir.path()).notes;
    let remark =
        "x.yaml:4: `proxy_protocol` without `trusted_proxies`: all connections are refused";
    assert!(notes.iter().any(|note| note.ends_with(remark)), "{notes:?}");
}

#[test]
fn strip_prefix_removes_its_prefix_from_paths_and_must_match_them() {
    for (names, strip, counts) in [
        ("example.org/api", "true", vec![4]),
        (
            "example.org/api, example.org/api/v2, a.example",
            "true",
            vec![0, 4, 7],
        ),
        (
            "example.org/api/, example.org/api/v2, example.org/apis",
            "/api",
            vec![4, 4, 0],
        ),
        ("example.org/api/v2", "/api/", vec![4]),
        ("example.org/api", "false", vec![0]),
    ] {
        let service = service(&format!("server_name: {names}\nstrip_prefix: {strip}"));
        let found = service.sites.iter();
        let found: Vec<usize> = found.map(|site| service.strip_prefix.count(site)).collect();
        assert_eq!(found, counts, "{names} {strip}");
    }
    for (names, strip) in [
        ("example.org", "true"),
        ("_", "/"),
        ("example.org/api", "/ap"),
        ("example.org/api", "/api/v2"),
        ("example.org/api", "/api/../x"),
        ("example.org/api", "api"),
    ] {
        let text = format!(
            "name: x\nport: 80\nexecutable_path: ../app\nserver_name: {names}\nstrip_prefix: {strip}\n"
        );
        let faults = load(folder(&[("services/x.yaml", &text)]).path())
            .unwrap_err()
            .to_string();
        assert!(faults.contains("x.yaml:5:15: `strip_prefix`"), "{faults}");
    }
}

#[test]
fn keys_for_the_handling_of_requests_are_read_and_checked() {
    let found = service(
        "max_request_body: 1.5G\nresponse_timeout: 2m\nclient_gone_timeout: 1s\nqueue_timeout: 0\nmax_in_flight: 20",
    )
    .handling;
    let expected = HandlingConfig {
        max_request_body: Some(1536 << 20),
        response_timeout: Duration::from_secs(120),
        client_gone_timeout: Duration::from_secs(1),
        queue_timeout: Duration::ZERO,
        max_in_flight: Some(20),
        redirect_https: None,
        hsts: None,
    };
    assert_eq!(found, expected);
    assert_eq!(
        service("max_request_body: none\nmax_in_flight: auto").handling,
        HandlingConfig::default()
    );
    for (line, fault) in [
        ("max_request_body: lots", "`max_request_body` is `lots`"),
        ("max_request_body: -1", "`max_request_body` is `-1`"),
        ("hsts: 3651d", "`hsts` is `3651d`"),
        ("hsts: 1d", "`hsts` without `tls`"),
        ("redirect_https: true", "`redirect_https` without `tls`"),
        ("response_timeout: 0", "`response_timeout` is 0"),
        ("max_in_flight: 0", "`max_in_flight` is `0`"),
        ("max_in_flight: none", "`max_in_flight` is `none`"),
    ] {
        let text = format!("name: x\nport: 80\nexecutable_path: ../app\n{line}\n");
        let faults = load(folder(&[("services/x.yaml", &text)]).path())
            .unwrap_err()
            .to_string();
        assert!(faults.contains(":4:") && faults.contains(fault), "{faults}");
    }
}

#[test]
fn all_faults_of_all_files_come_in_one_report() {
    let dir = fixture("faults");
    let faults = load(&dir).unwrap_err();
    assert_report(&dir, &faults);
    let (config, same) = load_partial(&dir);
    assert_eq!(same, faults);
    let kept: Vec<_> = config.services.keys().collect();
    assert_eq!(
        kept,
        ["e"],
        "what the machine lacks for it may still appear"
    );
}

#[test]
fn conflicting_services_are_reported_and_the_first_one_is_kept() {
    let dir = fixture("clashes");
    let (config, faults) = load_partial(&dir);
    assert_report(&dir, &faults);
    assert_eq!(
        config.services.keys().collect::<Vec<_>>(),
        ["a", "h", "i"].iter().collect::<Vec<_>>()
    );
    assert!(load(&dir).is_err());
    let kept = config.services.values().map(|service| &**service);
    assert_eq!(config::conflicts(kept), []);
}

#[test]
fn every_form_of_a_value_is_read() {
    let one = |name: &str| vec![Site::parse(name).unwrap()];
    assert_eq!(service("server_name: a.example").sites, one("a.example"));
    let many = [Site::parse("a.example"), Site::parse("b.example/x")].map(Result::unwrap);
    for text in [
        "server_name: \"b.example/x, a.example\"",
        "server_name: [a.example, b.example/x]",
        "server_name: [\"a.example, b.example/x\"]",
        "server_name:\n- a.example\n- b.example/x\n- A.example.",
    ] {
        assert_eq!(service(text).sites, many, "{text}");
    }

    let second = Duration::from_secs(1);
    for (key, value) in [
        ("2s", 2),
        ("2", 2),
        ("2000ms", 2),
        ("1m30s", 90),
        ("2m", 120),
    ] {
        let text =
            format!("drain_timeout: {key}\ndelay_update_time: {key}\ndelay_running_time: {key}");
        let found = service(&text);
        assert_eq!(found.times.drain_timeout, second * value, "{key}");
        assert_eq!(found.delay_update_time, second * value, "{key}");
        assert_eq!(found.times.delay_running_time, second * value, "{key}");
    }
    assert_eq!(service("stop_timeout: 0.5").times.stop_timeout, second / 2);

    for (text, number) in [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("int", 2),
        ("SIGQUIT", 3),
        ("10", 10),
    ] {
        assert_eq!(
            service(&format!("stop_signal: {text}")).process.stop_signal,
            number
        );
    }
    let found = service("environment: {A: 1, B: yes, C: , D: \"\"}");
    let pairs = [("A", "1"), ("B", "yes"), ("C", ""), ("D", "")];
    let pairs = pairs.map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(found.process.environment, BTreeMap::from(pairs));
    let found = service("environment: [A=1, \"B=x=y\"]");
    assert_eq!(found.process.environment["B"], "x=y");

    for (text, ready) in [
        ("tcp", Ready::Tcp),
        ("notify", Ready::Notify),
        ("http", Ready::Http("/".into())),
        ("http:/health?full=1", Ready::Http("/health?full=1".into())),
    ] {
        assert_eq!(service(&format!("ready: {text}")).process.ready, ready);
    }
}

#[test]
fn limits_are_read_and_a_saved_state_without_them_has_none() {
    let process = service(
        "memory_max: 1.5G\nmemory_high: 12.5%\ncpu_quota: 150%\ntasks_max: infinity\n\
         limit_nofile: 1024:infinity\nnice: -20\noom_score_adjust: -1000",
    )
    .process;
    let limits = Limits {
        scope: ScopeLimits {
            memory_max: Some(Amount::Absolute(1536 << 20)),
            memory_high: Some(Amount::Share(1250)),
            cpu_quota: Some(15000),
            tasks_max: Some(Amount::Infinity),
        },
        process: ProcessLimits {
            nofile: Some(Nofile {
                soft: Some(1024),
                hard: None,
            }),
            nice: Some(-20),
            oom_score_adjust: Some(-1000),
        },
    };
    assert_eq!(process.limits, limits);
    let mut stored = serde_json::to_value(&process).unwrap();
    let read = |stored| serde_json::from_value::<ProcessConfig>(stored).unwrap();
    assert_eq!(read(stored.clone()), process);
    stored.as_object_mut().unwrap().remove("limits").unwrap();
    assert_eq!(read(stored).limits, Limits::default());
}

#[test]
fn only_instances_with_a_port_have_default_arguments() {
    assert_eq!(service("bind: port").process.args, ["-port={port}"]);
    assert!(service("bind: unix").process.args.is_empty());
    assert!(service("bind: inherit").process.args.is_empty());
    assert!(service("args: []").process.args.is_empty());
    let found = service("bind: unix\nargs: [\"--socket={socket}\", \"\"]");
    assert_eq!(found.process.args, ["--socket={socket}", ""]);
}

#[test]
fn a_service_listens_on_every_port_of_every_address() {
    let dir = folder(&[(
        "services/x.yaml",
        "name: x\nport: \"8081, 8080, 8081\"\nlisten_address: 127.0.0.1, 127.0.0.2\nexecutable_path: ../app\n",
    )]);
    let config = good(dir.path());
    let listen: Vec<String> = config.services["x"]
        .listen
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "127.0.0.1:8080",
        "127.0.0.1:8081",
        "127.0.0.2:8080",
        "127.0.0.2:8081",
    ];
    assert_eq!(listen, expected);
}

#[test]
fn relative_paths_start_at_the_file_that_names_them() {
    let found = service(
        "working_directory: .\nenvironment_file: -./x.env\nwatch_files: [view, /etc/hosts]",
    );
    let folder = found.file.parent().unwrap();
    assert_eq!(found.process.executable, folder.join("../app"));
    assert_eq!(found.process.working_directory, Some(folder.to_owned()));
    assert_eq!(found.process.environment_file, Some(folder.join("x.env")));
    assert!(found.process.environment_file_optional);
    assert_eq!(
        found.watch_files,
        [folder.join("../view"), "/etc/hosts".into()]
    );
}

#[test]
fn names_that_are_not_watched_are_names_and_no_paths() {
    let names = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        IgnoredNames::new(names.collect())
    };
    let default = names(&["node_modules", ".git", "__pycache__"]);
    assert_eq!(service("").watch_ignore, default);
    assert_eq!(service("watch_ignore: []").watch_ignore, names(&[]));
    let found = service("watch_ignore: [cache, '*.log']").watch_ignore;
    assert_eq!(found, names(&["cache", "*.log"]));
    let text = "name: x\nport: 80\nexecutable_path: ../app\nwatch_ignore: [a, view/cache]\n";
    let faults = load(folder(&[("services/x.yaml", text)]).path());
    let faults = faults.unwrap_err().to_string();
    let fault = "x.yaml:4:19: `watch_ignore` has `view/cache`; give names without folders";
    assert!(faults.contains(fault), "{faults}");
}

#[test]
fn a_disabled_service_may_name_a_missing_executable_and_user() {
    let text =
        "name: x\nenabled: no\nport: 80\nexecutable_path: ./later\nuser: nobody-by-this-name\n";
    let dir = folder(&[("services/x.yaml", text)]);
    let config = good(dir.path());
    assert!(!config.services["x"].enabled);
    assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    assert!(config.notes[0].contains("services/x.yaml:4: the executable "));
}

#[test]
fn a_program_found_in_path_is_suggested_for_a_missing_executable() {
    let text = "name: x\nport: 80\nexecutable_path: sh\n";
    let dir = folder(&[("services/x.yaml", text)]);
    let report = load(dir.path()).unwrap_err().to_string();
    assert!(
        report.contains("services/sh does not exist; did you mean /"),
        "{report}"
    );
}

#[test]
fn the_services_folder_can_be_elsewhere() {
    for key in ["SubConfigDir", "services_dir"] {
        let dir = folder(&[("smoothserve.yaml", &format!("{key}: ./sites\n"))]);
        let sites = dir.path().join("sites");
        let faults = load(dir.path()).unwrap_err();
        assert!(faults.to_string().contains(":1:"), "{faults}");
        assert!(faults.to_string().contains("cannot be opened"), "{faults}");
        fs::create_dir(&sites).unwrap();
        fs::write(
            sites.join("x.yaml"),
            "name: x\nport: 80\nexecutable_path: ../app\n",
        )
        .unwrap();
        assert!(good(dir.path()).services.contains_key("x"));
    }
}

#[test]
fn a_missing_services_folder_is_a_note_and_a_missing_configuration_folder_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let config = good(dir.path());
    assert!(config.services.is_empty());
    assert!(config.notes[0].contains("so there are no services"));

    let (config, faults) = load_partial(&dir.path().join("nowhere"));
    assert!(config.services.is_empty());
    assert!(
        faults
            .to_string()
            .contains("nowhere: the folder cannot be opened")
    );
}

#[test]
fn a_faulty_global_file_does_not_prevent_loading_services() {
    let text = "name: x\nport: 80\nexecutable_path: ../app\n";
    let dir = folder(&[("smoothserve.yaml", "a: [\n"), ("services/x.yaml", text)]);
    let (config, faults) = load_partial(dir.path());
    assert_eq!(faults.len(), 1);
    assert!(config.services.contains_key("x"));
    assert_eq!(config.default_user, "www-data");
}

#[test]
fn a_faulty_service_does_not_claim_a_name_or_port_from_a_valid_one() {
    let bad = "name: x\nport: 80\nexecutable_path: ../app\ncolor: red\n";
    let good = "name: x\nport: 80\nexecutable_path: ../app\n";
    let dir = folder(&[("services/a.yaml", bad), ("services/b.yaml", good)]);
    let (config, faults) = load_partial(dir.path());
    assert_eq!(faults.len(), 2, "{faults}");
    assert!(config.services["x"].file.ends_with("services/b.yaml"));
}

#[test]
fn trusted_proxies_are_addresses_and_networks() {
    let text = "trusted_proxies: [127.0.0.1, 10.1.2.3/8, \"::1, fd00::/8\"]\n";
    let dir = folder(&[("smoothserve.yaml", text)]);
    let networks: Vec<String> = good(dir.path())
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        networks,
        ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8"]
    );
}

#[test]
fn global_settings_are_read_and_checked() {
    let with = |text: &str| folder(&[("smoothserve.yaml", text)]);
    let config = good(with("forwarded: true\nmax_connections: 20000\n").path());
    assert_eq!(
        (config.forwarded, config.max_connections),
        (true, Some(20_000))
    );
    let faults = load(with("max_connections: 0\n").path())
        .unwrap_err()
        .to_string();
    assert!(faults.contains("`max_connections` is `0`"), "{faults}");
    let memory = |text: &str| load(with(&format!("proxy_memory_max: {text}\n")).path());
    assert_eq!(memory("1.5G").unwrap().proxy_memory_max, Some(3 << 29));
    for (text, wrong) in [
        ("31M", "the proxy needs at least 32M"),
        ("much", "give a size such as 512M or 1.5G"),
    ] {
        let faults = memory(text).unwrap_err().to_string();
        let expected = format!("`proxy_memory_max` is `{text}`; {wrong}");
        assert!(faults.contains(&expected), "{faults}");
    }
}

#[test]
fn check_prints_a_summary_of_the_configuration() {
    let dir = fixture("original");
    let text = config::check(&dir).unwrap();
    let first = format!("{}: 1 service, 2 instances, no faults\n", dir.display());
    assert!(text.starts_with(&first), "{text}");
    assert!(
        text.contains("  center: local.example.com/center on [::]:8020, × 2\n"),
        "{text}"
    );
    assert!(text.contains("note: "), "{text}");
    assert!(config::check(&fixture("faults")).is_err());
}
