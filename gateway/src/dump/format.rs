//! The bytes of a dump: `DMP1`, a salt, a nonce, and the state as JSON under AES-256-GCM.
//!
//! The key is derived from the text of `MEM_ENCRYPTION_KEY` and the salt, which is new in each dump. What always holds:
//! a dump that opens is, bit for bit, what was sealed with this key.

use std::{borrow::Borrow, collections::BTreeMap};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use jiff::Timestamp;
use mongodb::bson::Document;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;

use super::{State, json};
use crate::settings::Secret;

const MAGIC: &[u8; 4] = b"DMP1";
const SALT_LEN: usize = 16;
const HEADER_LEN: usize = MAGIC.len() + SALT_LEN + NONCE_LEN;
/// What the derived key is for.
const PURPOSE: &[u8] = b"doorman-mem-dump-v1";
/// The version of the plaintext.
const VERSION: u32 = 1;
pub(super) const NOTE: &str = "Full state, sensitive fields included. Keep the encryption key apart from this file.";

/// What is wrong with the content of a dump.
#[derive(Debug, thiserror::Error)]
pub enum BadContent {
    /// No `DMP1` at its beginning, or too short.
    #[error("it is not a memory dump")]
    NotADump,
    /// Authentication failed; which of the two it was can't be told.
    #[error("it is damaged, or was written with another MEM_ENCRYPTION_KEY")]
    Sealed,
    /// It was sealed with this key and isn't what this version reads.
    #[error("its content can't be read: {0}")]
    Json(#[from] serde_json::Error),
    /// It was sealed with this key by a later version.
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u32),
}

/// An opened dump.
#[derive(Debug)]
pub struct Dump<S = State> {
    /// The version of its content.
    pub version: u32,
    /// When it was made, as it says itself: ISO 8601, UTC.
    pub created_at: String,
    /// Every collection.
    pub state: S,
}

#[derive(Serialize)]
#[serde(bound = "D: Borrow<Document>")]
struct Written<'a, D> {
    version: u32,
    created_at: String,
    sanitized: bool,
    note: &'a str,
    data: Collections<'a, D>,
}

struct Collections<'a, D>(&'a BTreeMap<String, Vec<D>>);

impl<D: Borrow<Document>> Serialize for Collections<'_, D> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(Some(self.0.len()))?;
        for (name, documents) in self.0 {
            map.serialize_entry(name, &documents.iter().map(|one| json::Json(one.borrow())).collect::<Vec<_>>())?;
        }
        map.end()
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(default)]
    created_at: String,
    #[serde(borrow)]
    data: BTreeMap<String, Vec<&'a RawValue>>,
}

fn key(secret: &Secret, salt: &[u8]) -> Result<LessSafeKey, Unspecified> {
    let derived = Salt::new(HKDF_SHA256, salt).extract(secret.expose().as_bytes());
    Ok(LessSafeKey::new(UnboundKey::from(derived.expand(&[PURPOSE], &AES_256_GCM)?)))
}

/// The bytes of a dump of this state.
pub(super) fn seal<D: Borrow<Document>>(
    state: &BTreeMap<String, Vec<D>>,
    created_at: Timestamp,
    secret: &Secret,
) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = Vec::from(MAGIC);
    bytes.resize(HEADER_LEN, 0);
    let content = Written {
        version: VERSION,
        created_at: format!("{created_at:.6}"),
        sanitized: false,
        note: NOTE,
        data: Collections(state),
    };
    serde_json::to_writer(&mut bytes, &content)?;
    let failed = |Unspecified| std::io::Error::other("encryption failed");
    let (header, plaintext) = bytes.split_at_mut(HEADER_LEN);
    let (salt, nonce) = header[MAGIC.len()..].split_at_mut(SALT_LEN);
    rand::fill(salt).map_err(failed)?;
    rand::fill(nonce).map_err(failed)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(failed)?;
    let tag = key(secret, salt)
        .and_then(|key| key.seal_in_place_separate_tag(nonce, Aad::empty(), plaintext))
        .map_err(failed)?;
    bytes.extend_from_slice(tag.as_ref());
    Ok(bytes)
}

/// The plaintext of a dump, in place.
pub(super) fn unseal<'a>(bytes: &'a mut [u8], secret: &Secret) -> Result<&'a [u8], BadContent> {
    if bytes.len() < HEADER_LEN || !bytes.starts_with(MAGIC) {
        return Err(BadContent::NotADump);
    }
    let (header, sealed) = bytes.split_at_mut(HEADER_LEN);
    let (salt, nonce) = header[MAGIC.len()..].split_at(SALT_LEN);
    let plaintext = Nonce::try_assume_unique_for_key(nonce)
        .and_then(|nonce| key(secret, salt)?.open_in_place(nonce, Aad::empty(), sealed))
        .map_err(|Unspecified| BadContent::Sealed)?;
    Ok(plaintext)
}

/// What a dump holds.
pub(super) fn open(mut bytes: Vec<u8>, secret: &Secret) -> Result<Dump, BadContent> {
    let plaintext = unseal(&mut bytes, secret)?;
    // The version first: a later one may look different.
    let Version { version } = serde_json::from_slice(plaintext)?;
    if version != VERSION {
        return Err(BadContent::Version(version));
    }
    let read: Read<'_> = serde_json::from_slice(plaintext)?;
    let documents = |texts: Vec<&RawValue>| texts.into_iter().map(json::read).collect::<Result<Vec<Document>, _>>();
    let state = read.data.into_iter().map(|(name, texts)| Ok((name, documents(texts)?)));
    Ok(Dump { version, created_at: read.created_at, state: state.collect::<Result<_, serde_json::Error>>()? })
}
