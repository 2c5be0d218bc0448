//! Builds of the example service.
//!
//! A new version of the service is a copy of its executable with one more line at the end, which
//! the running service reads from its own executable. So a deploy in a test is a new file in place
//! of the old one, as it is in production, and needs no compiler.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::str::FromStr;

/// The longest line that a build may have at its end, in bytes.
const LONGEST: u64 = 256;
const START: &str = "\n#shop-build ";

/// What distinguishes one build of the example service from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The version that the service names in its responses.
    pub version: String,
    /// How the service starts.
    pub start: Start,
}

/// How a build of the example service starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The service becomes ready.
    Well,
    /// The service prints a reason to stderr and exits with status 3.
    Crash,
    /// The service runs, but never listens.
    Mute,
    /// The service listens, but answers `/health` with 500.
    Sick,
    /// The service listens, and answers `/health` with 200 once, and then with 500.
    Failing,
}

impl Build {
    /// Describes a build that becomes ready.
    pub fn good(version: impl Into<String>) -> Build {
        Build {
            version: version.into(),
            start: Start::Well,
        }
    }

    /// Describes a build that starts in the given way.
    pub fn starting(version: impl Into<String>, start: Start) -> Build {
        Build {
            version: version.into(),
            start,
        }
    }

    /// Returns the line that this build has at the end of its file.
    pub fn line(&self) -> String {
        format!("{START}{} {}\n", self.version, self.start)
    }

    /// Reads which build a file is; `None` if the file has no such line at its end.
    pub fn read(file: &mut File) -> io::Result<Option<Build>> {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LONGEST)))?;
        let mut tail = Vec::new();
        file.take(LONGEST).read_to_end(&mut tail)?;
        let tail = String::from_utf8_lossy(&tail);
        Ok(tail
            .rsplit_once(START)
            .and_then(|(_, line)| line.trim_end().rsplit_once(' '))
            .and_then(|(version, start)| {
                Some(Build {
                    version: version.to_owned(),
                    start: start.parse().ok()?,
                })
            }))
    }

    /// Reads which build the running program is, even if its file was replaced since.
    pub fn running() -> io::Result<Option<Build>> {
        Build::read(&mut File::open("/proc/self/exe")?)
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Start::Well => "well",
            Start::Crash => "crash",
            Start::Mute => "mute",
            Start::Sick => "sick",
            Start::Failing => "failing",
        })
    }
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Start, String> {
        match text {
            "well" => Ok(Start::Well),
            "crash" => Ok(Start::Crash),
            "mute" => Ok(Start::Mute),
            "sick" => Ok(Start::Sick),
            "failing" => Ok(Start::Failing),
            _ => Err(format!(
                "{text:?} is none of well, crash, mute, sick, failing"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_line_counts() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0xff; 1000]).unwrap();
        assert_eq!(Build::read(&mut file).unwrap(), None);
        for build in [
            Build::good("1.0 of today"),
            Build::starting("2", Start::Mute),
        ] {
            file.seek(SeekFrom::End(0)).unwrap();
            file.write_all(build.line().as_bytes()).unwrap();
            assert_eq!(Build::read(&mut file).unwrap(), Some(build));
        }
    }
}
