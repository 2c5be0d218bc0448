//! The reference and the example files of the configuration agree with the parser.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use smoothserve::config::{GLOBAL_KEYS, Limits, SERVICE_KEYS, load};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the part of the reference below this first-level heading.
fn chapter(title: &str) -> String {
    let text = read("docs/configuration.md");
    let chapters = text.split("\n# ");
    let mut found = chapters.filter(|chapter| chapter.starts_with(&format!("{title}\n")));
    let chapter = found.next().unwrap().to_owned();
    assert!(found.next().is_none());
    chapter
}

/// Collects the headings `` ### `key` `` of a chapter and checks that each is there once.
fn documented(chapter: &str) -> BTreeSet<&str> {
    let mut keys = BTreeSet::new();
    for line in chapter.lines() {
        if let Some(key) = line.strip_prefix("### `").and_then(|l| l.strip_suffix('`')) {
            assert!(keys.insert(key), "{key} is described twice");
        }
    }
    keys
}

#[test]
fn the_reference_describes_every_key_once_and_no_other() {
    let chapter_of_services = chapter("services/*.yaml");
    let keys = SERVICE_KEYS.iter().copied().collect();
    assert_eq!(documented(&chapter_of_services), keys);
    let chapter_of_all = chapter("smoothserve.yaml");
    let keys = GLOBAL_KEYS.iter().copied().collect();
    assert_eq!(documented(&chapter_of_all), keys);
}

/// Loads a folder with this file. The programs and users that examples name exist on no machine, so
/// services are loaded with `enabled: false`.
fn load_example(name: &str, text: &str) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("services")).unwrap();
    let service = name.starts_with("services/");
    let text = match text.contains("\nenabled:") || !service {
        true => text.to_owned(),
        false => format!("enabled: false\n{text}"),
    };
    // The services folder that one example names exists on no machine either.
    let there = dir.path().join("services");
    let text = text.replace("/srv/services", there.to_str().unwrap());
    fs::write(dir.path().join(name), text).unwrap();
    let config = load(dir.path()).unwrap_or_else(|faults| panic!("{name}:\n{faults}"));
    assert_eq!(config.services.len(), usize::from(service), "{name}");
}

#[test]
fn every_example_in_the_reference_loads() {
    let text = read("docs/configuration.md");
    let mut examples = 0;
    for block in text.split("\n```yaml ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (example, _) = rest.split_once("\n```").unwrap();
        load_example(name, &format!("{example}\n"));
        examples += 1;
    }
    assert_eq!(examples, text.matches("\n```yaml").count());
    assert!(examples > 10);
}

#[test]
fn the_example_services_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("services");
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.contains(&"example.yaml".to_owned()));
    for name in names.iter().filter(|name| name.ends_with(".yaml")) {
        let name = format!("services/{name}");
        load_example(&name, &read(&name));
    }
}

#[test]
fn defaults_shown_in_the_example_are_the_defaults() {
    let commented = read("services/example.yaml")
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            SERVICE_KEYS
                .iter()
                .any(|key| line.starts_with(&format!("{key}:")))
        })
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    assert!(commented.lines().count() > 10);
    let load_one = |lines: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("services")).unwrap();
        let needed =
            "name: x\nenabled: false\nport: 80\nexecutable_path: /srv/example/current/example\n";
        fs::write(
            dir.path().join("services/x.yaml"),
            format!("{needed}{lines}"),
        )
        .unwrap();
        let config = load(dir.path()).unwrap_or_else(|faults| panic!("{faults}"));
        let mut service = (*config.services["x"]).clone();
        service.file = "x.yaml".into();
        service
    };
    let mut shown = load_one(&commented);
    let plain = load_one("");
    // The example chooses these values; they are not defaults.
    shown.listen = plain.listen.clone();
    shown.tls = None;
    shown.handling.hsts = None;
    shown.process.environment = plain.process.environment.clone();
    shown.process.environment_file = None;
    shown.process.environment_file_optional = false;
    shown.process.working_directory = None;
    shown.process.user = None;
    shown.process.group = None;
    shown.process.limits = Limits::default();
    assert_eq!(shown, plain);
}

#[test]
fn lines_shown_in_the_readme_load() {
    let readme = read("README.md");
    let (_, chapter) = readme.split_once("\n## Settings of a service\n").unwrap();
    let chapter = chapter.split("\n## ").next().unwrap();
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `"));
    let lines: Vec<&str> = rows.map(|row| row.split_once('`').unwrap().0).collect();
    assert!(lines.len() > 10);
    for line in lines {
        // Some lines need another key: TLS, or a path prefix that can be stripped.
        let more = match line.split_once(':').unwrap().0 {
            "redirect_https" | "hsts" => "tls: {certificate: /etc/tls}\n",
            "strip_prefix" => "server_name: example.org/shop\n",
            _ => "",
        };
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("services")).unwrap();
        let text =
            format!("name: x\nenabled: false\nport: 80\nexecutable_path: /srv/x\n{more}{line}\n");
        fs::write(dir.path().join("services/x.yaml"), text).unwrap();
        fs::write(
            dir.path().join("smoothserve.yaml"),
            "trusted_proxies: 10.0.0.0/8\n",
        )
        .unwrap();
        if let Err(faults) = load(dir.path()) {
            panic!("{line}: {faults}");
        }
    }
}
