//! What a new version of a service is: every way in which people change what instances run, beside
//! a new executable.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use smoothserve_kit::script::PYTHON;
use smoothserve_kit::{
    Build, Home, PATIENCE, Service, Smoothserve, client, example, free_port, install, local,
    processes, programs, write,
};

/// A web server in Python that answers with what the expression `VERSION` gives.
const SERVER: &str = "import http.server, os, sys

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        body = str(VERSION).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

version = VERSION
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Page).serve_forever()
";

/// The same in JavaScript.
const NODE_SERVER: &str = "const page = (request, response) => response.end(VERSION);
require('http').createServer(page).listen(Number(process.env.PORT), '127.0.0.1');
";

/// A folder `app` with releases, and the files of one service.
struct Scene {
    home: Home,
    port: u16,
}

impl Scene {
    fn new() -> Scene {
        let home = Home::new();
        fs::create_dir_all(home.path().join("app/releases")).unwrap();
        Scene {
            home,
            port: free_port(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home
            .path()
            .canonicalize()
            .unwrap()
            .join("app")
            .join(name)
    }

    /// Writes a file of a release, or of the folder itself.
    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, text);
    }

    fn program(&self, name: &str, text: &str) {
        self.file(name, text);
        fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn flip(&self, release: &str) {
        flip(&self.path(""), release);
    }

    /// Writes the file of the service, in which `APP` stands for the folder, and starts
    /// smoothserve.
    async fn start(self, lines: &str) -> Running {
        self.write(lines);
        let Scene { home, port } = self;
        let app = home.path().canonicalize().unwrap().join("app");
        let server = Smoothserve::start(programs!(), home).await;
        server.running("shop").await;
        Running { server, port, app }
    }

    fn write(&self, lines: &str) {
        let folder = self.home.path().canonicalize().unwrap().join("app");
        let yaml = yaml(self.port, &folder, lines);
        self.home.write_service("shop", &yaml);
    }
}

/// Returns the file of the service: the required keys, and these lines.
fn yaml(port: u16, app: &Path, lines: &str) -> String {
    let lines = lines.replace("APP", app.to_str().unwrap());
    format!("name: shop\nserver_name: shop.example\nport: {port}\n{lines}")
}

/// A smoothserve that runs the service of a scene.
struct Running {
    server: Smoothserve,
    port: u16,
    app: PathBuf,
}

impl Running {
    async fn get(&self) -> String {
        let response = client::get(local(self.port), "shop.example", "/").await;
        response.unwrap().text()
    }

    fn flip(&self, release: &str) {
        flip(&self.app, release);
    }

    /// Reloads, which must deploy.
    async fn reload(&self) {
        let before = self.server.running("shop").await;
        self.server.ok(&["reload"]).await;
        let after = self.server.running("shop").await;
        assert_ne!(before.pids(), after.pids(), "nothing was deployed");
    }

    /// Reloads, which must not replace anything.
    async fn reload_in_vain(&self) {
        let before = self.server.running("shop").await;
        self.server.ok(&["reload"]).await;
        let after = self.server.running("shop").await;
        assert_eq!(before.pids(), after.pids(), "there was nothing to deploy");
    }
}

fn python(version: &str) -> String {
    SERVER.replace("VERSION", version)
}

/// Makes a real virtual environment, with a package that only this environment has.
fn make_environment(folder: &Path, version: &str) {
    let made = Command::new(PYTHON)
        .args(["-m", "venv", "--without-pip"])
        .arg(folder)
        .status();
    assert!(made.unwrap().success());
    let packages = fs::read_dir(folder.join("lib")).unwrap().next().unwrap();
    let packages = packages.unwrap().path().join("site-packages");
    write(
        &packages.join("only_here.py"),
        &format!("version = '{version}'\n"),
    );
}

/// Deploys release 2 by flipping `current` and reloading.
/// As with `mv app old; mv new app`. The program is outside, and no argument names a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_moved_to_the_same_path_is_deployed() {
    for by_itself in [false, true] {
        let scene = Scene::new();
        for version in ["1", "2"] {
            let file = format!("releases/{version}/server/__main__.py");
            scene.file(&file, &python(&format!("'{version}'")));
        }
        let lines = format!(
            "executable_path: {PYTHON}\nargs: [-m, server]\nworking_directory: APP/releases/1\n\
             auto_restart: {by_itself}\n"
        );
        let running = scene.start(&lines).await;
        let before = running.server.running("shop").await;
        let release = |name: &str| running.app.join("releases").join(name);
        fs::rename(release("1"), release("old")).unwrap();
        fs::rename(release("2"), release("1")).unwrap();
        if by_itself {
            let replaced = |shop: &Service| shop.state == "running" && shop.pids() != before.pids();
            let seen = running.server.until("the change is seen", |status| {
                replaced(&status.services["shop"])
            });
            seen.await;
        } else {
            running.reload().await;
        }
        assert_eq!(running.get().await, "2");
        running.server.stop().await;
    }
}

