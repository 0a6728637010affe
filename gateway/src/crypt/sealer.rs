//! Upstream keys as they are stored: `enc:` and a Fernet token; without a key, plain text.

use base64::{
    Engine, alphabet,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};

use super::{CryptError, fernet::Fernet, sha256};

/// Begins an encrypted text.
const PREFIX: &str = "enc:";

/// Encrypts with the current key, decrypts with that or an earlier one.
pub struct Sealer {
    /// The current key first.
    ring: Vec<Fernet>,
    has_current: bool,
}

impl Sealer {
    /// With these keys, as settings hold them. Without a current one, new texts stay plain.
    pub fn new<'a>(current: Option<&'a str>, previous: impl IntoIterator<Item = &'a str>) -> Result<Self, CryptError> {
        let keys = current.into_iter().chain(previous).map(|text| Fernet::new(fernet_key(text)));
        Ok(Self { ring: keys.collect::<Result<_, _>>()?, has_current: current.is_some() })
    }

    /// Does the text look like an encrypted one?
    pub fn is_sealed(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The text to store.
    pub fn seal(&self, text: &str) -> Result<String, CryptError> {
        match self.ring.first().filter(|_| self.has_current) {
            Some(current) => Ok(format!("{PREFIX}{}", current.seal(text.as_bytes())?)),
            None if Self::is_sealed(text) => Err(CryptError::Ambiguous),
            None => Ok(text.to_owned()),
        }
    }

    /// The text that was stored. One without prefix is plain, as it was before there was a key.
    pub fn open(&self, stored: &str) -> Result<String, CryptError> {
        let Some(token) = stored.strip_prefix(PREFIX) else { return Ok(stored.to_owned()) };
        let text = self.ring.iter().find_map(|key| key.open(token).ok()).ok_or(CryptError::Unreadable)?;
        String::from_utf8(text).map_err(|_| CryptError::Unreadable)
    }

    /// What to store in place of a text that is plain or made with an earlier key; `None`: it is as it would be now.
    pub fn reseal(&self, stored: &str) -> Result<Option<String>, CryptError> {
        let is_current = match (stored.strip_prefix(PREFIX), self.ring.first().filter(|_| self.has_current)) {
            (Some(token), Some(current)) => current.open(token).is_ok(),
            (None, None) => true,
            _ => false,
        };
        if is_current { Ok(None) } else { self.seal(&self.open(stored)?).map(Some) }
    }
}

/// A text that is a Fernet key is that key, any other text is hashed to one. Existing databases were written by a program
/// that reads base64 loosely: both alphabets, spare bits ignored.
fn fernet_key(text: &str) -> [u8; 32] {
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let loose = GeneralPurpose::new(&alphabet::STANDARD, config);
    let standard = text.replace('-', "+").replace('_', "/");
    let key = loose.decode(standard).ok().and_then(|bytes| bytes.try_into().ok());
    key.unwrap_or_else(|| sha256(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4OHi4-Tl5ufo6err7O3u7_Dx8vP09fb3-Pn6-_z9_v8=";
    const PHRASE: &str = "a passphrase, not a Fernet key at all";

    fn sealer(current: Option<&str>, previous: &[&str]) -> Sealer {
        Sealer::new(current, previous.iter().copied()).unwrap()
    }

    #[test]
    fn values_of_existing_databases_are_read() {
        // Made with Python's `cryptography` 50.0.2 from the key derivation of the reference.
        for (key, stored) in [
            (
                KEY,
                "enc:gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD5F8kJeYwumg3da7ZmXLHhFXTazmTw6R3OcnLQBwOt1v-02Rl91jGrdIehAE0Q81m0ggMU8yKAzyiQiZtIuAdlw=",
            ),
            // The same key in the other alphabet, as `openssl rand -base64 32` prints it.
            (
                "4OHi4+Tl5ufo6err7O3u7/Dx8vP09fb3+Pn6+/z9/v8=",
                "enc:gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD5F8kJeYwumg3da7ZmXLHhFXTazmTw6R3OcnLQBwOt1v-02Rl91jGrdIehAE0Q81m0ggMU8yKAzyiQiZtIuAdlw=",
            ),
            (
                PHRASE,
                "enc:gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxKoqk7i3AyacnMI7LRE1UprNctHhoi6K990immGWZPXLrGd5iXKwX8pZZEAtki5SUCYuhLpiS1Bj5iciB5DtEw=",
            ),
        ] {
            assert_eq!(sealer(Some(key), &[]).open(stored).unwrap(), "sk-upstream-key é", "{key}");
            assert_eq!(sealer(Some("another key"), &[]).open(stored), Err(CryptError::Unreadable));
            assert_eq!(sealer(None, &[]).open(stored), Err(CryptError::Unreadable), "never used as it stands");
        }
    }

    #[test]
    fn a_value_comes_back_encrypted_or_plain() {
        for sealer in [sealer(Some(KEY), &[]), sealer(Some(PHRASE), &[KEY]), sealer(None, &[])] {
            let stored = sealer.seal("sk-1").unwrap();
            assert_eq!(stored.starts_with(PREFIX), sealer.has_current);
            assert_eq!(sealer.open(&stored).unwrap(), "sk-1");
            assert_eq!(sealer.open("stored before there was a key").unwrap(), "stored before there was a key");
        }
        assert_eq!(sealer(None, &[]).seal("enc:x"), Err(CryptError::Ambiguous));
    }

    #[test]
    fn a_key_is_rotated_by_writing_what_the_previous_one_made_again() {
        let before = sealer(Some(PHRASE), &[]);
        let (old, plain) = (before.seal("sk-1").unwrap(), "sk-2");
        let after = sealer(Some(KEY), &[PHRASE]);
        assert_eq!(after.open(&old).unwrap(), "sk-1");
        let (new, sealed) = (after.reseal(&old).unwrap().unwrap(), after.reseal(plain).unwrap().unwrap());
        assert_eq!((after.reseal(&new).unwrap(), after.reseal(&sealed).unwrap()), (None, None));
        let without_the_old_key = sealer(Some(KEY), &[]);
        assert_eq!(without_the_old_key.open(&new).unwrap(), "sk-1");
        assert_eq!(without_the_old_key.open(&sealed).unwrap(), "sk-2");
        assert_eq!(without_the_old_key.reseal(&old), Err(CryptError::Unreadable));
    }

    #[test]
    fn taking_the_key_away_keeps_values_readable_as_long_as_it_is_the_previous_one() {
        let stored = sealer(Some(KEY), &[]).seal("sk-1").unwrap();
        let after = sealer(None, &[KEY]);
        assert_eq!(after.open(&stored).unwrap(), "sk-1");
        assert_eq!(after.reseal(&stored).unwrap().as_deref(), Some("sk-1"));
        assert_eq!(after.seal("sk-2").unwrap(), "sk-2");
    }
}
