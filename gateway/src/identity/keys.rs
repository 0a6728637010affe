//! Tokens and the keys that sign them.
//!
//! A ring holds keys by `kid`. The first key that can sign signs; a token is verified with the key it names, and only
//! with that key's own algorithm. Whatever is unknown, missing or of another type than expected is denied.
//!
//! A token that was verified is known by the hash of all its characters, so that the next request with it costs neither
//! a signature nor reading. That says nothing of its time, its revocation or its user, which are looked at each time; and
//! what is known ends with the ring.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use doorman_crds::role::Permission;
use jsonwebtoken::Algorithm;
use quick_cache::sync::Cache;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor},
    ser::SerializeMap,
};
use uuid::Uuid;

use super::Denied;
use crate::{
    crypt::{TokenKey, sha256},
    settings::{Keys, NamedKey},
    store::{Permissions, User, now},
};

/// `kid` of the key in `JWT_SECRET_KEY`, and of tokens that name none.
pub(super) const LEGACY: &str = "legacy-key";
/// No token of ours is near this long.
const LONGEST_TOKEN: usize = 8_192;
/// How many verified tokens are known; each takes some 300 bytes.
const MOST_KNOWN: usize = 10_000;
/// The permissions that tokens carry. They only inform: what counts is the role at the time of a request.
const CARRIED: [Permission; 11] = [
    Permission::ManageUsers,
    Permission::ManageApis,
    Permission::ManageEndpoints,
    Permission::ManageGroups,
    Permission::ManageRoles,
    Permission::ManageRoutings,
    Permission::ManageGateway,
    Permission::ManageSubscriptions,
    Permission::ManageSecurity,
    Permission::ExportLogs,
    Permission::ViewLogs,
];

/// What a token says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claims {
    /// The user's name.
    pub sub: String,
    /// The role at the time of issue.
    pub role: String,
    /// The first second in which the token is no longer valid, since the epoch.
    pub exp: u64,
    /// The token's own id.
    pub jti: String,
    /// The second of its issue; tokens of earlier versions don't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Permissions at the time of issue.
    pub accesses: Accesses,
}

/// The header of a token (RFC 7515, 4.1). Ours has these members; one that has more asks for what isn't done here, such
/// as a key of its own or an extension, and is denied.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenHeader {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    alg: Algorithm,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
}

/// Claims as they come.
#[derive(Deserialize)]
struct Received {
    sub: String,
    role: String,
    exp: u64,
    jti: String,
    #[serde(default, deserialize_with = "present")]
    iat: Option<u64>,
    accesses: Accesses,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
    /// We have no name that it could hold (RFC 7519, 4.1.3).
    #[serde(default, deserialize_with = "present")]
    aud: Option<IgnoredAny>,
}

/// What may be absent, and not null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(source: D) -> Result<Option<T>, D::Error> {
    T::deserialize(source).map(Some)
}

/// One part of a token: a JSON object in the one spelling that base64 has for it.
fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    let json = URL_SAFE_NO_PAD.decode(text).ok()?;
    // The reader of structs would take a list of their values too.
    json.starts_with(b"{").then(|| serde_json::from_slice(&json).ok())?
}

/// The permissions a token carries; `ui_access` is always among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accesses(pub Permissions);

impl Serialize for Accesses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(CARRIED.len() + 1))?;
        map.serialize_entry("ui_access", &true)?;
        for permission in CARRIED {
            map.serialize_entry(permission.flag(), &self.0.contains(permission))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Accesses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flags;
        impl<'de> Visitor<'de> for Flags {
            type Value = Permissions;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a map of flags")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Permissions, A::Error> {
                let mut given = Vec::new();
                while let Some((flag, is_given)) = map.next_entry::<std::borrow::Cow<'de, str>, bool>()? {
                    let known = CARRIED.into_iter().find(|permission| permission.flag() == flag);
                    given.extend(known.filter(|_| is_given));
                }
                Ok(given.into_iter().collect())
            }
        }
        deserializer.deserialize_map(Flags).map(Self)
    }
}

/// What a token says that one of the keys signed.
#[derive(Clone)]
struct Verified {
    claims: Arc<Claims>,
    /// The first second in which it is valid, if it tells.
    valid_from: Option<u64>,
}

impl Verified {
    fn is_valid_at(&self, now: u64) -> bool {
        self.claims.exp > now && self.valid_from.is_none_or(|first| first <= now)
    }
}

/// The keys of tokens, by `kid`.
pub struct KeyRing {
    keys: BTreeMap<String, Arc<TokenKey>>,
    /// `kid` of the key that signs, if any does.
    signs: Option<String>,
    /// By the hash of the whole token.
    known: Cache<[u8; 32], Verified>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KeyRing").field("keys", &self.kids()).field("signs", &self.signs).finish_non_exhaustive()
    }
}

