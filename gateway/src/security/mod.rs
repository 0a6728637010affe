//! The security settings: what can be changed at run time about dumps and about who may reach the gateway.
//!
//! In: what is stored, what an update says, what the environment pins. Out: [`Active`], which every request is decided
//! with, swapped as a whole. What always holds: an update is taken whole or not at all; the environment wins over what
//! is stored; an allow list without a single readable entry lets nobody in.
//!
//! - `document` is the stored form and its updates, `filter` what requests are decided with.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use mongodb::bson::Bson;
use tokio::sync::{Mutex, Notify, watch};

mod document;
mod filter;
#[cfg(test)]
mod tests;

pub use document::{Effective, Invalid, SecuritySettings, Update};
pub use filter::{Active, Refusal};

use crate::{
    client::Trust,
    networks::Networks,
    settings::Settings,
    store::{Change, Collection, Store, StoreError},
};

/// How long to wait before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Why settings were not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The update is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the environment says: defaults of what nobody has set, and what can't be set.
#[derive(Clone, Debug)]
pub struct Pins {
    auto_save: bool,
    auto_save_every: Duration,
    dump_path: PathBuf,
    trust_forwarded_for: Option<bool>,
    /// `None`: not pinned.
    trusted_proxies: Option<Vec<String>>,
    localhost_bypass: Option<bool>,
    is_production: bool,
    in_docker: bool,
}

impl Pins {
    /// Of these settings.
    pub fn new(settings: &Settings) -> Self {
        let (storage, network) = (&settings.storage, &settings.network);
        let proxies = &network.trusted_proxies;
        Self {
            auto_save: storage.auto_save,
            auto_save_every: storage.auto_save_every,
            dump_path: storage.dump_path.clone(),
            trust_forwarded_for: network.trust_forwarded_for,
            trusted_proxies: (!proxies.is_empty()).then(|| proxies.iter().map(ToString::to_string).collect()),
            localhost_bypass: network.localhost_bypass,
            is_production: settings.is_production(),
            in_docker: network.in_docker,
        }
    }

    /// Does the environment decide about loopback callers?
    pub fn pins_localhost_bypass(&self) -> bool {
        self.localhost_bypass.is_some()
    }

    /// What is in force with these stored settings.
    pub fn effective(&self, stored: &SecuritySettings) -> Effective {
        let stored = stored.clone();
        let every = stored.auto_save_frequency_seconds.map_or(self.auto_save_every, Duration::from_secs);
        Effective {
            enable_auto_save: stored.enable_auto_save.unwrap_or(self.auto_save),
            auto_save_frequency: every.max(Duration::from_secs(document::SHORTEST)),
            dump_path: absolute(&stored.dump_path.map_or_else(|| self.dump_path.clone(), PathBuf::from)),
            ip_whitelist: stored.ip_whitelist.unwrap_or_default(),
            ip_blacklist: stored.ip_blacklist.unwrap_or_default(),
            trust_x_forwarded_for: self.trust_forwarded_for.or(stored.trust_x_forwarded_for).unwrap_or(false),
            xff_trusted_proxies: self.trusted_proxies.clone().or(stored.xff_trusted_proxies).unwrap_or_default(),
            allow_localhost_bypass: self
                .localhost_bypass
                .or(stored.allow_localhost_bypass)
                .unwrap_or(!self.is_production),
        }
    }

    fn compile(&self, stored: SecuritySettings) -> Active {
        let effective = self.effective(&stored);
        let proxies = listed(&effective.xff_trusted_proxies, "xff_trusted_proxies");
        let trust_of_apis = match effective.xff_trusted_proxies.is_empty() {
            false => Trust::Listed(proxies),
            true if self.is_production => Trust::Nobody,
            true => Trust::Everyone,
        };
        let trust = if effective.trust_x_forwarded_for { trust_of_apis.clone() } else { Trust::Nobody };
        let allow = (!effective.ip_whitelist.is_empty()).then(|| listed(&effective.ip_whitelist, "ip_whitelist"));
        let deny = listed(&effective.ip_blacklist, "ip_blacklist");
        let (in_docker, is_production) = (self.in_docker, self.is_production);
        Active { stored, effective, trust, trust_of_apis, allow, deny, in_docker, is_production }
    }
}

