//! What any user of the machine can do to the private socket and over a bus: nothing grows without
//! a bound, and root and the clients of a service are served meanwhile.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Uid;
use smoothserve_kit::{Bystander, PATIENCE, Smoothserve, local};
use zbus::Message;
use zbus::message::Flags;

use crate::client::{Client, MANAGER, MANAGER_PATH};
use crate::{SHOP, Scene};

/// An unprivileged user.
const NOBODY: u32 = 65534;

/// Connects to the private socket and performs the handshake as the user with this number, unless
/// this test is not root's: then as the user who runs it.
fn connect(socket: &Path, uid: u32) -> std::io::Result<UnixStream> {
    let is_root = rustix::process::geteuid().is_root();
    let connect = move |socket: &Path| {
        if is_root {
            // The kernel keeps the user of each thread apart.
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        UnixStream::connect(socket)
    };
    let mut stream = std::thread::scope(|scope| scope.spawn(|| connect(socket)).join().unwrap())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")?;
    let mut answers = Vec::new();
    while answers.iter().filter(|byte| **byte == b'\n').count() < 3 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answers.extend(byte);
    }
    let answers = String::from_utf8(answers).unwrap();
    assert!(answers.starts_with("DATA\r\nOK "), "{answers}");
    assert!(answers.contains("\r\nERROR "), "no descriptors: {answers}");
    Ok(stream)
}

/// A smoothserve with few resources, and bystanders that it has to serve to the end.
struct Siege {
    scene: Scene,
    bystanders: [Bystander; 2],
}

impl Siege {
    async fn begin() -> Siege {
        let scene = Scene::new("").await;
        for folder in [scene.server.home.path(), &scene.server.home.run()] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        scene.server.confine();
        let mut bystanders = [
            Bystander::of_shop(local(scene.port), "shop.example"),
            Bystander::of_manager(&scene.server.bus()),
        ];
        for bystander in &mut bystanders {
            bystander.is_served().await;
        }
        Siege { scene, bystanders }
    }

    /// Checks that the manager answers and is small.
    async fn holds(&self) {
        assert!(self.scene.server.status().await.is_some());
        self.scene.server.assert_small();
    }

    /// Checks that everybody is served up to the end.
    async fn end(self) {
        self.holds().await;
        Bystander::end_served(self.bystanders).await;
        self.scene.server.stop().await;
    }
}

fn call(member: &str, flags: Option<Flags>) -> Message {
    let call = Message::method_call(MANAGER_PATH, member).interface(MANAGER);
    let call = flags
        .into_iter()
        .fold(call, |call, flag| call.with_flags(flag));
    call.build(&()).unwrap()
}

