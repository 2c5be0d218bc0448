//! The sandbox of the proxy worker: a serving worker is made to try system calls, and only those
//! for serving succeed.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;

use nix::libc;
use smoothserve_kit::injection::Injection;
use smoothserve_kit::{client, example, local, machine, programs};

use crate::people::{USERS_PORT, users_own};
use crate::scene::{PORT, SHOP, Scene, nothing_is_lost};

/// Reads the credentials and capabilities of a thread from the kernel; see proc_pid_status(5).
fn status(pid: u32, thread: u32) -> impl Fn(&str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap();
    move |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let words = line.and_then(|rest| rest.strip_prefix(':')).unwrap();
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn threads(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = threads.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| name.parse().unwrap()).collect()
}

#[test]
fn the_worker_is_an_own_user_without_any_rights() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let pid = machine.outside(scene.worker());
        let user = machine.run("id -u smoothserve").trim().to_owned();
        let group = machine.run("id -g smoothserve").trim().to_owned();
        assert_ne!(user, "0");
        for thread in threads(pid) {
            let status = status(pid, thread);
            assert_eq!(status("Uid"), format!("{user} {user} {user} {user}"));
            assert_eq!(status("Gid"), format!("{group} {group} {group} {group}"));
            assert_eq!(status("Groups"), group);
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(set), "0000000000000000", "{set}");
            }
            assert_eq!(status("NoNewPrivs"), "1");
            assert_eq!(status("Seccomp"), "2", "a filter");
        }
        // The way to journald is the only one that leads out of its root folder.
        let files = machine.run(&format!("cd /proc/{}/root && find -xdev", scene.worker()));
        let mut files: Vec<&str> = files.lines().collect();
        files.sort_unstable();
        let expected = [
            ".",
            "./run",
            "./run/smoothserve",
            "./run/smoothserve/instances",
            "./run/systemd",
            "./run/systemd/journal",
            "./run/systemd/journal/socket",
        ];
        assert_eq!(files, expected);
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name));
            let values = line.unwrap().split_whitespace().take(2);
            values.collect::<Vec<_>>().join(" ")
        };
        let (soft, hard) = limit("Max open files")
            .split_once(' ')
            .map(|(s, h)| (s.to_owned(), h.to_owned()))
            .unwrap();
        assert_eq!(soft, hard);
        assert_eq!(limit("Max core file size"), "0 0");
        assert_eq!(limit("Max processes"), "0 0");
        machine.run("journalctl -t smoothserve | grep -q 'worker confined user=smoothserve landlock=enforced unix_sockets=instances'");
    });
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_worker_can_do_nothing_but_serve() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let pid = machine.outside(scene.worker());
        for thread in threads(pid) {
            // ptrace(2) wants all calls for a traced thread to come from the same thread of the
            // test.
            tokio::task::block_in_place(|| try_everything(thread));
        }
        nothing_is_lost(load).await;
        assert_eq!(machine.outside(scene.worker()), pid);
    });
}

