//! Memory dumps: the state of memory mode in encrypted files, so that it outlives the process.
//!
//! In: a [`State`] or the path of a file. Out: the path of a file or a [`State`]. What always holds: a dump that was
//! acknowledged survives a kill and a loss of power; of two dumps, the later one has the later state; a start never
//! silently begins with less than the newest dump holds.
//!
//! - `json` turns documents into JSON and back, `format` seals and opens, `files` names, writes, finds and removes.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use mongodb::bson::Document;

mod files;
mod format;
pub(crate) mod json;
#[cfg(test)]
mod tests;

pub(crate) use files::replace;
use files::{Found, Location};
pub use format::{BadContent, Dump};

use crate::settings::{Secret, Settings};

/// Every collection by name, with its documents.
pub type State = BTreeMap<String, Vec<Document>>;

/// Why there is no dump, or no state from one.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The file can't be written or read.
    #[error("{}: {cause}", .file.display())]
    Io {
        /// The file, or the hint when there is no file yet.
        file: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file can be read, and is no dump to restore.
    #[error("{}: {why}", .file.display())]
    Bad {
        /// The file; it stays.
        file: PathBuf,
        /// What is wrong.
        why: BadContent,
    },
}

impl DumpError {
    fn io(file: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { file: file.to_owned(), cause }
    }

    /// Is there no such file?
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// Why a start doesn't go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the memory dump {0}; the file is kept. Set MEM_ENCRYPTION_KEY to the key it was written with, or move the file away \
     to start with the next older one, or set DOORMAN_IGNORE_BAD_DUMP=true to start with the next older one that is good"
)]
pub struct RestoreError(#[from] DumpError);

/// What a start begins with.
#[derive(Debug)]
pub struct Restored {
    /// The file it came from, under the name it has now.
    pub file: PathBuf,
    /// What it held.
    pub dump: Dump,
}

/// Writes and reads dumps with one key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dumps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    secret: Secret,
    keep: usize,
    ignore_bad: bool,
    /// One at a time: the state is taken while this is held, so that a later dump has a later state.
    writing: Mutex<()>,
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DumpError> + Send + 'static,
) -> Result<T, DumpError> {
    let gone = |error: tokio::task::JoinError| DumpError::Io {
        file: PathBuf::from("the memory dump"),
        cause: io::Error::other(error),
    };
    tokio::task::spawn_blocking(work).await.map_err(gone)?
}

impl Dumps {
    /// With the key of these settings; `None`: there is none, so there are no dumps.
    pub fn new(settings: &Settings) -> Option<Self> {
        let secret = settings.keys.memory_encryption.clone()?;
        let keep = usize::try_from(settings.storage.dump_keep.get()).unwrap_or(usize::MAX);
        Some(Self(Arc::new(Inner {
            secret,
            keep,
            ignore_bad: settings.storage.ignore_bad_dump,
            writing: Mutex::default(),
        })))
    }

    /// Takes a state and writes it to where the hint says: a file's name, to which the time is added, or a folder.
    /// Of the dumps there, the newest are kept and the others removed.
    pub async fn write<D: Borrow<Document>>(
        &self,
        hint: PathBuf,
        take: impl FnOnce() -> BTreeMap<String, Vec<D>> + Send + 'static,
    ) -> Result<PathBuf, DumpError> {
        self.write_to(hint, true, take).await
    }

    /// The same, and removes nothing.
    pub async fn write_and_keep_all<D: Borrow<Document>>(
        &self,
        hint: PathBuf,
        take: impl FnOnce() -> BTreeMap<String, Vec<D>> + Send + 'static,
    ) -> Result<PathBuf, DumpError> {
        self.write_to(hint, false, take).await
    }

    async fn write_to<D: Borrow<Document>>(
        &self,
        hint: PathBuf,
        rotates: bool,
        take: impl FnOnce() -> BTreeMap<String, Vec<D>> + Send + 'static,
    ) -> Result<PathBuf, DumpError> {
        let inner = Arc::clone(&self.0);
        off_the_async_threads(move || {
            let _one = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let location = Location::new(&hint).map_err(DumpError::io(&hint))?;
            let sealed = format::seal(&take(), Timestamp::now(), &inner.secret).map_err(DumpError::io(&hint))?;
            let file = location.write(&sealed).map_err(DumpError::io(&hint))?;
            if rotates && let Err(error) = location.rotate(inner.keep) {
                tracing::warn!(%error, "old memory dumps can't be removed");
            }
            tracing::info!(file = %file.display(), bytes = sealed.len(), "a memory dump was written");
            Ok(file)
        })
        .await
    }

    /// What exactly this file holds.
    pub async fn read(&self, file: PathBuf) -> Result<Dump, DumpError> {
        let inner = Arc::clone(&self.0);
        off_the_async_threads(move || inner.read(&file)).await
    }

    /// What to begin with: the file that is called exactly as a hint says, else the newest stamped one of all hints.
    ///
    /// A restored file with an exact name gets the newest stamp: it was chosen for this start, not for each further one.
    pub async fn find(&self, hints: Vec<PathBuf>) -> Result<Option<Restored>, RestoreError> {
        let inner = Arc::clone(&self.0);
        Ok(off_the_async_threads(move || inner.find(&hints)).await?)
    }
}

impl Inner {
    fn read(&self, file: &Path) -> Result<Dump, DumpError> {
        let bytes = fs::read(file).map_err(DumpError::io(file))?;
        format::open(bytes, &self.secret).map_err(|why| DumpError::Bad { file: file.to_owned(), why })
    }

    fn find(&self, hints: &[PathBuf]) -> Result<Option<Restored>, DumpError> {
        let mut locations: Vec<Location> = Vec::new();
        for hint in hints {
            let location = Location::new(hint).map_err(DumpError::io(hint))?;
            if !locations.contains(&location) {
                location.clean().map_err(DumpError::io(hint))?;
                locations.push(location);
            }
        }
        for location in &locations {
            if let Some(file) = location.exact()
                && let Some(dump) = self.read_or_skip(file)?
            {
                let adopted = location.adopt().unwrap_or_else(|error| {
                    tracing::warn!(
                        file = %file.display(), %error,
                        "the restored dump can't be renamed: the next start will restore it again, not a later one"
                    );
                    file.to_owned()
                });
                return Ok(Some(Restored { file: adopted, dump }));
            }
        }
        let mut stamped: Vec<Found> = Vec::new();
        for location in &locations {
            stamped.extend(location.stamped().map_err(DumpError::io(Path::new("memory dumps")))?);
        }
        files::newest_first(&mut stamped);
        for Found { file, .. } in stamped {
            if let Some(dump) = self.read_or_skip(&file)? {
                return Ok(Some(Restored { file, dump }));
            }
        }
        Ok(None)
    }

    /// `None`: it is no good, and that may be passed over.
    fn read_or_skip(&self, file: &Path) -> Result<Option<Dump>, DumpError> {
        match self.read(file) {
            Ok(dump) => Ok(Some(dump)),
            Err(error) if self.ignore_bad => {
                tracing::error!(
                    %error,
                    "DOORMAN_IGNORE_BAD_DUMP is on: a memory dump is passed over, and what only it holds is missing now"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Are there dumps where these hints say? For who has no key to read them with.
pub fn any_there(hints: &[PathBuf]) -> bool {
    let is_there =
        |location: Location| location.exact().is_some() || location.stamped().is_ok_and(|stamped| !stamped.is_empty());
    hints.iter().any(|hint| Location::new(hint).is_ok_and(is_there))
}
