//! Leases as files, in host-local's layout:
//!
//! ```text
//! <dataDir>/<network>/lock                   flock: one request at a time
//! <dataDir>/<network>/10.88.0.7              "<containerID>\r\n<ifname>"
//! <dataDir>/<network>/last_reserved_ip.0     "10.88.0.7"; the number is the range set's
//! <dataDir>/<network>/.request               the request under way; not host-local's
//! <dataDir>/<network>/.boot                  see [`boot`](crate::boot); not host-local's
//! ```
//!
//! # What a crash can leave
//!
//! A request writes its lease once, as `.request`, and gives it the name of every
//! address that it reserves by `link(2)`: each appears whole or not at all. The first
//! name goes when the lock is released. One that is still there under a free lock is
//! therefore that of a request which was killed, and the leases that share its inode
//! are those that it reserved: [`Locked::free_interrupted`] frees them.
//!
//! The round-robin pointer is a hint and may say anything. Nothing is synced to the
//! disk on purpose: a page cache survives every death but that of the machine, and a
//! machine that restarts has no pods left whose leases would matter. What a power cut
//! may do to a file (empty, or foreign bytes) is recognised as [`Damaged`]: such an
//! address is not handed out until its file is put aside ([`Locked::quarantine`]).

use std::cell::RefCell;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lock::lock_within;

/// Where host-local keeps its leases unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

const LOCK: &str = "lock";
const REQUEST: &str = ".request";
const QUARANTINE: &str = ".damaged-";

/// Why the store could not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another request held the lock all the time.
    #[error("{} was held by other requests for {}s: try again later", path.display(), timeout.as_secs())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
}

/// Who holds an address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`; `None` in files of host-local before 0.7, which held the ID only.
    pub ifname: Option<String>,
}

/// A lease file that names no owner: empty, truncated or overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damaged;

/// One reserved address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The address.
    pub ip: IpAddr,
    /// Its holder.
    pub owner: Result<Owner, Damaged>,
}

/// The leases of one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// The leases of one network, locked: nobody else changes them meanwhile.
#[derive(Debug)]
pub struct Locked {
    pub(crate) dir: PathBuf,
    /// Whose lease [`REQUEST`] is, once this request has written it.
    request: RefCell<Option<Owner>>,
    /// Holds the `flock`, which ends with it.
    _lock: File,
}

impl Owner {
    /// Reads the content of a lease file.
    pub fn parse(content: &[u8]) -> Result<Self, Damaged> {
        let text = std::str::from_utf8(content).map_err(|_| Damaged)?;
        let mut lines = text.trim().lines().map(str::trim);
        let container_id = lines.next().filter(|id| is_identifier(id)).ok_or(Damaged)?;
        let ifname = lines.next();
        let plausible = ifname.is_none_or(|name| !name.is_empty() && name.len() <= 15);
        if !plausible || lines.next().is_some() {
            return Err(Damaged);
        }
        Ok(Self {
            container_id: container_id.to_owned(),
            ifname: ifname.map(str::to_owned),
        })
    }

    /// Whether a lease of `lease` belongs to this attachment: same container, and
    /// same interface where the lease names one.
    pub fn holds(&self, lease: &Self) -> bool {
        self.container_id == lease.container_id
            && (lease.ifname.is_none() || lease.ifname == self.ifname)
    }

    fn content(&self) -> String {
        match &self.ifname {
            Some(ifname) => format!("{}\r\n{ifname}", self.container_id),
            None => self.container_id.clone(),
        }
    }
}

