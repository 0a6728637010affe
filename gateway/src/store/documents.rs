//! Users, roles and groups as they are stored: field names and meaning are those of existing Doorman databases.
//!
//! A stored document may come from elsewhere and hold anything: what is missing gets its documented default, what is of
//! the wrong type makes the document unreadable, and nothing unreadable ever grants anything.

use std::{fmt, sync::Arc, sync::OnceLock};

use doorman_crds::{DoormanRoleSpec, role::Permission};
use mongodb::bson::{Bson, Document, doc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::settings::Secret;

/// Work factor of new hashes: that of existing databases. Tests don't wait for it.
pub(crate) const BCRYPT_COST: u32 = if cfg!(test) { 5 } else { 12 };

/// The member of a stored user that says from when on tokens count.
pub(crate) const TOKENS_FROM: &str = "tokens_from";

/// A user as stored. Durations and limits are counts; their units are in the `..._type` beside them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// The user's name, unique.
    #[schema(value_type = String)]
    pub username: Arc<str>,
    /// Unique too; sign-in takes either.
    pub email: String,
    /// Never part of an answer.
    #[serde(skip)]
    #[schema(ignore)]
    pub password: Option<Password>,
    /// Tokens issued before this second are refused: they were another's of the same name, or their password was taken
    /// away. Never part of an answer.
    #[serde(skip)]
    #[schema(ignore)]
    pub tokens_from: Option<u64>,
    /// Name of the one role; there may be no such role.
    #[schema(value_type = String)]
    pub role: Arc<str>,
    /// Names of groups; there may be no such groups.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Vec<String>)]
    pub groups: Arc<[Arc<str>]>,
    /// An inactive user is refused everywhere.
    #[serde(default = "yes", deserialize_with = "or_yes")]
    pub active: bool,
    /// May the user use the web interface?
    #[serde(default, deserialize_with = "or_default")]
    pub ui_access: bool,
    /// Sign-in is refused until the password is changed.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_false")]
    pub force_password_reset: bool,
    /// Requests in one window.
    #[serde(default, deserialize_with = "count")]
    pub rate_limit_duration: Option<i64>,
    /// Unit of the window.
    #[serde(default)]
    pub rate_limit_duration_type: Option<String>,
    /// `true`: there is a limit. Else `rate_limit_duration` alone says so.
    #[serde(default)]
    pub rate_limit_enabled: Option<bool>,
    /// Requests in one window before throttling starts.
    #[serde(default, deserialize_with = "count")]
    pub throttle_duration: Option<i64>,
    /// Unit of the window.
    #[serde(default)]
    pub throttle_duration_type: Option<String>,
    /// How long a throttled request waits.
    #[serde(default, deserialize_with = "count")]
    pub throttle_wait_duration: Option<i64>,
    /// Unit of the wait.
    #[serde(default)]
    pub throttle_wait_duration_type: Option<String>,
    /// The most requests in one window, those that wait and those that don't.
    #[serde(default, deserialize_with = "count")]
    pub throttle_queue_limit: Option<i64>,
    /// `true`: throttling is on. Else `throttle_duration` and `throttle_queue_limit` alone say so.
    #[serde(default)]
    pub throttle_enabled: Option<bool>,
    /// Up to ten members of any kind.
    #[serde(default)]
    pub custom_attributes: Option<Map<String, Value>>,
    /// Bytes in one window.
    #[serde(default, deserialize_with = "count")]
    pub bandwidth_limit_bytes: Option<i64>,
    /// Unit of the window.
    #[serde(default)]
    pub bandwidth_limit_window: Option<String>,
    /// `false`: the limit is off.
    #[serde(default)]
    pub bandwidth_limit_enabled: Option<bool>,
}

