//! Where dumps lie and what they are called.
//!
//! A dump is `{stem}-{YYYYMMDDTHHMMSSZ}.bin`, the second one within a second `{stem}-{stamp}-2.bin` and so on. What always
//! holds: a file with such a name is complete and on the disk; a new one sorts after all that are there, whatever the
//! clock says; nothing is overwritten; nothing with another name is removed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::Timestamp;
use tempfile::NamedTempFile;

/// The end of every dump's name.
const END: &str = ".bin";
/// The end of the name of a file that is being written.
const UNFINISHED: &str = ".tmp";
/// Characters of `YYYYMMDDTHHMMSSZ`.
const STAMP_LEN: usize = 16;

/// Where dumps of one stem lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    folder: PathBuf,
    stem: String,
    /// The name without a stamp.
    exact: PathBuf,
}

/// When a dump was made: the second, and its number within it. Orders by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    second: String,
    number: u32,
}

impl Stamp {
    fn now() -> Self {
        Self { second: Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string(), number: 1 }
    }

    /// Of a text after `{stem}-` and before `.bin`.
    fn parse(text: &str) -> Option<Self> {
        let (second, rest) = text.split_at_checked(STAMP_LEN)?;
        let is_second = second.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
        let number = if rest.is_empty() { Some(1) } else { rest.strip_prefix('-')?.parse().ok() };
        Some(Self { second: second.to_owned(), number: number? }).filter(|_| is_second)
    }

    /// The first one after all of these, now if possible.
    fn after(newest: Option<Self>) -> Self {
        let now = Self::now();
        match newest {
            Some(newest) if newest.second >= now.second => Self { number: newest.number.saturating_add(1), ..newest },
            _ => now,
        }
    }
}

/// A dump that lies there.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) file: PathBuf,
    pub(super) stamp: Stamp,
    modified: SystemTime,
}

impl Location {
    /// Of a hint: a file's name without stamp, or a folder (that exists, or is written with `/` at its end).
    pub(super) fn new(hint: &Path) -> io::Result<Self> {
        let is_folder = hint.as_os_str().as_encoded_bytes().ends_with(b"/") || hint.is_dir();
        let hint = std::path::absolute(hint)?;
        let folder = if is_folder { Some(hint.as_path()) } else { hint.parent() };
        let stem = if is_folder { None } else { hint.file_stem() };
        let stem = stem.map_or_else(|| "memory_dump".into(), OsStr::to_string_lossy).into_owned();
        let folder = folder.unwrap_or(Path::new("/")).to_owned();
        let exact = if is_folder { folder.join(format!("{stem}{END}")) } else { hint };
        Ok(Self { folder, stem, exact })
    }

    /// The file without a stamp, if there is one.
    pub(super) fn exact(&self) -> Option<&Path> {
        self.exact.is_file().then_some(self.exact.as_path())
    }

    fn stamp_of(&self, name: &OsStr) -> Option<Stamp> {
        Stamp::parse(name.to_str()?.strip_prefix(&self.stem)?.strip_prefix('-')?.strip_suffix(END)?)
    }