#[cfg(target_arch = "x86_64")]
fn try_everything(thread: u32) {
    let worker = Injection::begin(thread);
    let at = |path: &str| worker.text(path);
    let here = libc::AT_FDCWD as u64;
    let denied = |what: &str, result: io::Result<u64>| {
        let error = result.err().unwrap_or_else(|| panic!("it can {what}"));
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(error.kind(), denied, "{what}: {error}");
    };
    let read_write = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let no_file = u64::MAX;

    // A permitted call succeeds, so a failure below is a refusal of that call.
    let map = |protection| worker.call(libc::SYS_mmap, &[0, 4096, protection, private, no_file, 0]);
    let page = map(read_write).unwrap();
    let socket = |family: i32, kind: i32| {
        let arguments = [family as u64, kind as u64, 0];
        worker.call(libc::SYS_socket, &arguments)
    };
    let stream = socket(libc::AF_INET, libc::SOCK_STREAM).unwrap();

    for path in ["/etc/passwd", "/etc/hostname", "/", "/proc/self/mem"] {
        let flags = libc::O_RDONLY as u64;
        denied(
            "open",
            worker.call(libc::SYS_openat, &[here, at(path), flags]),
        );
        denied("open", worker.call(libc::SYS_open, &[at(path), flags]));
    }
    denied(
        "unlink",
        worker.call(libc::SYS_unlink, &[at("/etc/hostname")]),
    );
    denied("look", worker.call(libc::SYS_stat, &[at("/"), page]));
    denied(
        "execute",
        worker.call(libc::SYS_execve, &[at("/bin/true"), 0, 0]),
    );
    denied(
        "fork",
        worker.call(libc::SYS_clone, &[libc::SIGCHLD as u64]),
    );
    denied("fork", worker.call(libc::SYS_fork, &[]));
    denied("fork", worker.call(libc::SYS_clone3, &[page, 88]));
    denied("be root", worker.call(libc::SYS_setuid, &[0]));
    denied("be root", worker.call(libc::SYS_setresuid, &[0, 0, 0]));
    denied("change groups", worker.call(libc::SYS_setgroups, &[0, 0]));
    let attach = libc::PTRACE_ATTACH as u64;
    denied("trace", worker.call(libc::SYS_ptrace, &[attach, 1]));
    denied(
        "read others",
        worker.call(libc::SYS_process_vm_readv, &[1, page, 1, page, 1]),
    );
    denied("signal others", worker.call(libc::SYS_kill, &[1, 0]));
    denied("signal others", worker.call(libc::SYS_tgkill, &[1, 1, 0]));
    let fcntl = |command: i32, argument: u64| {
        worker.call(libc::SYS_fcntl, &[stream, command as u64, argument])
    };
    let flags = fcntl(libc::F_GETFL, 0).unwrap();
    fcntl(libc::F_SETFL, flags | libc::O_NONBLOCK as u64).unwrap();
    let signals = flags | libc::O_ASYNC as u64;
    denied("send signals", fcntl(libc::F_SETFL, signals));
    for command in [F_SETOWN, F_SETSIG, F_SETOWN_EX, libc::F_NOTIFY] {
        denied("send signals", fcntl(command, 1));
    }
    denied("keep a file", fcntl(libc::F_SETLEASE, 0));
    for request in [FIOSETOWN, SIOCSPGRP] {
        denied(
            "send signals",
            worker.call(libc::SYS_ioctl, &[stream, request, page]),
        );
    }
    let others = [
        (libc::SYS_kcmp, "compare with others"),
        (libc::SYS_pidfd_open, "open others"),
        (libc::SYS_pidfd_getfd, "take from others"),
        (libc::SYS_pidfd_send_signal, "signal others"),
        (libc::SYS_process_vm_writev, "write to others"),
        (libc::SYS_process_madvise, "slow others down"),
        (libc::SYS_sched_setaffinity, "slow others down"),
        (libc::SYS_keyctl, "use keys"),
        (libc::SYS_mq_open, "open queues"),
        (libc::SYS_msgget, "open queues"),
        (libc::SYS_shmget, "share memory"),
        (libc::SYS_chroot, "leave its root folder"),
        (libc::SYS_fchdir, "leave its root folder"),
        (libc::SYS_pivot_root, "leave its root folder"),
        (libc::SYS_setns, "leave its root folder"),
        (libc::SYS_seccomp, "change the filter"),
        (libc::SYS_userfaultfd, "stop the kernel"),
    ];
    for (call, what) in others {
        denied(what, worker.call(call, &[1, 1, page, 0]));
    }
    let set = |level: i32, option: i32| {
        let arguments = [stream, level as u64, option as u64, page, 4];
        worker.call(libc::SYS_setsockopt, &arguments)
    };
    set(libc::IPPROTO_TCP, libc::TCP_NODELAY).unwrap();
    denied("filter", set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER));
    denied("repair", set(libc::IPPROTO_TCP, libc::TCP_REPAIR));
    denied("change protocols", set(libc::IPPROTO_TCP, libc::TCP_ULP));
    denied("listen", worker.call(libc::SYS_bind, &[stream, page, 16]));
    denied("listen", worker.call(libc::SYS_listen, &[stream, 1]));
    let protocol = |family: i32, kind: i32, protocol: i32| {
        let arguments = [family as u64, kind as u64, protocol as u64];
        worker.call(libc::SYS_socket, &arguments)
    };
    let multipath = protocol(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
    denied("speak MPTCP", multipath);
    denied("send packets", socket(libc::AF_INET, libc::SOCK_DGRAM));
    denied("send packets", socket(libc::AF_INET6, libc::SOCK_DGRAM));
    denied("send messages", socket(libc::AF_UNIX, libc::SOCK_DGRAM));
    let pair = [libc::AF_UNIX as u64, libc::SOCK_DGRAM as u64, 0, page];
    denied("send messages", worker.call(libc::SYS_socketpair, &pair));
    denied("speak netlink", socket(libc::AF_NETLINK, libc::SOCK_RAW));
    denied("read packets", socket(libc::AF_PACKET, libc::SOCK_RAW));
    denied("map code", map(executable));
    denied(
        "make code",
        worker.call(libc::SYS_mprotect, &[page, 4096, executable]),
    );
    denied(
        "control a terminal",
        worker.call(libc::SYS_ioctl, &[0, libc::TIOCSTI, page]),
    );
    denied("load programs", worker.call(libc::SYS_bpf, &[0, page, 64]));
    denied(
        "bypass the filter",
        worker.call(libc::SYS_io_uring_setup, &[8, page]),
    );
    denied(
        "leave namespaces",
        worker.call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as u64]),
    );
    denied(
        "mount",
        worker.call(libc::SYS_mount, &[at("/"), at("/"), 0, 0, 0]),
    );
    denied(
        "raise limits",
        worker.call(libc::SYS_prlimit64, &[0, libc::RLIMIT_CORE as u64, page, 0]),
    );

    worker.call(libc::SYS_close, &[stream]).unwrap();
    worker.call(libc::SYS_munmap, &[page, 4096]).unwrap();
}

