//! Secrets, as far as APIs need them: bytes under names, which state of them this is, and why one can't be had.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doorman_crds::api::NoSecret;
use doorman_crds::revision::ObjectHash;
use sha2::{Digest, Sha256};

use super::ObjectId;

/// Bytes under names; shown as their digest only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    digest: String,
    data: BTreeMap<String, Vec<u8>>,
    state: ObjectHash,
}

impl Secret {
    /// Differs where the content differs.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What is under this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.data.get(name).map(Vec::as_slice)
    }

    /// Which state of the object this is, as the operator names it.
    pub fn state(&self) -> ObjectHash {
        self.state
    }
}

impl From<k8s_openapi::api::core::v1::Secret> for Secret {
    /// `stringData` counts before `data`, as in a cluster.
    fn from(secret: k8s_openapi::api::core::v1::Secret) -> Self {
        let meta = &secret.metadata;
        let word = |part: &Option<String>| part.clone().unwrap_or_default();
        let state = ObjectHash::of_secret(&word(&meta.uid), &word(&meta.resource_version));
        let mut data: BTreeMap<_, _> =
            secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect();
        data.extend(secret.string_data.unwrap_or_default().into_iter().map(|(name, text)| (name, text.into_bytes())));
        let mut hasher = Sha256::new();
        for part in data.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]) {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self { digest: STANDARD.encode(hasher.finalize()), data, state }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The Secrets that APIs may name, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Secrets {
    known: BTreeMap<ObjectId, Result<Arc<Secret>, NoSecret>>,
    /// What holds of all others.
    others: NoSecret,
}

impl Default for Secrets {
    /// Nothing is known of any.
    fn default() -> Self {
        Self { known: BTreeMap::new(), others: NoSecret::NotRead }
    }
}

impl Secrets {
    /// These, and no others exist.
    pub fn all(secrets: BTreeMap<ObjectId, Arc<Secret>>) -> Self {
        let known = secrets.into_iter().map(|(id, secret)| (id, Ok(secret))).collect();
        Self { known, others: NoSecret::NotFound }
    }

    /// What is known of these; of others nothing is.
    pub fn known(known: BTreeMap<ObjectId, Result<Arc<Secret>, NoSecret>>) -> Self {
        Self { known, ..Self::default() }
    }

    /// One of them, or why not.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn get(&self, namespace: &str, name: &str) -> Result<&Arc<Secret>, &NoSecret> {
        let found = self.known.get(&(namespace.to_owned(), name.to_owned()));
        found.map_or(Err(&self.others), Result::as_ref)
    }
}
