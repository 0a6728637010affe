//! The last records in memory, for the log viewer.
//!
//! Records are kept as the lines that were written, many to a piece, so that keeping them costs one copy. Bounded in
//! records and in bytes; the oldest pieces go first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Trail;

/// Records kept (reference: configuration 9).
pub const MOST_RECORDS: usize = 50_000;
/// Bytes kept.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of one piece, unless a single line is longer.
const PIECE: usize = 64 * 1024;

/// Whole lines of one trail, oldest first.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where the lines belong.
    pub trail: Trail,
    /// Each with its line break.
    pub lines: Arc<[u8]>,
    count: usize,
}

#[derive(Debug, Default)]
struct Kept {
    pieces: VecDeque<Piece>,
    records: usize,
    bytes: usize,
}

/// The ring itself.
#[derive(Debug, Default)]
pub struct Ring(Mutex<Kept>);

impl Ring {
    /// Adds whole lines.
    pub(super) fn add(&self, trail: Trail, mut lines: &[u8]) {
        while !lines.is_empty() {
            let within = &lines[..lines.len().min(PIECE)];
            let end = memchr::memrchr(b'\n', within).or_else(|| memchr::memchr(b'\n', lines));
            let (piece, rest) = lines.split_at(end.map_or(lines.len(), |end| end + 1));
            lines = rest;
            let count = memchr::memchr_iter(b'\n', piece).count();
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.records += count;
            kept.bytes += piece.len();
            kept.pieces.push_back(Piece { trail, lines: piece.into(), count });
            while let Some(oldest) = kept.pieces.front()
                && (kept.records - oldest.count >= MOST_RECORDS || kept.bytes > MOST_BYTES)
            {
                let (count, bytes) = (oldest.count, oldest.lines.len());
                kept.records -= count;
                kept.bytes -= bytes;
                kept.pieces.pop_front();
            }
        }
    }

    /// What is kept now, oldest first: cheap, the pieces are shared.
    pub fn pieces(&self) -> Vec<Piece> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pieces.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_records_go_first_and_the_newest_fifty_thousand_stay() {
        let ring = Ring::default();
        for n in 0..60_000 {
            ring.add(Trail::Application, format!("{n}\n").as_bytes());
        }
        let text: Vec<u8> = ring.pieces().iter().flat_map(|piece| piece.lines.to_vec()).collect();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(
            (text.lines().next(), text.lines().last(), text.lines().count()),
            (Some("10000"), Some("59999"), 50_000)
        );
    }

    #[test]
    fn long_records_are_bounded_in_bytes() {
        let ring = Ring::default();
        let line = [vec![b'x'; 10_000], vec![b'\n']].concat();
        for _ in 0..5_000 {
            ring.add(Trail::Audit, &line.repeat(3));
        }
        let bytes: usize = ring.pieces().iter().map(|piece| piece.lines.len()).sum();
        assert!((MOST_BYTES - 2 * PIECE..=MOST_BYTES).contains(&bytes), "{bytes}");
        assert!(ring.pieces().iter().all(|piece| piece.lines.ends_with(b"\n")));
    }
}
