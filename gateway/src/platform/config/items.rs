//! What an import may hold, looked at before anything of it is stored.
//!
//! In: one object of the body. Out: the document to store as it was sent, or what is wrong with it. Members that this
//! gateway knows have the type it reads them with; others are kept whatever they hold.

use std::collections::BTreeMap;

use mongodb::bson::{Document, serialize_to_document};
use serde_json::{Map, Value};

use crate::{platform::routings, store::Collection};
use doorman_crds::role::Permission;

/// What a member holds, unless it is null.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Texts,
    Flag,
    Whole,
    Wholes,
    Object,
}

impl Kind {
    fn is_of(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
            Self::Flag => value.is_boolean(),
            Self::Whole => value.is_i64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Self::Wholes => value.as_array().is_some_and(|items| items.iter().all(|item| Self::Whole.is_of(item))),
            Self::Object => value.is_object(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Texts => "a list of texts",
            Self::Flag => "true or false",
            Self::Whole => "a whole number",
            Self::Wholes => "a list of whole numbers",
            Self::Object => "an object",
        }
    }
}

const API: &[(Kind, &[&str])] = &[
    (
        Kind::Text,
        &[
            "api_description",
            "api_type",
            "api_grpc_package",
            "api_authorization_field_swap",
            "api_credit_group",
            "api_id",
            "api_path",
            "api_ip_mode",
            "api_openapi_url",
            "api_wsdl_url",
            "api_soap_version",
            "api_graphql_schema_url",
            "api_grpc_reflection_url",
            "api_crud_collection",
        ],
    ),
    (
        Kind::Texts,
        &[
            "api_allowed_roles",
            "api_allowed_groups",
            "api_servers",
            "api_grpc_allowed_packages",
            "api_grpc_allowed_services",
            "api_grpc_allowed_methods",
            "api_allowed_headers",
            "api_cors_allow_origins",
            "api_cors_allow_methods",
            "api_cors_allow_headers",
            "api_cors_expose_headers",
            "api_ip_whitelist",
            "api_ip_blacklist",
        ],
    ),
    (
        Kind::Flag,
        &[
            "api_credits_enabled",
            "active",
            "api_cors_allow_credentials",
            "api_public",
            "api_auth_required",
            "api_trust_x_forwarded_for",
            "api_openapi_auto_discover",
            "api_graphql_subscriptions",
            "api_grpc_web_enabled",
            "api_is_crud",
            "api_response_envelope",
        ],
    ),
    (Kind::Whole, &["api_allowed_retry_count", "api_graphql_max_depth"]),
    (Kind::Wholes, &["api_server_weights"]),
    (Kind::Object, &["api_request_transform", "api_response_transform", "api_ws_security", "api_crud_schema"]),
];
const ENDPOINT: &[(Kind, &[&str])] = &[
    (Kind::Text, &["endpoint_description", "client_uri", "api_id", "endpoint_id"]),
    (Kind::Texts, &["endpoint_servers"]),
    (Kind::Wholes, &["endpoint_server_weights"]),
];
const ROLE: &[(Kind, &[&str])] = &[(Kind::Text, &["role_description"]), (Kind::Flag, &["platform_admin", "ui_access"])];
const GROUP: &[(Kind, &[&str])] = &[(Kind::Text, &["group_description"]), (Kind::Texts, &["api_access"])];
const ROUTING: &[(Kind, &[&str])] = &[
    (Kind::Text, &["routing_name", "routing_description"]),
    (Kind::Texts, &["routing_servers"]),
    (Kind::Whole, &["server_index"]),
    (Kind::Wholes, &["routing_server_weights"]),
];

fn known(collection: Collection) -> BTreeMap<&'static str, Kind> {
    let table = match collection {
        Collection::Apis => API,
        Collection::Endpoints => ENDPOINT,
        Collection::Roles => ROLE,
        Collection::Groups => GROUP,
        Collection::Routings => ROUTING,
        _ => &[],
    };
    let flags = Permission::ALL.into_iter().map(Permission::flag).filter(|_| collection == Collection::Roles);
    let members = table.iter().flat_map(|(kind, names)| names.iter().map(|name| (*name, *kind)));
    members.chain(flags.map(|flag| (flag, Kind::Flag))).collect()
}

/// Longest value of a member of a key, in characters.
fn longest(member: &str) -> usize {
    match member {
        "api_version" | "endpoint_method" => 10,
        "endpoint_uri" => 255,
        "api_name" => 64,
        _ => 50,
    }
}