async fn deployed_by_a_flip(scene: Scene, lines: &str) {
    scene.flip("1");
    let running = scene.start(lines).await;
    assert_eq!(running.get().await, "1", "{lines}");
    running.reload_in_vain().await;
    running.flip("2");
    running.reload().await;
    assert_eq!(running.get().await, "2", "{lines}");
    running.reload_in_vain().await;
    running.server.stop().await;
}

/// Lets `current` in the folder of a program lead to a release.
fn flip(app: &Path, release: &str) {
    symlink(format!("releases/{release}"), app.join("next")).unwrap();
    fs::rename(app.join("next"), app.join("current")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_working_directory_or_argument_is_deployed() {
    for lines in [
        "args: [server.py]\nworking_directory: APP/current\n",
        "args: [APP/current/server.py]\n",
        "args: [APP/run.py, --root=APP/current]\n",
        "args: [APP/run.py, --root, APP/current]\n",
    ] {
        let scene = Scene::new();
        for version in ["1", "2"] {
            let release = format!("releases/{version}/server.py");
            scene.file(&release, &python(&format!("'{version}'")));
        }
        scene.file(
            "run.py",
            "import os, sys, runpy\n\
             root = sys.argv[-1].removeprefix('--root=')\n\
             runpy.run_path(os.path.join(root, 'server.py'))\n",
        );
        let lines = format!("executable_path: {PYTHON}\n{lines}");
        deployed_by_a_flip(scene, &lines).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_release_of_a_node_service_is_deployed() {
    let node = Command::new("sh").args(["-c", "command -v node"]).output();
    let node = String::from_utf8(node.unwrap().stdout).unwrap();
    if node.is_empty() {
        eprintln!("not tested: there is no node on this machine");
        return;
    }
    let scene = Scene::new();
    for version in ["1", "2"] {
        let text = NODE_SERVER.replace("VERSION", &format!("'{version}'"));
        scene.file(&format!("releases/{version}/server.js"), &text);
    }
    let node = node.trim();
    let lines =
        format!("executable_path: {node}\nargs: [server.js]\nworking_directory: APP/current\n");
    deployed_by_a_flip(scene, &lines).await;
}

/// As with `venv/bin/uvicorn app:app`: a script of an environment that all releases share.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_of_a_virtual_environment_deploys_its_working_directory_and_its_interpreter() {
    let scene = Scene::new();
    make_environment(&scene.path("venv"), "shared");
    for version in ["1", "2"] {
        let module = python(&format!("'{version}'"));
        scene.file(&format!("releases/{version}/app.py"), &module);
    }
    let interpreter = scene.path("venv/bin/python3");
    let script = format!(
        "#!{}\nimport sys, only_here\nassert only_here.version == 'shared'\n\
         sys.path.insert(0, '')\n__import__(sys.argv[1].split(':')[0])\n",
        interpreter.display()
    );
    scene.program("venv/bin/serve", &script);
    scene.flip("1");
    let lines =
        "executable_path: APP/venv/bin/serve\nargs: ['app:app']\nworking_directory: APP/current\n";
    let running = scene.start(lines).await;
    running.flip("2");
    running.reload().await;
    assert_eq!(running.get().await, "2");
    // Another Python for the environment.
    let real = interpreter.canonicalize().unwrap();
    fs::remove_file(&interpreter).unwrap();
    symlink(real, &interpreter).unwrap();
    running.reload_in_vain().await;
    let copy = running.app.join("venv/bin/python-copy");
    fs::copy(PYTHON, &copy).unwrap();
    fs::rename(&copy, &interpreter).unwrap();
    running.reload().await;
    assert_eq!(running.get().await, "2");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_of_each_release_uses_its_own_virtual_environment() {
    let scene = Scene::new();
    for version in ["1", "2"] {
        let folder = scene.path(&format!("releases/{version}/venv"));
        make_environment(&folder, version);
    }
    scene.file("server.py", &python("__import__('only_here').version"));
    let lines = "executable_path: APP/current/venv/bin/python3\nargs: [APP/server.py]\n";
    deployed_by_a_flip(scene, lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_file_that_an_argument_names_is_deployed() {
    let scene = Scene::new();
    scene.file(
        "server.py",
        &python("globals().get('version') or open(sys.argv[1].split('=')[1]).read()"),
    );
    scene.file("shop.conf", "1");
    let lines = format!(
        "executable_path: {PYTHON}\nargs: [server.py, --config=shop.conf]\nworking_directory: APP\n"
    );
    let running = scene.start(&lines).await;
    assert_eq!(running.get().await, "1");
    running.reload_in_vain().await;
    fs::write(running.app.join("shop.conf"), "2").unwrap();
    running.reload().await;
    assert_eq!(running.get().await, "2");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_auto_restart_a_flip_and_an_edit_deploy_by_themselves() {
    let scene = Scene::new();
    for version in ["1", "2"] {
        let text = python(&format!("'{version}'"));
        scene.file(&format!("releases/{version}/server.py"), &text);
    }
    scene.flip("1");
    let lines = format!(
        "executable_path: {PYTHON}\nargs: [server.py]\nworking_directory: APP/current\n\
         auto_restart: true\n"
    );
    let running = scene.start(&lines).await;
    let mut before = running.server.running("shop").await;
    running.flip("2");
    for version in ["2", "3"] {
        let replaced = |shop: &Service| shop.state == "running" && shop.pids() != before.pids();
        let status = running.server.until("the change is seen", |status| {
            replaced(&status.services["shop"])
        });
        before = status.await.services.remove("shop").unwrap();
        assert_eq!(running.get().await, version);
        if version == "2" {
            let file = running.app.join("releases/2/server.py");
            write(&file, &python("'3'"));
        }
    }
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_service_itself_writes_does_not_restart_it_for_ever() {
    let scene = Scene::new();
    // Each start writes the file that the argument names.
    scene.file(
        "server.py",
        &format!(
            "import os, sys\nopen(sys.argv[1], 'w').write(str(os.getpid()))\n{}",
            SERVER.replace("VERSION", "1")
        ),
    );
    scene.file("state.bin", "none");
    fs::set_permissions(scene.path("state.bin"), PermissionsExt::from_mode(0o666)).unwrap();
    let lines = format!(
        "executable_path: {PYTHON}\nargs: [server.py, state.bin]\nworking_directory: APP\n\
         auto_restart: true\ndelay_update_time: 100ms\n"
    );
    let running = scene.start(&lines).await;
    let waits = "files of arguments change again and again, waiting before the next restart";
    running.server.says(waits).await;
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_with_the_same_size_and_time_are_deployed() {
    let scene = Scene::new();
    let script = |version: &str| format!("#!{PYTHON}\n{}", python(version));
    scene.program("serve", &script("1"));
    let running = scene.start("executable_path: APP/serve\n").await;
    // As `cp -p` of a file with the same time does.
    let file = File::options()
        .write(true)
        .open(running.app.join("serve"))
        .unwrap();
    let before = file.metadata().unwrap();
    (&file).write_all(script("2").as_bytes()).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    let after = file.metadata().unwrap();
    assert_eq!(after.len(), before.len());
    drop(file);
    running.reload().await;
    assert_eq!(running.get().await, "2");
    running.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_started_again_stays_in_its_release() {
    let scene = Scene::new();
    for version in ["1", "2"] {
        let text = python(&format!("'{version}'"));
        scene.file(&format!("releases/{version}/server.py"), &text);
    }
    scene.flip("1");
    let lines =
        format!("executable_path: {PYTHON}\nargs: [server.py]\nworking_directory: APP/current\n");
    let running = scene.start(&lines).await;
    running.flip("2");
    let before = running.server.running("shop").await;
    processes::signal_pid(before.instances[0].pid, Signal::KILL);
    let repaired = |shop: &Service| shop.crashes == 1 && shop.state == "running";
    let status = running.server.until("it is repaired", |status| {
        repaired(&status.services["shop"])
    });
    status.await;
    assert_eq!(running.get().await, "1");
    // A release that was deleted cannot be started again; there is only the new one.
    let before = running.server.running("shop").await;
    fs::remove_dir_all(running.app.join("releases/1")).unwrap();
    processes::signal_pid(before.instances[0].pid, Signal::KILL);
    let repaired = |shop: &Service| shop.crashes == 2 && shop.state == "running";
    let status = running.server.until("it is repaired", |status| {
        repaired(&status.services["shop"])
    });
    status.await;
    assert_eq!(running.get().await, "2");
    running.server.stop().await;
}

/// Waits for a file that a program of the service writes.
async fn written(file: &Path) -> String {
    let written = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(text) = fs::read_to_string(file) {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    written.await.expect("the service writes its file in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_see_the_path_of_the_configuration_and_start_in_its_folder() {
    let script =
        "#!/bin/sh\necho \"$0 $PWD\" > \"$OUT.new\"; mv \"$OUT.new\" \"$OUT\"; exec sleep 1000\n";
    // Bash is one of the programs that look at the name by which they are called.
    let bash = "shopt -qo posix && mode=posix; echo \"$0 $PWD $mode\" > $OUT.new; mv $OUT.new $OUT; exec sleep 1000";
    for (target, args) in [
        ("APP/lib/tool", String::new()),
        ("/bin/bash", format!("args: ['-c', {bash:?}]\n")),
    ] {
        let scene = Scene::new();
        scene.program("lib/tool", script);
        fs::create_dir_all(scene.path("releases/1")).unwrap();
        let folder = scene.path("");
        let target = target.replace("APP", folder.to_str().unwrap());
        symlink(target, scene.path("releases/1/sh")).unwrap();
        scene.flip("1");
        let out = scene.path("out");
        fs::create_dir(&out).unwrap();
        fs::set_permissions(&out, PermissionsExt::from_mode(0o777)).unwrap();
        let out = out.join("seen");
        scene.write(&format!(
            "executable_path: APP/current/sh\nready: notify\n{args}environment: {{ OUT: {out:?} }}\n"
        ));
        let release = scene.path("releases/1");
        let server = Smoothserve::spawn(programs!(), scene.home);
        let mode = if args.is_empty() { "" } else { " posix" };
        let expected = format!("{}/sh {}{mode}\n", release.display(), release.display());
        assert_eq!(written(&out).await, expected);
        drop(server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executable_that_is_still_open_for_writing_is_deployed_when_it_is_closed() {
    // The first wait ends with the file being closed, the second one with `start_timeout`.
    for timeout in ["60s", "1s"] {
        let home = Home::new();
        let port = free_port();
        let lines = format!("auto_restart: true\nstart_timeout: {timeout}\n");
        let app = home.add_shop("shop", port, &lines);
        let server = Smoothserve::start(programs!(), home).await;
        let before = server.running("shop").await;
        fs::remove_file(app.executable()).unwrap();
        install(&example("shop"), &app.executable(), &Build::good("2")).unwrap();
        let writer = File::options().append(true).open(app.executable()).unwrap();
        server
            .says("waiting until the executable is not written any more")
            .await;
        if timeout == "1s" {
            let given_up = |shop: &Service| shop.last_error.is_some() && shop.state == "running";
            let status = server.until("it is given up", |status| {
                given_up(&status.services["shop"])
            });
            let shop = status.await.services.remove("shop").unwrap();
            let error = shop.last_error.unwrap().message;
            assert!(error.contains("was still open for writing"), "{error}");
            assert_eq!(shop.instances[0].pid, before.instances[0].pid);
        }
        drop(writer);
        let deployed = |shop: &Service| shop.state == "running" && shop.pids() != before.pids();
        let status = server.until("it is deployed", |status| {
            deployed(&status.services["shop"])
        });
        status.await;
        let response = client::get(local(port), "shop.example", "/hello").await;
        let response = response.unwrap();
        assert_eq!(response.head.header("x-shop-version"), Some("2"));
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_too_many_to_be_watched_are_named_and_seen_by_a_reload() {
    let scene = Scene::new();
    scene.file("server.py", &python("'1'"));
    let many = scene.path("data");
    fs::create_dir_all(many.join("node_modules")).unwrap();
    let lines = format!(
        "executable_path: {PYTHON}\nargs: [server.py]\nworking_directory: APP\nauto_restart: true\n"
    );
    scene.write(&format!("{lines}watch_files: [APP/data]\n"));
    let fill = |folder: &Path| {
        for number in 0..21_000 {
            File::create(folder.join(format!("{number:05}"))).unwrap();
        }
    };
    fill(&many.join("node_modules"));
    let config = scene.home.config();
    let config = config.to_str().unwrap().to_owned();
    let watched = format!("{lines}watch_files: [APP/data]\n");
    let running = scene.start(&watched).await;
    let check = running.server.ok(&["check", &config]).await;
    assert!(!check.contains("watch_files"), "{check}");
    // What is in node_modules is not watched, but its lock file counts.
    write(&many.join("node_modules/00000"), "x");
    running.reload_in_vain().await;
    write(&many.join("node_modules/.package-lock.json"), "{}");
    running.reload().await;

    let everything = format!("{watched}watch_ignore: []\n");
    let everything = yaml(running.port, &running.app, &everything);
    running.server.home.write_service("shop", &everything);
    running.server.ok(&["reload"]).await;
    running.server.running("shop").await;
    let check = running.server.ok(&["check", &config]).await;
    let told = "no more than 20000 files and folders are watched";
    assert!(check.contains(told), "{check}");
    let status = running.server.ok(&["status", "shop"]).await;
    let told = "watch_files: of 21003 files and folders, 20000 are watched";
    assert!(status.contains(told), "{status}");
    running.server.says(told).await;
    running
        .server
        .says("cannot watch all files, looking at them regularly")
        .await;
    running.reload_in_vain().await;
    write(&many.join("node_modules/20999"), "x");
    running.reload().await;
    running.server.stop().await;
}
