//! The last known good objects on disk, for a start without the API server.
//!
//! A node that boots while the API server is away has empty tables and knows no policy.
//! What an earlier agent has written down here is then enforced until the server has listed
//! everything, see [`Owner::restore`](crate::owner::Owner::restore). An agent that finds its
//! tables in the kernel needs none of this: they stay as they are.
//!
//! Changes are appended, so that a change costs what it is and not what there is:
//!
//! ```text
//! trammel-objects 1 n1             format and node
//! = NetworkPolicy 1                these are all of the kind, a line each
//! + NetworkPolicy shop/web {...}
//! + Pod shop/web-2 {...}           new, or different
//! - Pod shop/web-1                 gone
//! ```
//!
//! - Each agent begins a new file and gives it its name when every kind has been listed: there
//!   is never a mixture of old and new. A file of twice the size that it needs is written
//!   anew in the same way.
//! - A line that a power cut has torn is not counted. Anything else that cannot be read makes
//!   the file worthless: it is left alone, and pods stay closed.
//! - Nothing waits for the disk: this has a thread of its own, which writes once a second and
//!   syncs every ten. Where it cannot write, it removes what is stale and says so.

mod replay;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::event::{Event, Kind, Object};
use replay::{Damage, Replay};

/// To be raised with every change of what the model's types look like in JSON: an older
/// file is not read then.
const FORMAT: u32 = 2;
/// The file, and the one that is to take its place.
const NAME: &str = "objects";
const NEW: &str = "objects.new";
/// Between two writes.
const WRITE: Duration = Duration::from_secs(1);
/// Between two syncs: a power cut costs what has come since.
const SYNC: Duration = Duration::from_secs(10);
/// So much is written at once.
const BUFFER: usize = 1 << 20;
/// A file below this size is never written anew.
const SMALL: u64 = 16 << 20;

/// Objects of an earlier run.
#[derive(Clone, PartialEq, Debug)]
pub struct Restored {
    /// One [`Event::Reset`] for each kind.
    pub events: Vec<Event>,
    /// When they were last written to.
    pub as_of: SystemTime,
}

/// Why the objects of an earlier run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be read, or the folder not be written.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what an agent of this version has written for this node.
    #[error("{}, line {}: {}", path.display(), damage.line, damage.reason)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
    },
}

/// The thread that writes. Ends when dropped, and has written everything by then.
#[derive(Debug)]
pub struct Journal {
    events: Option<Sender<Event>>,
    thread: Option<JoinHandle<()>>,
}

/// What an earlier agent has left for this node in the folder, which is made if need be;
/// `None` if there is nothing.
///
/// # Errors
/// See [`RestoreError`]. What can be read and not written is not used: it would grow old
/// unnoticed.
pub fn restore(folder: &Path, node: &str) -> Result<Option<Restored>, RestoreError> {
    let in_folder = |source| RestoreError::Io {
        path: folder.to_owned(),
        source,
    };
    make(folder)
        .and_then(|()| can_write(&folder.join(NEW)))
        .map_err(in_folder)?;
    let path = folder.join(NAME);
    let in_file = |source| RestoreError::Io {
        path: path.clone(),
        source,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(in_file(error)),
    };
    let as_of = file.metadata().and_then(|metadata| metadata.modified());
    let as_of = as_of.map_err(in_file)?;
    let damaged = |damage| RestoreError::Damaged {
        path: path.clone(),
        damage,
    };
    let replay = Replay::of(BufReader::new(&file), &header(node)).map_err(in_file)?;
    let replay = replay.map_err(damaged)?;
    let mut resets: Vec<_> = Kind::ALL.map(|kind| (kind, Vec::new())).into();
    for ((kind, key), span) in &replay.objects {
        let text = span.json(&file).map_err(in_file)?;
        let object = serde_json::from_slice::<Object>(&text).map_err(|error| error.to_string());
        let object =
            object.and_then(
                |object| match (object.kind(), object.key()) == (*kind, key.clone()) {
                    true => Ok(object),
                    false => Err(format!(
                        "{kind} {key} is {} {}",
                        object.kind(),
                        object.key()
                    )),
                },
            );
        let object = object.map_err(|reason| {
            damaged(Damage {
                line: span.line,
                reason,
            })
        })?;
        let of_kind = resets.iter_mut().find(|(of, _)| of == kind);
        of_kind.expect("every kind").1.push(object);
    }
    let resets = resets.into_iter();
    Ok(Some(Restored {
        events: resets
            .map(|(kind, objects)| Event::Reset(kind, objects))
            .collect(),
        as_of,
    }))
}