impl User {
    /// An active user with this name, address and role, and nothing else set.
    pub fn new(username: &str, email: &str, role: &str) -> Self {
        Self {
            username: username.into(),
            email: email.to_owned(),
            password: None,
            tokens_from: None,
            role: role.into(),
            groups: Arc::new([]),
            active: true,
            ui_access: false,
            force_password_reset: false,
            rate_limit_duration: None,
            rate_limit_duration_type: None,
            rate_limit_enabled: None,
            throttle_duration: None,
            throttle_duration_type: None,
            throttle_wait_duration: None,
            throttle_wait_duration_type: None,
            throttle_queue_limit: None,
            throttle_enabled: None,
            custom_attributes: None,
            bandwidth_limit_bytes: None,
            bandwidth_limit_window: Some("day".into()),
            bandwidth_limit_enabled: None,
        }
    }

    /// Does a token of this time of issue count? One that doesn't tell is older than whoever asks for it.
    pub fn accepts(&self, issued: Option<u64>) -> bool {
        self.tokens_from.is_none_or(|first| issued.is_some_and(|issued| issued >= first))
    }

    /// Reads a stored document. Members that aren't known here stay in the database.
    pub fn from_document(mut document: Document) -> Result<Self, mongodb::bson::error::Error> {
        document.remove("_id");
        let password = match document.remove("password") {
            Some(Bson::Binary(binary)) => Some(Password::from_hash(&binary.bytes)),
            Some(Bson::String(text)) => Some(Password::from_hash(text.as_bytes())),
            _ => None,
        };
        let tokens_from = match document.remove(TOKENS_FROM) {
            Some(Bson::Int64(second)) => u64::try_from(second).ok(),
            Some(Bson::Int32(second)) => u64::try_from(second).ok(),
            Some(Bson::Double(second)) => u64::try_from(second as i64).ok(),
            _ => None,
        };
        Ok(Self { password, tokens_from, ..mongodb::bson::deserialize_from_document(document)? })
    }

    /// The document to store; the password as binary, as existing databases have it.
    ///
    /// Computes the hash if need be, which takes a while: not for an async context.
    pub fn to_document(&self) -> Result<Document, mongodb::bson::error::Error> {
        let mut document = mongodb::bson::serialize_to_document(self)?;
        if let Some(second) = self.tokens_from {
            document.insert(TOKENS_FROM, i64::try_from(second).unwrap_or(i64::MAX));
        }
        if let Some(password) = &self.password {
            let bytes = password.hash().to_vec();
            document.insert(
                "password",
                mongodb::bson::Binary { subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes },
            );
        }
        Ok(document)
    }
}

/// A password: a bcrypt hash, or the text of a setting whose hash is computed when it is first needed, because that
/// takes longer than the rest of a start.
#[derive(Clone)]
pub struct Password(Arc<Form>);

enum Form {
    Hash(Box<[u8]>),
    Setting { text: Secret, hash: OnceLock<Box<[u8]>> },
}

impl Password {
    /// A stored hash; anything that is none matches no password.
    pub fn from_hash(hash: &[u8]) -> Self {
        Self(Arc::new(Form::Hash(hash.into())))
    }

    /// The password a setting holds.
    pub fn from_setting(text: &Secret) -> Self {
        Self(Arc::new(Form::Setting { text: text.clone(), hash: OnceLock::new() }))
    }

    /// Hashes a text. Takes a quarter of a second: not for an async context.
    pub fn from_text(text: &str) -> Self {
        Self::from_hash(&hash(text))
    }

    /// The hash. May take a quarter of a second: not for an async context.
    pub fn hash(&self) -> &[u8] {
        match &*self.0 {
            Form::Hash(hash) => hash,
            Form::Setting { text, hash: computed } => computed.get_or_init(|| hash(text.expose())),
        }
    }
}

fn hash(text: &str) -> Box<[u8]> {
    // The cost is in range, which is the only thing that could fail; an empty hash would match nothing.
    bcrypt::hash_bytes(text, BCRYPT_COST).map_or_else(|_| Box::default(), |hash| Box::new(hash) as Box<[u8]>)
}