/// The document to store. `None`: it lacks its key and is left out. The error reads on from the item's place.
pub(super) fn document(collection: Collection, mut item: Map<String, Value>) -> Result<Option<Document>, String> {
    // What belongs to another database, and what an export tells of defined ones.
    item.remove("_id");
    item.remove("managed_by");
    for member in collection.key() {
        match item.get(*member) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) if text.chars().count() <= longest(member) && !text.contains('\0') => {}
            Some(Value::String(_)) => return Err(format!(".{member} has more than {} characters", longest(member))),
            Some(_) => return Err(format!(".{member} must be text")),
        }
    }
    let known = known(collection);
    for (name, value) in &item {
        // The database would read these as a path or an operator.
        if name.is_empty() || name.starts_with('$') || name.contains('.') {
            return Err(format!(" has a member of the name {name:?}"));
        }
        if let Some(kind) = known.get(name.as_str()).filter(|kind| !value.is_null() && !kind.is_of(value)) {
            return Err(format!(".{name} must be {}", kind.words()));
        }
    }
    if collection == Collection::Routings {
        check_routing(&item)?;
    }
    let document =
        serialize_to_document(&item).ok().filter(|_| item.iter().all(|(name, value)| is_storable(name, value)));
    document.map(Some).ok_or_else(|| " holds a name or number that can't be stored".to_owned())
}

/// What the routes of routings would refuse.
fn check_routing(item: &Map<String, Value>) -> Result<(), String> {
    if let Some(why) = item.get("client_key").and_then(Value::as_str).and_then(routings::unusable_key) {
        return Err(format!(".client_key {why}"));
    }
    let servers = item.get("routing_servers").and_then(Value::as_array).into_iter().flatten();
    for (place, server) in servers.filter_map(Value::as_str).enumerate() {
        if let Some(why) = routings::unusable_server(server) {
            return Err(format!(".routing_servers[{place}]: {why}"));
        }
    }
    Ok(())
}

/// Names end at a NUL in the database.
fn is_storable(name: &str, value: &Value) -> bool {
    !name.contains('\0')
        && match value {
            Value::Object(members) => members.iter().all(|(name, value)| is_storable(name, value)),
            Value::Array(items) => items.iter().all(|item| is_storable("", item)),
            _ => true,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(collection: Collection, item: Value) -> Result<Option<Document>, String> {
        let Value::Object(item) = item else { panic!("{item}") };
        document(collection, item)
    }

    #[test]
    fn documents_are_kept_as_they_were_sent() {
        let sent =
            json!({ "group_name": "a", "more": { "x.y": [1, 2.5, null] }, "_id": "of elsewhere", "api_access": null });
        let stored = read(Collection::Groups, sent).unwrap().unwrap();
        assert_eq!(
            Value::Object(crate::store::plain_document(&stored)),
            json!({ "group_name": "a", "more": { "x.y": [1, 2.5, null] }, "api_access": null })
        );
        assert!(!stored.contains_key("_id"));
    }

    #[test]
    fn what_lacks_its_key_is_left_out() {
        for item in [
            json!({}),
            json!({ "api_name": "a" }),
            json!({ "api_name": "a", "api_version": null }),
            json!({ "api_name": "", "api_version": "v1" }),
        ] {
            assert_eq!(read(Collection::Apis, item), Ok(None));
        }
    }

    #[test]
    fn what_could_not_be_read_later_is_refused() {
        let long = "x".repeat(51);
        for (collection, item, why) in [
            (Collection::Roles, json!({ "role_name": 7 }), ".role_name must be text"),
            (Collection::Roles, json!({ "role_name": long }), ".role_name has more than 50 characters"),
            (
                Collection::Roles,
                json!({ "role_name": "a", "manage_users": "true" }),
                ".manage_users must be true or false",
            ),
            (
                Collection::Roles,
                json!({ "role_name": "a", "platform_admin": 1 }),
                ".platform_admin must be true or false",
            ),
            (
                Collection::Apis,
                json!({ "api_name": "a", "api_version": "v1", "api_servers": "http://x" }),
                ".api_servers must be a list of texts",
            ),
            (
                Collection::Routings,
                json!({ "client_key": "k", "server_index": 0.5 }),
                ".server_index must be a whole number",
            ),
            (
                Collection::Routings,
                json!({ "client_key": "k", "routing_servers": ["http://127.0.0.1:1", "ftp://x"] }),
                ".routing_servers[1]: `ftp://x`: scheme `ftp` is not served; use http or https",
            ),
            (Collection::Groups, json!({ "group_name": "a", "$set": {} }), " has a member of the name \"$set\""),
            (
                Collection::Groups,
                json!({ "group_name": "a", "api_access.0": "x" }),
                " has a member of the name \"api_access.0\"",
            ),
            (
                Collection::Groups,
                json!({ "group_name": "a", "n": u64::MAX }),
                " holds a name or number that can't be stored",
            ),
            (
                Collection::Groups,
                json!({ "group_name": "a", "n": { "a\0b": 1 } }),
                " holds a name or number that can't be stored",
            ),
        ] {
            assert_eq!(read(collection, item.clone()).unwrap_err(), why, "{item}");
        }
    }
}
