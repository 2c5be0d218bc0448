//! Failed starts name their cause and what to do about it: real programs that fail as programs do,
//! started by the real smoothserve.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use smoothserve_kit::{App, Home, PATIENCE, Service, Smoothserve, free_port, programs, write};

/// A smoothserve with one service `shop`, whose executable is a file with this content.
struct Scene {
    server: Smoothserve,
    app: App,
}

impl Scene {
    fn new(program: &[u8], lines: &str) -> Scene {
        Scene::prepared(program, lines, |_| {})
    }

    /// Starts smoothserve after `prepare` has changed the folder of the executable.
    fn prepared(program: &[u8], lines: &str, prepare: impl FnOnce(&Path)) -> Scene {
        let home = Home::new();
        let app = home.app("shop");
        fs::write(app.executable(), program).unwrap();
        fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(app.folder(), fs::Permissions::from_mode(0o777)).unwrap();
        prepare(app.folder());
        let file = format!(
            "name: shop\nport: {}\nexecutable_path: {}\n{lines}",
            free_port(),
            app.executable().display()
        );
        home.write_service("shop", &file);
        let server = Smoothserve::spawn(programs!(), home);
        Scene { server, app }
    }

    /// Waits for the first failure of the service, and returns its message.
    async fn failure(&self) -> String {
        let failed = |shop: &Service| shop.last_error.is_some();
        let status = self
            .server
            .until("it has failed", |status| failed(&status.services["shop"]));
        let shop = status.await.services.remove("shop").unwrap();
        shop.last_error.unwrap().message
    }

    /// Checks that the first failure has these texts in it, and that the log shows them, too.
    async fn fails_with(self, texts: &[&str]) {
        let path = self.app.executable().display().to_string();
        let failure = self.failure().await;
        for text in texts {
            let text = text.replace("SHOP", &path);
            assert!(failure.contains(&text), "no {text:?} in {failure:?}");
        }
        self.server.says("instance failed to start").await;
        self.server.stop().await;
    }
}

