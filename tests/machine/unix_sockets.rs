//! Services of different users on unix sockets: none can get the requests of another.

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{client, example, local, programs};

use crate::scene::{PORT, SHOP, Scene, nothing_is_lost};

/// The port of the service that does not behave.
const THIEF: u16 = 8081;

/// An instance that tries to put a link in the place of its socket when it is asked for `/swap`,
/// and removes its socket at its end, as many programs do.
const SWAPS: &str = r#"
import http.server, os, signal, socketserver, sys

path = os.environ["SOCKET"]
folder = os.path.dirname(path)
os.chmod(folder, 0o777)

def swap():
    attempts = [
        lambda: os.remove(path),
        lambda: os.rename(path, path + ".old"),
        lambda: os.symlink("../1/socket", path + ".new"),
        lambda: os.mkdir(folder + "/folder"),
        lambda: os.chmod(folder, 0o777),
        lambda: os.rename(folder, folder + ".old"),
    ]
    for attempt in attempts:
        try:
            attempt()
            yield "done"
        except OSError as error:
            yield error.strerror

class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "proxy"
    def do_GET(self):
        body = "\n".join(swap() if self.path == "/swap" else ["thief"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

def end(*_):
    os.remove(path)
    print("removed my socket", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
socketserver.UnixStreamServer(path, Handler).serve_forever()
"#;

/// An instance that has a link in the place of its socket from the beginning, and says that it is
/// ready.
const LINKS: &str = r#"
import os, socket, time

path = os.environ["SOCKET"]
others = os.listdir("/run/smoothserve/instances")
other = min(number for number in map(int, others) if str(number) not in path.split("/"))
os.symlink(f"../{other}/socket", path)
notify = os.environ.get("NOTIFY_SOCKET")
if notify:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", notify)
time.sleep(1000)
"#;

/// An instance that fills the folder of its socket, before its socket exists and whenever it is
/// asked, through a file and a folder that it has opened before. It answers with how many bytes and
/// files it has left there, and with why they are not more.
const FILLS: &str = r#"
import errno, http.server, os, socketserver

path = os.environ["SOCKET"]
os.chdir(os.path.dirname(path))
os.mkdir("many")
many = os.open("many", os.O_RDONLY)
file = os.open("large", os.O_WRONLY | os.O_CREAT)
listener = socketserver.UnixStreamServer(path, http.server.BaseHTTPRequestHandler)

def until_full(step):
    for _ in range(10000):
        try:
            step()
        except OSError as error:
            return errno.errorcode[error.errno]
    return "no end"

def fill():
    names = iter(range(10**9))
    create = lambda: os.close(os.open(f"{next(names)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=many))
    for name in os.listdir(many):
        os.remove(name, dir_fd=many)
    why = until_full(lambda: os.write(file, bytes(4096))), until_full(create)
    return f"{os.fstat(file).st_size} {why[0]} {len(os.listdir(many))} {why[1]}"

class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "proxy"
    def do_GET(self):
        body = fill().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

fill()
listener.RequestHandlerClass = Handler
listener.serve_forever()
"#;

/// What is mounted in the run directory.
const MOUNTS: &str = "awk '$5 ~ \"^/run/smoothserve\" { print $5 }' /proc/self/mountinfo";

/// Gives the unit of smoothserve a mount namespace of its own.
const OWN_NAMESPACE: &str = "/etc/systemd/system/smoothserve.service.d/namespace.conf";

/// An instance that leaves folders in folders in the folder of its socket: so deep that the stack
/// of a program overflows which enters one from within the other.
const DEEP: &str = r#"
import http.server, os, socketserver

path = os.environ["SOCKET"]
os.chdir(os.path.dirname(path))
for _ in range(15000):
    os.mkdir("deeper")
    os.chdir("deeper")
os.chdir("/")

socketserver.UnixStreamServer(path, http.server.BaseHTTPRequestHandler).serve_forever()
"#;

/// Starts smoothserve with the shop on unix sockets of www-data and, beside it, a service that runs
/// the script `thief`.
fn start<'a>(machine: &'a Machine, thief: Option<&str>) -> Scene<'a> {
    machine.install_smoothserve(&programs!());
    machine.install(&example("shop"), "/opt/shop/shop");
    machine.write(
        "/etc/smoothserve/services/shop.yaml",
        &format!(
            "name: shop\nport: {PORT}\nexecutable_path: /opt/shop/shop\nbind: unix\n\
             user: www-data\n{SHOP}"
        ),
    );
    machine.run("systemctl daemon-reload");
    if let Some(script) = thief {
        add(machine, script, "");
    }
    machine.run("systemctl start smoothserve.socket smoothserve");
    let scene = Scene { machine };
    scene.settled();
    scene
}

/// Adds a service of the user `backup` that runs a Python script.
fn add(machine: &Machine, script: &str, lines: &str) {
    machine.write("/opt/thief/thief.py", script);
    machine.write(
        "/etc/smoothserve/services/thief.yaml",
        &format!(
            "name: thief\nport: {THIEF}\nexecutable_path: /usr/bin/python3\n\
             args: [/opt/thief/thief.py]\nuser: backup\ninstance_count: 1\n\
             bind: unix\n{lines}"
        ),
    );
}

#[test]
fn an_admitted_socket_stays_what_it_is_until_the_end_of_its_instance() {
    machine::test(async |machine| {
        let scene = start(machine, Some(SWAPS));
        let swap = async || {
            let page = client::get(local(THIEF), "thief", "/swap").await.unwrap();
            assert_eq!(page.text().lines().count(), 6, "{}", page.text());
            for said in page.text().lines() {
                assert!(
                    matches!(said, "Permission denied" | "Operation not permitted"),
                    "{}",
                    page.text()
                );
            }
        };
        swap().await;
        // The next manager does not give the folder back either.
        machine.run("systemctl restart smoothserve");
        scene.settled();
        swap().await;
        let load = scene.load().await;
        machine.run("smoothctl restart thief && smoothctl restart shop");
        nothing_is_lost(load).await;
        machine.until("journalctl -t thief", |log| {
            log.contains("removed my socket")
        });
        machine.until("ls /run/smoothserve/instances | wc -l", |count| {
            count.trim() == "4"
        });
    });
}

/// Programs like gunicorn let everybody write to their socket.
#[test]
fn nobody_but_the_proxy_enters_the_folder_of_a_socket() {
    machine::test(async |machine| {
        let _scene = start(machine, Some(SWAPS));
        machine.run("chmod 777 /run/smoothserve/instances/*/socket");
        let folders = machine.run("stat -c '%A %U %G' /run/smoothserve/instances/*");
        for folder in folders.lines() {
            assert_eq!(folder, "drwxr-x--- root smoothserve");
        }
        for socket in machine
            .run("ls /run/smoothserve/instances/*/socket")
            .lines()
        {
            let request =
                format!("curl -sS --max-time 10 --unix-socket {socket} http://shop.example/");
            assert!(
                machine.try_run(&request).status.success(),
                "root connects to {socket}"
            );
            let nobody = "setpriv --reuid nobody --regid nogroup --clear-groups";
            let refused = machine.try_run(&format!("{nobody} {request}"));
            assert_eq!(refused.status.code(), Some(7), "{socket}: {refused:?}");
        }
    });
}

#[test]
fn a_link_to_the_socket_of_another_service_gets_no_requests() {
    machine::test(async |machine| {
        let scene = start(machine, None);
        // The worker finds the shop behind the link, and the shop answers.
        for ready in ["http:/health", "tcp", "notify"] {
            add(
                machine,
                LINKS,
                &format!("ready: {ready}\nstart_timeout: 2s\nqueue_timeout: 0\n"),
            );
            let reload = machine.try_run("smoothctl reload");
            assert!(!reload.status.success(), "{ready}");
            let said = String::from_utf8_lossy(&reload.stderr).into_owned();
            let fault = "socket: it is no socket of the instance";
            assert!(said.contains(fault), "{ready}: {said}");
            let page = client::get(local(THIEF), "thief", "/").await.unwrap();
            assert_eq!(page.head.status, 503, "{ready}: {}", page.text());
            machine.run("rm /etc/smoothserve/services/thief.yaml && smoothctl reload");
        }
        assert_eq!(scene.settled().ready(), 3);
    });
}

/// A folder that is a part of /run, as where smoothserve may not mount, is removed within bounds.
#[test]
fn folders_in_folders_beside_the_socket_do_no_harm() {
    machine::test(async |machine| {
        machine.write(OWN_NAMESPACE, "[Service]\nPrivateMounts=yes\n");
        let scene = start(machine, Some(DEEP));
        let manager = scene.manager();
        let instances = || machine.run("ls /run/smoothserve/instances");
        let before = instances();
        machine.run("smoothctl restart thief");
        let is_removed = |now: &str| now.lines().count() == 4 && now != before;
        machine.until("ls /run/smoothserve/instances", is_removed);
        assert_eq!(scene.manager(), manager);
        let log = machine.run("journalctl -t smoothserve");
        assert!(!log.contains("cannot remove"), "{log}");
    });
}

/// Asks the service that fills its folder what it has left there.
async fn left_by_thief() -> String {
    let page = client::get(local(THIEF), "thief", "/").await.unwrap();
    assert_eq!(page.head.status, 200, "{}", page.text());
    page.text()
}

/// Returns how many mounts there are in the run directory.
fn mounts(machine: &Machine) -> usize {
    machine.run(MOUNTS).lines().count()
}

#[test]
fn what_an_instance_leaves_beside_its_socket_is_little_and_hurts_nobody() {
    machine::test(async |machine| {
        let scene = start(machine, Some(FILLS));
        // The folder of the folders, and that of each instance.
        assert_eq!(mounts(machine), 5);
        // At shutdown, systemd leaves them to smoothserve.
        let conflicts = "systemctl show --value --property Conflicts run-smoothserve-instances";
        for mount in ["", "-1"] {
            assert_eq!(machine.run(&format!("{conflicts}{mount}.mount")).trim(), "");
        }
        let free = || machine.run("stat --file-system --format '%f %d' /run");
        let before = free();
        let left = left_by_thief().await;
        assert_eq!(before, free());
        let [bytes, full, files, no_more] = left.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{left}");
        };
        assert_eq!((bytes, full, no_more), ("65536", "ENOSPC", "ENOSPC"));
        assert!(files.parse::<u32>().unwrap() < 64, "{left}");

        let load = scene.load().await;
        machine.run("smoothctl restart shop");
        let instances = scene.shop().pids();
        machine.run("systemctl restart smoothserve");
        let manager = scene.manager();
        machine.run(&format!("kill -9 {manager}"));
        scene.another_manager(manager);
        scene.settled();
        assert_eq!(scene.shop().pids(), instances);
        assert_eq!(left_by_thief().await, left);
        machine.run("smoothctl restart shop && systemctl reload smoothserve");
        machine.run("rm /etc/smoothserve/services/thief.yaml && smoothctl reload");
        nothing_is_lost(load).await;
        machine.until(MOUNTS, |mounts| mounts.lines().count() == 4);
        let folders = machine.run("ls /run/smoothserve/instances | wc -l");
        assert_eq!(folders.trim(), "3");
        assert_eq!(scene.shop().ready(), 3);

        machine.run("systemctl stop smoothserve");
        assert_eq!(mounts(machine), 0);
        let units = machine.run("systemctl list-units --all --plain --no-legend --type mount");
        assert!(!units.contains("smoothserve"), "{units}");
    });
}

#[test]
fn nothing_stays_mounted_without_a_manager_or_an_instance() {
    machine::test(async |machine| {
        let scene = start(machine, Some(FILLS));
        let folders = machine.run("ls /run/smoothserve/instances");
        // The manager can save nothing about an instance whose folder it has just made.
        let manager = scene.manager();
        machine.run(&format!(
            "kill -STOP {manager}; folder=/run/smoothserve/instances/100; mkdir $folder; \
             mount -t tmpfs tmpfs $folder; touch $folder/file; kill -9 {manager}"
        ));
        scene.another_manager(manager);
        machine.until("ls /run/smoothserve/instances", |now| now == folders);
        assert_eq!(mounts(machine), 5);
        machine.run("smoothctl restart shop");
        machine.until(MOUNTS, |mounts| mounts.lines().count() == 5);

        scene.restart_into_failure();
        machine.run("systemctl stop smoothserve.slice smoothserve.socket");
        assert_eq!(mounts(machine), 0);
    });
}

/// As an upgrade from a smoothserve that has mounted nothing yet.
#[test]
fn instances_without_file_systems_of_their_own_are_replaced_by_some_with_them() {
    machine::test(async |machine| {
        machine.write(OWN_NAMESPACE, "[Service]\nPrivateMounts=yes\n");
        let scene = start(machine, None);
        assert_eq!(mounts(machine), 0);
        let load = scene.load().await;
        let (worker, instances) = (scene.worker(), scene.shop().pids());
        machine.run(&format!("rm {OWN_NAMESPACE} && systemctl daemon-reload"));
        machine.run("systemctl restart smoothserve");
        scene.settled();
        assert_eq!((scene.worker(), scene.shop().pids()), (worker, instances));
        // The worker that is left would not see what is mounted.
        load.go_on(100).await;
        machine.run("smoothctl restart shop");
        assert_eq!(mounts(machine), 1);
        load.go_on(100).await;

        machine.install_smoothserve(&programs!());
        machine.run("systemctl restart smoothserve");
        machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
            text == "gone\n"
        });
        machine.run("smoothctl restart shop");
        machine.until(MOUNTS, |mounts| mounts.lines().count() == 4);
        // Back again: the unit has a copy of what is mounted, and the next one without a namespace
        // of its own unmounts the rest.
        machine.write(OWN_NAMESPACE, "[Service]\nPrivateMounts=yes\n");
        machine.run("systemctl daemon-reload && systemctl restart smoothserve");
        load.go_on(100).await;
        machine.run("smoothctl restart shop");
        machine.run(&format!("rm {OWN_NAMESPACE} && systemctl daemon-reload"));
        machine.run("systemctl restart smoothserve");
        machine.until(MOUNTS, |mounts| mounts.lines().count() == 1);
        nothing_is_lost(load).await;
    });
}
