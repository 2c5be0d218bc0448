//! What does not answer: a file system, and the database of users. It delays the deploys of the
//! services that need it, and nothing else.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use smoothserve_kit::script::PYTHON;
use smoothserve_kit::{
    Build, Bystander, Home, Programs, Smoothserve, example, free_port, install, local, processes,
    programs, write,
};

/// Mounts a file system that nobody serves: whoever looks at it waits for its first answer. The
/// program that follows keeps it, by a descriptor that it knows nothing of.
const HANG: &str = r#"
import ctypes, os, sys
fuse = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(fuse, True)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hang", sys.argv[1].encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[2], sys.argv[2:])
"#;

/// As [`HANG`], but whoever looks at the file system does not even end by SIGKILL: somebody is at
/// it, and never answers. The number of that process is written to the file `daemon`.
const UNINTERRUPTIBLE: &str = r#"
import ctypes, os, struct, sys
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hang", sys.argv[1].encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
child = os.fork()
if child != 0:
    os.close(fuse)
    with open(sys.argv[1] + ".daemon", "w") as daemon:
        daemon.write(str(child))
    os.execv(sys.argv[2], sys.argv[2:])
request = os.read(fuse, 1 << 20)
unique = struct.unpack_from("<Q", request, 8)[0]
answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
os.write(fuse, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
while True:
    os.read(fuse, 1 << 20)
"#;

/// Returns smoothserve in a mount namespace of its own, started by this line.
fn in_namespace(home: &Home, line: &str) -> Programs {
    let programs = programs!();
    let script = home.path().join("in-namespace");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private {line} {} \"$@\"\n",
        programs.smoothserve.display()
    );
    write(&script, &text);
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    Programs {
        smoothserve: script,
        ..programs
    }
}

/// Returns smoothserve in a mount namespace of its own, where a script has mounted a file system on
/// the folder `hang`.
fn beside_file_system(home: &Home, script: &str) -> Programs {
    let hang = home.path().join("hang");
    fs::create_dir(&hang).unwrap();
    beneath_file_system(home, script, &hang)
}

/// Returns smoothserve in a mount namespace of its own, where a script has mounted a file system on
/// a folder.
fn beneath_file_system(home: &Home, script: &str, hang: &Path) -> Programs {
    let file = home.path().join("hang.py");
    write(&file, script);
    in_namespace(
        home,
        &format!("{PYTHON} {} {}", file.display(), hang.display()),
    )
}

/// Adds a service whose executable is found by the link `current` to a release.
fn add_releases(home: &Home, name: &str, port: u16, yaml: &str) {
    home.app(name).flip(&Build::good("1"));
    let yaml = format!(
        "name: {name}\nserver_name: {name}.example\nport: {port}\n\
         executable_path: ../../apps/{name}/current/shop\n{yaml}"
    );
    home.write_service(name, &yaml);
}

fn flip(folder: &Path, target: &str) {
    let new = folder.join("new");
    symlink(target, &new).unwrap();
    fs::rename(new, folder.join("current")).unwrap();
}

#[tokio::test]
async fn files_that_do_not_answer_delay_their_service_alone() {
    let home = Home::new();
    let port = free_port();
    add_releases(&home, "slow", port, "auto_restart: false\n");
    home.add_shop("shop", port, "auto_restart: false\n");
    let programs = beside_file_system(&home, HANG);
    let server = Smoothserve::start(programs, home).await;
    let bystanders = [
        Bystander::of_shop(local(port), "slow.example"),
        Bystander::of_shop(local(port), "shop.example"),
        Bystander::of_manager(&server.bus()),
    ];
    let before = server.running("slow").await.pids();
    let folder = server.home.app("slow").folder().to_owned();
    flip(&folder, "../../hang");

    let mut slow = server.ctl_command(&["restart", "slow"]);
    let slow = tokio::spawn(slow.output());
    let shop = server.running("shop").await.pids();
    server.ok(&["restart", "shop"]).await;
    assert_ne!(server.running("shop").await.pids(), shop);
    let told = |output: &std::process::Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        assert!(
            text.contains("the files of slow did not answer in time"),
            "{text}"
        );
    };
    told(&slow.await.unwrap().unwrap());
    // As long as they do not answer, whoever asks is told so, however often.
    for _ in 0..20 {
        told(&server.ctl(&["restart", "slow"]).await);
    }
    told(&server.ctl(&["reload"]).await);
    server.ok(&["restart", "shop"]).await;
    assert_eq!(server.running("slow").await.pids(), before);
    Bystander::end_served(bystanders).await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_watched_and_does_not_answer_holds_up_its_service_alone() {
    let home = Home::new();
    let port = free_port();
    add_releases(&home, "slow", port, "auto_restart: true\n");
    add_releases(&home, "shop", port, "auto_restart: true\n");
    let programs = beside_file_system(&home, HANG);
    let server = Smoothserve::start(programs, home).await;
    let bystanders = [
        Bystander::of_shop(local(port), "slow.example"),
        Bystander::of_shop(local(port), "shop.example"),
        Bystander::of_manager(&server.bus()),
    ];
    let slow = server.running("slow").await.pids();
    flip(server.home.app("slow").folder(), "../../hang");
    server
        .says("what is watched for slow did not answer in time")
        .await;
    for release in ["2", "3"] {
        let before = server.running("shop").await.pids();
        server.home.app("shop").flip(&Build::good(release));
        let replaced = server.until("the change is seen", |status| {
            let service = &status.services["shop"];
            service.state == "running" && service.pids() != before
        });
        replaced.await;
    }
    assert_eq!(server.running("slow").await.pids(), slow);
    Bystander::end_served(bystanders).await;
    server.stop().await;
}