/// Why there is no key ring, or no token.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No setting holds a key.
    #[error("JWT_SECRET_KEY is not set; set a random text of at least 32 characters")]
    Missing,
    /// A setting holds something else.
    #[error("JWT_SECRET_KEY {0}")]
    Unusable(#[from] crate::crypt::TokenKeyError),
    /// The folder of keys can't be used.
    #[error("DOORMAN_JWT_KEYS_DIR {path}: {reason}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No key of the ring signs.
    #[error("none of the token keys can sign")]
    NoSigner,
}

impl KeyRing {
    /// The ring of these settings: the keys of `JWT_KEYS`, else the one of `JWT_SECRET_KEY`.
    pub fn new(keys: &Keys) -> Result<Self, KeyError> {
        let listed = &keys.jwt_keys.0;
        if listed.is_empty() {
            let secret = keys.jwt.as_ref().ok_or(KeyError::Missing)?;
            let legacy = Arc::new(TokenKey::from_secret(secret.expose())?);
            return Ok(Self::of([(LEGACY.to_owned(), legacy)].into(), Some(LEGACY.to_owned())));
        }
        let signs = listed.iter().find(|named| named.active && named.key.can_sign()).map(|named| named.kid.clone());
        let by_kid = |NamedKey { kid, key, .. }: &NamedKey| (kid.clone(), Arc::clone(key));
        Ok(Self::of(listed.iter().map(by_kid).collect(), signs))
    }

    /// These keys, of which this one signs.
    pub(crate) fn of(keys: BTreeMap<String, Arc<TokenKey>>, signs: Option<String>) -> Self {
        Self { keys, signs, known: Cache::new(MOST_KNOWN) }
    }

    /// The names of its keys.
    pub fn kids(&self) -> Vec<&str> {
        self.keys.keys().map(String::as_str).collect()
    }

    /// The name of the key that signs.
    pub fn signs(&self) -> Option<&str> {
        self.signs.as_deref()
    }

    /// A token for this user as it was known at this second, valid for this long from now on. What takes away the user's
    /// tokens later than that takes this one too, however long it took to get here.
    pub fn issue(&self, (user, known): (&User, u64), accesses: Accesses, life: Duration) -> Result<String, KeyError> {
        let claims = Claims {
            sub: user.username.to_string(),
            role: user.role.to_string(),
            exp: now() + life.as_secs(),
            jti: Uuid::new_v4().to_string(),
            // Clocks of processes differ: a user of this very second may be of the next one elsewhere.
            iat: Some(known.max(user.tokens_from.unwrap_or_default())),
            accesses,
        };
        self.sign(&claims)
    }

    fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let kid = self.signs.as_ref().ok_or(KeyError::NoSigner)?;
        let key = self.keys.get(kid).ok_or(KeyError::NoSigner)?;
        let header = TokenHeader { typ: Some("JWT".to_owned()), alg: key.algorithm(), kid: Some(kid.clone()) };
        let encode = |json: serde_json::Result<Vec<u8>>| json.map(|json| URL_SAFE_NO_PAD.encode(json)).ok();
        let parts = encode(serde_json::to_vec(&header)).zip(encode(serde_json::to_vec(claims)));
        let message = parts.map(|(header, claims)| format!("{header}.{claims}")).ok_or(KeyError::NoSigner)?;
        let signature = key.sign(message.as_bytes()).ok_or(KeyError::NoSigner)?;
        Ok(format!("{message}.{signature}"))
    }

    /// What a token says, if one of these keys signed it and it hasn't expired.
    pub fn verify(&self, token: &str) -> Result<Arc<Claims>, Denied> {
        self.verify_at(token, now())
    }

    fn verify_at(&self, token: &str, now: u64) -> Result<Arc<Claims>, Denied> {
        if token.len() > LONGEST_TOKEN {
            return Err(Denied::Unauthorized);
        }
        let hash = sha256(token.as_bytes());
        if let Some(known) = self.known.get(&hash) {
            return if known.is_valid_at(now) { Ok(known.claims) } else { Err(Denied::Unauthorized) };
        }
        let verified = self.read(token).filter(|read| read.is_valid_at(now)).ok_or(Denied::Unauthorized)?;
        self.known.insert(hash, verified.clone());
        Ok(verified.claims)
    }

    /// What a token says, whenever it is valid.
    fn read(&self, token: &str) -> Option<Verified> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let TokenHeader { typ, alg, kid } = part(header)?;
        let key = match kid {
            Some(kid) => self.keys.get(&kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => self.keys.get(LEGACY),
        }?;
        let is_jwt = typ.is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        if !is_jwt || alg != key.algorithm() || !key.verifies(message.as_bytes(), signature) {
            return None;
        }
        let Received { sub, role, exp, jti, iat, accesses, nbf: valid_from, aud } = part(claims)?;
        let is_complete = !sub.is_empty() && !jti.is_empty();
        let claims = Arc::new(Claims { sub, role, exp, jti, iat, accesses });
        (is_complete && aud.is_none()).then_some(Verified { claims, valid_from })
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;
    use crate::settings::{Settings, Source};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "a newer secret of a decent length";

    fn ring_of(keys: &[(&str, &str)]) -> KeyRing {
        let key = |(kid, secret): &(&str, &str)| ((*kid).to_owned(), Arc::new(TokenKey::from_secret(secret).unwrap()));
        KeyRing::of(keys.iter().map(key).collect(), Some(keys[0].0.to_owned()))
    }

    fn ring() -> KeyRing {
        ring_of(&[(LEGACY, SECRET)])
    }

    fn settings_ring(changes: &[(&str, &str)]) -> KeyRing {
        let base = [("JWT_SECRET_KEY", SECRET), ("DOORMAN_ADMIN_PASSWORD", "long-enough-password")];
        let source = Source::from_pairs(base.iter().chain(changes).copied());
        KeyRing::new(&Settings::load(source).unwrap_or_else(|errors| panic!("{errors}")).0.keys).unwrap()
    }

    fn claims() -> Claims {
        let accesses = Accesses([Permission::ManageApis].into_iter().collect());
        Claims { sub: "amy".into(), role: "user".into(), exp: 100, jti: "id".into(), iat: None, accesses }
    }

    fn token(kid: Option<&str>, secret: &str) -> String {
        let header = Header { kid: kid.map(Into::into), ..Header::default() };
        encode(&header, &claims(), &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    #[test]
    fn an_issued_token_says_who_it_is_for() {
        let ring = ring();
        let accesses = Accesses(Permissions::all());
        let token = ring.issue((&User::new("amy", "a@b.c", "user"), now()), accesses, Duration::from_secs(60)).unwrap();
        let claims = ring.verify(&token).unwrap();
        assert_eq!((claims.sub.as_str(), claims.role.as_str()), ("amy", "user"));
        assert!((now() + 58..=now() + 60).contains(&claims.exp));
        assert!(Uuid::parse_str(&claims.jti).is_ok());
        assert_eq!(claims.accesses.0, CARRIED.into_iter().collect());
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!((header.kid.as_deref(), header.typ.as_deref()), (Some(LEGACY), Some("JWT")));
    }

    #[test]
    fn a_token_is_as_old_as_what_was_known_of_its_user() {
        let amy = |tokens_from| User { tokens_from, ..User::new("amy", "a@b.c", "user") };
        for (tokens_from, known, issued) in [(None, 100, 100), (Some(90), 100, 100), (Some(101), 100, 101)] {
            let (ring, user) = (ring(), amy(tokens_from));
            let token = ring.issue((&user, known), Accesses::default(), Duration::from_secs(60)).unwrap();
            let claims = ring.verify(&token).unwrap();
            assert_eq!(claims.iat, Some(issued));
            assert!(user.accepts(claims.iat) && claims.exp >= now() + 58);
            assert!(!amy(Some(issued + 1)).accepts(claims.iat), "what came later takes it");
        }
    }

    #[test]
    fn a_token_is_valid_until_the_second_it_expires() {
        let (ring, token) = (ring(), ring().sign(&claims()).unwrap());
        assert_eq!(*ring.verify_at(&token, 99).unwrap(), claims());
        assert!(ring.verify_at(&token, 100).is_err());
        assert_eq!(*ring.verify_at(&token, 99).unwrap(), claims(), "the clock was set back");
    }

    #[test]
    fn a_known_token_is_that_token_and_none_that_looks_like_it() {
        let (ring, token) = (ring(), ring().sign(&claims()).unwrap());
        let first = ring.verify_at(&token, 1).unwrap();
        assert!(Arc::ptr_eq(&first, &ring.verify_at(&token, 1).unwrap()), "it is known");
        for place in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[place] = if other[place] == b'A' { b'B' } else { b'A' };
            assert!(ring.verify_at(std::str::from_utf8(&other).unwrap(), 1).is_err(), "{place}");
        }
        assert!(ring_of(&[(LEGACY, OTHER)]).verify_at(&token, 1).is_err(), "another ring knows nothing of it");
    }

    #[test]
    fn what_is_refused_is_not_kept_and_what_is_kept_is_bounded() {
        let ring = ring();
        let expired = ring.sign(&claims()).unwrap();
        assert!(ring.verify_at(&expired, 100).is_err() && ring.verify_at("a.b.c", 1).is_err());
        assert_eq!(ring.known.len(), 0);
        for number in 0..MOST_KNOWN + 100 {
            let token = ring.sign(&Claims { jti: number.to_string(), ..claims() }).unwrap();
            assert_eq!(ring.verify_at(&token, 1).unwrap().jti, number.to_string());
        }
        assert!(ring.known.len() <= MOST_KNOWN);
    }

    #[test]
    fn a_token_without_kid_has_the_only_key_or_the_legacy_one() {
        let by_legacy = token(None, SECRET);
        assert!(ring().verify_at(&by_legacy, 1).is_ok());
        assert!(ring_of(&[("a", SECRET)]).verify_at(&by_legacy, 1).is_ok());
        assert!(ring_of(&[("a", OTHER), (LEGACY, SECRET)]).verify_at(&by_legacy, 1).is_ok());
        assert!(ring_of(&[("a", SECRET), (LEGACY, OTHER)]).verify_at(&by_legacy, 1).is_err());
        assert!(ring_of(&[("a", SECRET), ("b", SECRET)]).verify_at(&by_legacy, 1).is_err());
    }

    #[test]
    fn the_named_key_verifies_and_no_other() {
        let ring = ring_of(&[("new", OTHER), (LEGACY, SECRET)]);
        assert!(ring.verify_at(&token(Some("new"), SECRET), 1).is_err());
        assert!(ring.verify_at(&token(Some(LEGACY), SECRET), 1).is_ok());
        let own = ring.sign(&claims()).unwrap();
        assert_eq!(jsonwebtoken::decode_header(&own).unwrap().kid.unwrap(), "new");
        assert!(ring.verify_at(&own, 1).is_ok());
    }

    #[test]
    fn an_rsa_key_signs_and_its_public_half_verifies() {
        let (private, public) = crate::crypt::rsa_pems();
        let signs = KeyRing::of(
            [("rsa".to_owned(), Arc::new(TokenKey::from_private_pem(&private).unwrap()))].into(),
            Some("rsa".to_owned()),
        );
        let verifies =
            KeyRing::of([("rsa".to_owned(), Arc::new(TokenKey::from_public_pem(&public).unwrap()))].into(), None);
        let token = signs.sign(&claims()).unwrap();
        assert_eq!(*verifies.verify_at(&token, 1).unwrap(), claims());
        assert!(matches!(verifies.sign(&claims()), Err(KeyError::NoSigner)));
    }

    #[test]
    fn the_setting_makes_the_ring() {
        let ring = settings_ring(&[]);
        assert_eq!((ring.kids(), ring.signs()), (vec![LEGACY], Some(LEGACY)));

        let (private, public) = crate::crypt::rsa_pems();
        let keys = json!([
            { "kid": "old", "secret": SECRET, "active": false },
            { "kid": "verifies", "algorithm": "RS256", "public_key": public },
            { "kid": "signs", "algorithm": "RS256", "private_key": private, "public_key": public },
            { "kid": "other", "key": OTHER },
        ]);
        for text in [keys.to_string(), json!({ "keys": keys }).to_string()] {
            let ring = settings_ring(&[("JWT_KEYS", &text)]);
            assert_eq!(ring.kids(), ["old", "other", "signs", "verifies"]);
            assert_eq!(ring.signs(), Some("signs"), "the first that is active and can sign");
            assert!(ring.verify_at(&token(Some("old"), SECRET), 1).is_ok(), "an inactive key verifies");
            assert!(ring.verify_at(&token(Some(LEGACY), SECRET), 1).is_err(), "JWT_SECRET_KEY is no key any more");
        }
        let one = settings_ring(&[("JWT_KEYS", &json!({ "kid": "one", "secret": OTHER }).to_string())]);
        assert_eq!((one.kids(), one.signs()), (vec!["one"], Some("one")));
        assert_eq!(settings_ring(&[("JWT_KEYS", "[]")]).kids(), [LEGACY]);
        assert_eq!(settings_ring(&[("JWT_KEYS", r#"[{"kid":"a"}]"#)]).kids(), [LEGACY], "no entry is of use");
    }

    #[test]
    fn the_keys_of_a_ring_show_in_no_log() {
        let text = format!("{:?}", ring());
        assert!(text.contains(LEGACY) && !text.contains(SECRET), "{text}");
    }
}
