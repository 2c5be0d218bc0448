//! A worker, an instance that records what it receives, and clients, some of them hostile.

use crate::peers::Stage;
use crate::recorder::{Recorder, answers};

/// A worker and an instance that records what it receives.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) recorder: Recorder,
    canaries: usize,
}

impl Scene {
    pub(crate) async fn new() -> Scene {
        let mut stage = Stage::new(1).await;
        let instance = stage.instances.remove(0);
        Scene {
            stage,
            recorder: Recorder::start(instance),
            canaries: 0,
        }
    }

    /// Checks that the instance has seen these requests and then one of another client, which got
    /// its own answer.
    pub(crate) async fn saw(&mut self, expected: &[&str], context: &str) {
        let canary = self.serves_others(context).await;
        let seen = self.recorder.take().await;
        let expected: Vec<&str> = expected.iter().copied().chain([&*canary]).collect();
        assert_eq!(
            seen,
            expected,
            "{context}\nthe instance: {}",
            self.recorder.all()
        );
    }

    /// Checks that another client's request gets its own answer, and returns that answer.
    pub(crate) async fn serves_others(&mut self, context: &str) -> String {
        self.canaries += 1;
        let path = format!("/canary-{}", self.canaries);
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
        let mut client = self.stage.send(request).await;
        let canary = format!("GET a.example{path}");
        let received = client.receive_rest().await;
        assert_eq!(answers(&received), [&*canary], "{context}");
        canary
    }
}
