//! A log file that is renamed when it is full, and the folder log files are in.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes after which a file is renamed.
const FULL: u64 = 10 * 1024 * 1024;
/// Old copies that stay: `.1` is the newest.
pub(in crate::telemetry) const COPIES: usize = 5;

/// The file's name with the number of an old copy.
pub(in crate::telemetry) fn old_copy(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// A log file, open at its end.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    full: u64,
}

impl LogFile {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        Self::with_limit(path, FULL)
    }

    fn with_limit(path: PathBuf, full: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(&path)?;
        let mut size = file.metadata()?.len();
        // A process that was killed may have left half a line.
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok(Self { path, file, size, full })
    }

    /// Opens the file of the same name again: someone may have renamed it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        *self = Self::with_limit(self.path.clone(), self.full)?;
        Ok(())
    }

    /// Writes whole lines, and renames the file between two of them when it is full.
    pub(super) fn write(&mut self, mut lines: &[u8]) -> io::Result<()> {
        while !lines.is_empty() {
            let room = usize::try_from(self.full.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let fitting = if lines.len() <= room {
                lines.len()
            } else {
                memchr::memrchr(b'\n', &lines[..room]).map_or(0, |end| end + 1)
            };
            // A line that is longer than a whole file gets one of its own.
            let fitting = if fitting == 0 && self.size == 0 {
                memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1)
            } else {
                fitting
            };
            if fitting == 0 {
                self.rotate()?;
                continue;
            }
            let (now, later) = lines.split_at(fitting);
            self.file.write_all(now)?;
            self.size += now.len() as u64;
            lines = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let missing_is_fine = |outcome: io::Result<()>| match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        for number in (1..COPIES).rev() {
            missing_is_fine(fs::rename(old_copy(&self.path, number), old_copy(&self.path, number + 1)))?;
        }
        missing_is_fine(fs::rename(&self.path, old_copy(&self.path, 1)))?;
        self.reopen()
    }
}

/// A folder files can be written to: the wanted one, else the spare one; else none. What was tried and failed is told.
pub(super) fn folder(wanted: &Path, spare: &Path) -> (Option<PathBuf>, Option<String>) {
    let first = match usable(wanted) {
        Ok(()) => return (Some(wanted.to_owned()), None),
        Err(error) => format!("LOGS_DIR {} can't be written to ({error})", wanted.display()),
    };
    match private(spare).and_then(|()| usable(spare)) {
        Ok(()) => (Some(spare.to_owned()), Some(format!("{first}; log files are in {}", spare.display()))),
        Err(error) => {
            let second = format!("{first}, nor can {} ({error}); the log goes to the console only", spare.display());
            (None, Some(second))
        }
    }
}

fn usable(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    File::create(&probe)?;
    fs::remove_file(probe)
}

/// Everybody may make folders where the spare one is: only our own is good, and nobody else looks into it.
fn private(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(folder)?;
            let is_own = found.is_dir() && found.uid() == fs::metadata("/proc/self")?.uid();
            if is_own { Ok(()) } else { Err(io::Error::other("it belongs to someone else")) }
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn a_full_file_is_renamed_between_lines_and_five_old_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorman.log");
        let mut file = LogFile::with_limit(path.clone(), 20).unwrap();
        for n in 0..18 {
            file.write(format!("line {n:02}\n").repeat(1).as_bytes()).unwrap();
        }
        file.write(b"line 18\nline 19\nline 20\n").unwrap();
        assert_eq!(text(&path), "line 20\n");
        assert_eq!(text(&old_copy(&path, 1)), "line 18\nline 19\n");
        assert_eq!(text(&old_copy(&path, 5)), "line 10\nline 11\n");
        assert!(!old_copy(&path, 6).exists());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    }

    #[test]
    fn a_line_longer_than_a_file_is_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorman.log");
        let mut file = LogFile::with_limit(path.clone(), 10).unwrap();
        let long = format!("{}\n", "x".repeat(50));
        file.write(format!("a\n{long}b\n").as_bytes()).unwrap();
        assert_eq!(
            [text(&old_copy(&path, 2)), text(&old_copy(&path, 1)), text(&path)],
            ["a\n".into(), long, "b\n".into()]
        );
    }

    #[test]
    fn half_a_line_of_a_killed_process_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorman.log");
        fs::write(&path, "half").unwrap();
        LogFile::open(path.clone()).unwrap().write(b"whole\n").unwrap();
        assert_eq!(text(&path), "half\nwhole\n");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_replaced_by_the_spare_one_and_then_by_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let (wanted, spare) = (file.join("logs"), folder.path().join("spare"));
        let (found, warning) = super::folder(&wanted, &spare);
        assert_eq!(found.as_deref(), Some(&*spare));
        assert!(warning.unwrap().contains("log files are in"));
        assert_eq!(fs::metadata(&spare).unwrap().permissions().mode() & 0o777, 0o700);
        let (found, warning) = super::folder(&wanted, &file.join("spare"));
        assert_eq!(found, None);
        assert!(warning.unwrap().contains("console only"));
        let (found, warning) = super::folder(&folder.path().join("a/b"), &spare);
        assert_eq!((found, warning), (Some(folder.path().join("a/b")), None));
    }

    #[test]
    fn a_spare_folder_that_is_a_link_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert!(private(&link).is_err());
    }
}
