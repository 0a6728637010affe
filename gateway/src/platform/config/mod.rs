//! Export, import and rollback of the configuration: `/platform/config` (reference: platform API 20).
//!
//! An import is looked at as a whole before anything is stored, and the state before it is kept, so that it can be taken
//! back. What always holds: neither import nor rollback lets a caller do to a role what `/platform/role` would not, and
//! none of them takes a permission from the role of the user `admin`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::extract::State;
use doorman_crds::{api::ApiKey, role::Permission};
use http::StatusCode;
use mongodb::bson::{Bson, Document, serialize_to_document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

mod items;
mod kept;
mod objects;

use objects::{ApiChange, Objects, api_of};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, refused},
    definitions::Place,
    known::{self, Known},
    request::{Asked, Caller, Sent},
    roles,
};
use crate::{
    definitions::{
        Origin, Owner, documents::check_transforms, fields::Members, weights::stored_weights, writer::Writing,
    },
    problem::Problem,
    store::{ADMIN, Change, Collection, Role, Store, StoreError, plain_document},
};

/// What an export of everything holds, in the order of an import.
const PARTS: [(&str, Collection); 5] = [
    ("apis", Collection::Apis),
    ("endpoints", Collection::Endpoints),
    ("roles", Collection::Roles),
    ("groups", Collection::Groups),
    ("routings", Collection::Routings),
];

const INSUFFICIENT: &str = "Insufficient permissions";
const NO_EXPORT: (&str, &str) = ("CFG001", INSUFFICIENT);
const NO_APIS: (&str, &str) = ("CFG002", INSUFFICIENT);
const NO_ROLES: (&str, &str) = ("CFG003", INSUFFICIENT);
const NO_GROUPS: (&str, &str) = ("CFG004", INSUFFICIENT);
const NO_ROUTINGS: (&str, &str) = ("CFG005", INSUFFICIENT);
const NO_IMPORT: (&str, &str) = ("CFG006", INSUFFICIENT);
const NO_ENDPOINTS: (&str, &str) = ("CFG007", INSUFFICIENT);

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(export_all))
        .routes(routes!(export_apis))
        .routes(routes!(export_roles))
        .routes(routes!(export_groups))
        .routes(routes!(export_routings))
        .routes(routes!(export_endpoints))
        .routes(routes!(import))
        .routes(routes!(rollback))
}

/// Documents as they are stored.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
struct Documents {
    apis: Option<Vec<Map<String, Value>>>,
    endpoints: Option<Vec<Map<String, Value>>>,
    roles: Option<Vec<Map<String, Value>>>,
    groups: Option<Vec<Map<String, Value>>>,
    routings: Option<Vec<Map<String, Value>>>,
}

impl Documents {
    fn take(&mut self, collection: Collection) -> Vec<Map<String, Value>> {
        let part = match collection {
            Collection::Apis => &mut self.apis,
            Collection::Endpoints => &mut self.endpoints,
            Collection::Roles => &mut self.roles,
            Collection::Groups => &mut self.groups,
            Collection::Routings => &mut self.routings,
            _ => return Vec::new(),
        };
        part.take().unwrap_or_default()
    }
}

