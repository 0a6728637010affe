//! One key of the ring that signs tokens: a secret (HS256) or an RSA key (RS256), read strictly.
//!
//! What always holds: a key has one algorithm and is never used for another; an RSA key has 2,048 bits or more; a PEM file
//! is never taken for a secret, or everyone who has a public key could sign.

use std::fmt;

use aws_lc_rs::{
    rsa::PublicKey,
    signature::{KeyPair, RsaKeyPair},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};

/// Characters of a secret that nobody can guess (RFC 7518, 3.2: as many as the hash has bytes).
pub const SHORTEST_SECRET: usize = 32;

const SHORTEST_RSA_BYTES: usize = 256;
const PEM: &str = "-----BEGIN ";

/// Why key material can't be used; reads on from the name of what holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeyError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Not text.
    #[error("is not UTF-8")]
    NotText,
    /// Something in PEM where a secret should be.
    #[error("is in PEM form, which is no secret: use it with RS256")]
    PemAsSecret,
    /// Not an RSA key, or damaged.
    #[error("is not an RSA key in PEM form")]
    NotRsa,
    /// Below 2,048 bits.
    #[error("is an RSA key of less than 2048 bits")]
    Short,
    /// Public and private key don't belong together.
    #[error("has a public key that is not that of its private key")]
    Mismatch,
}

/// A key that verifies tokens, and may sign them.
pub struct TokenKey {
    algorithm: Algorithm,
    verifying: DecodingKey,
    signing: Option<EncodingKey>,
    is_weak: bool,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TokenKey")
            .field("algorithm", &self.algorithm)
            .field("signs", &self.can_sign())
            .finish_non_exhaustive()
    }
}

impl TokenKey {
    /// A secret for HS256.
    pub fn from_secret(secret: &str) -> Result<Self, TokenKeyError> {
        if secret.is_empty() {
            return Err(TokenKeyError::Empty);
        }
        if secret.contains(PEM) {
            return Err(TokenKeyError::PemAsSecret);
        }
        Ok(Self {
            algorithm: Algorithm::HS256,
            verifying: DecodingKey::from_secret(secret.as_bytes()),
            signing: Some(EncodingKey::from_secret(secret.as_bytes())),
            is_weak: secret.chars().count() < SHORTEST_SECRET,
        })
    }

