//! varnishtest plays client and instance, by the scripts in `vtc/`.

use std::path::Path;

use smoothserve::ipc::Address;

use crate::peers::Stage;

async fn run(script: &str) {
    let mut stage = Stage::new(1).await;
    // varnishtest's own server takes the place of the test's instance.
    let Address::Tcp(instance) = stage.table.services[0].endpoints[0].address else {
        panic!("expected an instance on TCP");
    };
    stage.instances.clear();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http/vtc");
    let output = tokio::process::Command::new("varnishtest")
        .arg(format!("-Dinstance={instance}"))
        .arg(format!("-Dproxy={}", stage.address))
        .arg(folder.join(script))
        .output()
        .await
        .expect("this test needs varnishtest");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[tokio::test]
async fn varnishtest_agrees_about_http_1() {
    run("http1.vtc").await;
}

#[tokio::test]
async fn varnishtest_agrees_about_http_2() {
    run("http2.vtc").await;
}
