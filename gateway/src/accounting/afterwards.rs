//! What is left to be done for a request that is over, or whose client has gone away.

use std::time::Duration;

use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tokio_util::task::TaskTracker;

/// So much is done at once at the most. More would be memory that an outage of a store takes.
const MOST: usize = 10_000;
/// How long the end of the process waits for it.
const AT_END: Duration = Duration::from_secs(5);

/// Work that goes on without its request. A clone adds to the same.
#[derive(Clone, Debug, Default)]
pub struct Afterwards(TaskTracker);

impl Afterwards {
    /// Begins some work. `None`: there is too much of it, or the process ends.
    pub(super) fn run(&self, work: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
        if self.0.len() >= MOST {
            return None;
        }
        Handle::try_current().ok().map(|runtime| self.0.spawn_on(work, &runtime))
    }

    /// Waits for all of it, but not for long.
    pub(super) async fn finish(&self) {
        self.0.close();
        if timeout(AT_END, self.0.wait()).await.is_err() {
            tracing::error!(left = self.0.len(), "bytes or credits of calls that are over can't be stored");
        }
    }
}