/// Commands of fcntl(2) and ioctl(2) by which a descriptor sends signals to a process.
const F_SETOWN: i32 = 8;
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;

/// Makes a worker connect to a unix socket. A name that begins with a zero byte is abstract.
#[cfg(target_arch = "x86_64")]
fn connect(worker: &Injection, name: &str) -> io::Result<u64> {
    let stream = [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0];
    let socket = worker.call(libc::SYS_socket, &stream)?;
    // An address is the family, AF_UNIX, and the name.
    let address = worker.text(&format!("\u{1}\0{name}"));
    let length = 2 + name.len() as u64;
    let result = worker.call(libc::SYS_connect, &[socket, address, length]);
    worker.call(libc::SYS_close, &[socket]).unwrap();
    result
}

/// A worker that was taken over, of root and of a user who runs everything else as well.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_worker_reaches_no_unix_socket_but_those_of_instances() {
    machine::test(async |machine| {
        let scene = Scene::start(machine, "");
        let ada = users_own(machine, "bind: unix\n");
        let abstract_name = "\0smoothserve-test";
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name[1..]);
        let _listener = std::os::unix::net::UnixListener::bind_addr(&address.unwrap()).unwrap();
        let run_dir = ada.run("echo $XDG_RUNTIME_DIR").trim().to_owned();
        let found = ada.run("echo $XDG_RUNTIME_DIR/smoothserve/instances/*/socket");
        let of_instance = found.split_whitespace().next().unwrap().to_owned();
        let sockets = machine.run("find /run -type s");
        // A worker may write to journald, which takes datagrams.
        let is_foreign =
            |path: &&str| !path.contains("/instances/") && *path != "/run/systemd/journal/socket";
        let sockets: Vec<&str> = sockets.lines().filter(is_foreign).collect();
        for known in [
            "/run/dbus/system_bus_socket".to_owned(),
            "/run/smoothserve/bus".to_owned(),
            format!("{run_dir}/bus"),
            format!("{run_dir}/smoothserve/bus"),
            format!("{run_dir}/systemd/private"),
        ] {
            assert!(sockets.contains(&known.as_str()), "{known}: {sockets:?}");
        }
        for (pid, own) in [(scene.worker(), None), (ada.worker(), Some(&of_instance))] {
            tokio::task::block_in_place(|| {
                let worker = Injection::begin(machine.outside(pid));
                for socket in &sockets {
                    let error = connect(&worker, socket).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{socket}");
                }
                let error = connect(&worker, abstract_name).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                if let Some(socket) = own {
                    connect(&worker, socket).unwrap();
                }
            });
        }
        // The manager knows its worker in the other namespace, and goes on with it.
        let worker = ada.worker();
        ada.run("systemctl --user restart smoothserve && smoothctl restart shop");
        assert_eq!(ada.worker(), worker);
        let page = client::get(local(USERS_PORT), "shop.example", "/").await;
        assert!(page.unwrap().text().contains("The shop"));
        machine.until("journalctl -t smoothserve", |log| {
            log.contains("worker confined landlock=enforced unix_sockets=instances")
        });
    });
}

