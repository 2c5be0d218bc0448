//! Ordinary users of the machine who do their worst against the manager: it answers all the time,
//! and its memory stays bounded.

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::{Build, Bystander, Start};

use crate::scene::Scene;

/// Sends `READY=1` to the notify sockets of all instances for some seconds, from a process with 40
/// ancestors, and prints how many messages were sent and how many were refused.
const NOTIFY_FLOOD: &str = r#"
import os, socket, sys, time
for _ in range(40):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.setblocking(False)
sent = refused = 0
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for path in sys.argv[2:]:
        try:
            client.sendto(b"READY=1", path)
            sent += 1
        except PermissionError:
            refused += 1
        except OSError:
            pass
print(sent, refused, flush=True)
os._exit(0)
"#;

/// Opens 40 connections to the private socket and sends calls on all of them for some seconds,
/// without reading an answer.
const CALL_FLOOD: &str = r#"
import socket, struct, sys, time
def field(code, kind, text):
    text = text.encode()
    data = bytes([code, 1]) + kind + b"\0" + struct.pack("<I", len(text)) + text + b"\0"
    return data + b"\0" * (-len(data) % 8)
fields = (field(1, b"o", "/org/smoothserve1") + field(2, b"s", "org.smoothserve1.Manager")
          + field(3, b"s", "Dump"))
calls = (b"l\1\0\1" + struct.pack("<III", 0, 1, len(fields)) + fields) * 100
announced = b"l\1\0\1" + struct.pack("<III", 127 << 20, 1, 16) + b"\0"
def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect("/run/smoothserve/bus")
    client.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
    client.setblocking(False)
    return client
end = time.monotonic() + float(sys.argv[1])
clients = []
while time.monotonic() < end:
    while len(clients) < 40:
        clients.append(connect())
    for client in list(clients):
        try:
            client.send(announced if len(clients) % 7 == 0 else calls)
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            client.close()
            clients.remove(client)
"#;

/// Lets the manager have few descriptors and little memory, once it is started.
fn confine(machine: &Machine) {
    machine.write(
        "/etc/systemd/system/smoothserve.service.d/few.conf",
        "[Service]\nLimitNOFILE=512\nMemoryMax=120M\n",
    );
}

/// Begins to ask the shop and the manager, which have to answer to the end.
async fn bystanders(scene: &Scene<'_>) -> [Bystander; 2] {
    let mut bystanders = [
        Bystander::of_shop(scene.address(), "shop.example"),
        Bystander::of_manager(&scene.machine.path("/run/smoothserve/bus")),
    ];
    for bystander in &mut bystanders {
        bystander.is_served().await;
    }
    bystanders
}

/// Runs a program as another user, in the background.
fn in_background(unit: &str, user: &str, line: &str) -> String {
    format!(
        "systemd-run --quiet --unit {unit} --uid {user} --property StandardOutput=append:/run/{unit} {line}"
    )
}