impl fmt::Debug for Password {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("[redacted]")
    }
}

/// A set of permissions.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Permissions(u32);

impl Permissions {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Every permission there is.
    pub fn all() -> Self {
        Permission::ALL.into_iter().collect()
    }

    /// Is it in the set?
    pub fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u32) != 0
    }

    /// The members, in the order of the reference.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.contains(*permission))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<T: IntoIterator<Item = Permission>>(permissions: T) -> Self {
        Self(permissions.into_iter().fold(0, |set, permission| set | 1 << permission as u32))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.iter().map(Permission::flag)).finish()
    }
}

/// A role as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// The role's name, unique.
    pub name: Arc<str>,
    /// What it is for.
    pub description: Option<String>,
    /// What its users may do on the platform API.
    pub permissions: Permissions,
    /// Shown to the web interface; grants nothing here.
    pub ui_access: Option<bool>,
    /// Counts as an administrator's role whatever its name.
    pub platform_admin: bool,
}

impl Role {
    /// Is this an administrator's role? That alone grants nothing; it lifts the protection of administrators.
    pub fn is_admin(&self) -> bool {
        self.platform_admin || doorman_crds::role::is_admin_role(&self.name)
    }

    /// The role that a definition describes.
    pub fn from_spec(spec: &DoormanRoleSpec) -> Self {
        Self {
            name: spec.name.as_str().into(),
            description: spec.description.clone(),
            permissions: spec.permissions.iter().flatten().copied().collect(),
            ui_access: None,
            platform_admin: false,
        }
    }

    /// Reads a stored document; a flag that is not `true` is not given. `None`: it has no name.
    pub fn from_document(document: &Document) -> Option<Self> {
        let given = |flag| document.get_bool(flag).unwrap_or(false);
        Some(Self {
            name: document.get_str("role_name").ok()?.into(),
            description: document.get_str("role_description").ok().map(str::to_owned),
            permissions: Permission::ALL.into_iter().filter(|permission| given(permission.flag())).collect(),
            ui_access: document.get_bool("ui_access").ok(),
            platform_admin: given("platform_admin"),
        })
    }

    /// The document to store.
    pub fn to_document(&self) -> Document {
        let mut document = doc! { "role_name": &*self.name, "role_description": self.description.as_deref() };
        for permission in Permission::ALL {
            document.insert(permission.flag(), self.permissions.contains(permission));
        }
        if let Some(ui_access) = self.ui_access {
            document.insert("ui_access", ui_access);
        }
        if self.platform_admin {
            document.insert("platform_admin", true);
        }
        document
    }
}

/// A group as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The group's name, unique.
    #[serde(rename = "group_name")]
    pub name: Arc<str>,
    /// What it is for.
    #[serde(rename = "group_description", default)]
    pub description: Option<String>,
    /// `name/version` of APIs; told, not enforced.
    #[serde(default, deserialize_with = "or_default")]
    pub api_access: Vec<String>,
}

/// A stored value as clients read it.
pub fn plain(value: &Bson) -> Value {
    match value {
        Bson::Document(document) => plain_document(document).into(),
        Bson::Array(items) => items.iter().map(plain).collect(),
        Bson::ObjectId(id) => id.to_hex().into(),
        Bson::DateTime(time) => time.try_to_rfc3339_string().map_or(Value::Null, Value::from),
        Bson::String(text) | Bson::Symbol(text) => text.as_str().into(),
        Bson::Boolean(flag) => (*flag).into(),
        Bson::Int32(number) => (*number).into(),
        Bson::Int64(number) => (*number).into(),
        Bson::Double(number) => (*number).into(),
        Bson::Decimal128(number) => number.to_string().into(),
        // Hashes, and what no client ever stored.
        _ => Value::Null,
    }
}