impl Journal {
    /// Starts to write what is [noted](Self::note) into the folder, which is made if need be.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(folder: &Path, node: &str) -> io::Result<Self> {
        let (sender, events) = channel();
        let writer = Writer::new(folder, node);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&events))?;
        Ok(Self {
            events: Some(sender),
            thread: Some(thread),
        })
    }

    /// Has the event written down, some time.
    pub fn note(&self, event: &Event) {
        if matches!(event, Event::Invalid { .. }) {
            // What was known of the object stays.
            return;
        }
        if let Some(events) = &self.events {
            // A writer that has ended has said why.
            drop(events.send(event.clone()));
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.events = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread has panicked");
        }
    }
}

fn header(node: &str) -> String {
    format!("trammel-objects {FORMAT} {node}")
}

fn make(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder)
}

/// Leaves what is there: it is written to already.
fn can_write(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)?;
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// What the thread has.
#[derive(Debug)]
struct Writer {
    folder: PathBuf,
    node: String,
    buffer: Vec<u8>,
    /// `None` before the first event, and after an error for good.
    file: Option<File>,
    has_failed: bool,
    /// Kinds that were listed since the start.
    listed: BTreeSet<Kind>,
    /// Whether the file has its name.
    is_named: bool,
    size: u64,
    /// Size above which the file is written anew.
    limit: u64,
    synced: Instant,
    is_unsynced: bool,
}

