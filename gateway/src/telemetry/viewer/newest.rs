//! All records of files and ring, newest first, each once, in memory that doesn't grow with the files.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::line::{Entry, parse};
use crate::telemetry::logs::ring::{Piece, Ring};
use crate::telemetry::logs::{APPLICATION_FILE, AUDIT_FILE, COPIES, Logs, Trail, old_copy};

const BLOCK: usize = 64 * 1024;
/// A line that is longer is not one of ours.
const LONGEST_LINE: usize = 512 * 1024;
/// Lines that are looked at for one question.
const MOST_LINES: usize = 2_000_000;

/// The lines of a file from its end.
struct Backwards {
    file: File,
    /// Where the block begins that was read last.
    at: u64,
    block: Vec<u8>,
    /// The beginning of the next line's end, behind the block.
    rest: Vec<u8>,
    is_too_long: bool,
}

impl Backwards {
    fn new(mut file: File) -> io::Result<Self> {
        let at = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, at, block: Vec::new(), rest: Vec::new(), is_too_long: false })
    }

    fn read_block(&mut self) -> io::Result<()> {
        let size = self.at.min(BLOCK as u64);
        self.at -= size;
        self.block.resize(usize::try_from(size).unwrap_or(BLOCK), 0);
        self.file.seek(SeekFrom::Start(self.at))?;
        self.file.read_exact(&mut self.block)
    }

    fn line(&mut self, start: usize) -> Option<String> {
        let mut line = self.block.split_off(start);
        line.append(&mut self.rest);
        let is_fine = !std::mem::take(&mut self.is_too_long) && !line.is_empty();
        is_fine.then(|| String::from_utf8_lossy(&line).into_owned())
    }
}

impl Iterator for Backwards {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = memchr::memrchr(b'\n', &self.block) {
                let line = self.line(end + 1);
                self.block.truncate(end);
                if line.is_some() {
                    return line;
                }
                continue;
            }
            if self.block.len() + self.rest.len() > LONGEST_LINE {
                self.is_too_long = true;
                self.rest.clear();
            } else {
                self.block.append(&mut self.rest);
                self.rest = std::mem::take(&mut self.block);
            }
            self.block.clear();
            if self.at == 0 {
                return self.line(0);
            }
            // A file that changes under our hands ends here.
            self.read_block().ok()?;
        }
    }
}

/// Lines of one trail, newest first.
struct Stream {
    trail: Trail,
    lines: Box<dyn Iterator<Item = String>>,
    is_file: bool,
    next: Option<(Entry, u64)>,
}

/// The records, newest first.
pub(super) struct Newest {
    streams: Vec<Stream>,
    hasher: RandomState,
    /// Lines that the ring has: a file has them too, unless it failed.
    in_ring: HashMap<u64, u32>,
    left: usize,
}

impl Newest {
    pub(super) fn of(logs: &Logs) -> Self {
        let pieces = logs.ring().map(Ring::pieces).unwrap_or_default();
        let hasher = RandomState::new();
        let mut in_ring = HashMap::new();
        for line in pieces.iter().flat_map(|piece| piece.lines.split(|byte| *byte == b'\n')) {
            *in_ring.entry(hasher.hash_one(line)).or_default() += 1;
        }
        let mut streams = Vec::new();
        for (trail, name) in [(Trail::Application, APPLICATION_FILE), (Trail::Audit, AUDIT_FILE)] {
            let own: Vec<Piece> = pieces.iter().filter(|piece| piece.trail == trail).cloned().collect();
            streams.push(Stream {
                trail,
                lines: Box::new(own.into_iter().rev().flat_map(backwards)),
                is_file: false,
                next: None,
            });
            if let Some(folder) = logs.folder() {
                let lines =
                    files(&folder.join(name)).into_iter().filter_map(|file| Backwards::new(file).ok()).flatten();
                streams.push(Stream { trail, lines: Box::new(lines), is_file: true, next: None });
            }
        }
        let mut newest = Self { streams, hasher, in_ring, left: MOST_LINES };
        for n in 0..newest.streams.len() {
            newest.advance(n);
        }
        newest
    }

    /// Reads the stream on to its next record that no other stream has.
    fn advance(&mut self, n: usize) {
        let stream = &mut self.streams[n];
        stream.next = None;
        for line in stream.lines.by_ref() {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            let hash = self.hasher.hash_one(line.as_bytes());
            if stream.is_file
                && let Some(count) = self.in_ring.get_mut(&hash)
                && *count > 0
            {
                *count -= 1;
                continue;
            }
            if let Some(entry) = parse(&line, stream.trail) {
                stream.next = Some((entry, hash));
                return;
            }
        }
    }
}

impl Iterator for Newest {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let heads = self.streams.iter().enumerate();
        let heads = heads.filter_map(|(n, stream)| stream.next.as_ref().map(|(entry, _)| (n, entry.millis)));
        // Of two of one time, the one whose stream comes first.
        let (n, _) = heads.reduce(|best, head| if head.1 > best.1 { head } else { best })?;
        let (entry, _) = self.streams[n].next.take()?;
        self.advance(n);
        Some(entry)
    }
}

fn backwards(piece: Piece) -> Vec<String> {
    let lines = piece.lines.rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

/// The file and its old copies, newest first. All are opened before any is read, and a file that is renamed meanwhile
/// counts once.
fn files(path: &Path) -> Vec<File> {
    let mut found: Vec<(File, u64)> = Vec::new();
    for number in 0..=COPIES {
        let path = if number == 0 { path.to_owned() } else { old_copy(path, number) };
        let Ok(file) = File::open(path) else { continue };
        let Ok(data) = file.metadata() else { continue };
        if data.is_file() && found.iter().all(|(_, inode)| *inode != data.ino()) {
            found.push((file, data.ino()));
        }
    }
    found.into_iter().map(|(file, _)| file).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(text: &[u8]) -> Vec<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        Backwards::new(file).unwrap().collect()
    }

    #[test]
    fn a_file_is_read_from_its_end() {
        assert_eq!(read(b"a\nb\n\nc\n"), ["c", "b", "a"]);
        assert_eq!(read(b"a\nhalf"), ["half", "a"]);
        assert_eq!(read(b""), [""; 0]);
        let lines: Vec<String> = (0..30_000).map(|n| format!("line {n} {}", "x".repeat(n % 97))).collect();
        let mut expected = lines.clone();
        expected.reverse();
        assert_eq!(read((lines.join("\n") + "\n").as_bytes()), expected);
    }

    #[test]
    fn a_line_without_end_is_left_out_and_memory_stays_bounded() {
        let long = vec![b'x'; 3 * LONGEST_LINE];
        assert_eq!(read(&[b"a\n", &*long, b"\nb\n"].concat()), ["b", "a"]);
        let wide = vec![b'y'; LONGEST_LINE / 2];
        assert_eq!(read(&[b"a\n", &*wide, b"\n"].concat()).len(), 2);
    }
}
