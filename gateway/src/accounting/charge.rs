//! Credits: what a call costs, and the key that pays for it upstream (reference: gateway behaviour 8).
//!
//! What always holds: a call is charged once, after everything that could refuse it and right before it is sent; what
//! never reached the upstream is given back; a key that can't be read is never replaced by another one.

use std::sync::Arc;

use doorman_crds::api::PER_CONNECTION;
use http::{HeaderName, HeaderValue};
use jiff::{Timestamp, civil, tz::TimeZone};
use mongodb::bson::{Bson, Document};

use super::Accounts;
use crate::{
    crypt::{CryptError, Sealer},
    store::{Collection, StoreError},
};

/// A header that the upstream is paid with.
pub type UpstreamKey = (HeaderName, HeaderValue);

/// How a group's calls are paid for upstream, or why that can't be told.
pub(super) type Definition = Result<UpstreamKey, Box<str>>;

/// A call that is paid for.
#[derive(Debug, Default)]
pub struct Charged {
    /// What the upstream is sent.
    pub key: Option<UpstreamKey>,
    /// Whose balance of which group was charged; `None`: nobody's.
    account: Option<(Arc<str>, Arc<str>)>,
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

/// During a rotation both keys are valid and the new one is sent.
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
    /// See [`ChargeError`]; then nothing stays taken, unless the store went away in between.
    pub async fn charge(&self, user: Option<&Arc<str>>, group: &Arc<str>) -> Result<Charged, ChargeError> {
        let key = self.definition(group).await?;
        let Some(user) = user else { return Ok(Charged { key, account: None }) };
        let balance = self.store.take_credit(user, group).await?.ok_or(ChargeError::Empty)?;
        let charged = Charged { key, account: Some((user.clone(), group.clone())) };
        let (Some(own), Some((header, _))) = (&balance.user_key, &charged.key) else { return Ok(charged) };
        match value(&self.sealer, own) {
            Ok(own) => Ok(Charged { key: Some((header.clone(), own)), ..charged }),
            Err(why) => {
                self.give_back(charged).await;
                Err(unusable(group, &why))
            }
        }
    }

    /// Takes a charge back: nothing was sent.
    pub async fn give_back(&self, charged: Charged) {
        let Some((user, group)) = charged.account else { return };
        if let Err(error) = self.store.return_credit(&user, &group).await {
            tracing::error!(%error, username = &*user, group = &*group, "a credit that paid for nothing is not given back");
        }
    }
}

/// Is an assignment in force at this second, and when will that change? Without a zone, times are UTC.
pub(super) fn in_force(assignment: &Document, now: u64) -> (bool, Option<u64>) {
    let second = |member| {
        let second = match assignment.get(member)? {
            Bson::String(text) => text
                .parse::<Timestamp>()
                .or_else(|_| text.parse::<civil::DateTime>()?.to_zoned(TimeZone::UTC).map(|time| time.timestamp()))
                .ok()?
                .as_second(),
            Bson::DateTime(time) => time.timestamp_millis() / 1_000,
            _ => return None,
        };
        Some(u64::try_from(second).unwrap_or(0))
    };
    let (from, until) = (second("effective_from"), second("effective_until"));
    let is_in_force = from.is_none_or(|from| from <= now) && until.is_none_or(|until| now < until);
    let next = [from, until].into_iter().flatten().filter(|second| *second > now).min();
    (is_in_force, next)
}
