//! Keys, and what they do to texts: sign tokens, and encrypt what is stored.
//!
//! In: key material, texts. Out: signatures, encrypted texts, or a plain reason why not. What always holds: no key and no
//! plain text is ever part of a message; a text that can't be decrypted is an error and never used as it stands.
//! Nothing here knows of settings, stores or requests.

mod fernet;
mod sealer;
mod token_key;
mod vault;

pub use sealer::Sealer;
pub use token_key::{SHORTEST_SECRET, TokenKey, TokenKeyError};
pub use vault::Vault;

#[cfg(test)]
pub(crate) use token_key::tests::rsa_pems;

use aws_lc_rs::{digest, error::Unspecified, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// Why a text was not encrypted or decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptError {
    /// Damaged, or made with a key that isn't there.
    #[error("a stored secret can't be decrypted with any of the keys that are set")]
    Unreadable,
    /// It would be taken for an encrypted text later.
    #[error("without a key, a text that begins as encrypted ones do can't be stored")]
    Ambiguous,
    /// The cryptography library gave no reason.
    #[error("the cryptography library failed")]
    Failed,
}

impl From<Unspecified> for CryptError {
    fn from(_: Unspecified) -> Self {
        Self::Failed
    }
}

/// Stands for a text where the text itself must not be: always the same, and nobody can tell the text from it.
pub fn fingerprint(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(&sha256(text.as_bytes())[..16])
}

/// A new secret: 32 random bytes, as text that fits in a URL.
pub fn secret() -> Result<String, CryptError> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The SHA-256 of these bytes.
pub(crate) fn sha256(text: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text).as_ref());
    hash
}
