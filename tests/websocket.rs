//! WebSockets of an independent client and service, during everything that replaces instances.

use rustix::process::Signal;
use smoothserve_kit::websocket::{SERVICE, talk};
use smoothserve_kit::{Home, Smoothserve, client, free_port, local, programs};

async fn serve(lines: &str) -> (Smoothserve, u16) {
    let home = Home::new();
    let port = free_port();
    home.add_python("shop", port, SERVICE, lines);
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    (server, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tunnel_gets_the_close_frame_of_its_instance() {
    let (mut server, port) = serve("instance_count: 2\n").await;
    let mut tunnels = talk(port).await;
    server
        .until("all tunnels are counted", |status| {
            let instances = &status.services["shop"].instances;
            instances
                .iter()
                .map(|instance| instance.tunnels)
                .sum::<u64>()
                == 20
        })
        .await;
    let ordinary = tokio::spawn(async move {
        loop {
            let response = client::get(local(port), "shop.example", "/plain").await;
            assert_eq!(response.expect("no request is lost").text(), "plain");
        }
    });
    server.ok(&["restart", "shop"]).await;
    assert_eq!(tunnels.next().await, "[1001] 20");
    assert!(!ordinary.is_finished(), "{:?}", ordinary.await);
    ordinary.abort();

    // New tunnels lead to the new instances, and the end of smoothserve closes them in the same
    // way.
    let mut tunnels = talk(port).await;
    server.signal(Signal::TERM);
    assert_eq!(tunnels.next().await, "[1001] 20");
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_that_their_instance_does_not_close_are_cut_off_at_the_timeout() {
    let lines = "environment: { STUBBORN: 1 }\ntunnel_drain_timeout: 1s\nstop_timeout: 1s\n";
    let (server, port) = serve(lines).await;
    let mut tunnels = talk(port).await;
    server.ok(&["restart", "shop"]).await;
    assert_eq!(tunnels.next().await, "[1006] 20");
    server.stop().await;
}
