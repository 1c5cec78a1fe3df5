//! Where records go.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

/// `--verdict-log`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// No log: denied packets are counted only.
    Off,
    /// Standard output.
    Stdout,
    /// Standard error, between the lines of the agent's own log.
    Stderr,
    /// A file that is appended to; it may be rotated.
    File(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("give a path, stdout, stderr or off".to_owned()),
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// An open target.
pub(super) struct Sink {
    target: Target,
    file: Option<File>,
}

impl Sink {
    pub(super) fn new(target: &Target) -> Self {
        Self {
            target: target.clone(),
            file: None,
        }
    }

    /// Writes a line, in one piece.
    pub(super) fn write(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        match &self.target {
            Target::Off => Ok(()),
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&line)?;
                out.flush()
            }
            Target::Stderr => io::stderr().lock().write_all(&line),
            Target::File(path) => {
                let path = path.clone();
                let written = self.file(&path).and_then(|file| file.write_all(&line));
                if written.is_err() {
                    // It may be there again for the next record.
                    self.file = None;
                }
                written
            }
        }
    }

    /// The file under that name now: a rotation gives the name to another.
    fn file(&mut self, path: &Path) -> io::Result<&mut File> {
        let is_same = |file: &File| {
            let (Ok(open), Ok(named)) = (file.metadata(), path.metadata()) else {
                return false;
            };
            (open.dev(), open.ino()) == (named.dev(), named.ino())
        };
        self.file.take_if(|file| !is_same(file));
        match &mut self.file {
            Some(file) => Ok(file),
            empty => {
                let mut options = OpenOptions::new();
                let options = options.create(true).append(true).mode(0o640);
                Ok(empty.insert(options.open(path)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        assert_eq!("off".parse(), Ok(Target::Off));
        assert_eq!("stderr".parse(), Ok(Target::Stderr));
        assert_eq!("/var/log/x".parse(), Ok(Target::File("/var/log/x".into())));
        assert!("".parse::<Target>().is_err());
    }

    /// netpol.md 71: a full disk or a rotated file costs records and nothing else.
    #[test]
    fn a_file_that_is_rotated_or_full_is_found_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("denied.json");
        let mut sink = Sink::new(&Target::File(path.clone()));
        sink.write(&1).expect("written");
        std::fs::rename(&path, folder.path().join("denied.json.1")).expect("rotated");
        sink.write(&2).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "2\n");
        let mut full = Sink::new(&Target::File("/dev/full".into()));
        assert!(full.write(&3).is_err());
        assert!(full.write(&4).is_err(), "and tries again");
    }
}