/// A stored document as clients read it: without what belongs to the database.
pub fn plain_document(document: &Document) -> Map<String, Value> {
    document.iter().filter(|(name, _)| *name != "_id").map(|(name, value)| (name.clone(), plain(value))).collect()
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !value
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(source: D) -> Result<T, D::Error> {
    Option::deserialize(source).map(Option::unwrap_or_default)
}

fn or_yes<'de, D: Deserializer<'de>>(source: D) -> Result<bool, D::Error> {
    Option::deserialize(source).map(|value| value.unwrap_or(true))
}

/// Counts in existing databases may have become floats; their fraction never counted.
fn count<'de, D: Deserializer<'de>>(source: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Whole(i64),
        Fraction(f64),
    }
    Ok(Option::deserialize(source)?.map(|number| match number {
        Number::Whole(whole) => whole,
        Number::Fraction(fraction) => fraction.trunc() as i64,
    }))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Binary, spec::BinarySubtype};

    use super::*;

    #[test]
    fn a_user_survives_the_way_to_the_database_and_back() {
        let mut user = User::new("amy", "amy@example.com", "user");
        user.groups = Arc::new(["ALL".into()]);
        user.password = Some(Password::from_text("correct horse"));
        user.rate_limit_duration = Some(5);
        user.custom_attributes = Some(Map::from_iter([("team".to_owned(), Value::from(7))]));
        let read = User::from_document(user.to_document().unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&user).unwrap());
        assert_eq!(read.password.unwrap().hash(), user.password.unwrap().hash());
    }

    #[test]
    fn a_password_is_read_as_binary_and_as_text() {
        let stored = |password: Bson| {
            let document = doc! { "_id": mongodb::bson::oid::ObjectId::new(), "username": "amy", "email": "a@b.c", "role": "user", "password": password, "unknown": [1] };
            User::from_document(document).unwrap().password.map(|password| password.hash().to_vec())
        };
        let binary = Binary { subtype: BinarySubtype::Generic, bytes: b"$2b$hash".to_vec() };
        assert_eq!(stored(binary.into()).unwrap(), b"$2b$hash");
        assert_eq!(stored("$2b$hash".into()).unwrap(), b"$2b$hash");
        assert_eq!(stored(Bson::Null), None);
    }

    #[test]
    fn what_a_stored_user_lacks_has_its_default() {
        let document =
            doc! { "username": "amy", "email": "a@b.c", "role": "user", "groups": null, "throttle_wait_duration": 0.5 };
        let user = User::from_document(document).unwrap();
        assert!(user.active && user.groups.is_empty() && !user.ui_access);
        assert_eq!(user.throttle_wait_duration, Some(0));
        assert!(
            User::from_document(doc! { "username": "amy", "email": "a@b.c", "role": "user", "active": "no" }).is_err()
        );
    }

    #[test]
    fn only_true_gives_a_permission() {
        let document = doc! { "role_name": "ops", "manage_gateway": true, "manage_users": "true", "view_logs": 1 };
        let role = Role::from_document(&document).unwrap();
        assert_eq!(role.permissions.iter().collect::<Vec<_>>(), [Permission::ManageGateway]);
        assert_eq!(Role::from_document(&role.to_document()).unwrap(), role);
    }

    #[test]
    fn stored_values_are_shown_without_what_is_the_databases() {
        use mongodb::bson::{DateTime, oid::ObjectId};
        let id = ObjectId::new();
        let stored = doc! { "_id": id, "n": 5_i64, "at": DateTime::from_millis(0), "list": [1, "x"], "ref": id };
        let shown = serde_json::json!({ "n": 5, "at": "1970-01-01T00:00:00Z", "list": [1, "x"], "ref": id.to_hex() });
        assert_eq!(Value::Object(plain_document(&stored)), shown);
    }

    #[test]
    fn debug_output_never_shows_a_hash() {
        let mut user = User::new("amy", "a@b.c", "user");
        user.password = Some(Password::from_hash(b"$2b$secret"));
        assert!(!format!("{user:?}").contains("secret"));
    }
}
