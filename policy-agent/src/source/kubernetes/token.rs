//! The bearer token in a file, which somebody else keeps current.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use axum::http::HeaderValue;

/// A token is replaced minutes before it expires.
const CURRENT: Duration = Duration::from_secs(60);

/// The file, and what was last read of it.
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<Last>,
}

struct Last {
    read: Instant,
    header: HeaderValue,
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// Where it cannot be read, or has no token in it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let last = Last {
            header: authorization(path)?,
            read: Instant::now(),
        };
        Ok(Self {
            path: path.to_owned(),
            last: Mutex::new(last),
        })
    }

    /// The value of `Authorization`, by a clock that nobody sets. A file that cannot be read any
    /// more had its token taken away from others, not from who has read it (kubernetes#68164).
    pub(super) fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.read.elapsed() >= CURRENT {
            last.read = Instant::now();
            match authorization(&self.path) {
                Ok(header) => last.header = header,
                Err(error) => {
                    let path = self.path.display();
                    tracing::debug!(%path, %error, "the token cannot be read, the last one stays");
                }
            }
        }
        last.header.clone()
    }
}

/// The header with the file's token. `kubectl create token` ends it with a line end.
fn authorization(path: &Path) -> io::Result<HeaderValue> {
    let text = fs::read_to_string(path)?;
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let token = text.trim();
    if token.is_empty() {
        return Err(wrong("it is empty: write a token into it"));
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| wrong("it has more in it than a token"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_without_what_is_around_it_and_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let write = |text: &str| fs::write(&path, text).expect("written");
        for wrong in ["", "\n", "two\nlines"] {
            write(wrong);
            assert!(TokenFile::open(&path).is_err(), "{wrong:?}");
        }
        write("one\n");
        let token = TokenFile::open(&path).expect("a token");
        let later = || {
            let mut last = token.last.lock().expect("nobody has panicked");
            last.read = Instant::now().checked_sub(CURRENT).expect("up so long");
        };
        assert_eq!(token.header(), "Bearer one");
        assert!(token.header().is_sensitive());
        write("two");
        later();
        assert_eq!(token.header(), "Bearer two");
        for unusable in ["", "\u{7}"] {
            write(unusable);
            later();
            assert_eq!(token.header(), "Bearer two", "{unusable:?}");
        }
        fs::remove_file(&path).expect("removed");
        later();
        assert_eq!(token.header(), "Bearer two");
        assert!(TokenFile::open(&path).is_err());
    }
}
