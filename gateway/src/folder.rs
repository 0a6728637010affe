//! When to look at a folder again: soon after something in it has changed, and now and then without a notice, because
//! mounted volumes don't always send one.
//!
//! What always holds: looking is no change. The system tells of reads as well; taken for changes, each look would be
//! the reason for the next.

use std::path::Path;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Quiet time after a change before the folder is looked at: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// How often it is looked at even without a notice.
const RESCAN: Duration = Duration::from_secs(5);

/// Says when a folder may have changed.
#[derive(Debug)]
pub struct Watch {
    notices: mpsc::Receiver<()>,
    /// `None`: no notices come.
    watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches a folder from now on; `what` it holds is said in the log, should notices be impossible.
    pub fn new(path: &Path, depth: RecursiveMode, what: &str) -> Self {
        let (notice, notices) = mpsc::channel(1);
        let watcher = watch(path, depth, move |_| {
            // One pending notice is enough: the whole folder is looked at.
            let _ = notice.try_send(());
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "no change notices for {what}; they are read every {RESCAN:?}");
        }
        Self { notices, watcher: watcher.ok() }
    }

    /// Waits until the folder is to be looked at.
    pub async fn changed(&mut self) {
        tokio::select! {
            _ = self.notices.recv(), if self.watcher.is_some() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(RESCAN) => {}
        }
        while self.notices.try_recv().is_ok() {}
    }
}

fn watch(
    path: &Path,
    depth: RecursiveMode,
    mut tell: impl FnMut(notify::Result<Event>) + Send + 'static,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.as_ref().map_or(true, may_be_a_change) {
            tell(event);
        }
    })?;
    watcher.watch(path, depth)?;
    Ok(watcher)
}

fn may_be_a_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn looking_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("read"), "a").unwrap();
        let (send, notices) = std::sync::mpsc::channel();
        let _watcher = watch(folder.path(), RecursiveMode::Recursive, move |event| drop(send.send(event))).unwrap();
        for _ in 0..3 {
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            assert_eq!(fs::read(path("read")).unwrap(), b"a");
        }
        // Notices come in the order of what they tell of.
        fs::write(path("written"), "b").unwrap();
        let first = notices.recv_timeout(Duration::from_secs(20)).expect("a notice").unwrap();
        assert_eq!(first.paths, [path("written")], "{first:?}");
    }
}