    fn is_unfinished(&self, name: &OsStr) -> bool {
        let rest = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_prefix(&self.stem)?.strip_prefix('-'));
        rest.is_some_and(|rest| rest.ends_with(UNFINISHED))
    }

    fn entries(&self) -> io::Result<Vec<fs::DirEntry>> {
        match fs::read_dir(&self.folder) {
            Ok(entries) => entries.collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Every stamped dump, the newest first.
    pub(super) fn stamped(&self) -> io::Result<Vec<Found>> {
        let found = |entry: fs::DirEntry| {
            let stamp = self.stamp_of(&entry.file_name())?;
            let metadata = entry.metadata().ok().filter(|metadata| !metadata.is_dir())?;
            Some(Found { file: entry.path(), stamp, modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
        };
        let mut all: Vec<_> = self.entries()?.into_iter().filter_map(found).collect();
        newest_first(&mut all);
        Ok(all)
    }

    /// Removes what writers left that were killed. A file that is still being written is locked, and stays.
    pub(super) fn clean(&self) -> io::Result<()> {
        for entry in self.entries()?.into_iter().filter(|entry| self.is_unfinished(&entry.file_name())) {
            if File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
                fs::remove_file(entry.path())?;
                tracing::info!(file = %entry.path().display(), "an unfinished memory dump was removed");
            }
        }
        Ok(())
    }

    fn next(&self) -> io::Result<PathBuf> {
        let newest = self.stamped()?.into_iter().next();
        let Stamp { second, number } = Stamp::after(newest.map(|found| found.stamp));
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        Ok(self.folder.join(format!("{}-{second}{number}{END}", self.stem)))
    }

    /// Writes a new dump; when this returns, it survives a loss of power.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let is_new = !self.folder.is_dir();
        fs::create_dir_all(&self.folder)?;
        let mut unfinished = written(&self.folder, &format!(".{}-", self.stem), bytes)?;
        let file = loop {
            let file = self.next()?;
            match unfinished.persist_noclobber(&file) {
                Ok(_) => break file,
                // Another process was faster.
                Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => unfinished = failed.file,
                Err(failed) => return Err(failed.error),
            }
        };
        sync_folder(&self.folder)?;
        if let (true, Some(parent)) = (is_new, self.folder.parent()) {
            sync_folder(parent)?;
        }
        Ok(file)
    }

    /// Gives the exact file the newest stamp, so that it doesn't stand before all later dumps at each further start.
    pub(super) fn adopt(&self) -> io::Result<PathBuf> {
        let stamped = self.next()?;
        fs::hard_link(&self.exact, &stamped)?;
        fs::remove_file(&self.exact)?;
        sync_folder(&self.folder)?;
        Ok(stamped)
    }

    /// Removes all stamped dumps but the newest.
    pub(super) fn rotate(&self, keep: usize) -> io::Result<()> {
        self.stamped()?.iter().skip(keep).try_for_each(|old| fs::remove_file(&old.file))
    }
}

/// By stamp, then by time of change.
pub(super) fn newest_first(all: &mut [Found]) {
    all.sort_by(|a, b| (&b.stamp, b.modified).cmp(&(&a.stamp, a.modified)));
}

/// A file for its owner only, complete and on the disk, whose name is not final yet.
fn written(folder: &Path, begin: &str, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(begin).suffix(UNFINISHED).tempfile_in(folder)?;
    file.as_file().lock()?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Replaces a file as a whole, folders created; for its owner only.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    written(folder, ".", bytes)?.persist(&path).map_err(|failed| failed.error)?;
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn is_at(hint: &str, folder: &str, stem: &str, exact: &str) {
        let location = Location::new(Path::new(hint)).unwrap();
        let folder = std::path::absolute(folder).unwrap();
        assert_eq!((location.folder, &*location.stem, location.exact), (folder.clone(), stem, folder.join(exact)));
    }

    #[test]
    fn a_hint_is_a_file_or_a_folder() {
        is_at("generated/memory_dump.bin", "generated", "memory_dump", "memory_dump.bin");
        is_at("/data/state.v1.bin", "/data", "state.v1", "state.v1.bin");
        is_at("/data/state", "/data", "state", "state");
        is_at("/data/new/", "/data/new", "memory_dump", "memory_dump.bin");
        is_at("/", "/", "memory_dump", "memory_dump.bin");
        let folder = tempfile::tempdir().unwrap();
        let existing = folder.path().to_str().unwrap();
        is_at(existing, existing, "memory_dump", "memory_dump.bin");
    }

    #[test]
    fn names_carry_the_time_in_utc_and_dumps_within_a_second_don_t_meet() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::new(&folder.path().join("new/deep/dump.bin")).unwrap();
        let files: Vec<_> = (0..5).map(|n| location.write(&[n]).unwrap()).collect();
        let newest_first: Vec<_> = location.stamped().unwrap().into_iter().map(|found| found.file).collect();
        assert_eq!(newest_first, files.iter().rev().cloned().collect::<Vec<_>>());
        for (n, file) in files.iter().enumerate() {
            assert_eq!(fs::read(file).unwrap(), [n as u8]);
        }
        let year = Timestamp::now().strftime("dump-%Y").to_string();
        assert!(names(&folder.path().join("new/deep")).iter().all(|name| name.starts_with(&year)), "{files:?}");
    }

    #[test]
    fn a_new_dump_sorts_last_though_the_clock_went_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("dump-29990101T000000Z.bin"), "").unwrap();
        let location = Location::new(&folder.path().join("dump.bin")).unwrap();
        assert_eq!(location.write(b"").unwrap(), folder.path().join("dump-29990101T000000Z-2.bin"));
    }

    #[test]
    fn dumps_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = Location::new(&folder.path().join("dump.bin")).unwrap().write(b"").unwrap();
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        replace(&folder.path().join("mirror/file.json"), b"{}").unwrap();
        let mirror = fs::metadata(folder.path().join("mirror/file.json")).unwrap();
        assert_eq!(mirror.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn rotation_touches_only_stamped_names_of_the_stem() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = [
            "dump.bin",
            "dump-notes.bin",
            "dump-20240101T000000Z.bin.bak",
            "dump-20240101T000000.bin",
            "dump-2-20240101T000000Z.bin",
            "other-20240101T000000Z.bin",
            "dump-20240101T000000Z-x.bin",
        ];
        let ours = ["dump-20240101T000000Z.bin", "dump-20240101T000000Z-2.bin", "dump-20240101T000000Z-10.bin"];
        for name in foreign.iter().chain(&ours) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("dump-20230101T000000Z.bin")).unwrap();
        let location = Location::new(&folder.path().join("dump.bin")).unwrap();
        location.rotate(1).unwrap();
        let mut expected: Vec<_> = foreign.iter().map(|name| (*name).to_owned()).collect();
        expected.extend(["dump-20240101T000000Z-10.bin".into(), "dump-20230101T000000Z.bin".into()]);
        expected.sort();
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn cleaning_leaves_a_file_that_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::new(&folder.path().join("dump.bin")).unwrap();
        let writing = written(folder.path(), ".dump-", b"").unwrap();
        let left = written(folder.path(), ".dump-", b"").unwrap().keep().unwrap();
        drop(left);
        let foreign = written(folder.path(), ".other-", b"").unwrap();
        location.clean().unwrap();
        let mut expected =
            [&writing, &foreign].map(|file| file.path().file_name().unwrap().to_string_lossy().into_owned());
        expected.sort();
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn an_adopted_file_is_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::new(&folder.path().join("dump.bin")).unwrap();
        let before = location.write(b"stamped").unwrap();
        fs::write(folder.path().join("dump.bin"), "exact").unwrap();
        let adopted = location.adopt().unwrap();
        assert!(location.exact().is_none());
        assert_eq!(fs::read(&adopted).unwrap(), b"exact");
        let found: Vec<_> = location.stamped().unwrap().into_iter().map(|found| found.file).collect();
        assert_eq!(found, [adopted, before]);
    }
}