#[tokio::test]
async fn sockets_that_were_given_stay_while_the_configuration_cannot_be_read() {
    let home = Home::new();
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let hang = home.config();
    home.add_shop("shop", port, "");
    let programs = beneath_file_system(&home, UNINTERRUPTIBLE, &hang);
    // The socket comes as standard input, and is passed on as systemd does.
    let script = home.path().join("given");
    let text = format!(
        "#!/bin/sh\nexport LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=given\n\
         exec 3<&0 </dev/null\nexec {} \"$@\"\n",
        programs.smoothserve.display()
    );
    write(&script, &text);
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let programs = Programs {
        smoothserve: script,
        ..programs
    };
    let mut server = Smoothserve::start_with(programs, home, |command| {
        command.stdin(OwnedFd::from(listener))
    })
    .await;
    assert!(
        server
            .log()
            .contains("nothing is started before the next reload")
    );
    let mut client = TcpStream::connect(local(port)).unwrap();
    let daemon = fs::read_to_string(hang.with_extension("daemon")).unwrap();
    processes::signal_pid(daemon.parse().unwrap(), Signal::KILL);
    let target = server.pid().to_string();
    let status = Command::new("nsenter")
        .args(["--target", &target, "--mount", "umount", "--lazy"])
        .arg(&hang)
        .status();
    assert!(status.unwrap().success());
    server.ok(&["reload"]).await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
        .unwrap();
    let answer = tokio::task::spawn_blocking(move || std::io::read_to_string(client));
    let answer = answer.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.signal(Signal::TERM);
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn processes_that_do_not_end_by_sigkill_fail_one_command_and_hold_up_nobody() {
    let home = Home::new();
    let port = free_port();
    home.add_shop("shop", port, "");
    let hang = home.path().join("hang").display().to_string();
    for (name, script) in [
        // The server ends, and leaves a process that does not.
        (
            "left",
            format!("#!/bin/sh\n(setsid stat {hang} &)\nexec ./server\n"),
        ),
        // The first process of the instance itself does not end.
        (
            "stuck",
            format!("#!/bin/sh\ntrap 'exec stat {hang}' TERM\n./server & wait\n"),
        ),
    ] {
        let app = home.app(name);
        write(&app.executable(), &script);
        fs::set_permissions(app.executable(), Permissions::from_mode(0o755)).unwrap();
        let server = app.folder().join("server");
        install(&example("shop"), &server, &Build::good("1")).unwrap();
        home.write_shop(name, port, "stop_timeout: 1s\n");
    }
    let daemon = Path::new(&hang).with_extension("daemon");
    let programs = beside_file_system(&home, UNINTERRUPTIBLE);
    let mut server = Smoothserve::start(programs, home).await;
    let mut bystander = Bystander::of_shop(local(port), "shop.example");
    for name in ["left", "stuck"] {
        let before = server.running(name).await.pids();
        let restart = server.ctl(&["restart", name]).await;
        let text = String::from_utf8_lossy(&restart.stderr);
        assert!(!restart.status.success(), "{text}");
        assert!(text.contains(&format!("{name}/1: process ")), "{text}");
        let left = " does not end although it was killed; it is left behind";
        assert!(text.contains(left), "{text}");
        let after = server.running(name).await;
        assert_ne!(after.pids(), before);
        assert!(after.last_error.unwrap().message.contains(left));
        server.ok(&["reload"]).await;
    }
    bystander.is_served().await;
    bystander.end();
    server.signal(Signal::TERM);
    assert!(server.ended().await.success());
    // Without it, those who wait for it get an error.
    let daemon = fs::read_to_string(daemon).unwrap();
    processes::signal_pid(daemon.parse().unwrap(), Signal::KILL);
}

#[tokio::test]
async fn users_who_cannot_be_looked_up_hold_up_nobody_who_runs() {
    let home = Home::new();
    let port = free_port();
    home.add_shop("shop", port, "user: nobody\n");
    home.add_shop("web", port, "");
    let silent = home.path().join("silent");
    let made = Command::new("mkfifo").arg(&silent).status().unwrap();
    assert!(made.success());
    let programs = in_namespace(&home, "");
    let server = Smoothserve::start(programs, home).await;
    let mut bystanders = [
        Bystander::of_shop(local(port), "web.example"),
        Bystander::of_manager(&server.bus()),
    ];
    // Whoever opens a pipe to read it waits until somebody opens it to write.
    let inside = |line: &[&str]| {
        let target = server.pid().to_string();
        let status = Command::new("nsenter")
            .args(["--target", &target, "--mount"])
            .args(line)
            .status();
        assert!(status.unwrap().success(), "{line:?}");
    };
    inside(&[
        "mount",
        "--bind",
        &silent.display().to_string(),
        "/etc/passwd",
    ]);
    let shop = server.running("shop").await.pids();
    processes::signal_pid(shop[0], Signal::KILL);
    server
        .until("the user cannot be looked up", |status| {
            let error = status.services["shop"].last_error.as_ref();
            error.is_some_and(|error| error.message.contains("did not answer in time"))
        })
        .await;
    for bystander in &mut bystanders {
        bystander.is_served().await;
    }
    inside(&["umount", "--lazy", "/etc/passwd"]);
    // Those who wait get an empty file, and then the real one.
    drop(File::options().write(true).open(&silent).unwrap());
    server
        .until("it runs again", |status| {
            let service = &status.services["shop"];
            service.state == "running" && service.pids() != shop
        })
        .await;
    for bystander in bystanders {
        bystander.end();
    }
    server.stop().await;
}