/// Writes as much as the manager takes, and returns how much that is.
fn flood(stream: &mut UnixStream, bytes: &[u8], times: usize) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    for _ in 0..times {
        match stream.write(bytes) {
            Ok(length) if length == bytes.len() => written += length,
            Ok(length) => return written + length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    written
}

fn descriptors(server: &Smoothserve) -> usize {
    let folder = format!("/proc/{}/fd", server.pid());
    std::fs::read_dir(folder).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_only_announced_gets_no_room() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let bus = scene.server.bus();
    let mut strangers: Vec<_> = (0..32).map(|_| connect(&bus, NOBODY).unwrap()).collect();
    for stranger in &mut strangers {
        let mut head = call("Dump", None).data()[..16].to_vec();
        head[4..8].copy_from_slice(&(127_u32 << 20).to_le_bytes());
        head.push(0);
        stranger.write_all(&head).unwrap();
    }
    for stranger in &mut strangers {
        let ended = stranger.read(&mut [0; 16]);
        assert!(
            matches!(&ended, Ok(0))
                || ended
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
            "{ended:?}"
        );
    }
    let said = "a D-Bus message is too long, not read";
    scene.server.says(said).await;
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_and_root_is_served_meanwhile() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let bus = scene.server.bus();
    // The largest answers that a stranger can ask for.
    let introspect = Message::method_call(SHOP, "Introspect")
        .interface("org.freedesktop.DBus.Introspectable")
        .build(&())
        .unwrap();
    let mut strangers: Vec<_> = (0..32).map(|_| connect(&bus, NOBODY).unwrap()).collect();
    let mut written = 0;
    for _ in 0..20 {
        for stranger in &mut strangers {
            written += flood(stranger, introspect.data(), 2000);
        }
        siege.holds().await;
    }
    assert!(written > 1 << 20, "only {written} bytes were taken");
    let said = "a D-Bus client does not read, closing its connection";
    scene.server.says(said).await;
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_want_no_answer_are_bounded_too() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let mut stranger = connect(&scene.server.bus(), NOBODY).unwrap();
    let silent = call("Dump", Some(Flags::NO_REPLY_EXPECTED));
    for _ in 0..5_000 {
        stranger.write_all(silent.data()).unwrap();
    }
    let last = call("ListServices", None);
    stranger.write_all(last.data()).unwrap();
    // The first answer is that of the last call.
    let mut head = [0; 16];
    stranger.read_exact(&mut head).unwrap();
    assert_eq!(head[1], 2, "it is a return");
    let length = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let mut rest = vec![0; (length(12).next_multiple_of(8) + length(4)) as usize];
    stranger.read_exact(&mut rest).unwrap();
    let words = String::from_utf8_lossy(&rest).into_owned();
    assert!(words.contains("shop"), "{words}");
    stranger.set_nonblocking(true).unwrap();
    assert_eq!(
        stranger.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "nothing else has come"
    );
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_come_along_are_closed() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let mut stranger = connect(&scene.server.bus(), NOBODY).unwrap();
    let before = descriptors(&scene.server);
    let file = std::fs::File::open("/dev/null").unwrap();
    let files = [file.as_fd(); 100];
    let ping = call("ListServices", None);
    for _ in 0..200 {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let bytes = [IoSlice::new(ping.data())];
        sendmsg(&stranger, &bytes, &mut control, SendFlags::empty()).unwrap();
        let mut answer = [0; 1 << 12];
        assert!(stranger.read(&mut answer).unwrap() > 16);
    }
    assert!(descriptors(&scene.server) <= before + 2);
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_does_not_take_the_places_of_others() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let bus = scene.server.bus();
    let strangers: Vec<_> = (0..32).map(|_| connect(&bus, NOBODY).unwrap()).collect();
    assert!(connect(&bus, NOBODY).is_err(), "one more is closed");
    scene.server.says("too many control connections").await;
    let other = connect(&bus, NOBODY - 1).expect("another user has places");
    siege.holds().await;
    drop((strangers, other));
    let come_back = async {
        while connect(&bus, NOBODY).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, come_back).await.unwrap();
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_handshake_is_closed() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    for nonsense in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\n",
        b"\0AUTH EXTERNAL\n",
        &[0; 10_000],
    ] {
        let mut stream = UnixStream::connect(scene.server.bus()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The manager may close the connection before it has read everything.
        let _ = stream.write_all(nonsense);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
    assert!(!scene.server.log().contains("panicked"));
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_over_the_bus_is_refused_and_others_are_answered() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let address = scene.daemon.address();
    let flooder = Client::on_bus(&address).await;
    let other = Client::on_bus(&address).await;
    let mut answers = zbus::MessageStream::from(&flooder.connection);
    let calls: Vec<Message> = (0..5000)
        .map(|_| {
            Message::method_call(MANAGER_PATH, "Dump")
                .interface(MANAGER)
                .destination("org.smoothserve1")
                .build(&())
                .unwrap()
        })
        .collect();
    let connection = flooder.connection.clone();
    let sending = tokio::spawn(async move {
        for call in &calls {
            connection.send(call).await.unwrap();
        }
        calls.len()
    });
    let reading = async {
        let (mut done, mut refused) = (0, 0);
        while done + refused < 5000 {
            let message = futures_util::StreamExt::next(&mut answers)
                .await
                .unwrap()
                .unwrap();
            match message.message_type() {
                zbus::message::Type::MethodReturn => done += 1,
                zbus::message::Type::Error => {
                    let header = message.header();
                    let name = header.error_name().unwrap().to_string();
                    assert_eq!(name, "org.freedesktop.DBus.Error.LimitsExceeded");
                    refused += 1;
                }
                _ => {}
            }
            if (done + refused) % 100 == 0 {
                let name: String = other.property(SHOP, crate::SERVICE, "Name").await.unwrap();
                assert_eq!(name, "shop");
            }
        }
        done
    };
    let done = tokio::time::timeout(PATIENCE, reading).await;
    let done = done.expect("every call gets an answer or is refused");
    assert!(done > 0 && sending.await.unwrap() == 5000);
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_over_the_bus_is_not_read_and_the_next_one_is() {
    let siege = Siege::begin().await;
    let scene = &siege.scene;
    let client = Client::on_bus(&scene.daemon.address()).await;
    let name = "x".repeat(20 << 20);
    for _ in 0..3 {
        let call = Message::method_call(MANAGER_PATH, "GetService")
            .interface(MANAGER)
            .destination("org.smoothserve1")
            .build(&name)
            .unwrap();
        client.connection.send(&call).await.unwrap();
    }
    let path: zbus::OwnedObjectPath = client.manager("GetService", &("shop",)).await.unwrap();
    assert_eq!(path.as_str(), SHOP);
    let said = "a D-Bus message is too long, not read";
    scene.server.says(said).await;
    assert!(!scene.server.log().contains("the bus has gone away"));
    siege.end().await;
}