/// A path as it is told: a relative one lies below the working folder.
fn absolute(path: &Path) -> PathBuf {
    let mut absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        // A folder stays one.
        absolute.push("");
    }
    absolute
}

/// An old store may hold anything: what can't be read matches nothing.
fn listed(entries: &[String], member: &str) -> Networks {
    let read = |entry: &String| {
        let net = doorman_crds::networks::parse(entry);
        if net.is_none() {
            tracing::warn!(entry, "an entry of {member} is neither an address nor a CIDR and is ignored");
        }
        net
    };
    entries.iter().filter_map(read).collect()
}

/// The settings in force, for whoever decides by them.
#[derive(Debug)]
pub struct Security {
    pins: Pins,
    active: ArcSwap<Active>,
    changes: watch::Sender<()>,
    /// Something may have changed in the store.
    stale: Arc<Notify>,
    /// One reads or writes at a time, so that what was read earlier is never put in force later.
    storing: Mutex<()>,
}

impl Security {
    /// Nothing is stored so far.
    pub fn new(settings: &Settings) -> Self {
        let pins = Pins::new(settings);
        let active = ArcSwap::from_pointee(pins.compile(SecuritySettings::default()));
        Self { pins, active, changes: watch::Sender::new(()), stale: Arc::default(), storing: Mutex::default() }
    }

    /// What is in force now; costs nothing.
    pub fn active(&self) -> arc_swap::Guard<Arc<Active>> {
        self.active.load()
    }

    /// What the environment says.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Tells of each change and each update.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// From now on these count. Nothing happens when they did already.
    fn apply(&self, stored: SecuritySettings) {
        if self.active.load().stored != stored {
            self.active.store(Arc::new(self.pins.compile(stored)));
            self.changes.send_replace(());
        }
    }

    async fn read(store: &Store) -> Result<Option<SecuritySettings>, StoreError> {
        let found = store.find(Collection::Settings, &[document::TYPE]).await?;
        Ok(found.map(|document| SecuritySettings::from_document(&document)))
    }

    /// Puts in force what the store holds. Is there anything?
    pub async fn load(&self, store: &Store) -> Result<bool, StoreError> {
        let _one = self.storing.lock().await;
        let stored = Self::read(store).await?;
        let is_there = stored.is_some();
        self.apply(stored.unwrap_or_default());
        Ok(is_there)
    }

    /// Stores these settings and puts them in force.
    pub async fn replace(&self, store: &Store, settings: SecuritySettings) -> Result<(), StoreError> {
        let _one = self.storing.lock().await;
        store.save(Collection::Settings, settings.to_document()).await?;
        self.apply(settings);
        Ok(())
    }

    /// Changes what an update names: checked, stored, in force here when this returns, and elsewhere in a moment.
    pub async fn update(&self, store: &Store, update: &Update) -> Result<SecuritySettings, UpdateError> {
        let _one = self.storing.lock().await;
        let before = Self::read(store).await?.unwrap_or_default();
        let merged = before.merge(update, &self.pins.effective(&before))?;
        if merged != before {
            // Only what this changes: another process may be changing something else.
            let unchanged = before.to_document();
            let is_new = |(name, value): &(String, Bson)| name == "type" || unchanged.get(name) != Some(value);
            let members = merged.to_document().into_iter().filter(is_new).collect();
            store.save(Collection::Settings, members).await?;
        }
        self.apply(merged.clone());
        self.changes.send_replace(());
        Ok(merged)
    }

    /// From now on notices when the store changes.
    pub fn listen(&self, store: &Store) {
        let stale = Arc::clone(&self.stale);
        store.on_change(move |change| {
            if matches!(change, Change::Everything | Change::Document(Collection::Settings, _)) {
                stale.notify_one();
            }
        });
    }

    /// Takes up what others change in the store; what is in force stays while it can't be read. Never ends.
    pub async fn follow(&self, store: &Store) {
        loop {
            self.stale.notified().await;
            while let Err(error) = self.load(store).await {
                tracing::warn!(%error, "the security settings can't be read; what was in force stays");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