/// How many items of each kind an import had.
#[derive(Debug, Serialize, ToSchema)]
struct Imported {
    imported: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ApiFilter {
    /// Name of the API.
    api_name: Option<String>,
    /// Version of the API.
    api_version: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RoleFilter {
    /// Name of the role.
    role_name: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct GroupFilter {
    /// Name of the group.
    group_name: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RoutingFilter {
    /// Key of the client.
    client_key: Option<String>,
}

/// An empty text in a query asks for nothing.
fn asked(given: Option<&String>) -> Option<&str> {
    given.map(String::as_str).filter(|text| !text.is_empty())
}

/// What there is of one kind, and what defines it.
struct Item {
    document: Document,
    origin: Option<Origin>,
}

fn defined(shown: &Members, origin: &Origin) -> Option<Item> {
    // Members of a spec have a stored form.
    Some(Item { document: serialize_to_document(shown).ok()?, origin: Some(origin.clone()) })
}

/// All of one kind by key, whatever defines it; what is stored counts where nothing is defined.
async fn items(platform: &Platform, collection: Collection) -> Result<BTreeMap<Key, Item>, StoreError> {
    let stored = platform.identity.store().all(collection).await?;
    let stored = stored.iter().filter_map(|document| {
        let mut document = Document::clone(document);
        document.remove("_id");
        Some((collection.key_of(&document)?, Item { document, origin: None }))
    });
    let mut all: BTreeMap<Key, Item> = stored.collect();
    let mut found = Vec::new();
    match collection {
        Collection::Apis => {
            for one in known::defined(platform) {
                let origin = one.origin();
                found.push(defined(&Known::Defined(one).shown(), &origin));
            }
        }
        Collection::Roles => {
            let roles = platform.identity.defined_roles();
            found.extend(roles.values().map(|role| defined(&roles::shown_defined(role), &role.origin)));
        }
        Collection::Endpoints => {
            let definitions = known::defined(platform);
            let apis: BTreeSet<ApiKey> = definitions.iter().map(known::key).collect();
            all.retain(|_, item| !apis.contains(&api_of(&item.document)));
            for one in definitions {
                let origin = one.origin();
                found.extend(known::defined_endpoints(&one).iter().map(|endpoint| defined(endpoint, &origin)));
            }
        }
        _ => {}
    }
    let found = found.into_iter().flatten();
    all.extend(found.filter_map(|item| Some((collection.key_of(&item.document)?, item))));
    Ok(all)
}

async fn shown(platform: &Platform, collection: Collection) -> Result<Value, StoreError> {
    Ok(items(platform, collection).await?.values().map(|item| Value::from(plain_document(&item.document))).collect())
}

async fn all(platform: &Platform, name: &str, collection: Collection) -> Result<Answer, Refusal> {
    Ok(Answer::data(json!({ name: shown(platform, collection).await? })))
}

async fn one(
    platform: &Platform,
    collection: Collection,
    key: &[&str],
    code: &'static str,
    what: &'static str,
) -> Result<Value, Refusal> {
    let found = match (collection, key) {
        (Collection::Apis, [name, version]) => {
            let key = ApiKey { name: (*name).to_owned(), version: (*version).to_owned() };
            Known::find(platform, &key).await?.map(|api| api.shown())
        }
        (Collection::Roles, [name]) => roles::shown_of(platform, name).await?,
        _ => platform.identity.store().find(collection, key).await?.map(|found| plain_document(&found)),
    };
    Ok(found.ok_or_else(|| refused(StatusCode::NOT_FOUND, code, what))?.into())
}

/// Exports APIs, endpoints, roles, groups and routings.
#[utoipa::path(get, path = "/platform/config/export/all", tag = "Configuration",
    responses((status = 200, description = "All documents of the five kinds.", body = Documents)),
    security(("token" = ["manage_gateway"])), extensions(("x-error-codes" = json!(["403 CFG001"]))))]
async fn export_all(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGateway, NO_EXPORT).await?;
    let mut exported = Map::new();
    for (name, collection) in PARTS {
        exported.insert(name.to_owned(), shown(&platform, collection).await?);
    }
    Ok(Answer::data(exported))
}

/// Exports all APIs, or one with its endpoints.
#[utoipa::path(get, path = "/platform/config/export/apis", tag = "Configuration", params(ApiFilter),
    responses((status = 200, description = "`apis`, or `api` and `endpoints`.", body = Value)),
    security(("token" = ["manage_apis"])), extensions(("x-error-codes" = json!(["403 CFG002", "404 CFG404"]))))]
async fn export_apis(
    State(platform): State<Platform>,
    Asked(filter): Asked<ApiFilter>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_APIS).await?;
    let (Some(name), Some(version)) = (asked(filter.api_name.as_ref()), asked(filter.api_version.as_ref())) else {
        return all(&platform, "apis", Collection::Apis).await;
    };
    let api = one(&platform, Collection::Apis, &[name, version], "CFG404", "API not found").await?;
    Ok(Answer::data(json!({ "api": api, "endpoints": endpoints(&platform, &filter).await? })))
}

