//! Fernet tokens (github.com/fernet/spec, version 0x80): AES-128-CBC, then HMAC-SHA256, in url-safe base64.
//!
//! The time in a token is written and not looked at: what is stored does not expire.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    cipher::{
        AES_128, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
        UnboundCipherKey,
    },
    hmac,
    iv::FixedLength,
    rand,
};
use base64::{Engine, engine::general_purpose::URL_SAFE};

use super::CryptError;

const VERSION: u8 = 0x80;
const IV: std::ops::Range<usize> = 9..25;
const TAG: usize = 32;

/// One key: half of it signs, half of it encrypts.
pub(super) struct Fernet {
    signing: hmac::Key,
    sealing: PaddedBlockEncryptingKey,
    opening: PaddedBlockDecryptingKey,
}

impl Fernet {
    pub(super) fn new(key: [u8; 32]) -> Result<Self, CryptError> {
        let (signing, encrypting) = key.split_at(16);
        Ok(Self {
            signing: hmac::Key::new(hmac::HMAC_SHA256, signing),
            sealing: PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_128, encrypting)?)?,
            opening: PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_128, encrypting)?)?,
        })
    }

    pub(super) fn seal(&self, text: &[u8]) -> Result<String, CryptError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut iv = [0; 16];
        rand::fill(&mut iv)?;
        self.seal_at(now, iv, text)
    }

    /// An initialisation vector must be random and never used twice.
    fn seal_at(&self, seconds: u64, iv: [u8; 16], text: &[u8]) -> Result<String, CryptError> {
        let mut encrypted = text.to_vec();
        self.sealing.less_safe_encrypt(&mut encrypted, EncryptionContext::Iv128(FixedLength::from(iv)))?;
        let mut token = vec![VERSION];
        token.extend(seconds.to_be_bytes());
        token.extend(iv);
        token.extend(encrypted);
        let tag = hmac::sign(&self.signing, &token);
        token.extend(tag.as_ref());
        Ok(URL_SAFE.encode(token))
    }

    /// The text of a token that this key made.
    pub(super) fn open(&self, token: &str) -> Result<Vec<u8>, CryptError> {
        self.text(token).ok_or(CryptError::Unreadable)
    }

    fn text(&self, token: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE.decode(token).ok()?;
        let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
        if signed.first() != Some(&VERSION) {
            return None;
        }
        hmac::verify(&self.signing, signed, tag).ok()?;
        let iv: [u8; 16] = signed.get(IV)?.try_into().ok()?;
        let mut text = signed.get(IV.end..)?.to_vec();
        let length = self.opening.decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(iv))).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The secret of the specification's own vectors.
    fn fernet() -> Fernet {
        let key = URL_SAFE.decode("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=").unwrap();
        Fernet::new(key.try_into().unwrap()).unwrap()
    }

    const HELLO: &str =
        "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";

    #[test]
    fn the_vectors_of_the_specification_come_out() {
        // generate.json and verify.json: 1985-10-26T01:20:00-07:00.
        let iv = std::array::from_fn(|index| u8::try_from(index).unwrap());
        assert_eq!(fernet().seal_at(499_162_800, iv, b"hello").unwrap(), HELLO);
        assert_eq!(fernet().open(HELLO).unwrap(), b"hello");
    }

    #[test]
    fn what_the_specification_calls_invalid_is_refused() {
        // invalid.json, without the two whose only fault is their age.
        for (what, token) in [
            (
                "incorrect mac",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykQUFBQUFBQUFBQQ==",
            ),
            ("too short", "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPA=="),
            (
                "invalid base64",
                "%%%%%%%%%%%%%AECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==",
            ),
            (
                "payload size not multiple of block size",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPOm73QeoCk9uGib28Xe5vz6oxq5nmxbx_v7mrfyudzUm",
            ),
            (
                "payload padding error",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNEHbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw==",
            ),
            (
                "incorrect IV (causes padding error)",
                "gAAAAAAdwJ6xBQECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAkLhFLHpGtDBRLRTZeUfWgHSv49TF2AUEZ1TIvcZjK1zQ==",
            ),
            ("another version", "gQAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7J"),
            ("nothing", ""),
        ] {
            assert_eq!(fernet().open(token), Err(CryptError::Unreadable), "{what}");
        }
    }

    #[test]
    fn any_text_comes_back_and_no_changed_token_does() {
        let fernet = fernet();
        for length in [0, 1, 15, 16, 17, 1000] {
            let text = vec![7; length];
            let token = fernet.seal(&text).unwrap();
            assert_eq!(fernet.open(&token).unwrap(), text);
            assert_ne!(fernet.seal(&text).unwrap(), token, "the same text is never the same token");
            let bytes = URL_SAFE.decode(&token).unwrap();
            for index in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[index] ^= 1;
                assert_eq!(fernet.open(&URL_SAFE.encode(changed)), Err(CryptError::Unreadable), "byte {index}");
            }
        }
    }
}
