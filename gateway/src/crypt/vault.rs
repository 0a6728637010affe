//! Vault entries as they are stored: `v1:` and a Fernet token, with a key of its own for each user.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;

use super::{CryptError, fernet::Fernet, sha256};

/// Begins an encrypted entry.
const PREFIX: &str = "v1:";
/// Rounds of existing databases.
const ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();

/// Encrypts users' own secrets.
///
/// A key takes tens of milliseconds to derive: sealing and opening are not for an async context.
#[derive(Clone)]
pub struct Vault {
    key: String,
}

impl Vault {
    /// With the text of `VAULT_KEY`.
    pub fn new(key: &str) -> Self {
        Self { key: key.to_owned() }
    }

    /// The text to store for this user. It can be read only as long as name and address stay as they are.
    pub fn seal(&self, email: &str, username: &str, text: &str) -> Result<String, CryptError> {
        Ok(format!("{PREFIX}{}", self.fernet(email, username)?.seal(text.as_bytes())?))
    }

    /// The text that was stored for this user.
    pub fn open(&self, email: &str, username: &str, stored: &str) -> Result<String, CryptError> {
        let token = stored.strip_prefix(PREFIX).ok_or(CryptError::Unreadable)?;
        String::from_utf8(self.fernet(email, username)?.open(token)?).map_err(|_| CryptError::Unreadable)
    }

    fn fernet(&self, email: &str, username: &str) -> Result<Fernet, CryptError> {
        let salt = sha256(format!("{email}:{username}:{}", self.key).as_bytes());
        let mut key = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, self.key.as_bytes(), &mut key);
        Fernet::new(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_belongs_to_one_user_and_one_key() {
        let vault = Vault::new("vault-key-of-some-length");
        // Made with Python's `hashlib` and `cryptography` 50.0.2 as the reference describes.
        let stored =
            "v1:gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD9JQT5AUKfT4kb0nlK7LDj77QDZ-7phXB1STmKParKQ8E1w5UUoN0LrR6z8gjO_qsw==";
        assert_eq!(vault.open("amy@example.com", "amy", stored).unwrap(), "the value");
        let own = vault.seal("amy@example.com", "amy", "another").unwrap();
        assert_eq!(vault.open("amy@example.com", "amy", &own).unwrap(), "another");
        for (email, username) in [("bob@example.com", "amy"), ("amy@example.com", "bob")] {
            assert_eq!(vault.open(email, username, stored), Err(CryptError::Unreadable));
        }
        assert_eq!(Vault::new("other").open("amy@example.com", "amy", stored), Err(CryptError::Unreadable));
        let bare = stored.trim_start_matches(PREFIX);
        assert_eq!(vault.open("amy@example.com", "amy", bare), Err(CryptError::Unreadable));
    }
}
