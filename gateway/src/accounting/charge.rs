//! Credits: what a call costs, and the key that pays for it upstream (reference: gateway behaviour 8).
//!
//! What always holds: a call is charged once, after everything that could refuse it and right before it is sent; what
//! never reached the upstream is given back, also when the client goes away or the store's answer does not come; what may
//! have reached it stays charged; a key that can't be read is never replaced by another one.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use doorman_crds::api::PER_CONNECTION;
use http::{HeaderName, HeaderValue};
use mongodb::bson::Document;
use tokio::{task::JoinHandle, time::timeout};

use super::{Accounts, afterwards::Afterwards};
use crate::{
    crypt::{CryptError, Sealer},
    store::{Charge, Collection, Store, StoreError},
};

/// How often a charge is revoked before it is given up, and the pauses between: more than an hour in all.
const TRIES: usize = 150;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a client waits for that; afterwards it goes on without it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A header that the upstream is paid with.
pub type UpstreamKey = (HeaderName, HeaderValue);

/// How a group's calls are paid for upstream, or why that can't be told.
pub(super) type Definition = Result<UpstreamKey, Box<str>>;

/// A call that is paid for. What was charged for it is given back when it is dropped before it was sent.
#[derive(Debug, Default)]
pub struct Charged {
    /// What the upstream is sent.
    pub key: Option<UpstreamKey>,
    /// May an upstream have seen something of the call? Then it stays paid for.
    pub is_sent: bool,
    /// `None`: nobody was charged.
    open: Option<Open>,
}

/// A charge, and where it is revoked.
#[derive(Debug)]
struct Open {
    charge: Charge,
    store: Arc<Store>,
    afterwards: Afterwards,
}

impl Charged {
    /// The call is over, one way or the other.
    pub async fn settle(mut self) {
        if let Some(revoking) = self.revoke() {
            // It goes on by itself, however long it takes.
            let _ = timeout(PATIENCE, revoking).await;
        }
    }

    fn revoke(&mut self) -> Option<JoinHandle<()>> {
        let Open { charge, store, afterwards } = self.open.take()?;
        if self.is_sent || !charge.is_open() {
            return None;
        }
        let (username, group) = (charge.username.clone(), charge.group.clone());
        let revoking = afterwards.run(revoke(charge, store));
        if revoking.is_none() {
            tracing::error!(%username, %group, "a credit may have paid for nothing: too many are to be given back");
        }
        revoking
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        drop(self.revoke());
    }
}

/// Revokes a charge as soon as the store can.
async fn revoke(mut charge: Charge, store: Arc<Store>) {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_max_times(TRIES)
        .with_jitter();
    let mut pauses = pauses.build();
    while let Err(error) = store.revoke(&mut charge).await {
        let Charge { username, group, .. } = &charge;
        let Some(pause) = pauses.next() else {
            tracing::error!(%error, %username, %group, "a credit that paid for nothing is not given back");
            return;
        };
        tracing::debug!(%error, %username, %group, "a credit is not given back yet");
        tokio::time::sleep(pause).await;
    }
}

/// Why a call can't be paid for.
#[derive(Debug, thiserror::Error)]
pub enum ChargeError {
    /// The caller has no credit left, or never had any.
    #[error("User does not have any credits")]
    Empty,
    /// The stored key can't be decrypted, or is no header value.
    #[error("the key of credit group {0} can't be used: {1}")]
    Unusable(Box<str>, Box<str>),
    /// Whether there is a credit can't be known.
    #[error(transparent)]
    Away(#[from] StoreError),
}

fn unusable(group: &str, why: &str) -> ChargeError {
    ChargeError::Unusable(group.into(), why.into())
}

/// The header value that a stored key is.
fn value(sealer: &Sealer, stored: &str) -> Result<HeaderValue, Box<str>> {
    let key = sealer.open(stored).map_err(|error: CryptError| error.to_string())?;
    let mut value = HeaderValue::from_str(&key).map_err(|_| "it is no header value")?;
    value.set_sensitive(true);
    Ok(value)
}

/// While a key is rotated both are valid, and afterwards only the new one: so that is sent from the first.
fn definition(document: &Document, sealer: &Sealer) -> Definition {
    let text = |member| document.get_str(member).ok().filter(|text| !text.is_empty());
    let header = text("api_key_header").and_then(|name| name.trim().parse().ok());
    let header: HeaderName = header.ok_or("api_key_header is no header name")?;
    if PER_CONNECTION.contains(&header.as_str()) {
        return Err(format!("the header {header} is not a caller's to set").into());
    }
    let key = text("api_key_new").or_else(|| text("api_key")).ok_or("there is no api_key")?;
    Ok((header, value(sealer, key)?))
}

impl Accounts {
    /// How this group's calls are paid for upstream; `None`: nobody has said.
    async fn definition(&self, group: &str) -> Result<Option<UpstreamKey>, ChargeError> {
        let load = async || {
            let found = self.store.find(Collection::CreditDefs, &[group]).await?;
            Ok(Arc::new(found.map(|found| definition(&found, &self.sealer))))
        };
        let known = match self.known.definitions.get(group) {
            Some(known) => known,
            None => self.known.definitions.get_or_load(group, load).await,
        }?;
        match &*known {
            None => Ok(None),
            Some(Ok(key)) => Ok(Some(key.clone())),
            Some(Err(why)) => Err(unusable(group, why)),
        }
    }

    /// Takes a credit of this group from the user's balance, if there is a user, and tells with which key the call is paid
    /// upstream.
    ///
    /// # Errors
    /// See [`ChargeError`]; then nothing stays taken.
    pub async fn charge(&self, user: Option<&Arc<str>>, group: &Arc<str>) -> Result<Charged, ChargeError> {
        let key = self.definition(group).await?;
        let mut charged = Charged { key, is_sent: false, open: None };
        let Some(user) = user else { return Ok(charged) };
        let (charge, store) = (self.store.charge(user, group), self.store.clone());
        let open = charged.open.insert(Open { charge, store, afterwards: self.afterwards.clone() });
        let balance = self.store.take_credit(&mut open.charge).await?.ok_or(ChargeError::Empty)?;
        let (Some(own), Some((_, key))) = (&balance.user_key, &mut charged.key) else { return Ok(charged) };
        match value(&self.sealer, own) {
            Ok(own) => *key = own,
            Err(why) => {
                charged.settle().await;
                return Err(unusable(group, &why));
            }
        }
        Ok(charged)
    }
}
