//! Clients in Python and JavaScript, which use what nobody here wrote. They say how far they are, a line each time, and go on
//! until their stdin ends.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::PATIENCE;

/// Debian's, which finds the libraries that Debian has.
pub const PYTHON: &str = "/usr/bin/python3";

/// A script that runs.
pub struct Script {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    /// Runs one of Python.
    pub fn python(script: &str, arguments: &[&str]) -> Script {
        Script::run(Command::new(PYTHON).args(["-c", script]).args(arguments))
    }

    /// Runs one of Node.
    pub fn node(script: &str, arguments: &[&str]) -> Script {
        let mut node = Command::new("node");
        Script::run(node.args(["-e", script, "--"]).args(arguments))
    }

    fn run(command: &mut Command) -> Script {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Script {
            stdin: process.stdin.take(),
            lines: BufReader::new(process.stdout.take().expect("it is piped")).lines(),
            process,
        }
    }

    /// The next line that it says.
    pub async fn next(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("it goes on").expect("it can be read");
        line.expect("it says something")
    }

    /// Lets it end what it has begun, and returns what it says in the end.
    pub async fn finish(&mut self) -> String {
        drop(self.stdin.take());
        let last = self.next().await;
        self.ended().await;
        last
    }

    /// Waits until it has ended well.
    pub async fn ended(&mut self) {
        let status = self.process.wait().await.expect("it can be waited for");
        assert!(status.success(), "{status}");
    }
}
