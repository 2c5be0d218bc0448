//! Paths of programs that cargo has built, and free ports.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// Returns the file of an example of the root package, which cargo puts beside the running program.
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

/// Returns a port on which no program listens.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// Returns the first of `count` consecutive ports on which no program listens. The ports are
/// outside of the range for outgoing connections, of which the load has many, and outside of the
/// range from which smoothserve picks ports for instances.
pub fn free_ports(count: u16) -> u16 {
    let is_free = |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok();
    (0..1000)
        .map(|_| fastrand::u16(10_000..20_900))
        .find(|first| (*first..first + count).all(is_free))
        .expect("one of a thousand places has room")
}

/// Returns the address of this port on the loopback interface.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
