//! `JWT_KEYS`: token keys as JSON, each read on its own so that one bad entry costs no other.

use std::{collections::BTreeSet, fmt, fs, sync::Arc};

use serde_json::{Map, Value};

use super::value::{Misread, Parse};
use crate::crypt::TokenKey;

/// A key of the ring.
#[derive(Clone, Debug)]
pub struct NamedKey {
    /// What tokens name it by.
    pub kid: String,
    /// May it sign? It verifies either way.
    pub active: bool,
    /// The key itself.
    pub key: Arc<TokenKey>,
}

/// The usable keys of `JWT_KEYS`, in its order.
#[derive(Clone, Default)]
pub struct TokenKeys(pub Vec<NamedKey>);

impl fmt::Debug for TokenKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.0.iter().map(|named| &named.kid)).finish()
    }
}

impl Parse for TokenKeys {
    const KIND: &'static str = "list of token keys (JSON)";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        // The words of a JSON error may quote a secret: they are not passed on.
        let shape = || Misread::Refuse("is not a JSON list of keys, nor {\"keys\": [...]}, nor one key".to_owned());
        let entries = match serde_json::from_str(text) {
            Ok(Value::Array(entries)) => entries,
            Ok(Value::Object(mut object)) => match object.remove("keys") {
                Some(Value::Array(entries)) => entries,
                Some(_) => return Err(shape()),
                None => vec![Value::Object(object)],
            },
            _ => return Err(shape()),
        };
        let (mut keys, mut problems, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (index, entry) in entries.iter().enumerate() {
            match named_key(entry) {
                Ok(named) if seen.insert(named.kid.clone()) => keys.push(named),
                Ok(named) => problems.push(format!("{:?} is there twice, the first is used", named.kid)),
                Err((Some(kid), why)) => problems.push(format!("{kid:?} {why} and is left out")),
                Err((None, why)) => problems.push(format!("entry {} {why} and is left out", index + 1)),
            }
        }
        if problems.is_empty() {
            Ok(Self(keys))
        } else {
            Err(Misread::Use(Self(keys), format!("has entries that can't be used: {}", problems.join("; "))))
        }
    }

    fn unset() -> Option<Self> {
        Some(Self::default())
    }
}

type Problem<'a> = (Option<&'a str>, String);

fn named_key(entry: &Value) -> Result<NamedKey, Problem<'_>> {
    let entry = entry.as_object().ok_or((None, "is not an object".to_owned()))?;
    let kid = entry.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty());
    let kid = kid.ok_or((None, "has no `kid`".to_owned()))?;
    let active = match entry.get("active") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(active)) => *active,
        Some(_) => return Err((Some(kid), "has an `active` that is neither true nor false".to_owned())),
    };
    let key = key(entry).map_err(|why| (Some(kid), why))?;
    Ok(NamedKey { kid: kid.to_owned(), active, key: Arc::new(key) })
}

fn key(entry: &Map<String, Value>) -> Result<TokenKey, String> {
    let text = |name: &str| match entry.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(format!("has a `{name}` that is no text")),
    };
    let pem = |name: &str| match (text(name)?, text(&format!("{name}_path"))?) {
        (Some(pem), _) => Ok(Some(pem)),
        (None, Some(path)) => match fs::read_to_string(&path) {
            Ok(pem) => Ok(Some(pem)),
            Err(error) => Err(format!("names the file {path}, which can't be read ({error})")),
        },
        (None, None) => Ok(None),
    };
    let algorithm = text("algorithm")?.unwrap_or_else(|| "HS256".to_owned());
    let made = match algorithm.as_str() {
        "HS256" => match (text("secret")?, text("key")?) {
            (Some(secret), _) | (None, Some(secret)) => TokenKey::from_secret(&secret),
            (None, None) => return Err("has neither `secret` nor `key`".to_owned()),
        },
        "RS256" => match (pem("private_key")?, pem("public_key")?) {
            (Some(private), Some(public)) => TokenKey::from_pems(&private, &public),
            (Some(private), None) => TokenKey::from_private_pem(&private),
            (None, Some(public)) => TokenKey::from_public_pem(&public),
            (None, None) => return Err("has neither `private_key` nor `public_key`".to_owned()),
        },
        _ => return Err("has an `algorithm` that is neither HS256 nor RS256".to_owned()),
    };
    made.map_err(|error| error.to_string())
}
