//! The watcher over real files. Each test waits for the notices that must come. That no other
//! notice comes is shown by a second service: its change follows, and its notice must be the next
//! one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoothserve::config::{self, ServiceConfig};
use smoothserve::watch::{Changed, Watcher};
use tokio::sync::mpsc::Receiver;

/// The time in which every notice must come: long enough for any machine.
const LIMIT: Duration = Duration::from_secs(20);

const QUIET: Duration = Duration::from_millis(150);

/// A folder with the services `other` and `shop`; the files of the latter are `current/app`,
/// `current/view` and `current/config/*.toml`.
struct Place {
    dir: tempfile::TempDir,
    services: Vec<Arc<ServiceConfig>>,
    watcher: Watcher,
    told: Receiver<Changed>,
}

impl Place {
    async fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for release in ["1", "2"] {
            fs::create_dir_all(path(&format!("releases/{release}/view/deep"))).unwrap();
            let app = path(&format!("releases/{release}/app"));
            fs::write(&app, release).unwrap();
            fs::set_permissions(app, PermissionsExt::from_mode(0o755)).unwrap();
        }
        symlink("releases/1", path("current")).unwrap();
        fs::write(path("sentinel"), "").unwrap();
        fs::set_permissions(path("sentinel"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir_all(path("conf/services")).unwrap();
        let shop = format!(
            "name: shop\nport: 80\nserver_name: shop\nexecutable_path: {}\n\
             environment_file: -{}\nargs: [server.js]\nworking_directory: {}\nwatch_files: [view, config/a.toml]\ndelay_update_time: 150ms\nauto_restart: true\n",
            path("current/app").display(),
            path("env").display(),
            path("start").display()
        );
        fs::create_dir_all(path("start")).unwrap();
        fs::write(path("conf/services/shop.yaml"), shop).unwrap();
        let other = format!(
            "name: other\nport: 80\nserver_name: other\nexecutable_path: {}\ndelay_update_time: 150ms\nauto_restart: true\n",
            path("sentinel").display()
        );
        fs::write(path("conf/services/other.yaml"), other).unwrap();
        let config = config::load(&path("conf")).unwrap_or_else(|faults| panic!("{faults}"));
        let services = config.services.into_values().collect();
        let (watcher, told) = Watcher::new().unwrap();
        let mut place = Place {
            dir,
            services,
            watcher,
            told,
        };
        place
            .watcher
            .set(place.services.iter().map(|service| &**service));
        // The watcher reports both new services once, and once more if it found folders on their
        // paths meanwhile.
        place.settle().await;
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits for the next notice, and returns the service whose files have changed.
    async fn next(&mut self) -> String {
        let next = tokio::time::timeout(LIMIT, self.told.recv()).await;
        let next = next.expect("the watcher reports a change in time");
        match next.expect("the watcher still runs") {
            Changed::Files(name) => name,
            other @ Changed::Certificate(_) => panic!("{other:?}"),
        }
    }

    /// Waits until all pending notices have come, and returns how many were about `shop`. A change
    /// of the other service is reported last, because the quiet times are equal.
    async fn settle(&mut self) -> usize {
        let mut shop = 0;
        for _ in 0..2 {
            fs::write(self.path("sentinel"), "x").unwrap();
            while self.next().await == "shop" {
                shop += 1;
            }
        }
        shop
    }

    /// Makes a change that the watcher must report.
    async fn tells(&mut self, what: &str, act: impl FnOnce(&Place)) {
        act(self);
        loop {
            let next = tokio::time::timeout(LIMIT, self.told.recv()).await;
            match next.unwrap_or_else(|_| panic!("expected a notice of {what}")) {
                Some(Changed::Files(name)) if name == "shop" => break,
                Some(_) => {}
                None => panic!("expected a notice of {what}, but the watcher has ended"),
            }
        }
        self.settle().await;
    }

    fn flip(&self, release: &str) {
        symlink(format!("releases/{release}"), self.path("next")).unwrap();
        fs::rename(self.path("next"), self.path("current")).unwrap();
    }

    fn replace(&self, file: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path(file)).unwrap();
    }
}

#[tokio::test]
async fn every_way_to_change_the_executable_is_reported_each_time() {
    let mut place = Place::new().await;
    for _ in 0..3 {
        place
            .tells("a write", |place| {
                fs::write(place.path("current/app"), "1").unwrap()
            })
            .await;
        place
            .tells("a rename", |place| place.replace("current/app", "2"))
            .await;
        place
            .tells("a removal", |place| {
                fs::remove_file(place.path("current/app")).unwrap()
            })
            .await;
        place
            .tells("a new file", |place| {
                fs::write(place.path("current/app"), "3").unwrap()
            })
            .await;
    }
    let mode = |place: &Place| {
        fs::set_permissions(place.path("current/app"), PermissionsExt::from_mode(0o755)).unwrap();
    };
    place.tells("chmod", mode).await;
}

#[tokio::test]
async fn a_switched_symlink_and_changes_of_its_new_target_are_reported() {
    let mut place = Place::new().await;
    for release in ["2", "1", "2"] {
        place.tells("a flip", |place| place.flip(release)).await;
        let app = format!("releases/{release}/app");
        place
            .tells("a write behind the flip", |place| {
                fs::write(place.path(&app), "x").unwrap()
            })
            .await;
        let page = format!("releases/{release}/view/page");
        place
            .tells("a page behind the flip", |place| {
                fs::write(place.path(&page), "x").unwrap()
            })
            .await;
    }
}

#[tokio::test]
async fn folders_on_the_path_may_be_moved_removed_and_made_again() {
    let mut place = Place::new().await;
    for _ in 0..2 {
        place
            .tells("a folder that was moved away", |place| {
                fs::rename(place.path("releases"), place.path("away")).unwrap();
            })
            .await;
        place
            .tells("a folder that was moved back", |place| {
                fs::rename(place.path("away"), place.path("releases")).unwrap();
            })
            .await;
        place
            .tells("a write", |place| {
                fs::write(place.path("releases/1/app"), "x").unwrap()
            })
            .await;
        place
            .tells("a removal of everything", |place| {
                fs::remove_dir_all(place.path("releases")).unwrap();
            })
            .await;
        place
            .tells("a new folder", |place| {
                fs::create_dir(place.path("releases")).unwrap()
            })
            .await;
        place
            .tells("the folder in it", |place| {
                fs::create_dir(place.path("releases/1")).unwrap()
            })
            .await;
        place
            .tells("the file in that", |place| {
                fs::write(place.path("releases/1/app"), "x").unwrap()
            })
            .await;
        place
            .tells("a write to it", |place| {
                fs::write(place.path("releases/1/app"), "xy").unwrap()
            })
            .await;
    }
}

#[tokio::test]
async fn files_and_folders_that_appear_later_are_reported() {
    let mut place = Place::new().await;
    place
        .tells("the environment file", |place| {
            fs::write(place.path("env"), "A=1").unwrap()
        })
        .await;
    place
        .tells("a watched file with its folder", |place| {
            fs::create_dir(place.path("current/config")).unwrap();
            fs::write(place.path("current/config/a.toml"), "").unwrap();
        })
        .await;
    place
        .tells("a write", |place| {
            fs::write(place.path("current/config/a.toml"), "x").unwrap()
        })
        .await;
    place
        .tells("a tree of folders", |place| {
            fs::create_dir_all(place.path("current/view/a/b/c")).unwrap();
            fs::write(place.path("current/view/a/b/c/page"), "").unwrap();
        })
        .await;
    place
        .tells("a write deep in it", |place| {
            fs::write(place.path("current/view/a/b/c/page"), "x").unwrap();
        })
        .await;
    place
        .tells("the service's file", |place| {
            let file = place.path("conf/services/shop.yaml");
            let text = fs::read_to_string(&file).unwrap();
            place.replace("conf/services/shop.yaml", &(text + "instance_count: 2\n"));
        })
        .await;
}

#[tokio::test]
async fn the_working_directory_files_of_arguments_and_interpreters_are_watched() {
    let mut place = Place::new().await;
    place
        .tells("a file that an argument names", |place| {
            fs::write(place.path("start/server.js"), "1").unwrap()
        })
        .await;
    place
        .tells("another working directory", |place| {
            fs::rename(place.path("start"), place.path("start-1")).unwrap();
            symlink("start-1", place.path("start")).unwrap();
        })
        .await;
    place
        .tells("a write behind the link", |place| {
            fs::write(place.path("start-1/server.js"), "2").unwrap()
        })
        .await;
    fs::write(place.path("runner"), "").unwrap();
    place
        .tells("a script", |place| {
            let script = format!("#!{}\n", place.path("runner").display());
            fs::write(place.path("current/app"), script).unwrap();
            // Only what came, went or was renamed makes the watcher look at the file.
            place.flip("1");
        })
        .await;
    place
        .tells("its interpreter", |place| {
            fs::write(place.path("runner"), "x").unwrap()
        })
        .await;
}

#[tokio::test]
async fn what_nobody_means_is_not_reported() {
    let mut place = Place::new().await;
    place
        .tells("the folders", |place| {
            for name in ["node_modules/deep", ".git", "__pycache__"] {
                fs::create_dir_all(place.path("current/view").join(name)).unwrap();
            }
        })
        .await;
    for name in [
        "node_modules/x",
        "node_modules/deep/x",
        ".git/x",
        "__pycache__/x",
    ] {
        fs::write(place.path("current/view").join(name), "x").unwrap();
    }
    assert_eq!(place.settle().await, 0);
}

#[tokio::test]
async fn a_burst_of_changes_is_reported_once_when_it_is_over() {
    let mut place = Place::new().await;
    let mut file = fs::File::create(place.path("current/app")).unwrap();
    for _ in 0..2000 {
        file.write_all(b"x").unwrap();
        fs::write(place.path("current/view/page"), "x").unwrap();
    }
    // Every change starts the quiet time again. If the machine stalls in between, the quiet time
    // may rightly be over.
    let mut last = Instant::now();
    let mut stalled = false;
    let mut ticks = tokio::time::interval(QUIET / 5);
    for _ in 0..15 {
        ticks.tick().await;
        stalled |= last.elapsed() >= QUIET;
        assert!(stalled || place.told.try_recv().is_err());
        file.write_all(b"x").unwrap();
        last = Instant::now();
    }
    assert_eq!(place.next().await, "shop");
    assert!(stalled || last.elapsed() >= QUIET);
    assert!(stalled || place.settle().await == 0);
}

#[tokio::test]
async fn reads_and_unrelated_files_are_not_reported() {
    let mut place = Place::new().await;
    fs::read(place.path("current/app")).unwrap();
    fs::write(place.path("current/unrelated"), "x").unwrap();
    fs::create_dir(place.path("releases/3")).unwrap();
    assert_eq!(place.settle().await, 0);
}

#[tokio::test]
async fn declaring_services_again_reports_only_new_ones() {
    let mut place = Place::new().await;
    let declare = |place: &Place, wanted: &[&str]| {
        let wanted = place
            .services
            .iter()
            .filter(|s| wanted.contains(&s.name.as_str()));
        place.watcher.set(wanted.map(|service| &**service));
    };
    declare(&place, &["shop", "other"]);
    assert_eq!(place.settle().await, 0);
    declare(&place, &["other"]);
    fs::write(place.path("current/app"), "x").unwrap();
    assert_eq!(place.settle().await, 0);
    declare(&place, &["shop", "other"]);
    assert_eq!(place.next().await, "shop");
    place.settle().await;
    place
        .tells("a write", |place| {
            fs::write(place.path("current/app"), "xy").unwrap()
        })
        .await;
}

#[tokio::test]
async fn dropping_the_watcher_ends_its_notices() {
    let Place {
        watcher, mut told, ..
    } = Place::new().await;
    drop(watcher);
    let end = tokio::time::timeout(LIMIT, async { while told.recv().await.is_some() {} }).await;
    assert!(end.is_ok());
}

/// A folder that may be entered but not listed cannot be watched, except by root; the watcher looks
/// at it regularly.
#[tokio::test]
async fn a_folder_that_cannot_be_watched_hides_no_change() {
    let mut place = Place::new().await;
    fs::create_dir(place.path("current/config")).unwrap();
    fs::write(place.path("current/config/a.toml"), "").unwrap();
    let locked = PermissionsExt::from_mode(0o311);
    fs::set_permissions(place.path("current/config"), locked).unwrap();
    assert_eq!(place.next().await, "shop");
    place.settle().await;
    let write = |place: &Place| fs::write(place.path("current/config/a.toml"), "x").unwrap();
    place.tells("a write", write).await;
}