#[test]
fn nobody_but_an_instance_reports_its_readiness() {
    machine::test(async |machine| {
        machine.run("useradd --create-home ada");
        confine(machine);
        let scene = Scene::start(machine, "ready: notify\nstart_timeout: 10m\n");
        let bystanders = bystanders(&scene).await;
        let sockets = machine.run("stat -c '%a %U' /run/smoothserve/notify/*");
        assert_eq!(sockets, "600 www-data\n".repeat(3));
        machine.write("/usr/local/bin/flood", NOTIFY_FLOOD);
        let paths = machine.run("ls -d /run/smoothserve/notify/*");
        let paths = paths.lines().collect::<Vec<_>>().join(" ");
        // Another user reaches no socket.
        let flood = format!(
            "setpriv --reuid ada --regid ada --clear-groups python3 /usr/local/bin/flood 2 {paths}"
        );
        let printed = machine.run(&flood);
        let (sent, refused) = printed.trim().split_once(' ').unwrap();
        assert_eq!(sent, "0");
        assert!(refused.parse::<u64>().unwrap() > 100, "{refused} refused");

        // Another process of the same user reaches them, and is not believed.
        let manager = scene.manager();
        scene.deploy(&Build::starting("2", Start::Mute));
        machine.run("busctl call org.smoothserve1 /org/smoothserve1 org.smoothserve1.Manager RestartService s shop");
        let is_starting = |text: &str| text.contains("\"starting\"");
        machine.until("smoothctl status --json", is_starting);
        let path = machine.run("ls -dt /run/smoothserve/notify/* | head -1");
        let line = format!("python3 /usr/local/bin/flood 600 {}", path.trim());
        machine.run(&in_background("notifier", "www-data", &line));
        machine.until("journalctl -t smoothserve", |log| {
            log.contains("READY=1 does not come from the instance, ignored")
        });
        for _ in 0..20 {
            assert!(is_starting(&machine.run("smoothctl status --json")));
        }
        // An instance of the same service is heard meanwhile.
        scene.deploy(&Build::good("3"));
        machine.run("smoothctl restart shop");
        assert_eq!(scene.settled().ready(), 3);
        for bystander in bystanders {
            bystander.end();
        }
        assert_eq!(scene.manager(), manager, "the watchdog is content");
        machine.run("systemctl stop notifier");
        let files = machine.run("ls /run/smoothserve/notify | wc -l");
        assert_eq!(files, "3\n", "ended instances leave nothing behind");
    });
}

#[test]
fn children_report_the_readiness_of_their_instance_and_a_restart_loses_no_report() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        // A child of a child, which waits until its message was read.
        machine.write(
            "/opt/child/child",
            "#!/bin/sh\npython3 -m http.server --bind 127.0.0.1 $PORT &\nsleep 2\n\
             (sh -c 'systemd-notify --ready; echo told')\nwait\n",
        );
        machine.run("chmod +x /opt/child/child");
        machine.write(
            "/etc/smoothserve/services/child.yaml",
            "name: child\nport: 8081\nexecutable_path: /opt/child/child\nready: notify\n",
        );
        machine.run("smoothctl reload");
        let state = "busctl get-property org.smoothserve1 /org/smoothserve1/service/child org.smoothserve1.Service State";
        assert_eq!(machine.run(state), "s \"running\"\n");
        // The report comes while no manager is there.
        machine.run("busctl call org.smoothserve1 /org/smoothserve1 org.smoothserve1.Manager RestartService s child");
        machine.until(state, |state| state != "s \"running\"\n");
        let manager = scene.manager();
        machine.run("systemctl kill --kill-whom=main --signal=STOP smoothserve");
        machine.until("journalctl -t child", |log| {
            log.contains("told") || log.contains("Started")
        });
        machine.run("sleep 3; systemctl kill --kill-whom=main --signal=KILL smoothserve");
        scene.another_manager(manager);
        machine.until(state, |state| state == "s \"running\"\n");
        machine.until("journalctl -t child", |log| {
            log.matches("told").count() == 2
        });
    });
}

#[test]
fn a_flood_of_calls_slows_nobody_down() {
    machine::test(async |machine| {
        machine.run("useradd --create-home ada");
        confine(machine);
        let scene = Scene::start(machine, "");
        machine.write("/usr/local/bin/flood", CALL_FLOOD);
        let bystanders = bystanders(&scene).await;
        let manager = scene.manager();
        let pid = machine.outside(manager);
        machine.run(&in_background(
            "caller",
            "ada",
            "python3 /usr/local/bin/flood 15",
        ));
        machine.until("journalctl -t smoothserve", |log| {
            log.contains("too many control connections")
        });
        while machine
            .try_run("systemctl is-active caller")
            .status
            .success()
        {
            assert!(machine.run("smoothctl status").contains("shop"));
        }
        for bystander in bystanders {
            bystander.end();
        }
        let log = machine.run("journalctl -t smoothserve");
        assert!(log.contains("a D-Bus message is too long"), "{log}");
        assert!(log.matches("too many control connections").count() < 20);
        assert_eq!(scene.manager(), manager);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.unwrap().trim().trim_end_matches(" kB");
        assert!(peak.parse::<u64>().unwrap() < 120_000, "{peak} KiB");
    });
}
