//! How the state of memory mode gets over a restart: what a start begins with, and when dumps are written.
//!
//! In: the stores, the security settings in force, the key of dumps. Out: dumps, and a store filled from one. What always
//! holds: a restore replaces everything or changes nothing; after it, security settings and caches are those of the new
//! state before anyone is told of success. With external stores only the security settings are looked after.

use std::{path::PathBuf, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    dump::{self, Dump, DumpError, Dumps, RestoreError, State},
    security::{Security, SecuritySettings, Update, UpdateError},
    settings::Settings,
    store::{ADMIN, Store, StoreError},
};

/// Why nothing was dumped or restored.
#[derive(Debug, thiserror::Error)]
pub enum PersistenceError {
    /// Documents are in a database.
    #[error("there are memory dumps in memory mode only")]
    NotInMemory,
    /// Nothing to encrypt with.
    #[error("MEM_ENCRYPTION_KEY is not configured")]
    NoKey,
    /// See [`DumpError`].
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// See [`RestoreError`].
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The administrator of the settings could not be set again.
    #[error("the user {0:?} of the memory dump has the e-mail address of DOORMAN_ADMIN_EMAIL; set another one")]
    AdminEmailTaken(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// See the module's own words.
pub struct Persistence {
    settings: Arc<Settings>,
    store: Arc<Store>,
    security: Arc<Security>,
    dumps: Option<Dumps>,
}

impl Persistence {
    /// Over this store; `security` is told what the store says about it.
    pub fn new(settings: Arc<Settings>, store: Arc<Store>, security: Arc<Security>) -> Self {
        let dumps = Dumps::new(&settings).filter(|_| settings.storage.is_memory());
        security.listen(&store);
        Self { settings, store, security, dumps }
    }

    /// Fills the store from the newest dump, and takes up the stored security settings.
    pub async fn restore_at_start(&self) -> Result<(), PersistenceError> {
        if !self.settings.storage.is_memory() {
            self.security.load(&self.store).await?;
            return Ok(());
        }
        let file = &self.settings.storage.security_settings_file;
        let mirrored = SecuritySettings::from_mirror(file);
        // Dumps went to where the settings said, which are themselves in the dumps; the mirror knows.
        let moved = mirrored.as_ref().and_then(|mirrored| mirrored.dump_path.clone()).map(PathBuf::from);
        let hints: Vec<PathBuf> = moved.into_iter().chain([self.settings.storage.dump_path.clone()]).collect();
        match &self.dumps {
            Some(dumps) => {
                if let Some(restored) = dumps.find(hints).await? {
                    self.import(restored.dump.state).await?;
                    let (file, created_at) = (restored.file.display(), &restored.dump.created_at);
                    tracing::info!(%file, created_at, "the memory was restored");
                }
            }
            None if dump::any_there(&hints) => tracing::error!(
                "there are memory dumps and no MEM_ENCRYPTION_KEY to read them with: the start is made with nothing, and \
                 nothing will be dumped"
            ),
            None => tracing::warn!("MEM_ENCRYPTION_KEY is not set: nothing is dumped, a restart forgets everything"),
        }
        if !self.security.load(&self.store).await?
            && let Some(mirrored) = mirrored
        {
            self.security.replace(&self.store, mirrored).await?;
        }
        Ok(())
    }

    async fn import(&self, state: State) -> Result<(), PersistenceError> {
        let email = &self.settings.admin.email;
        let owner = state.get("users").into_iter().flatten().find(|user| {
            user.get_str("email").is_ok_and(|owned| owned == email)
                && user.get_str("username").is_ok_and(|name| name != ADMIN)
        });
        if let Some(owner) = owner {
            return Err(PersistenceError::AdminEmailTaken(owner.get_str("username").unwrap_or_default().to_owned()));
        }
        let left_out = self.store.import(state, &self.settings.admin).await?.ok_or(PersistenceError::NotInMemory)?;
        if left_out > 0 {
            tracing::error!(left_out, "documents of the memory dump have no key, or one twice, and are missing now");
        }
        Ok(())
    }

    fn dumps(&self) -> Result<&Dumps, PersistenceError> {
        if !self.settings.storage.is_memory() {
            return Err(PersistenceError::NotInMemory);
        }
        self.dumps.as_ref().ok_or(PersistenceError::NoKey)
    }

    /// Dumps the memory now; returns the file. Without a place of its own, it goes where the settings say, and old dumps
    /// there are removed.
    pub async fn dump(&self, place: Option<PathBuf>) -> Result<PathBuf, PersistenceError> {
        let (dumps, store) = (self.dumps()?, Arc::clone(&self.store));
        let take = move || store.export().unwrap_or_default();
        let written = match place {
            Some(place) => dumps.write_and_keep_all(place, take).await?,
            None => dumps.write(self.security.active().effective.dump_path.clone(), take).await?,
        };
        Ok(written)
    }

    /// Replaces the memory by what this file holds; without a file, by what lies under the name that the settings say.
    pub async fn restore(&self, file: Option<PathBuf>) -> Result<Dump<()>, PersistenceError> {
        let dumps = self.dumps()?;
        let file = file.unwrap_or_else(|| self.security.active().effective.dump_path.clone());
        let Dump { version, created_at, state } = dumps.read(file.clone()).await?;
        self.import(state).await?;
        self.security.load(&self.store).await?;
        tracing::info!(file = %file.display(), created_at, "the memory was restored");
        Ok(Dump { version, created_at, state: () })
    }

    /// Changes the security settings, here and everywhere; the mirror file follows.
    pub async fn update_security(&self, update: &Update) -> Result<(), UpdateError> {
        let stored = self.security.update(&self.store, update).await?;
        let file = self.settings.storage.security_settings_file.clone();
        // A failure is logged there.
        let _ = tokio::task::spawn_blocking(move || stored.mirror(&file)).await;
        Ok(())
    }

    /// The security settings.
    pub fn security(&self) -> &Arc<Security> {
        &self.security
    }

    /// Dumps regularly while the settings want it: at once when they begin to and with each change of them, then in
    /// their interval. Follows what other processes say about the settings, too. Ends when it is dropped.
    pub async fn maintain(&self) {
        tokio::join!(self.security.follow(&self.store), self.auto_save(), self.dump_on_signal());
    }

    async fn auto_save(&self) {
        if self.dumps().is_err() {
            return;
        }
        let mut changes = self.security.changes();
        loop {
            changes.borrow_and_update();
            let (wanted, every) = {
                let active = self.security.active();
                (active.effective.enable_auto_save, active.effective.auto_save_frequency)
            };
            if wanted {
                self.dump_or_say("regular").await;
            }
            let pause = async { if wanted { tokio::time::sleep(every).await } else { std::future::pending().await } };
            tokio::select! {
                () = pause => {}
                // The settings live as long as this.
                _ = changes.changed() => {}
            }
        }
    }

    /// SIGUSR1 would end the process if nobody listened for it.
    async fn dump_on_signal(&self) {
        let mut wanted = match signal(SignalKind::user_defined1()) {
            Ok(wanted) => wanted,
            Err(error) => return tracing::error!(%error, "SIGUSR1 can't be listened for"),
        };
        while wanted.recv().await.is_some() {
            self.dump_or_say("wanted by SIGUSR1").await;
        }
    }

    /// The last dump of a process that ends; tried twice.
    pub async fn dump_at_end(&self) {
        if self.dumps().is_ok() && !self.dump_or_say("last").await {
            self.dump_or_say("last, tried again").await;
        }
    }

    async fn dump_or_say(&self, which: &str) -> bool {
        let written = self.dump(None).await;
        if let Err(error) = &written {
            tracing::error!(%error, "the memory dump ({which}) was not written");
        }
        written.is_ok()
    }
}