impl Store {
    /// The leases of `network` below `data_dir`. Touches nothing.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self {
            dir: data_dir.join(network),
        }
    }

    /// Locks the store, creating it where it does not exist.
    pub fn lock(&self, timeout: Duration) -> Result<Locked, StoreError> {
        match self.open_lock(true, timeout) {
            Err(StoreError::Io { source, .. })
                if matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory
                ) =>
            {
                fs::create_dir_all(&self.dir).map_err(io_error("create", &self.dir))?;
                self.open_lock(true, timeout)
            }
            outcome => outcome,
        }
    }

    /// Locks the store if it exists: a release needs no directory, and must
    /// succeed on a full disk.
    pub fn lock_existing(&self, timeout: Duration) -> Result<Option<Locked>, StoreError> {
        match self.open_lock(false, timeout) {
            Ok(locked) => Ok(Some(locked)),
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                // Leases without a lock file are possible (copied, or restored), and neither
                // is where the disk was full: then there is nothing to lock it for.
                match addresses(&self.dir) {
                    Ok(leased) if leased.is_empty() => Ok(None),
                    Ok(_) => self.lock(timeout).map(Some),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(io_error("list", &self.dir)(source)),
                }
            }
            // A file in the place of the directory holds no leases either.
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn open_lock(&self, create: bool, timeout: Duration) -> Result<Locked, StoreError> {
        let path = self.dir.join(LOCK);
        let mut options = File::options();
        options.read(true).write(create).create(create);
        let io = |source| StoreError::Io {
            action: "lock",
            path: path.clone(),
            source,
        };
        let file = options.open(&path).map_err(io)?;
        if !lock_within(&file, timeout).map_err(io)? {
            return Err(StoreError::Busy { path, timeout });
        }
        Ok(Locked {
            dir: self.dir.clone(),
            request: RefCell::new(None),
            _lock: file,
        })
    }
}

impl Locked {
    /// Reserves an address. `false`: it is taken, by whomever.
    pub fn reserve(&self, ip: IpAddr, owner: &Owner) -> Result<bool, StoreError> {
        let path = self.path(ip);
        let request = self.write_request(owner)?;
        match fs::hard_link(request, &path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(StoreError::Io {
                action: "reserve",
                path,
                source,
            }),
        }
    }

    /// Whether the address is reserved, by whomever.
    pub fn is_reserved(&self, ip: IpAddr) -> bool {
        // An error other than "not there" must not make an address look free.
        self.path(ip).try_exists().unwrap_or(true)
    }

