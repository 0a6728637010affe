//! The collections that documents are kept in: names, keys and indexes of existing Doorman databases
//! (reference: configuration 13.2, platform API 31).

use mongodb::bson::{Bson, Document};

/// What a document is found by: the texts of its key members, in order.
pub(crate) type Key = Vec<String>;

/// A kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// Users, with their passwords.
    Users,
    /// Roles and their permissions.
    Roles,
    /// Groups.
    Groups,
    /// APIs.
    Apis,
    /// Endpoints of APIs.
    Endpoints,
    /// What endpoints demand of bodies.
    EndpointValidations,
    /// Which APIs a user has subscribed to.
    Subscriptions,
    /// Servers by client key.
    Routings,
    /// Groups of credits.
    CreditDefs,
    /// Balances.
    UserCredits,
    /// Tiers.
    Tiers,
    /// Who has which tier.
    TierAssignments,
    /// Rules on rates.
    RateLimitRules,
    /// Secrets of users.
    VaultEntries,
    /// Settings that change while the gateway runs.
    Settings,
    /// States before an import.
    ConfigSnapshots,
}

/// How a collection is stored.
struct Shape {
    name: &'static str,
    key: &'static [&'static str],
    /// Members that are unique by themselves.
    unique: &'static [&'static str],
    indexes: &'static [&'static str],
}

const fn shape(name: &'static str, key: &'static [&'static str]) -> Shape {
    Shape { name, key, unique: &[], indexes: &[] }
}

impl Collection {
    /// Every collection, in the order that a restore fills them.
    pub const ALL: [Self; 16] = [
        Self::Users,
        Self::Roles,
        Self::Groups,
        Self::Apis,
        Self::Endpoints,
        Self::EndpointValidations,
        Self::Subscriptions,
        Self::Routings,
        Self::CreditDefs,
        Self::UserCredits,
        Self::Tiers,
        Self::TierAssignments,
        Self::RateLimitRules,
        Self::VaultEntries,
        Self::Settings,
        Self::ConfigSnapshots,
    ];

    const fn shape(self) -> Shape {
        match self {
            Self::Users => Shape { unique: &["email"], ..shape("users", &["username"]) },
            Self::Roles => shape("roles", &["role_name"]),
            Self::Groups => shape("groups", &["group_name"]),
            Self::Apis => Shape { unique: &["api_id"], ..shape("apis", &["api_name", "api_version"]) },
            Self::Endpoints => Shape {
                indexes: &["endpoint_id"],
                ..shape("endpoints", &["endpoint_method", "api_name", "api_version", "endpoint_uri"])
            },
            Self::EndpointValidations => shape("endpoint_validations", &["endpoint_id"]),
            Self::Subscriptions => shape("subscriptions", &["username"]),
            Self::Routings => shape("routings", &["client_key"]),
            Self::CreditDefs => shape("credit_defs", &["api_credit_group"]),
            Self::UserCredits => shape("user_credits", &["username"]),
            Self::Tiers => Shape { indexes: &["name"], ..shape("tiers", &["tier_id"]) },
            Self::TierAssignments => Shape { indexes: &["tier_id"], ..shape("user_tier_assignments", &["user_id"]) },
            Self::RateLimitRules => shape("rate_limit_rules", &["rule_id"]),
            Self::VaultEntries => Shape { indexes: &["username"], ..shape("vault_entries", &["username", "key_name"]) },
            Self::Settings => shape("settings", &["type"]),
            Self::ConfigSnapshots => shape("config_snapshots", &["snapshot_id"]),
        }
    }

    /// Its name in databases and dumps.
    pub const fn name(self) -> &'static str {
        self.shape().name
    }

    /// The collection of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|collection| collection.name() == name)
    }

    /// The members that a document is found by; lists are sorted by them.
    pub const fn key(self) -> &'static [&'static str] {
        self.shape().key
    }

    /// Further members that no two documents have alike.
    pub const fn unique(self) -> &'static [&'static str] {
        self.shape().unique
    }

    /// Members that are looked for.
    pub const fn indexes(self) -> &'static [&'static str] {
        self.shape().indexes
    }

    /// The key of a document; `None` when a member of it is missing or no text.
    pub(crate) fn key_of(self, document: &Document) -> Option<Key> {
        self.key().iter().map(|member| document.get_str(member).ok().map(str::to_owned)).collect()
    }

    /// The filter that finds the document of this key.
    pub(super) fn filter(self, key: &[&str]) -> Document {
        self.key().iter().zip(key).map(|(member, value)| ((*member).to_owned(), Bson::from(*value))).collect()
    }
}

/// Which documents of a collection to list, sorted by key.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Members and the values they must have.
    pub equal: Vec<(&'static str, Bson)>,
    /// Documents to pass over.
    pub skip: u64,
    /// The most to return; `None`: all.
    pub limit: Option<u32>,
    /// Members to be told of each; `None`: all.
    pub members: Option<&'static [&'static str]>,
}

impl Listing {
    /// Everything whose member has this value.
    pub fn with(member: &'static str, value: impl Into<Bson>) -> Self {
        Self { equal: vec![(member, value.into())], ..Self::default() }
    }
}

/// What changed, as all processes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Anything may have changed unnoticed.
    Everything,
    /// A document; its key's members joined with `/`.
    Document(Collection, &'a str),
    /// The token of this id was revoked.
    Token(&'a str),
    /// Something else that the name stands for.
    Other(&'a str),
}

impl<'a> Change<'a> {
    /// What [`ToString`] makes of a change.
    pub(super) fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some(("token", jti)) => Self::Token(jti),
            Some((name, key)) => {
                Collection::named(name).map_or(Self::Other(text), |collection| Self::Document(collection, key))
            }
            None if text == "everything" => Self::Everything,
            None => Self::Other(text),
        }
    }
}

impl std::fmt::Display for Change<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everything => out.write_str("everything"),
            Self::Document(collection, key) => write!(out, "{}:{key}", collection.name()),
            Self::Token(jti) => write!(out, "token:{jti}"),
            Self::Other(text) => out.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_change_survives_the_way_to_other_processes() {
        for change in [
            Change::Everything,
            Change::Document(Collection::Users, "amy:b/c"),
            Change::Document(Collection::Settings, "security_settings"),
            Change::Token("id"),
            Change::Other("counters"),
        ] {
            assert_eq!(Change::parse(&change.to_string()), change);
        }
        assert_eq!(Change::parse("of another version:x"), Change::Other("of another version:x"));
    }

    #[test]
    fn names_are_unique_and_lead_back() {
        for collection in Collection::ALL {
            assert_eq!(Collection::named(collection.name()), Some(collection));
        }
    }

    #[test]
    fn a_document_without_its_key_has_none() {
        assert_eq!(Collection::Users.key_of(&doc! { "username": "amy" }), Some(vec!["amy".to_owned()]));
        assert_eq!(Collection::Users.key_of(&doc! { "username": 7 }), None);
        assert_eq!(Collection::VaultEntries.key_of(&doc! { "username": "amy" }), None);
    }
}