/// Exports all roles, or one.
#[utoipa::path(get, path = "/platform/config/export/roles", tag = "Configuration", params(RoleFilter),
    responses((status = 200, description = "`roles` or `role`.", body = Value)),
    security(("token" = ["manage_roles"])), extensions(("x-error-codes" = json!(["403 CFG003", "404 CFG405"]))))]
async fn export_roles(
    State(platform): State<Platform>,
    Asked(filter): Asked<RoleFilter>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoles, NO_ROLES).await?;
    let Some(name) = asked(filter.role_name.as_ref()) else { return all(&platform, "roles", Collection::Roles).await };
    Ok(Answer::data(json!({ "role": one(&platform, Collection::Roles, &[name], "CFG405", "Role not found").await? })))
}

/// Exports all groups, or one.
#[utoipa::path(get, path = "/platform/config/export/groups", tag = "Configuration", params(GroupFilter),
    responses((status = 200, description = "`groups` or `group`.", body = Value)),
    security(("token" = ["manage_groups"])), extensions(("x-error-codes" = json!(["403 CFG004", "404 CFG406"]))))]
async fn export_groups(
    State(platform): State<Platform>,
    Asked(filter): Asked<GroupFilter>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGroups, NO_GROUPS).await?;
    let Some(name) = asked(filter.group_name.as_ref()) else {
        return all(&platform, "groups", Collection::Groups).await;
    };
    Ok(Answer::data(
        json!({ "group": one(&platform, Collection::Groups, &[name], "CFG406", "Group not found").await? }),
    ))
}

/// Exports all routings, or one.
#[utoipa::path(get, path = "/platform/config/export/routings", tag = "Configuration", params(RoutingFilter),
    responses((status = 200, description = "`routings` or `routing`.", body = Value)),
    security(("token" = ["manage_routings"])), extensions(("x-error-codes" = json!(["403 CFG005", "404 CFG407"]))))]
async fn export_routings(
    State(platform): State<Platform>,
    Asked(filter): Asked<RoutingFilter>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoutings, NO_ROUTINGS).await?;
    let Some(key) = asked(filter.client_key.as_ref()) else {
        return all(&platform, "routings", Collection::Routings).await;
    };
    let routing = one(&platform, Collection::Routings, &[key], "CFG407", "Routing not found").await?;
    Ok(Answer::data(json!({ "routing": routing })))
}

/// Exports endpoints: all, those of APIs of a name, of a version, or of one API.
#[utoipa::path(get, path = "/platform/config/export/endpoints", tag = "Configuration", params(ApiFilter),
    responses((status = 200, description = "`endpoints`.", body = Value)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["403 CFG007"]))))]
async fn export_endpoints(
    State(platform): State<Platform>,
    Asked(filter): Asked<ApiFilter>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageEndpoints, NO_ENDPOINTS).await?;
    Ok(Answer::data(json!({ "endpoints": endpoints(&platform, &filter).await? })))
}

async fn endpoints(platform: &Platform, filter: &ApiFilter) -> Result<Value, StoreError> {
    let [name, version] = [&filter.api_name, &filter.api_version].map(|given| asked(given.as_ref()));
    if let (Some(name), Some(version)) = (name, version) {
        let api = ApiKey { name: name.to_owned(), version: version.to_owned() };
        return Ok(json!(known::endpoints(platform, &api).await?));
    }
    let items = items(platform, Collection::Endpoints).await?;
    let is_asked = |item: &&Item| {
        let api = api_of(&item.document);
        name.is_none_or(|name| name == api.name) && version.is_none_or(|version| version == api.version)
    };
    Ok(items.values().filter(is_asked).map(|item| Value::from(plain_document(&item.document))).collect())
}

type Key = Vec<String>;

fn borrowed(key: &Key) -> Vec<&str> {
    key.iter().map(String::as_str).collect()
}

/// Documents of the five kinds, by kind and key.
#[derive(Clone, Default)]
struct Configuration(BTreeMap<(Collection, Key), Document>);

