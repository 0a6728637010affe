//! Changing settings while the process runs.
//!
//! SIGHUP, `POST /platform/config/reload`, and the word of another process that was asked to: each makes this process read
//! its configuration file again and act on what is new. A file that would not allow a start changes nothing.

use std::{io, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    task::JoinError,
};

use crate::{
    settings::{Reloaded, Settings, SettingsErrors},
    store::{Change, Store},
    telemetry::logs,
};

/// What other processes are told.
pub const RELOAD: Change<'static> = Change::Other("configuration");

/// Why everything stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The settings would not allow a start.
    #[error(transparent)]
    Refused(#[from] SettingsErrors),
    /// The reading itself broke off.
    #[error(transparent)]
    Broken(#[from] JoinError),
}

/// Reads the configuration file of this process again and acts on it; the log tells what came of it.
pub async fn reload(settings: &Arc<Settings>) -> Result<Reloaded, ReloadError> {
    let read = Arc::clone(settings);
    let outcome = tokio::task::spawn_blocking(move || read.reload()).await.map_err(ReloadError::from);
    match outcome.and_then(|reloaded| reloaded.map_err(ReloadError::from)) {
        Ok(reloaded) => {
            logs::set_level(settings.live().logs.level);
            for warning in &reloaded.warnings {
                tracing::warn!("{warning}");
            }
            let (changed, needs_restart) = (reloaded.changed.join(", "), reloaded.needs_restart.join(", "));
            tracing::info!(changed, needs_restart, "configuration reloaded");
            Ok(reloaded)
        }
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded; everything stays as it was");
            Err(error)
        }
    }
}

/// Reloads whenever SIGHUP comes or another process says so, until it is dropped.
pub fn follow(settings: Arc<Settings>, store: &Store) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let mut hangups = signal(SignalKind::hangup())?;
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    store.on_change(move |change| {
        if change == RELOAD {
            tell.notify_one();
        }
    });
    Ok(async move {
        loop {
            tokio::select! {
                Some(()) = hangups.recv() => {}
                () = told.notified() => {}
            }
            // What went wrong is in the log.
            drop(reload(&settings).await);
        }
    })
}