/// A program in Python that does this and then waits for its end.
fn python(lines: &str) -> Vec<u8> {
    format!(
        "#!/usr/bin/env python3\nimport os, socket, sys, time\n\
         def tcp(family, address):\n s = socket.socket(family); s.bind(address); s.listen(); return s\n\
         {lines}\ntime.sleep(1000)\n"
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_listens_elsewhere_is_told_where_it_listens_and_what_to_do() {
    let elsewhere = free_port();
    let listens = format!("s = tcp(socket.AF_INET, ('127.0.0.1', {elsewhere}))");
    // With arguments of its own, it has to be given the port.
    Scene::new(&python(&listens), "args: [\"--fast\"]\nstart_timeout: 3s\n")
        .fails_with(&[
            "was not ready within 3 s (start_timeout); last probe: connect to 127.0.0.1:",
            &format!("; it listens on 127.0.0.1:{elsewhere}; give it {{port}} in `args`, or let it read PORT"),
        ])
        .await;
    // Without, it may not have understood the argument that it gets. A child counts as well.
    let child = format!("{listens}\nif os.fork() != 0: s.close()");
    Scene::new(&python(&child), "start_timeout: 3s\n")
        .fails_with(&[
            &format!("; it listens on 127.0.0.1:{elsewhere}; it gets `-port="),
            "`, because `args` is not set, and PORT; set `args` to what it understands, as in `args: [\"--port\", \"{port}\"]`",
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_listens_on_another_address_or_a_unix_socket_or_nowhere_is_told() {
    let other_address = "s = tcp(socket.AF_INET6, ('::1', int(os.environ['PORT'])))";
    Scene::new(&python(other_address), "start_timeout: 3s\n")
        .fails_with(&[
            "; it listens on [::1]:",
            " and not on 127.0.0.1; let it listen there, or write `server_ip: \"::1\"`",
        ])
        .await;
    let unix = "s = tcp(socket.AF_UNIX, os.getcwd() + '/shop.sock')";
    Scene::new(&python(unix), "args: []\nstart_timeout: 3s\n")
        .fails_with(&[
            "; it listens on the unix socket ",
            "shop.sock; give it {port} in `args`, or let it read PORT",
        ])
        .await;
    Scene::new(&python(""), "args: []\nstart_timeout: 3s\n")
        .fails_with(&["; it listens on no port; if it needs longer, raise `start_timeout`, else give it {port}"])
        .await;
    let port = "s = tcp(socket.AF_INET, ('127.0.0.1', 0))";
    Scene::new(&python(port), "bind: unix\nstart_timeout: 3s\n")
        .fails_with(&[
            "; it listens on 127.0.0.1:",
            "; give it {socket} in `args`, or let it read SOCKET, or leave `bind: unix` out",
        ])
        .await;
    Scene::new(&python(port), "bind: inherit\nstart_timeout: 3s\n")
        .fails_with(&[
            "; it listens on 127.0.0.1:",
            "; let it take the socket that it inherits as descriptor 3 (LISTEN_FDS)",
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_instance_is_not_ready_its_job_says_where_it_listens() {
    let elsewhere = free_port();
    let listens = format!("s = tcp(socket.AF_INET, ('127.0.0.1', {elsewhere}))");
    let scene = Scene::new(&python(&listens), "args: []\nstart_timeout: 500s\n");
    let starts = |shop: &Service| !shop.instances.is_empty();
    let status = scene
        .server
        .until("it starts", |status| starts(&status.services["shop"]));
    status.await;
    let job = scene.server.ctl_command(&["restart", "shop"]).spawn();
    let said = format!("it listens on 127.0.0.1:{elsewhere}; give it {{port}}");
    let is_said = tokio::time::timeout(PATIENCE, async {
        let status = || scene.server.ctl(&["status", "--json"]);
        while !String::from_utf8_lossy(&status().await.stdout).contains(&said) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    is_said.await.expect("the job says it");
    drop(job);
    scene.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_goes_to_the_background_is_told_to_stay() {
    Scene::new(b"#!/bin/sh\nsleep 1000 &\nexit 0\n", "stop_timeout: 1s\n")
        .fails_with(&[
            "exited with status 0 before it was ready; it went to the background",
            "let it stay in the foreground, as by an option such as `--foreground`",
        ])
        .await;
    let daemon = "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(1000)\n os._exit(0)\nos.wait(); os._exit(0)";
    Scene::new(&python(daemon), "stop_timeout: 1s\n")
        .fails_with(&["; it went to the background"])
        .await;
    Scene::new(b"#!/bin/sh\ntrue\n", "")
        .fails_with(&["exited with status 0 before it was ready; a service has to run until it is told to stop"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_that_a_program_does_not_know_is_named_if_nobody_has_set_it() {
    let refuses = b"#!/bin/sh\necho \"shop: unrecognized option '$1'\" >&2\nexit 2\n";
    let told = "seems not to know it; set `args` to what it understands, as in `args: [\"--port\", \"{port}\"]`";
    Scene::new(refuses, "")
        .fails_with(&[
            "exited with status 2 before it was ready; it gets the argument `-port=",
            told,
        ])
        .await;
    // What fails for another reason, or was set by somebody, is not blamed on the argument.
    for (program, lines) in [
        (
            &b"#!/bin/sh\necho 'no such table: orders' >&2\nexit 2\n"[..],
            "",
        ),
        (refuses, "args: [\"--secret=S3cret\"]\n"),
    ] {
        let scene = Scene::new(program, lines);
        let failure = scene.failure().await;
        assert!(
            failure.ends_with("exited with status 2 before it was ready"),
            "{failure}"
        );
        scene.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let home = Home::new();
    let app = home.app("shop");
    fs::write(app.executable(), "#!/bin/sh\nsleep 1000\n").unwrap();
    fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = format!(
        "name: shop\nport: {port}\nlisten_address: 127.0.0.1\nexecutable_path: {}\n",
        app.executable().display()
    );
    home.write_service("shop", &file);
    let server = Smoothserve::spawn(programs!(), home);
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let said = format!(
        "cannot listen on 127.0.0.1:{port}: address in use: port {port} is taken by {} (process {})",
        name.trim_end(),
        std::process::id()
    );
    server.says(&said).await;
    drop(taken);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_port_another_program_has_taken_is_told_by_whom() {
    // Every instance finds its port taken, as after a race: a program that is not its own has it.
    let home = Home::new();
    let app = home.app("shop");
    let folder = app.folder().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    write(
        &app.executable(),
        "#!/bin/sh\necho $PORT > port.new; mv port.new port\n\
         until test -e taken-$PORT; do sleep 0.05; done\n\
         echo 'bind: Address already in use' >&2; exit 1\n",
    );
    fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = format!(
        "name: shop\nport: {}\nexecutable_path: {}\nargs: []\nready: notify\n",
        free_port(),
        app.executable().display()
    );
    home.write_service("shop", &file);
    let server = Smoothserve::spawn(programs!(), home);
    let scene = Scene { server, app };
    let take = async {
        let mut taken = std::collections::BTreeMap::new();
        loop {
            if let Ok(text) = fs::read_to_string(folder.join("port")) {
                let port: u16 = text.trim().parse().unwrap();
                taken.entry(port).or_insert_with(|| {
                    let socket = TcpListener::bind(("127.0.0.1", port)).unwrap();
                    write(&folder.join(format!("taken-{port}")), "");
                    socket
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = [
        "exited with status 1 before it was ready; address in use: port ",
        " is taken by ",
    ];
    tokio::select! {
        () = scene.fails_with(&said) => {}
        () = take => {}
    }
}

/// The header of an ELF program for this processor by number (`e_machine`), with one program
/// header, which names this loader.
fn elf(machine: u16, loader: &str) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(2u16.to_le_bytes()); // ET_EXEC
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0x40_0000u64.to_le_bytes()); // entry
    bytes.extend(64u64.to_le_bytes()); // program headers
    bytes.extend([0; 8 + 4]);
    for number in [64u16, 56, 1, 0, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    assert_eq!(bytes.len(), 64);
    bytes.extend(3u32.to_le_bytes()); // PT_INTERP
    bytes.extend(4u32.to_le_bytes());
    for number in [
        120u64,
        0,
        0,
        loader.len() as u64 + 1,
        loader.len() as u64 + 1,
        1,
    ] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(loader.as_bytes());
    bytes.push(0);
    bytes
}

/// The number of the processor of this machine, and one of another.
fn machines() -> (u16, u16) {
    let own = fs::read("/proc/self/exe").unwrap();
    let own = u16::from_le_bytes([own[18], own[19]]);
    (own, if own == 183 { 62 } else { 183 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_whose_interpreter_is_missing_is_told_which() {
    for (program, told) in [
        (
            "#!/opt/x -w\n",
            "cannot execute SHOP: its first line names the interpreter /opt/x, which does not exist; install it, or mend that line",
        ),
        (
            "#!/usr/bin/env nod\n",
            "cannot execute SHOP: its first line asks for `nod`, which is in no folder of the service's PATH; install it",
        ),
        (
            "#!/bin/sh\r\necho\r\n",
            "its first line ends with a carriage return, as files of Windows do",
        ),
        (
            "#!/usr/bin/env python3\r\n",
            "its first line ends with a carriage return, as files of Windows do",
        ),
        (
            "#!/usr/bin/env python3 -u\n",
            "its first line asks for one program of the name `python3 -u`; write `#!/usr/bin/env -S python3 -u`",
        ),
        // What may work is tried.
        (
            "#!/usr/bin/env -S -u NOTHING sh\nexit 3\n",
            "exited with status 3",
        ),
        ("#!\n", "its first line `#!` names no interpreter"),
    ] {
        Scene::new(program.as_bytes(), "").fails_with(&[told]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_none_for_this_machine_is_told_why() {
    let (own, other) = machines();
    for (program, told) in [
        (
            elf(own, "/lib/ld-musl-none.so.1"),
            "it was built for a system with musl, such as Alpine, and its loader /lib/ld-musl-none.so.1 does not exist here; build it for this system",
        ),
        (
            elf(own, "/lib64/ld-linux-none.so.2"),
            "it was built for a system with the GNU C library, and its loader /lib64/ld-linux-none.so.2 does not exist here",
        ),
        (elf(other, "/lib/ld.so"), "and this machine is "),
        (
            b"no program at all\n".to_vec(),
            "it is a text without `#!` in its first line; add that line, as in `#!/bin/sh`",
        ),
        (Vec::new(), "the file is empty; deploy it again"),
        (
            b"MZ\x90\0\x03\0\0\0".to_vec(),
            "it is a program for Windows; build it for Linux",
        ),
        (
            b"\xcf\xfa\xed\xfe\x07\0\0\x01".to_vec(),
            "it is a program for macOS; build it for Linux",
        ),
        (
            b"PK\x03\x04\0\0".to_vec(),
            "it is an archive, as those of Java are",
        ),
        (b"\0\x01\x02\x03".to_vec(), "it is no program for Linux"),
    ] {
        Scene::new(&program, "")
            .fails_with(&["cannot execute SHOP: ", told])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named_with_its_user_and_folder() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let program = b"#!/bin/sh\nsleep 1000\n";
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    // smoothserve itself, as root, may go everywhere. The service may not.
    Scene::prepared(program, "user: nobody\n", |folder| mode(folder, 0o700))
        .fails_with(&["user nobody may not enter ", "/apps/shop (0700 root:root); permit it by mode or group, or give the service another `user`"])
        .await;
    Scene::prepared(program, "user: nobody\n", |folder| {
        mode(&folder.join("shop"), 0o744)
    })
    .fails_with(&["cannot execute SHOP: user nobody may not execute SHOP (0744 root:root)"])
    .await;
    Scene::prepared(
        program,
        "user: nobody\nworking_directory: ../../apps/shop/data\n",
        |folder| {
            fs::create_dir(folder.join("data")).unwrap();
            mode(&folder.join("data"), 0o750);
        },
    )
    .fails_with(&[
        "cannot change to the directory ",
        "/data: user nobody may not enter ",
        "/data (0750 root:root)",
    ])
    .await;
}