impl Configuration {
    /// All there is, and by what it is defined.
    async fn now(platform: &Platform) -> Result<(Self, Origins), StoreError> {
        let (mut now, mut origins) = (Self::default(), Origins::new());
        for (_, collection) in PARTS {
            for (key, Item { document, origin }) in items(platform, collection).await? {
                if let Some(origin) = origin {
                    origins.insert((collection, key.clone()), origin);
                }
                now.0.insert((collection, key), document);
            }
        }
        Ok((now, origins))
    }

    /// What of it a rollback could bring back: what others define is not for it.
    async fn restorable(platform: &Platform) -> Result<Self, StoreError> {
        if !matches!(platform.writing, Writing::Cluster(_)) {
            return Self::stored(platform.identity.store()).await;
        }
        let (mut now, origins) = Self::now(platform).await?;
        now.0.retain(|place, _| origins.get(place).is_none_or(|origin| origin.owner == Owner::Platform));
        Ok(now)
    }

    /// Do both say the same of this?
    fn agrees(&self, other: &Self, place: &(Collection, Key)) -> bool {
        self.0.get(place).map(plain_document) == other.0.get(place).map(plain_document)
    }

    async fn stored(store: &Store) -> Result<Self, StoreError> {
        let mut stored = Self::default();
        for (_, collection) in PARTS {
            for document in store.all(collection).await? {
                stored.put(collection, Document::clone(&document));
            }
        }
        Ok(stored)
    }

    /// The state that was kept so. What has no key can't be restored.
    fn of_data(mut data: Document) -> Self {
        let mut kept = Self::default();
        for (name, collection) in PARTS {
            let Some(Bson::Array(items)) = data.remove(name) else { continue };
            for item in items {
                if let Bson::Document(document) = item {
                    kept.put(collection, document);
                }
            }
        }
        kept
    }

    fn put(&mut self, collection: Collection, mut document: Document) {
        document.remove("_id");
        if let Some(key) = collection.key_of(&document) {
            self.0.insert((collection, key), document);
        }
    }

    fn of(&self, collection: Collection) -> impl Iterator<Item = (&Key, &Document)> {
        let is_of = move |((kind, _), _): &(&(Collection, Key), &Document)| *kind == collection;
        self.0.iter().filter(is_of).map(|((_, key), document)| (key, document))
    }

    fn get(&self, collection: Collection, key: &[&str]) -> Option<&Document> {
        self.0.get(&(collection, key.iter().map(|member| (*member).to_owned()).collect()))
    }

    /// The documents by the names of their kinds, to be kept.
    fn data(&self) -> Document {
        let of = |collection| self.of(collection).map(|(_, document)| document.clone()).collect::<Vec<_>>();
        PARTS.iter().map(|(name, collection)| ((*name).to_owned(), of(*collection).into())).collect()
    }
}

type Origins = BTreeMap<(Collection, Key), Origin>;

/// A look at the change of a role.
struct RoleChange<'a> {
    name: &'a str,
    before: Option<&'a Document>,
    after: Option<&'a Document>,
}

fn is_admin(document: Option<&Document>) -> bool {
    document.and_then(Role::from_document).is_some_and(|role| role.is_admin())
}

fn permissions(document: Option<&Document>) -> BTreeSet<Permission> {
    document.and_then(Role::from_document).map(|role| role.permissions.iter().collect()).unwrap_or_default()
}

/// All roles that are not the same in both.
fn role_changes<'a>(before: &'a Configuration, after: &'a Configuration) -> Vec<RoleChange<'a>> {
    let both: BTreeSet<&Key> =
        [before, after].into_iter().flat_map(|state| state.of(Collection::Roles)).map(|(key, _)| key).collect();
    let change = |key: &'a Key| {
        let name = key.first()?;
        let [before, after] = [before, after].map(|state| state.get(Collection::Roles, &[name]));
        let is_same = before.map(plain_document) == after.map(plain_document);
        (!is_same).then_some(RoleChange { name, before, after })
    };
    both.into_iter().filter_map(change).collect()
}

