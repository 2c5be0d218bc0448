//! smoothserve on a real systemd: installed by `make install` or by the package, used as people use
//! it, under the load that proves losses.

mod crash;
mod end;
mod failures;
mod files;
mod handover;
mod harness;
mod limits;
mod logs;
mod package;
mod people;
mod ports;
mod readme;
mod sandbox;
mod scene;
mod secure;
mod soak;
mod sockets;
mod strangers;
mod supervision;
mod survival;
mod tunnels;
mod unix_sockets;
mod upgrade;