impl Writer {
    fn new(folder: &Path, node: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            node: node.to_owned(),
            buffer: Vec::new(),
            file: None,
            has_failed: false,
            listed: BTreeSet::new(),
            is_named: false,
            size: 0,
            limit: SMALL,
            synced: Instant::now(),
            is_unsynced: false,
        }
    }

    fn run(mut self, events: &Receiver<Event>) {
        loop {
            let event = match self.until_sync() {
                Some(pause) => events.recv_timeout(pause),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {
                    self.write();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let until = Instant::now() + WRITE;
            loop {
                match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(event) => self.take(event),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        self.write();
                        return;
                    }
                }
            }
            self.write();
        }
    }

    /// How long what is written may still wait for the disk, also if nothing follows it.
    fn until_sync(&self) -> Option<Duration> {
        let waits = self.is_named && self.is_unsynced;
        waits.then(|| SYNC.saturating_sub(self.synced.elapsed()))
    }

    fn take(&mut self, event: Event) {
        if self.has_failed {
            return;
        }
        match event {
            Event::Apply(object) => self.add(&object),
            Event::Delete(kind, key) => {
                let line = format!("- {kind} {key}\n");
                self.buffer.extend(line.into_bytes());
            }
            Event::Reset(kind, objects) => {
                let line = format!("= {kind} {}\n", objects.len());
                self.buffer.extend(line.into_bytes());
                for object in &objects {
                    self.add(object);
                }
                self.listed.insert(kind);
            }
            Event::Invalid { .. } => {}
        }
    }

    fn add(&mut self, object: &Object) {
        let line = format!("+ {} {} ", object.kind(), object.key());
        self.buffer.extend(line.into_bytes());
        serde_json::to_writer(&mut self.buffer, object).expect("maps with text keys only");
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER && !self.has_failed {
            let appended = self.append();
            self.check(appended);
        }
    }

    fn write(&mut self) {
        if self.has_failed {
            return;
        }
        let written = self.append().and_then(|()| self.settle());
        self.check(written);
    }

    fn append(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                make(&self.folder)?;
                let mut file = create(&self.folder.join(NEW))?;
                writeln!(file, "{}", header(&self.node))?;
                empty.insert(file)
            }
        };
        file.write_all(&self.buffer)?;
        self.is_unsynced |= !self.buffer.is_empty();
        self.size += self.buffer.len() as u64;
        self.buffer.clear();
        // A list of everything needs so much once only.
        self.buffer.shrink_to(BUFFER);
        Ok(())
    }

    /// Gives the file its name when it has everything, and writes it anew when it has far more
    /// than that.
    fn settle(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if !self.is_named && self.listed.len() == Kind::ALL.len() {
            self.give_name(file)?;
            self.is_named = true;
            self.is_unsynced = false;
            self.limit = SMALL.max(self.size * 2);
        } else if self.is_named && self.size > self.limit {
            let (file, size) = self.compact()?;
            self.give_name(&file)?;
            self.file = Some(file);
            self.size = size;
            self.is_unsynced = false;
            self.limit = SMALL.max(size * 2);
        } else if self.synced.elapsed() >= SYNC {
            file.sync_data()?;
            self.synced = Instant::now();
            self.is_unsynced = false;
        }
        Ok(())
    }

    fn give_name(&self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        fs::rename(self.folder.join(NEW), self.folder.join(NAME))?;
        File::open(&self.folder)?.sync_all()
    }

    /// What counts of the file, in a new one.
    fn compact(&self) -> io::Result<(File, u64)> {
        let old = File::open(self.folder.join(NAME))?;
        let replay = Replay::of(BufReader::new(&old), &header(&self.node))?;
        let replay = replay.map_err(|Damage { line, reason }| {
            io::Error::other(format!("line {line} is not as it was written: {reason}"))
        })?;
        let mut new = BufWriter::new(create(&self.folder.join(NEW))?);
        writeln!(new, "{}", header(&self.node))?;
        for kind in Kind::ALL {
            let of_kind = || replay.objects.iter().filter(|((of, _), _)| *of == kind);
            writeln!(new, "= {kind} {}", of_kind().count())?;
            for ((_, key), span) in of_kind() {
                write!(new, "+ {kind} {key} ")?;
                new.write_all(&span.json(&old)?)?;
                new.write_all(b"\n")?;
            }
        }
        let new = new.into_inner().map_err(io::IntoInnerError::into_error)?;
        let size = new.metadata()?.len();
        Ok((new, size))
    }

    /// What cannot be kept up to date is not kept.
    fn check(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        self.has_failed = true;
        self.file = None;
        self.buffer = Vec::new();
        let folder = self.folder.display();
        tracing::warn!(
            %folder, %error,
            "objects cannot be written down: a node that boots without the API server will keep \
             its pods closed; make the folder writable and restart the agent"
        );
        for name in [NAME, NEW] {
            match fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(%folder, name, %error, "a stale file cannot be removed");
                }
                _ => {}
            }
        }
    }
}

/// Removes what was written down in the folder, and the folder if nothing else is in it. Returns
/// whether there was anything.
///
/// # Errors
/// Where that is refused.
pub fn remove(folder: &Path) -> io::Result<bool> {
    let mut was_there = false;
    for name in [NAME, NEW] {
        match fs::remove_file(folder.join(name)) {
            Ok(()) => was_there = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // One that is a mount, or has something else in it, stays.
    Ok(fs::remove_dir(folder).is_ok() || was_there)
}

/// Where the JSON of an object is in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    at: u64,
    length: usize,
    /// Counted from 1.
    line: usize,
}

impl Span {
    fn json(&self, file: &File) -> io::Result<Vec<u8>> {
        let mut text = vec![0; self.length];
        file.read_exact_at(&mut text, self.at)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