/// Refuses what `/platform/role` would refuse this caller.
fn check_roles(changes: &[RoleChange<'_>], is_by_admin: bool) -> Result<(), Refusal> {
    for RoleChange { before, after, .. } in changes {
        let forbidden = |code, message| Err(refused(StatusCode::FORBIDDEN, code, message));
        match (is_admin(*before), is_admin(*after)) {
            _ if is_by_admin => {}
            (true, _) if after.is_none() => return forbidden("ROLE016", "Only admin may delete the admin role"),
            (true, _) => return forbidden("ROLE014", "Only admin may modify the admin role"),
            (false, true) => return forbidden("ROLE013", "Only admin may create the admin role"),
            (false, false) => {}
        }
    }
    Ok(())
}

/// The name of the role that must keep its permissions, whoever asks.
async fn first_admins_role(store: &Store) -> Result<Option<Arc<str>>, StoreError> {
    Ok(store.user(ADMIN).await?.map(|user| Arc::clone(&user.role)))
}

/// What an import stores, in order, and the state after it.
struct Plan {
    documents: Vec<(Collection, Document)>,
    after: Configuration,
    counts: BTreeMap<&'static str, usize>,
}

impl Plan {
    fn new(mut sent: Documents, before: &Configuration) -> Result<Self, Problem> {
        let mut plan = Self { documents: Vec::new(), after: before.clone(), counts: BTreeMap::new() };
        for (name, collection) in PARTS {
            let items = sent.take(collection);
            plan.counts.insert(name, items.len());
            for (place, item) in items.into_iter().enumerate() {
                let invalid = |problem: String| {
                    let message = format!("Validation Error: {name}[{place}]{problem}");
                    // A name in it may be of any length.
                    let message: String = message.chars().take(255).collect();
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "VAL001", message)
                };
                if let Some(document) = items::document(collection, item).map_err(invalid)? {
                    plan.add(collection, document).map_err(invalid)?;
                }
            }
        }
        Ok(plan)
    }

    fn add(&mut self, collection: Collection, mut document: Document) -> Result<(), String> {
        let Some(key) = collection.key_of(&document) else { return Ok(()) };
        let place = (collection, key);
        let stored = self.after.0.get(&place).cloned();
        match collection {
            Collection::Apis => {
                check_transforms(&document).map_err(|problem| format!(".{problem}"))?;
                self.complete_api(&place.1, stored.as_ref(), &mut document)?;
            }
            Collection::Endpoints => {
                let text = |member| document.get_str(member).unwrap_or_default();
                let api = self.after.get(Collection::Apis, &[text("api_name"), text("api_version")]);
                if let Some(id) = api.and_then(|api| api.get_str("api_id").ok()).map(str::to_owned) {
                    document.insert("api_id", id);
                }
                keep_id("endpoint_id", stored.as_ref(), &mut document);
            }
            _ => {}
        }
        let mut merged = stored.unwrap_or_default();
        merged.extend(document.clone());
        stored_weights(collection, &merged).map_err(|problem| format!(".{problem}"))?;
        self.after.0.insert(place, merged);
        self.documents.push((collection, document));
        Ok(())
    }

    /// An API that is there keeps its id, by which its endpoints and counters go; no two have the same.
    fn complete_api(&self, key: &Key, stored: Option<&Document>, document: &mut Document) -> Result<(), String> {
        if let Some(id) = stored.and_then(|stored| stored.get_str("api_id").ok()) {
            document.insert("api_id", id);
        } else {
            keep_id("api_id", None, document);
        }
        let id = document.get_str("api_id").unwrap_or_default();
        let has_it =
            |(other, api): (&Key, &Document)| other != key && api.get_str("api_id").is_ok_and(|other| other == id);
        if self.after.of(Collection::Apis).any(has_it) {
            return Err(".api_id is that of another API".into());
        }
        let has_path = |document: &Document| document.get_str("api_path").is_ok();
        if !has_path(document) && !stored.is_some_and(has_path) {
            document.insert("api_path", format!("/{}", key.join("/")));
        }
        Ok(())
    }
}

/// Gives a document that neither has nor had an id a new one.
fn keep_id(member: &'static str, stored: Option<&Document>, document: &mut Document) {
    let has = |document: &Document| document.get_str(member).is_ok_and(|id| !id.is_empty());
    if has(document) {
        return;
    }
    document.remove(member);
    if !stored.is_some_and(has) {
        document.insert(member, Uuid::new_v4().to_string());
    }
}