/// In containers, for example, a process may not make namespaces.
#[test]
#[cfg(target_arch = "x86_64")]
fn without_namespaces_the_worker_opens_unix_sockets_only_if_a_service_needs_them() {
    machine::test(async |machine| {
        machine.write(
            "/etc/systemd/system/smoothserve.service.d/container.conf",
            "[Service]\nRestrictNamespaces=yes\n",
        );
        let scene = Scene::start(machine, "");
        let worker = scene.worker();
        let try_bus = |worker: u32| {
            tokio::task::block_in_place(|| {
                let worker = Injection::begin(machine.outside(worker));
                connect(&worker, "/run/dbus/system_bus_socket").map(drop)
            })
        };
        let refused = try_bus(worker).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        machine.run("journalctl -t smoothserve | grep -q 'worker confined user=smoothserve landlock=enforced unix_sockets=none'");

        let load = scene.load().await;
        machine.write(
            "/etc/smoothserve/services/blog.yaml",
            "name: blog\nport: 8081\nexecutable_path: /opt/shop/shop\nbind: unix\nuser: www-data\nenabled: false\n",
        );
        machine.run("smoothctl reload");
        assert_eq!(scene.worker(), worker);
        machine.run("smoothctl start blog");
        let page = client::get(local(8081), "blog", "/").await.unwrap();
        assert!(page.text().contains("The shop"));
        nothing_is_lost(load).await;
        assert_ne!(scene.worker(), worker);
        machine.run("journalctl -t smoothserve | grep -q 'worker confined user=smoothserve landlock=enforced unix_sockets=all'");
        try_bus(scene.worker()).unwrap();
    });
}

/// The socket belongs to the user of the service, and the worker runs as another user.
#[test]
fn the_worker_reaches_the_unix_sockets_of_other_users() {
    machine::test(async |machine| {
        machine.install_smoothserve(&programs!());
        machine.install(&example("shop"), "/opt/shop/shop");
        machine.write(
            "/etc/smoothserve/services/shop.yaml",
            &format!("name: shop\nport: {PORT}\nexecutable_path: /opt/shop/shop\nbind: unix\nuser: www-data\n{SHOP}"),
        );
        machine.run("systemctl daemon-reload && systemctl start smoothserve.socket smoothserve");
        let scene = Scene { machine };
        assert_eq!(scene.settled().ready(), 3);
        let load = scene.load().await;
        machine.run("smoothctl restart shop");
        machine.run("systemctl restart smoothserve");
        machine.run("smoothctl restart shop");
        nothing_is_lost(load).await;
        let others = machine.try_run(
            "cd /run/smoothserve/instances/* && setpriv --reuid nobody --clear-groups curl --unix-socket socket http://shop/",
        );
        assert!(!others.status.success(), "only the proxy has come in");
    });
}

/// Each finding of `systemd-analyze security` is explained in docs/security.md.
#[test]
fn whatever_the_unit_leaves_open_has_its_reason() {
    machine::test(async |machine| {
        Scene::start(machine, "");
        let found = machine.run("systemd-analyze security --json=short smoothserve.service");
        let found: Vec<serde_json::Value> = serde_json::from_str(&found).unwrap();
        assert!(found.len() > 50, "{}", found.len());
        let reasons = machine.run("cat /usr/share/doc/smoothserve/security.md");
        let open = found.iter().filter(|line| line["set"] == false);
        for line in open {
            let name = line["name"].as_str().unwrap();
            // Names look like `CapabilityBoundingSet=~CAP_KILL`, `RestrictNamespaces=~user` and
            // `User=/DynamicUser=`.
            let named = match name.strip_prefix("CapabilityBoundingSet=~") {
                Some(capability) => format!("`{}`", capability.replace('|', "\\|")),
                None => format!("`{}=`", name.split('=').next().unwrap()),
            };
            assert!(reasons.contains(&named), "{named} of {name}");
        }
    });
}