    /// A private key for RS256; it needs no public key beside it.
    pub fn from_private_pem(pem: &str) -> Result<Self, TokenKeyError> {
        let signing = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| TokenKeyError::NotRsa)?;
        // The library refuses short keys too, without telling why.
        let pair = RsaKeyPair::from_der(signing.as_bytes()).map_err(|rejected| {
            if rejected.to_string() == "TooSmall" { TokenKeyError::Short } else { TokenKeyError::NotRsa }
        })?;
        let public = Self::from_public_der(pair.public_key().as_ref())?;
        Ok(Self { signing: Some(signing), ..public })
    }

    /// A public key for RS256: it only verifies.
    pub fn from_public_pem(pem: &str) -> Result<Self, TokenKeyError> {
        let public = DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| TokenKeyError::NotRsa)?;
        Self::from_public_der(public.try_get_as_bytes().map_err(|_| TokenKeyError::NotRsa)?)
    }

    fn from_public_der(der: &[u8]) -> Result<Self, TokenKeyError> {
        let public = PublicKey::from_der(der).map_err(|_| TokenKeyError::NotRsa)?;
        if public.modulus_len() < SHORTEST_RSA_BYTES {
            return Err(TokenKeyError::Short);
        }
        let verifying = DecodingKey::from_rsa_der(public.as_ref());
        Ok(Self { algorithm: Algorithm::RS256, verifying, signing: None, is_weak: false })
    }

    /// Both halves, each in PEM, checked against each other.
    pub fn from_pems(private: &str, public: &str) -> Result<Self, TokenKeyError> {
        const PROBE: &[u8] = b"probe";
        let (private, public) = (Self::from_private_pem(private)?, Self::from_public_pem(public)?);
        let signature = private.sign(PROBE).ok_or(TokenKeyError::NotRsa)?;
        if public.verifies(PROBE, &signature) { Ok(private) } else { Err(TokenKeyError::Mismatch) }
    }

    /// What a file holds: a PEM private key, a PEM public key, or a secret. One line break at its end doesn't count.
    pub fn from_file(content: &[u8]) -> Result<Self, TokenKeyError> {
        let text = std::str::from_utf8(content).map_err(|_| TokenKeyError::NotText)?;
        if !text.contains(PEM) {
            let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
            return Self::from_secret(line);
        }
        if text.contains("PRIVATE KEY-----") { Self::from_private_pem(text) } else { Self::from_public_pem(text) }
    }

    /// The one algorithm of this key.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Does it sign, or only verify?
    pub fn can_sign(&self) -> bool {
        self.signing.is_some()
    }

    /// A secret short enough to be guessed.
    pub fn is_weak(&self) -> bool {
        self.is_weak
    }

    /// The signature of a message in url-safe base64; `None` when this key only verifies.
    pub fn sign(&self, message: &[u8]) -> Option<String> {
        crypto::sign(message, self.signing.as_ref()?, self.algorithm).ok()
    }

    /// Is this the message's signature, in the one spelling that base64 has for it?
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        crypto::verify(signature, message, &self.verifying, self.algorithm).unwrap_or(false)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::{
        encoding::AsDer,
        rsa::{self, KeySize},
    };
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    /// A new RSA key of 2,048 bits: private and public, in PEM.
    pub(crate) fn rsa_pems() -> (String, String) {
        let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
        let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        (pem("PRIVATE KEY", private.as_ref()), pem("PUBLIC KEY", public.as_ref()))
    }

    /// A key of 1,024 bits, made for this test: the DER of both halves.
    const SHORT_PRIVATE: &str = "\
        MIICXgIBAAKBgQDid2cpnbc7NG+w6SvH1lrAopui2rgyWglEcIpsEzUSsUlpAPxInJ6RRjtnydfahAZf9C973HCIp5jtiCGyZHzl\
        WQ42NRAfT7venMRug7yXfRexfFULaJlaKNXF0FVIUCDg+HnaTSLzc6vJAsK3jE1tr61F4T1lKgcrwT0MLxBiNQIDAQABAoGBAL5w\
        WFE3rmjcDHyBZ+6RhBlv5F8LfE/jRN3Hoa+Ga1//s9LYIE7TXciefcAmjRzVXyL7jZ6j3gIcpc5BZszEEf2aY0QRy1E7fPRN0nqW\
        IRY6QmwTvY9GUXIyBXwAeOKJBVOJBVcqa3xhep87pbKovuegTCHCabUnT5KFumnal1M1AkEA9Rv5MKwxKKN9mEz1DbHgrvtPONB2\
        6wgVSWnt/o9vouva3Uj6p2/f0yIDUpUYWT5aj51lgm2Rn8zScs9VRazIWwJBAOyHX8NDZTf4Y36OhZr7VQ9RF03KQL0Xah7E2Vtw\
        CT82+0Wl+j3yVLTDYzpYMFTC+c2wuXlL4dxlypBCnlkWBK8CQQCzkbvdEbmuCSDBTFgXoWJ3L3wZpngItlJKB4YpgdIKrPoaNhYU\
        RtzWpEuE2+ALuafFIU214SnXxcnD/Ot+8ReTAkAD261vNPE4uX999/sr7P+VMWBs72ig7PnZKKLW//vWoSH2H9/2FLbW//zlXbzk\
        FQ4YEdLkrJ0xiCOGuN92WoqXAkEAmJYCxkrqL5+vNVxFq+LpxadVzKaCuOhK9WG5KhYMkJmrSzEKHl+7Hbp4/mb4T1AI6CDkk3BB\
        pXJ6UzGm4a12TA==\
        ";
    const SHORT_PUBLIC: &str = "\
        MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDid2cpnbc7NG+w6SvH1lrAopui2rgyWglEcIpsEzUSsUlpAPxInJ6RRjtnydfa\
        hAZf9C973HCIp5jtiCGyZHzlWQ42NRAfT7venMRug7yXfRexfFULaJlaKNXF0FVIUCDg+HnaTSLzc6vJAsK3jE1tr61F4T1lKgcr\
        wT0MLxBiNQIDAQAB\
        ";

    #[test]
    fn a_key_verifies_what_it_signed_and_nothing_else() {
        let (private, public) = rsa_pems();
        for key in [
            TokenKey::from_secret("0123456789abcdef0123456789abcdef").unwrap(),
            TokenKey::from_private_pem(&private).unwrap(),
            TokenKey::from_pems(&private, &public).unwrap(),
            TokenKey::from_file(private.as_bytes()).unwrap(),
        ] {
            let signature = key.sign(b"message").unwrap();
            assert!(key.verifies(b"message", &signature) && key.can_sign() && !key.is_weak());
            assert!(!key.verifies(b"massage", &signature));
            assert!(!key.verifies(b"message", &format!("{signature}=")));
            assert!(!key.verifies(b"message", ""));
        }
        let verifier = TokenKey::from_file(public.as_bytes()).unwrap();
        let signature = TokenKey::from_private_pem(&private).unwrap().sign(b"message").unwrap();
        assert!(verifier.verifies(b"message", &signature) && !verifier.can_sign());
        assert_eq!(verifier.sign(b"message"), None);
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let ((private, public), (other, _)) = (rsa_pems(), rsa_pems());
        let damaged = private.replace("MII", "MIJ");
        let short = |label, der| pem(label, &STANDARD.decode(der).unwrap());
        for (what, made, expected) in [
            ("nothing", TokenKey::from_file(b"\n"), TokenKeyError::Empty),
            ("bytes", TokenKey::from_file(&[0xff]), TokenKeyError::NotText),
            ("a public key for a secret", TokenKey::from_secret(&public), TokenKeyError::PemAsSecret),
            ("a damaged key", TokenKey::from_file(damaged.as_bytes()), TokenKeyError::NotRsa),
            ("a public key for a private one", TokenKey::from_private_pem(&public), TokenKeyError::NotRsa),
            ("a private key for a public one", TokenKey::from_public_pem(&private), TokenKeyError::NotRsa),
            (
                "a short private key",
                TokenKey::from_file(short("RSA PRIVATE KEY", SHORT_PRIVATE).as_bytes()),
                TokenKeyError::Short,
            ),
            (
                "a short public key",
                TokenKey::from_file(short("PUBLIC KEY", SHORT_PUBLIC).as_bytes()),
                TokenKeyError::Short,
            ),
            ("halves of two keys", TokenKey::from_pems(&other, &public), TokenKeyError::Mismatch),
        ] {
            assert_eq!(made.err(), Some(expected), "{what}");
        }
        assert!(TokenKey::from_file(b"short\n").unwrap().is_weak());
    }
}
