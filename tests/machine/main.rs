//! smoothserve on a real systemd: installed as `make install` does it, used as people use it, under the load that
//! proves losses.

mod harness;

mod scene;
mod survival;
