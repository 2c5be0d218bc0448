//! What does not answer: a file system, and the database of users. It delays the deploys of the
//! services that need it, and nothing else.

use std::fs::{self, File, Permissions};
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

/// Adds a service whose executable is found by the link `current` to a release.
fn add_releases(home: &Home, name: &str, port: u16) {
    let app = home.app(name);
    let release = app.folder().join("releases/1");
    fs::create_dir_all(&release).unwrap();
    install(&example("shop"), &release.join("shop"), &Build::good("1")).unwrap();
    symlink("releases/1", app.folder().join("current")).unwrap();
    let yaml = format!(
        "name: {name}\nserver_name: {name}.example\nport: {port}\n\
         executable_path: ../../apps/{name}/current/shop\nauto_restart: false\n"
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
    add_releases(&home, "slow", port);
    home.add_shop("shop", port, "auto_restart: false\n");
    let hang = home.path().join("hang");
    fs::create_dir(&hang).unwrap();
    let script = home.path().join("hang.py");
    write(&script, HANG);
    let line = format!("{PYTHON} {} {}", script.display(), hang.display());
    let programs = in_namespace(&home, &line);
    let server = Smoothserve::start(programs, home).await;
    let mut bystanders = [
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
    // As long as they do not answer, nobody waits for them again, however often somebody asks.
    for _ in 0..20 {
        told(&server.ctl(&["restart", "slow"]).await);
    }
    told(&server.ctl(&["reload"]).await);
    server.ok(&["restart", "shop"]).await;
    assert_eq!(server.running("slow").await.pids(), before);
    for bystander in &mut bystanders {
        bystander.is_served().await;
    }
    for bystander in bystanders {
        bystander.end();
    }
    server.stop().await;
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
