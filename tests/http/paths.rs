//! Paths that can be read in several ways, on hosts whose paths belong to several services.

use smoothserve::ipc::{Host, ListenerId, Route};

use crate::frames::{Client, HEADERS, Outcome, WHOLE, frame, get};
use crate::kit::{first, service};
use crate::peers::{Instance, Stage};
use crate::recorder::{Recorder, answers};

/// A worker with the service `shop` for all of `a.example` and `b.example`, and `api` for `/api` on
/// `a.example`. Each request is answered with what the instance has understood.
struct Scene {
    stage: Stage,
    shop: Recorder,
    api: Recorder,
}

async fn scene(strip: usize) -> Scene {
    let mut stage = Stage::new(1).await;
    let route = |host: &str, path: &str, strip: usize| Route {
        host: Host::Exact(host.to_owned()),
        path: path.to_owned(),
        strip,
        listener: ListenerId(1),
    };
    let instance = Instance::start().await;
    let mut api = service("api", vec![instance.endpoint(7)]);
    api.routes = vec![route("a.example", "/api", strip)];
    stage.table.number += 1;
    first(&mut stage.table).routes = vec![route("a.example", "/", 0), route("b.example", "/", 0)];
    stage.table.services.push(api.into());
    let table = stage.table.clone();
    stage.manager.apply(&table).await;
    let shop = Recorder::start(stage.instances.remove(0));
    Scene {
        stage,
        shop,
        api: Recorder::start(instance),
    }
}

impl Scene {
    /// Sends a request over HTTP/1.1 and returns its answer: the status, or the service and the
    /// target that its instance has seen.
    async fn ask(&mut self, host: &str, target: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut client = self.stage.send(request).await;
        let answer = answers(&client.receive_rest().await).remove(0);
        let seen = [("shop", &self.shop), ("api", &self.api)];
        for (name, recorder) in seen {
            if let Some(request) = recorder.take().await.pop() {
                assert_eq!(request, answer, "{target}");
                let target = request.split_once(host).unwrap().1;
                return format!("{name} {target}");
            }
        }
        answer
    }
}

#[tokio::test]
async fn a_path_reaches_the_service_that_it_means() {
    let mut scene = scene(0).await;
    for (target, expected) in [
        ("/x", "shop /x"),
        ("/api", "api /api"),
        // The instance gets the path as it was sent.
        ("/%61pi/x?y=%2f", "api /%61pi/x?y=%2f"),
        ("/x/../api/secret", "api /x/../api/secret"),
        ("/./api", "api /./api"),
        ("/api/../x", "shop /api/../x"),
        ("/api//x", "api /api//x"),
        ("/.well-known/x", "shop /.well-known/x"),
        ("/x?//../api", "shop /x?//../api"),
        // What no proxy can know.
        ("/API/x", "shop /API/x"),
        ("/api;v=1/x", "shop /api;v=1/x"),
    ] {
        assert_eq!(scene.ask("a.example", target).await, expected, "{target}");
    }
}

#[tokio::test]
async fn a_path_that_could_be_of_two_services_reaches_none() {
    let mut scene = scene(0).await;
    for target in [
        "//api/x",
        "/x//../api",
        "/api%2fx",
        "/x%2F..%2Fapi",
        "/%2e%2e/api",
        "/x/.%2E/api",
        "/x\\..\\api",
        "/x%5c..%5capi",
        "/..;/api",
        "/..;x=y/api",
        "/x%00",
        "/x%0a",
        "/%",
        "/%zz",
        "/%c0%af",
        "/%e0%80%af",
        "/%f0%80%80%ae",
        "/%f8%80%80%80%af",
        "/%u0061pi",
    ] {
        assert_eq!(scene.ask("a.example", target).await, "400", "{target}");
        // Where one service has all paths, they are its business.
        let expected = format!("shop {target}");
        assert_eq!(scene.ask("b.example", target).await, expected, "{target}");
        // HTTP/2 is no way around it.
        let mut client = Client::connect(&scene.stage, &[]).await;
        client.send(&frame(HEADERS, WHOLE, 1, &get(target))).await;
        let outcome = client.outcome(1).await;
        assert!(
            matches!(outcome, Outcome::Answer(400, _)),
            "{target}: {outcome:?}"
        );
        assert_eq!(scene.api.take().await, [""; 0], "{target}");
        assert_eq!(scene.shop.take().await, [""; 0], "{target}");
    }
}

#[tokio::test]
async fn a_stripped_path_never_leads_elsewhere() {
    let mut scene = scene("/api".len()).await;
    for (target, expected) in [
        ("/api/x?y=//z", "api /x?y=//z"),
        ("/%61pi/%62?c", "api /%62?c"),
        ("/api//evil.example/x", "api /evil.example/x"),
        ("/api////", "api /"),
        ("/api/./x", "api /x"),
        ("/api/../api/y", "api /y"),
        ("/x/../api/y?z", "api /y?z"),
        ("/api/x/../../y", "shop /api/x/../../y"),
        ("/api/..x", "api /..x"),
        ("/api/\\evil.example", "400"),
        ("/api/%5cevil.example", "400"),
        ("/api/%2fevil.example", "400"),
        ("/api/..;/x", "400"),
    ] {
        assert_eq!(scene.ask("a.example", target).await, expected, "{target}");
    }
}

/// `//evil.example` behind the host of a redirect leads to the same host, and a stripped prefix
/// stays in front of it.
#[tokio::test]
async fn a_redirect_to_tls_leads_to_no_other_host() {
    let mut scene = scene("/api".len()).await;
    scene.stage.table.number += 1;
    let services = &mut scene.stage.table.services;
    for service in services.iter_mut() {
        let mut changed = (**service).clone();
        changed.handling.redirect_https = Some(443);
        *service = changed.into();
    }
    let table = scene.stage.table.clone();
    scene.stage.manager.apply(&table).await;
    for (host, target, location) in [
        (
            "b.example",
            "//evil.example/x",
            "https://b.example//evil.example/x",
        ),
        (
            "b.example",
            "/\\evil.example",
            "https://b.example/\\evil.example",
        ),
        (
            "b.example",
            "http://b.example//evil.example",
            "https://b.example//evil.example",
        ),
        (
            "a.example",
            "/api//evil.example",
            "https://a.example/api/evil.example",
        ),
        ("a.example", "/x/../api//evil", "https://a.example/api/evil"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let head = scene.stage.send(request).await.receive_head().await;
        let expected = format!("\r\nLocation: {location}\r\n");
        assert!(
            head.starts_with("HTTP/1.1 308 ") && head.contains(&expected),
            "{head}"
        );
    }
}
