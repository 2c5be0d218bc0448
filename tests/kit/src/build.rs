//! Builds of the example service.
//!
//! A new version of the service is a copy of its file with one more line at the end, which the running service reads
//! from its own executable. So a deploy in a test is what it is in life, another file in the place of the old one,
//! and needs no compiler.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::str::FromStr;

/// No line is longer.
const LONGEST: u64 = 256;
const START: &str = "\n#shop-build ";

/// What is different from build to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The version that it names in its answers.
    pub version: String,
    /// How it starts.
    pub start: Start,
}

/// How a build starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As it should.
    Well,
    /// It prints why to stderr and exits with status 3.
    Crash,
    /// It runs, but never listens.
    Mute,
    /// It listens, but `/health` answers 500.
    Sick,
}

impl Build {
    /// A good build.
    pub fn good(version: impl Into<String>) -> Build {
        Build {
            version: version.into(),
            start: Start::Well,
        }
    }

    /// A build that starts in this way.
    pub fn starting(version: impl Into<String>, start: Start) -> Build {
        Build {
            version: version.into(),
            start,
        }
    }

    /// The line at the end of the file.
    pub fn line(&self) -> String {
        format!("{START}{} {}\n", self.version, self.start)
    }

    /// The build that a file is; `None` if nothing stands at its end.
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

    /// The build that is running, whatever has become of its file since.
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
            _ => Err(format!("{text:?} is none of well, crash, mute, sick")),
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