/// Where an item is written; `states` are what it was and what it will be.
fn place_of<'a>(
    platform: &'a Platform,
    (collection, key): &(Collection, Key),
    document: &Document,
    states: [Option<&Document>; 2],
) -> Result<Place<'a>, Refusal> {
    match collection {
        Collection::Apis | Collection::Endpoints => known::place(platform, &api_of(document)),
        Collection::Roles => roles::place_of(platform, &key.concat(), states.into_iter().any(is_admin)),
        _ => Ok(Place::Documents),
    }
}

/// Imports documents of an export; what is there is merged, member by member.
///
/// Items without their key are left out and counted. Everything is looked at before anything is stored, and the state
/// before it is kept for a rollback. Roles need `manage_roles` too.
#[utoipa::path(post, path = "/platform/config/import", tag = "Configuration", request_body = Documents,
    responses((status = 200, description = "How many items there were.", body = Imported)),
    security(("token" = ["manage_gateway"])),
    extensions(("x-error-codes" = json!(["403 CFG006", "403 ROLE013", "403 ROLE014", "409 DEF409"]))))]
async fn import(State(platform): State<Platform>, sent: Sent<Documents>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageGateway, NO_IMPORT).await?;
    if body.roles.as_ref().is_some_and(|roles| !roles.is_empty()) {
        caller.must(&platform, Permission::ManageRoles, NO_IMPORT).await?;
    }
    let store = platform.identity.store();
    let (before, origins) = Configuration::now(&platform).await?;
    let Plan { documents, after, counts } = Plan::new(body, &before)?;
    let changes = role_changes(&before, &after);
    check_roles(&changes, caller.is_admin(&platform).await?)?;
    let protected = first_admins_role(store).await?;
    for RoleChange { name, before, after } in &changes {
        if protected.as_deref() == Some(name) && !permissions(*after).is_superset(&permissions(*before)) {
            let message = "An import can't take permissions from the role of the user admin";
            return Err(refused(StatusCode::FORBIDDEN, "ROLE014", message));
        }
    }
    let username = &*caller.0.principal.username;
    let mut objects = Objects::default();
    let mut stored = Vec::new();
    for (collection, document) in documents {
        let Some(key) = collection.key_of(&document) else { continue };
        let place = (collection, key);
        // What somebody defines just so may be imported, whosever it is.
        if origins.contains_key(&place) && before.agrees(&after, &place) {
            continue;
        }
        match place_of(&platform, &place, &document, [before.0.get(&place), after.0.get(&place)])? {
            Place::Documents => stored.push((collection, document)),
            Place::Cluster(writer, object) if collection == Collection::Roles => {
                objects.role((writer, object), &place.1, after.0.get(&place))?;
            }
            Place::Cluster(writer, object) => {
                let is_endpoint = collection == Collection::Endpoints;
                objects.merge(&platform, (writer, object), &document, is_endpoint).await?;
            }
        }
    }
    objects.check().await?;
    kept::keep(store, Configuration::restorable(&platform).await?.data(), username).await?;
    objects.write(&platform).await?;
    for (collection, document) in stored {
        store.save(collection, document).await?;
    }
    store.announce(Change::Everything).await;
    platform.until_served().await;
    tracing::info!(username, ?counts, "configuration imported");
    Ok(Answer::data(json!({ "imported": counts })))
}

/// Brings back the state before the latest import.
///
/// What came since is lost. Where that changes roles, `manage_roles` is needed too. The role of the user `admin` keeps all
/// permissions it has now.
#[utoipa::path(post, path = "/platform/config/rollback", tag = "Configuration",
    responses((status = 200, description = "The state is back.", body = Message)),
    security(("token" = ["manage_gateway"])),
    extensions(("x-error-codes" = json!(["403 CFG006", "403 ROLE013", "403 ROLE014", "403 ROLE016", "404 CFG404",
        "409 DEF409"]))))]