    /// Frees an address, whoever holds it. An address that is free is a success.
    pub fn free(&self, ip: IpAddr) -> Result<(), StoreError> {
        let path = self.path(ip);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::Io {
                action: "free",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Frees every address that the attachment holds, and returns them.
    /// One that cannot be freed does not keep the others.
    pub fn free_all_of(&self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let mut addresses = self.addresses()?;
        addresses.sort();
        self.free_those_of(owner, addresses)
    }

    /// As [`free_all_of`](Self::free_all_of), of these addresses.
    pub fn free_those_of(
        &self,
        owner: &Owner,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Vec<IpAddr>, StoreError> {
        let mut freed = Vec::new();
        let mut failure = Ok(());
        for ip in addresses {
            let lease = self.lease(ip);
            let held = |lease: &Lease| lease.owner.as_ref().is_ok_and(|holder| owner.holds(holder));
            match lease.map(|lease| lease.is_some_and(|lease| held(&lease))) {
                Ok(false) => {}
                Ok(true) => match self.free(ip) {
                    Ok(()) => freed.push(ip),
                    Err(error) => failure = Err(error),
                },
                Err(error) => failure = Err(error),
            }
        }
        failure.map(|()| freed)
    }

    /// All leases, sorted by address. Files that are none are left out.
    pub fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let mut leases = Vec::new();
        for ip in self.addresses()? {
            leases.extend(self.lease(ip)?);
        }
        leases.sort_by_key(|lease| lease.ip);
        Ok(leases)
    }

    /// The lease of one address; `None` where it is free.
    pub fn lease(&self, ip: IpAddr) -> Result<Option<Lease>, StoreError> {
        let path = self.path(ip);
        match fs::read(&path) {
            Ok(content) => Ok(Some(Lease {
                ip,
                owner: Owner::parse(&content),
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // A directory in the place of a file.
            Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(Some(Lease {
                ip,
                owner: Err(Damaged),
            })),
            Err(source) => Err(StoreError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Puts a damaged lease aside as `.damaged-<ip>`, where whoever looks for
    /// its cause finds it, and thereby frees its address.
    pub fn quarantine(&self, ip: IpAddr) -> Result<(), StoreError> {
        let path = self.path(ip);
        let aside = self.dir.join(format!("{QUARANTINE}{ip}"));
        fs::rename(&path, aside).map_err(io_error("put aside", &path))
    }

    /// The address that range set number `set` handed out last, if it says so.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let text = read_short(&self.last_path(set)).ok()?;
        str::from_utf8(&text).ok()?.trim().parse().ok()
    }

    /// Remembers where the next search of range set number `set` goes on.
    ///
    /// Written in place: replacing the file makes ext4 write it out at once,
    /// 0.2 ms for what is a hint only. Torn, it starts the search elsewhere.
    pub fn set_last_reserved(&self, set: usize, ip: IpAddr) -> Result<(), StoreError> {
        let path = self.last_path(set);
        let text = ip.to_string();
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            // Cutting off nothing costs as much as cutting off something.
            match file.metadata()?.len() > text.len() as u64 {
                true => file.set_len(text.len() as u64),
                false => Ok(()),
            }
        });
        written.map_err(io_error("write", &path))
    }

    /// Frees what a request that was killed has reserved, and returns it, unless `keep`
    /// says of the request's owner that its attachment exists: then the kill came after
    /// the leases had been handed on.
    pub fn free_interrupted(
        &self,
        keep: impl FnOnce(&Owner) -> bool,
    ) -> Result<Vec<IpAddr>, StoreError> {
        let path = self.dir.join(REQUEST);
        let request = match fs::symlink_metadata(&path) {
            Ok(request) if self.request.borrow().is_none() => request,
            Ok(_) => return Ok(Vec::new()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("look at", &path)(source)),
        };
        let content = fs::read(&path).map_err(io_error("read", &path))?;
        let mut freed = Vec::new();
        // One without an owner was not written to its end, and nothing linked to it.
        if Owner::parse(&content).is_ok_and(|owner| !keep(&owner)) {
            for ip in self.addresses()? {
                if is_same_file(&self.path(ip), &request) {
                    self.free(ip)?;
                    freed.push(ip);
                }
            }
        }
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        Ok(freed)
    }

    /// Writes the lease of this request, which its addresses will be names of. Always a
    /// new file: the old one may be the lease of a request that was killed.
    fn write_request(&self, owner: &Owner) -> Result<PathBuf, StoreError> {
        let path = self.dir.join(REQUEST);
        if self.request.borrow().as_ref() == Some(owner) {
            return Ok(path);
        }
        let content = owner.content();
        let written = create_new(&path).and_then(|mut file| file.write_all(content.as_bytes()));
        match written {
            Ok(()) => {
                self.request.replace(Some(owner.clone()));
                Ok(path)
            }
            Err(source) => {
                // The full disk is the error to report, not a second one about
                // this file, which the next request replaces.
                drop(fs::remove_file(&path));
                Err(io_error("write", &path)(source))
            }
        }
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, StoreError> {
        addresses(&self.dir).map_err(io_error("list", &self.dir))
    }

    pub(crate) fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if self.request.borrow().is_some() {
            // One that stays is taken for that of a killed request; whoever finds it
            // looks whether its attachment exists.
            drop(fs::remove_file(self.dir.join(REQUEST)));
        }
    }
}

/// The addresses that have a lease, in no order.
fn addresses(dir: &Path) -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        addresses.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
    }
    Ok(addresses)
}

fn is_same_file(path: &Path, file: &Metadata) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()))
}

fn create_new(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            File::create_new(path)
        }
        outcome => outcome,
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

/// What a file begins with, of no more than an address or an identifier, by one call.
pub(crate) fn read_short(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64];
    let length = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// The form that the CNI specification gives container IDs.
fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests;
