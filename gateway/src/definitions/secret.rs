//! A Secret, as far as APIs need one: bytes under names, and which state of them this is.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Bytes under names; shown as their version only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    version: String,
    data: BTreeMap<String, Vec<u8>>,
}

impl Secret {
    /// Differs where the content differs.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What is under this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.data.get(name).map(Vec::as_slice)
    }
}

impl From<k8s_openapi::api::core::v1::Secret> for Secret {
    /// `stringData` counts before `data`, as in a cluster.
    fn from(secret: k8s_openapi::api::core::v1::Secret) -> Self {
        let mut data: BTreeMap<_, _> =
            secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect();
        data.extend(secret.string_data.unwrap_or_default().into_iter().map(|(name, text)| (name, text.into_bytes())));
        let mut hasher = Sha256::new();
        for part in data.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]) {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self { version: STANDARD.encode(hasher.finalize()), data }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("version", &self.version).finish_non_exhaustive()
    }
}
