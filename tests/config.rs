//! Whole configuration folders, valid ones and faulty ones.
//!
//! The report that is expected for a faulty folder stands in its `report.txt`, which calls the
//! folder itself `DIR`. With `SMOOTHSERVE_BLESS=1` in the environment the tests write these files
//! instead of comparing them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
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
    // Instances of other users may reach the executable.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
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
    assert!(config.notes[0].ends_with(note), "{:?}", config.notes);
}

#[test]
fn without_a_global_file_every_setting_has_its_default() {
    let config = good(&fixture("minimal"));
    assert_eq!(config.default_user, "www-data");
    assert!(config.trusted_proxies.is_empty());
    assert_eq!((config.forwarded, config.max_connections), (false, None));
    assert_eq!(config.proxy_memory_max, None);
    // The folder of these tests may be one that other users may not enter.
    let is_about_it = |note: &&String| !note.contains("may not enter");
    assert_eq!(config.notes.iter().find(is_about_it), None);
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

/// The required lines of a service's file.
const NEEDED: &str = "name: x\nport: 8080\nexecutable_path: ../app\n";

/// Loads a service's file, and returns its faults, each as `line:column: message`.
fn faults(text: &str) -> Vec<String> {
    let dir = folder(&[("services/x.yaml", text)]);
    let (_, faults) = load_partial(dir.path());
    let file = dir.path().join("services/x.yaml").display().to_string();
    let short = |fault: &config::Fault| fault.summary().replace(&format!("{file}:"), "");
    faults.iter().map(short).collect()
}

#[test]
fn faults_of_the_syntax_are_told_by_what_was_meant() {
    for (text, fault) in [
        // With the required lines before it, this is line 4.
        (
            "server_name: *.shop.example",
            "4:14: `*.shop.example` begins with `*`, which is an alias to YAML; put it into quotes: `\"*.shop.example\"`",
        ),
        (
            "server_name: [a.example, *.shop.example] # both",
            "4:26: `*.shop.example` begins with `*`, which is an alias to YAML; put it into quotes: `\"*.shop.example\"`",
        ),
        (
            "server_name:\n  - a.example\n  - *.shop.example # all",
            "6:5: `*.shop.example` begins with `*`, which is an alias to YAML; put it into quotes: `\"*.shop.example\"`",
        ),
        (
            "server_name: *",
            "4:14: `*` has a meaning of its own in YAML; for any host write `_`, else put it into quotes: `\"*\"`",
        ),
        (
            "instance_count:3",
            "4:16: a space is missing behind the colon: write `instance_count: 3`",
        ),
        (
            "instance_count:3\nuser: app",
            "4:16: a space is missing behind the colon: write `instance_count: 3`",
        ),
        (
            "environment:\n  A:1\n  B: 2",
            "5:5: a space is missing behind the colon: write `A: 1`",
        ),
        (
            "instance_count:\t3",
            "4:16: a tab stands behind the colon; write a space: `instance_count: 3`",
        ),
        (
            "\tuser: app",
            "4:1: a tab in the indentation; YAML wants spaces",
        ),
        (
            "environment:\n\tA: 1",
            "5:1: a tab in the indentation; YAML wants spaces",
        ),
        (
            "args:\n  - --port\n  -{port}",
            "6:4: a space is missing behind the `-`: write `- {port}`",
        ),
        (
            "args: [-p, {port}]",
            "4:12: `args` is a mapping; put it into quotes: `\"{port}\"`",
        ),
        (
            "args: [-v, --port={port}]",
            "4:19: `--port={port}` has a brace, which begins a mapping in YAML; put it into quotes: `\"--port={port}\"`",
        ),
        (
            "args: [\"-a\" \"-b\"]",
            "4:13: a comma is missing before this value",
        ),
        (
            "user: \"app\nstop_timeout: 3s",
            "4:7: a quote is opened here and not closed",
        ),
        (
            "ready: http: /health",
            "4:12: the value of `ready` has a colon in it that YAML takes for another key; put it into quotes: `\"http: /health\"`",
        ),
        (
            "  user: app",
            "4:3: `user` is indented more than the line above it; keys of one mapping begin in the same column",
        ),
        (
            "user: @app",
            "4:7: `@app` begins with `@`, which YAML reserves; put it into quotes: `\"@app\"`",
        ),
        (
            "user: &app\ngroup: *app",
            "5:8: an alias (`*…`) is not followed here; write the value itself, in quotes if it begins with `*`",
        ),
        ("args: [\"-a\", \"-b\"", "5:1: not valid YAML: "),
    ] {
        let found = faults(&format!("{NEEDED}{text}\n"));
        assert!(
            found.len() == 1 && found[0].starts_with(fault),
            "{text}:\n{found:#?}"
        );
    }
    for (text, fault) in [
        (
            "name = x\nport = 80\n",
            "1:1: the file has to consist of lines `key: value`: write `name: x`",
        ),
        (
            "[service]\nname = \"x\"\n",
            "2:1: the file has to consist of lines `key: value`, not `key = value`",
        ),
        (
            "name:x\nport: 80\n",
            "1:6: a space is missing behind the colon: write `name: x`",
        ),
    ] {
        assert_eq!(faults(text), [fault], "{text}");
    }
}

#[test]
fn values_in_the_forms_of_other_programs_are_told_how_to_be_written() {
    for (line, fault) in [
        (
            "ready: /health",
            "4:8: `ready` is `/health`; write the path alone: `http:/health`",
        ),
        (
            "ready: http://localhost:3000/up?x=1",
            "4:8: `ready` is `http://localhost:3000/up?x=1`; write the path alone: `http:/up?x=1`",
        ),
        (
            "ready: https:/up",
            "4:8: `ready` is `https:/up`; write the path alone: `http:/up`",
        ),
        (
            "ready: \"http: /up\"",
            "4:8: `ready` is `http: /up`; write the path alone: `http:/up`",
        ),
        (
            "ready: 8080",
            "4:8: `ready` is `8080`; each instance has a port of its own; write `tcp`, or a path as in `http:/health`",
        ),
        (
            "ready: localhost:8080",
            "4:8: `ready` is `localhost:8080`; each instance has a port of its own",
        ),
        (
            "ready: http:health",
            "4:8: `ready` is `http:health`; give a path, as in `http:/health`",
        ),
        (
            "ready: sd_notify",
            "4:8: `ready` is `sd_notify`; write `notify`",
        ),
        ("ready: tpc", "4:8: `ready` is `tpc`; did you mean `tcp`?"),
        (
            "drain_timeout: 30 sec",
            "4:16: `drain_timeout` is `30 sec`; write `30s`",
        ),
        (
            "drain_timeout: 5 minutes",
            "4:16: `drain_timeout` is `5 minutes`; write `5m`",
        ),
        (
            "drain_timeout: 120000",
            "4:16: `drain_timeout` is longer than a day: a number without a unit means seconds; for milliseconds write `120000ms`",
        ),
        (
            "server_name: https://shop.example/",
            "4:14: `server_name`: `https://shop.example/` begins with `https://`; give the host alone: `shop.example`",
        ),
        (
            "server_name: https://shop.example:8443/api",
            "4:14: `server_name`: `https://shop.example:8443/api` begins with `https://`; give the host and the path only: `shop.example/api`",
        ),
        (
            "working_directory: ~/shop",
            "4:20: `working_directory` is `~/shop`; nothing replaces `~` here; write the home folder itself",
        ),
        (
            "watch_files: [./web, ~/web]",
            "4:22: `watch_files` is `~/web`; nothing replaces `~` here; write the home folder itself",
        ),
        (
            "environment_file: -$HOME/.env",
            "4:19: `environment_file` is `-$HOME/.env`; nothing replaces variables here; write the whole path itself",
        ),
        (
            "tls: {certificate: \"${CERTS}/x\"}",
            "4:20: `certificate` is `${CERTS}/x`; nothing replaces variables here",
        ),
    ] {
        let found = faults(&format!("{NEEDED}{line}\n"));
        assert!(
            found.len() == 1 && found[0].starts_with(fault),
            "{line}:\n{found:#?}"
        );
    }
    for (port, fault) in [
        (
            "\":80\"",
            "2:8: `port` is `:80`; write the number alone: `port: 80`",
        ),
        (
            "127.0.0.1:80",
            "2:7: `port` is `127.0.0.1:80`; write `port: 80` and `listen_address: \"127.0.0.1\"`",
        ),
        (
            "[80, \"8080:80\"]",
            "2:13: `port` is `8080:80`; write the port for clients alone: `port: 8080`",
        ),
    ] {
        let found = faults(&format!("name: x\nport: {port}\nexecutable_path: ../app\n"));
        assert!(
            found.len() == 1 && found[0].starts_with(fault),
            "{port}:\n{found:#?}"
        );
    }
}

#[test]
fn a_path_of_an_executable_is_no_line_of_a_shell() {
    for (path, fault) in [
        (
            "~/shop",
            "`executable_path` is `~/shop`; nothing replaces `~` here; write the home folder itself, as in `/home/anna/shop`",
        ),
        (
            "$HOME/shop",
            "`executable_path` is `$HOME/shop`; nothing replaces variables here; write the whole path itself",
        ),
        (
            "/srv/${NAME}/shop",
            "`executable_path` is `/srv/${NAME}/shop`; nothing replaces variables here; write the whole path itself",
        ),
        (
            "/bin/sh -c \"run me\"",
            "the executable /bin/sh -c \"run me\" does not exist; arguments have a key of their own: write `executable_path: /bin/sh` and `args: [\"-c\", \"run\", \"me\"]`",
        ),
    ] {
        let found = faults(&format!("name: x\nport: 80\nexecutable_path: {path}\n"));
        assert_eq!(found, [format!("3:18: {fault}")]);
    }
    let found = faults("name: x\nport: 80\nexecutable_path: sh -e run.sh\n");
    assert!(
        found[0].contains("/sh` and `args: [\"-e\", \"run.sh\"]`"),
        "{found:?}"
    );
    // A path with a space in it is fine if it is there.
    let dir = folder(&[(
        "services/x.yaml",
        "name: x\nport: 80\nexecutable_path: ../my app\n",
    )]);
    fs::rename(dir.path().join("app"), dir.path().join("my app")).unwrap();
    assert!(good(dir.path()).services.contains_key("x"));
}

#[test]
fn a_misspelled_key_is_one_fault_and_what_follows_from_it_is_none() {
    for (text, fault) in [
        (
            "name: x\nport: 80\nexecutable-path: ../app\n",
            "3:1: unknown key `executable-path`; did you mean `executable_path`?",
        ),
        (
            "nam: x\nport: 80\nexecutable_path: ../app\n",
            "1:1: unknown key `nam`; did you mean `name`?",
        ),
        (
            "name: x\nprot: 80\nexecutable_path: ../app\n",
            "2:1: unknown key `prot`; did you mean `port`?",
        ),
        (
            "name: x\nport: 80\nexecutable_path: ../app\nlts: {certificate: /x}\nhsts: 1d\nredirect_https: true\n",
            "4:1: unknown key `lts`; did you mean `tls`?",
        ),
        (
            "name: x\nexecutable_path: ../app\ntls: {cert: /x}\n",
            "3:7: unknown key `cert`; write `certificate: /etc/letsencrypt/live/shop.example/fullchain.pem`",
        ),
        (
            "services:\n  shop:\n    port: 80\n",
            "1:1: unknown key `services`; each service has a file of its own in services/, with its keys at the beginning of the lines",
        ),
    ] {
        assert_eq!(faults(text), [fault], "{text}");
    }
    // A section that is there and faulty is not missing either.
    let text = format!("{NEEDED}tls: {{certificate: ~/x}}\nhsts: 1d\nredirect_https: true\n");
    let found = faults(&text);
    assert!(
        found.len() == 1 && found[0].starts_with("4:20: `certificate` is `~/x`"),
        "{found:?}"
    );
    // An empty one is.
    let found = faults("name: x\nexecutable_path: ../app\ntls:\n");
    assert_eq!(found, ["1:1: `port` is missing; add it"]);
}

#[test]
fn a_number_of_a_user_or_group_is_no_name() {
    let found = faults(&format!("{NEEDED}user: 0\ngroup: 4711471\n"));
    assert_eq!(
        found,
        [
            "4:7: `0` is a number; write the name of that user: `root`",
            "5:8: this machine has no group `4711471`, and a number needs a name here; make one by \
             `groupadd --system --gid 4711471 NAME`, and write that"
        ]
    );
}

#[test]
fn a_permission_that_the_user_of_instances_lacks_is_a_note() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let text = format!("{NEEDED}user: nobody\nworking_directory: ../data\n");
    let dir = folder(&[("services/x.yaml", &text)]);
    fs::create_dir(dir.path().join("data")).unwrap();
    let notes = || good(dir.path()).notes.join("\n");
    assert_eq!(notes(), "");
    fs::set_permissions(dir.path().join("data"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(dir.path().join("app"), fs::Permissions::from_mode(0o744)).unwrap();
    let found = notes();
    for note in [
        "x.yaml:3: user nobody may not execute ",
        "app (0744 root:root); so no instance can start",
        "x.yaml:5: user nobody may not enter ",
        "data (0700 root:root); so no instance can start",
    ] {
        assert!(found.contains(note), "no {note:?} in {found}");
    }
}

#[test]
fn a_user_that_only_root_could_use_is_found_by_a_check() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let text = format!("{NEEDED}user: root\ngroup: root\n");
    let dir = folder(&[("services/x.yaml", &text)]);
    let program = env!("CARGO_BIN_EXE_smoothserve");
    // Other users may not be able to reach the folder of the build.
    let copy = dir.path().join("smoothserve");
    fs::copy(program, &copy).unwrap();
    let check = |user: &str| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        let output = command
            .arg(&copy)
            .arg("check")
            .arg(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (status, said) = check("www-data");
    assert_eq!(status, Some(78), "{said}");
    for fault in [
        "x.yaml:4:7: only root can start a service as user `root`, and a smoothserve of www-data cannot; leave `user` out, or let root run smoothserve",
        "x.yaml:5:8: only root can start a service as group `root`",
    ] {
        assert!(said.contains(fault), "{said}");
    }
    assert_eq!(check("root").0, Some(0));
    // Whoever runs smoothserve may name themselves.
    let own = format!("{NEEDED}user: www-data\ngroup: www-data\n");
    fs::write(dir.path().join("services/x.yaml"), own).unwrap();
    assert_eq!(check("www-data").0, Some(0));
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
    // A symlink that leads nowhere was meant to lead to services.
    std::os::unix::fs::symlink("releases/4", dir.path().join("services")).unwrap();
    let report = load(dir.path()).unwrap_err().to_string();
    assert!(
        report.contains("services: the folder cannot be opened"),
        "{report}"
    );

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
