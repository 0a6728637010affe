//! Tokens and the keys that sign them.
//!
//! A ring holds keys by `kid`. The first key that can sign signs; a token is verified with the key it names, and only
//! with that key's own algorithm. Whatever is unknown, missing or of another type than expected is denied.

use std::{collections::BTreeMap, fmt, time::Duration};

use doorman_crds::role::Permission;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use uuid::Uuid;

use super::Denied;
use crate::{
    settings::Keys,
    store::{Permissions, User, now},
};

/// `kid` of the key in `JWT_SECRET_KEY`, and of tokens that name none.
const LEGACY: &str = "legacy-key";
/// No token of ours is near this long.
const LONGEST_TOKEN: usize = 8_192;
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The user's name.
    pub sub: String,
    /// The role at the time of issue.
    pub role: String,
    /// The first second in which the token is no longer valid, since the epoch.
    pub exp: u64,
    /// The token's own id.
    pub jti: String,
    /// Permissions at the time of issue.
    pub accesses: Accesses,
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

struct Key {
    algorithm: Algorithm,
    verifying: DecodingKey,
    signing: Option<EncodingKey>,
    rules: Validation,
}

impl Key {
    fn hs256(secret: &[u8]) -> Self {
        let (verifying, signing) = (DecodingKey::from_secret(secret), EncodingKey::from_secret(secret));
        Self::new(Algorithm::HS256, verifying, Some(signing))
    }

    fn new(algorithm: Algorithm, verifying: DecodingKey, signing: Option<EncodingKey>) -> Self {
        let mut rules = Validation::new(algorithm);
        // Expiry is judged below, to the second; there is no audience.
        (rules.validate_exp, rules.validate_aud, rules.leeway) = (false, false, 0);
        rules.set_required_spec_claims(&["sub", "exp"]);
        Self { algorithm, verifying, signing, rules }
    }
}

/// The keys of tokens, by `kid`.
pub struct KeyRing {
    keys: BTreeMap<String, Key>,
    /// `kid` of the key that signs.
    signs: String,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KeyRing").field("kids", &self.keys.keys()).field("signs", &self.signs).finish()
    }
}

/// Why there is no key ring, or no token.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No setting holds a key.
    #[error("JWT_SECRET_KEY is not set; set a random text of at least 32 characters")]
    Missing,
    /// The signing key is of no use.
    #[error("a token can't be signed: {0}")]
    Signing(#[from] jsonwebtoken::errors::Error),
}

impl KeyRing {
    /// The ring of these settings.
    pub fn new(keys: &Keys) -> Result<Self, KeyError> {
        let secret = keys.jwt.as_ref().ok_or(KeyError::Missing)?;
        let legacy = Key::hs256(secret.expose().as_bytes());
        Ok(Self { keys: BTreeMap::from([(LEGACY.to_owned(), legacy)]), signs: LEGACY.to_owned() })
    }

    /// A token for this user, valid for this long.
    pub fn issue(&self, user: &User, accesses: Accesses, life: Duration) -> Result<String, KeyError> {
        let claims = Claims {
            sub: user.username.to_string(),
            role: user.role.to_string(),
            exp: now() + life.as_secs(),
            jti: Uuid::new_v4().to_string(),
            accesses,
        };
        self.sign(&claims)
    }

    fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let (key, signing) =
            self.keys.get(&self.signs).and_then(|key| Some((key, key.signing.as_ref()?))).ok_or(KeyError::Missing)?;
        let header = Header { kid: Some(self.signs.clone()), ..Header::new(key.algorithm) };
        Ok(encode(&header, claims, signing)?)
    }

    /// What a token says, if one of these keys signed it and it hasn't expired.
    pub fn verify(&self, token: &str) -> Result<Claims, Denied> {
        self.verify_at(token, now())
    }

    fn verify_at(&self, token: &str, now: u64) -> Result<Claims, Denied> {
        if token.len() > LONGEST_TOKEN {
            return Err(Denied::Unauthorized);
        }
        let header = decode_header(token).map_err(|_| Denied::Unauthorized)?;
        // RFC 7515, 4.1.11: an extension that must be understood and isn't makes the token invalid.
        if header.crit.is_some() {
            return Err(Denied::Unauthorized);
        }
        let key = match &header.kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => self.keys.get(LEGACY),
        };
        let key = key.ok_or(Denied::Unauthorized)?;
        // The rules hold this key's one algorithm: a token that names another is denied.
        let claims = decode::<Claims>(token, &key.verifying, &key.rules).map_err(|_| Denied::Unauthorized)?.claims;
        let is_complete = !claims.sub.is_empty() && !claims.jti.is_empty();
        if is_complete && claims.exp > now { Ok(claims) } else { Err(Denied::Unauthorized) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn ring() -> KeyRing {
        KeyRing { keys: BTreeMap::from([(LEGACY.into(), Key::hs256(SECRET))]), signs: LEGACY.into() }
    }

    fn claims() -> Claims {
        let accesses = Accesses([Permission::ManageApis].into_iter().collect());
        Claims { sub: "amy".into(), role: "user".into(), exp: 100, jti: "id".into(), accesses }
    }

    fn token(header: &Header, claims: &Value, secret: &[u8]) -> String {
        encode(header, claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn header(kid: Option<&str>) -> Header {
        Header { kid: kid.map(Into::into), ..Header::default() }
    }

    #[test]
    fn an_issued_token_says_who_it_is_for() {
        let ring = ring();
        let accesses = Accesses(Permissions::all());
        let token = ring.issue(&User::new("amy", "a@b.c", "user"), accesses, Duration::from_secs(60)).unwrap();
        let claims = ring.verify(&token).unwrap();
        assert_eq!((claims.sub.as_str(), claims.role.as_str()), ("amy", "user"));
        assert!((now() + 58..=now() + 60).contains(&claims.exp));
        assert!(Uuid::parse_str(&claims.jti).is_ok());
        assert_eq!(decode_header(&token).unwrap().kid.unwrap(), LEGACY);
        assert_eq!(claims.accesses.0, CARRIED.into_iter().collect());
    }

    #[test]
    fn a_token_is_valid_until_the_second_it_expires() {
        let (ring, token) = (ring(), ring().sign(&claims()).unwrap());
        assert_eq!(ring.verify_at(&token, 99).unwrap(), claims());
        assert!(ring.verify_at(&token, 100).is_err());
    }

    #[test]
    fn a_token_that_is_not_quite_right_is_denied() {
        let ring = ring();
        let good = serde_json::to_value(claims()).unwrap();
        let with = |member: &str, value: Value| {
            let mut claims = good.clone();
            claims[member] = value;
            claims
        };
        let without = |member: &str| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(member);
            claims
        };
        let legacy = header(Some(LEGACY));
        let hs512 = Header { kid: Some(LEGACY.into()), ..Header::new(Algorithm::HS512) };
        let critical = Header { crit: Some(vec!["b64".into()]), ..legacy.clone() };
        let unsigned = {
            let signed = token(&legacy, &good, SECRET);
            let payload = signed.split('.').nth(1).unwrap().to_owned();
            // {"alg":"none","typ":"JWT"}
            format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.")
        };
        assert!(ring.verify_at(&token(&legacy, &good, SECRET), 1).is_ok());
        assert!(ring.verify_at(&token(&header(None), &good, SECRET), 1).is_ok());
        for (what, token) in [
            ("another secret", token(&legacy, &good, b"another secret, as long as the other")),
            ("an unknown kid", token(&header(Some("unknown")), &good, SECRET)),
            ("another algorithm", token(&hs512, &good, SECRET)),
            ("a critical extension", token(&critical, &good, SECRET)),
            ("no signature", unsigned),
            ("a number for sub", token(&legacy, &with("sub", json!(7)), SECRET)),
            ("an empty sub", token(&legacy, &with("sub", json!("")), SECRET)),
            ("no sub", token(&legacy, &without("sub"), SECRET)),
            ("no jti", token(&legacy, &without("jti"), SECRET)),
            ("an empty jti", token(&legacy, &with("jti", json!("")), SECRET)),
            ("no role", token(&legacy, &without("role"), SECRET)),
            ("no exp", token(&legacy, &without("exp"), SECRET)),
            ("text for exp", token(&legacy, &with("exp", json!("100")), SECRET)),
            ("a negative exp", token(&legacy, &with("exp", json!(-1)), SECRET)),
            ("no accesses", token(&legacy, &without("accesses"), SECRET)),
            ("text for a flag", token(&legacy, &with("accesses", json!({"manage_apis": "true"})), SECRET)),
            ("a list of accesses", token(&legacy, &with("accesses", json!(["manage_apis"])), SECRET)),
            ("two parts", token(&legacy, &good, SECRET).rsplit_once('.').unwrap().0.to_owned()),
            ("nothing", String::new()),
            ("more than any token", format!("{}{}", token(&legacy, &good, SECRET), "A".repeat(LONGEST_TOKEN))),
        ] {
            assert_eq!(ring.verify_at(&token, 1), Err(Denied::Unauthorized), "{what}: {token}");
        }
    }

    #[test]
    fn the_named_key_verifies_and_no_other() {
        let mut ring = ring();
        ring.keys.insert("new".into(), Key::hs256(b"a newer secret of a decent length"));
        let by_new = token(&header(Some("new")), &serde_json::to_value(claims()).unwrap(), SECRET);
        assert!(ring.verify_at(&by_new, 1).is_err());
        ring.signs = "new".into();
        let token = ring.sign(&claims()).unwrap();
        assert_eq!(decode_header(&token).unwrap().kid.unwrap(), "new");
        assert!(ring.verify_at(&token, 1).is_ok());
    }
}
