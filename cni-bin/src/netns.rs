//! Network namespaces of pods.
//!
//! A namespace belongs to a thread. The plugin has one, which visits the pod's
//! namespace for as long as a [`Visit`] lives.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use dataplane::attachment::NetnsId;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// The namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("CNI_NETNS: cannot open {path}: {source}")]
    Open {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The path is that of something else, or of a namespace that was unmounted.
    #[error("CNI_NETNS: {path} is not a network namespace")]
    NotNetns {
        /// The path.
        path: String,
    },
    /// The thread cannot change namespaces.
    #[error("cannot enter network namespace {path}: {errno}: the plugin needs CAP_SYS_ADMIN")]
    Enter {
        /// The path.
        path: String,
        /// Why.
        errno: Errno,
    },
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: String,
}

/// A stay of this thread in another namespace. Ends with [`leave`](Visit::leave).
#[derive(Debug)]
pub struct Visit<'a> {
    home: &'a Netns,
}

impl Netns {
    /// Opens the namespace at `path`.
    pub fn open(path: &str) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| NetnsError::Open {
            path: path.to_owned(),
            source,
        })?;
        // A regular file is what `ip netns add` leaves where its mount was undone.
        let is_nsfs = fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
        if !is_nsfs {
            return Err(NetnsError::NotNetns {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The namespace that this thread is in.
    pub fn own() -> Result<Self, NetnsError> {
        Self::open(OWN)
    }

    /// What names the namespace while it exists.
    pub fn id(&self) -> Option<NetnsId> {
        let file = self.file.metadata().ok()?;
        Some(NetnsId {
            dev: file.dev(),
            ino: file.ino(),
        })
    }

    /// Whether both are the same namespace.
    pub fn is_same(&self, other: &Self) -> bool {
        self.id().zip(other.id()).is_some_and(|(a, b)| a == b)
    }

    /// Moves this thread into the namespace.
    pub fn enter<'a>(&self, home: &'a Self) -> Result<Visit<'a>, NetnsError> {
        self.set()?;
        Ok(Visit { home })
    }

    /// The file, for messages that name a namespace by it.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn set(&self) -> Result<(), NetnsError> {
        match setns(&self.file, CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(()),
            // A namespace of another kind.
            Err(Errno::EINVAL) => Err(NetnsError::NotNetns {
                path: self.path.clone(),
            }),
            Err(errno) => Err(NetnsError::Enter {
                path: self.path.clone(),
                errno,
            }),
        }
    }
}

impl Visit<'_> {
    /// Moves this thread back home.
    pub fn leave(self) {}
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.home.set() {
            // Whatever this process did next, undoing included, would happen to
            // the pod instead of the host. DEL cleans up after a dead plugin.
            eprintln!("cannot return from the pod's network namespace: {error}");
            std::process::abort();
        }
    }
}