async fn rollback(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGateway, NO_IMPORT).await?;
    let store = platform.identity.store();
    let newest = kept::newest(store).await?;
    let (timestamp, data) = newest.ok_or_else(|| refused(StatusCode::NOT_FOUND, "CFG404", "No snapshot found"))?;
    let (mut before, mut after) = (Configuration::restorable(&platform).await?, Configuration::of_data(data));
    if let Some(name) = first_admins_role(store).await?
        && let Some(role) = before.get(Collection::Roles, &[&name])
    {
        let kept = after.0.entry((Collection::Roles, vec![name.to_string()])).or_insert_with(|| role.clone());
        kept.extend(permissions(Some(role)).into_iter().map(|permission| (permission.flag().to_owned(), true.into())));
    }
    let changes = role_changes(&before, &after);
    if !changes.is_empty() {
        caller.must(&platform, Permission::ManageRoles, NO_IMPORT).await?;
    }
    check_roles(&changes, caller.is_admin(&platform).await?)?;
    let objects = if matches!(platform.writing, Writing::Documents) {
        Objects::default()
    } else {
        objects_to_restore(&platform, &mut before, &mut after)?
    };
    objects.check().await?;
    objects.write(&platform).await?;
    restore(store, &before, after).await?;
    store.announce(Change::Everything).await;
    platform.until_served().await;
    tracing::info!(username = &*caller.0.principal.username, timestamp, "configuration rolled back");
    Ok(Answer::message(format!("Configuration rolled back to {timestamp}")))
}

/// What of a rollback goes to objects; it is taken out of what goes to the store.
fn objects_to_restore<'a>(
    platform: &'a Platform,
    before: &mut Configuration,
    after: &mut Configuration,
) -> Result<Objects<'a>, Refusal> {
    let mut objects = Objects::default();
    let mut places: BTreeSet<_> = before.0.keys().chain(after.0.keys()).cloned().collect();
    places.retain(|place| !before.agrees(after, place));
    let of_api = |collection| matches!(collection, Collection::Apis | Collection::Endpoints);
    let mut apis = BTreeSet::new();
    for place in &places {
        let (was, will_be) = (before.0.get(place), after.0.get(place));
        let Some(either) = will_be.or(was) else { continue };
        match place_of(platform, place, either, [was, will_be])? {
            Place::Cluster(writer, object) if place.0 == Collection::Roles => {
                objects.role((writer, object), &place.1, will_be)?;
            }
            Place::Cluster(..) => drop(apis.insert(api_of(either))),
            Place::Documents => continue,
        }
        if place.0 == Collection::Roles {
            before.0.remove(place);
            after.0.remove(place);
        }
    }
    for key in apis {
        let Place::Cluster(writer, object) = known::place(platform, &key)? else { continue };
        let api = after.get(Collection::Apis, &[&key.name, &key.version]).map(plain_document);
        let endpoints = after.of(Collection::Endpoints).filter(|(_, document)| api_of(document) == key);
        let endpoints = endpoints.map(|(_, document)| plain_document(document)).collect();
        let change = api.map_or(ApiChange::Gone, |api| ApiChange::Whole { api, endpoints });
        objects.api((writer, object), key, change);
    }
    // The store has none of them: its documents of APIs are not served here.
    for state in [before, after] {
        state.0.retain(|(collection, _), _| !of_api(*collection));
    }
    Ok(objects)
}

/// Makes the store hold this and nothing else of the five kinds. What is the same is left alone, so that nobody is refused
/// for a moment because of a role that seems gone.
async fn restore(store: &Store, before: &Configuration, after: Configuration) -> Result<(), StoreError> {
    for (collection, key) in before.0.keys().filter(|place| !after.0.contains_key(place)) {
        store.remove(*collection, &borrowed(key)).await?;
    }
    for ((collection, key), document) in after.0 {
        let stored = before.get(collection, &borrowed(&key));
        if stored == Some(&document) {
            continue;
        }
        // Members that came since can only be removed together with the rest.
        if stored.is_some_and(|stored| stored.keys().any(|member| !document.contains_key(member))) {
            store.remove(collection, &borrowed(&key)).await?;
        }
        store.save(collection, document).await?;
    }
    Ok(())
}
