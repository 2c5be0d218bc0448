//! Clients in Python and JavaScript, on implementations that are independent of smoothserve. A
//! client prints a line for each step that it has reached, and goes on until its stdin ends.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::PATIENCE;

/// Debian's Python, which finds the libraries that Debian packages.
pub const PYTHON: &str = "/usr/bin/python3";

/// A running script.
pub struct Script {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    /// Starts a Python script.
    pub fn python(script: &str, arguments: &[&str]) -> Script {
        Script::run(Command::new(PYTHON).args(["-c", script]).args(arguments))
    }

    /// Starts a JavaScript program in Node.
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

    /// Returns the next line that the script prints.
    pub async fn next(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("it goes on").expect("it can be read");
        line.expect("it says something")
    }

    /// Ends the stdin of the script, lets the script finish its requests, and returns its last
    /// line.
    pub async fn finish(&mut self) -> String {
        drop(self.stdin.take());
        let last = self.next().await;
        self.ended().await;
        last
    }

    /// Waits until the script has exited, and checks that it succeeded.
    pub async fn ended(&mut self) {
        let status = self.process.wait().await.expect("it can be waited for");
        assert!(status.success(), "{status}");
    }
}
