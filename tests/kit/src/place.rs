//! Where things are: programs that cargo has built, and free ports.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// An example of the root package, beside the program that is running.
pub fn example(name: &str) -> PathBuf {
    let running = std::env::current_exe().expect("a program knows its file");
    // Tests are in `target/PROFILE/deps`, examples in `target/PROFILE/examples`.
    let profile = running.parent().and_then(Path::parent);
    let file = profile.map(|profile| profile.join("examples").join(name));
    let file = file.expect("cargo puts programs two folders deep");
    assert!(
        file.exists(),
        "{} is missing: `cargo build --examples` makes it",
        file.display()
    );
    file
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of this many ports in a row that nobody listens on. They are none of those that the kernel gives to
/// outgoing connections, because the load has many of those, and none of those that smoothserve picks for instances.
pub fn free_ports(count: u16) -> u16 {
    let is_free = |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok();
    (0..1000)
        .map(|_| fastrand::u16(10_000..20_900))
        .find(|first| (*first..first + count).all(is_free))
        .expect("one of a thousand places has room")
}

/// This port of this machine.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
