//! Roles: `/platform/role` (reference: platform API 6).

use axum::extract::State;
use doorman_crds::role::{Permission, is_admin_role};
use http::StatusCode;
use mongodb::bson::{Bson, Document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal},
    request::{Asked, At, Caller, PAGE_SIZE, PageQuery, Sent},
    wire::{Flag, Text, given},
};
use crate::{
    problem::Problem,
    store::{Collection, Role, StoreError, plain_document},
};

const NO_CREATE: (&str, &str) = ("ROLE009", "You do not have permission to create roles");
const NO_UPDATE: (&str, &str) = ("ROLE010", "You do not have permission to update roles");
const NO_DELETE: (&str, &str) = ("ROLE011", "You do not have permission to delete roles");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(list_all))
        .routes(routes!(read, update, delete))
}

/// The flags of a role; what is absent is not given.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct Flags {
    manage_users: Option<Flag>,
    manage_apis: Option<Flag>,
    manage_endpoints: Option<Flag>,
    manage_groups: Option<Flag>,
    manage_roles: Option<Flag>,
    manage_routings: Option<Flag>,
    manage_gateway: Option<Flag>,
    manage_subscriptions: Option<Flag>,
    manage_security: Option<Flag>,
    manage_tiers: Option<Flag>,
    manage_rate_limits: Option<Flag>,
    manage_credits: Option<Flag>,
    manage_auth: Option<Flag>,
    view_analytics: Option<Flag>,
    view_logs: Option<Flag>,
    export_logs: Option<Flag>,
}

/// A role to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct NewRole {
    role_name: Text<1, 50>,
    role_description: Option<Text<0, 255>>,
    #[serde(flatten)]
    flags: Flags,
}

/// What to change of a role; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct RoleUpdate {
    /// Can't be changed.
    role_name: Option<Text<1, 50>>,
    role_description: Option<Text<1, 255>>,
    #[serde(flatten)]
    flags: Flags,
}

/// A page of roles; callers who are no administrators get the list alone.
#[derive(Debug, Serialize, ToSchema)]
struct Roles {
    roles: Vec<Map<String, Value>>,
    page: Option<u64>,
    page_size: Option<u32>,
    has_next: Option<bool>,
    total: Option<u64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct RoleName {
    /// The role's name.
    role_name: String,
}

fn refused(status: StatusCode, code: &'static str, message: &'static str) -> Refusal {
    Problem::new(status, code, message).into()
}

fn unknown(status: StatusCode) -> Refusal {
    refused(status, "ROLE004", "Role does not exist")
}

/// A role with every flag, as clients read it.
fn shown(stored: &Document) -> Map<String, Value> {
    let flags = Permission::ALL.into_iter().map(|permission| (permission.flag().to_owned(), Value::from(false)));
    let mut shown: Map<String, Value> = flags.collect();
    shown.insert("role_description".into(), Value::Null);
    shown.extend(plain_document(stored));
    shown
}

fn is_admin(stored: &Document) -> bool {
    Role::from_document(stored).is_some_and(|role| role.is_admin())
}

/// Adds a role.
#[utoipa::path(post, path = "/platform/role", tag = "Roles", request_body = NewRole,
    responses((status = 201, description = "The role was added.", body = Message)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE001", "403 ROLE009", "403 ROLE013"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewRole>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageRoles, NO_CREATE).await?;
    if is_admin_role(&new.role_name.0) && !caller.is_admin(&platform).await? {
        return Err(refused(StatusCode::FORBIDDEN, "ROLE013", "Only admin may create the admin role"));
    }
    let mut document = given(&new);
    document.entry("role_description").or_insert(Bson::Null);
    for permission in Permission::ALL {
        document.entry(permission.flag()).or_insert(Bson::Boolean(false));
    }
    match platform.identity.store().insert(Collection::Roles, document).await {
        Ok(()) => Ok(Answer::created("Role created successfully")),
        Err(StoreError::Taken) => Err(refused(StatusCode::BAD_REQUEST, "ROLE001", "Role already exists")),
        Err(error) => Err(error.into()),
    }
}

/// Lists roles; those of administrators only for administrators.
#[utoipa::path(get, path = "/platform/role/all", tag = "Roles", params(PageQuery),
    responses((status = 200, description = "A page of roles.", body = Roles)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001"]))))]
async fn list_all(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let page = query.page(&platform, PAGE_SIZE)?;
    let (found, total) = platform.identity.store().list(Collection::Roles, &page.listing()).await?;
    if caller.is_admin(&platform).await? {
        return Ok(Answer::data(page.of("roles", found.iter().map(|role| shown(role).into()).collect(), total)));
    }
    let roles = found.iter().filter(|role| !is_admin(role)).map(|role| {
        let mut shown = shown(role);
        shown.remove("platform_admin");
        shown
    });
    Ok(Answer::data(json!({ "roles": roles.collect::<Vec<_>>() })))
}

/// The same as `/platform/role/all`.
#[utoipa::path(get, path = "/platform/role", tag = "Roles", params(PageQuery),
    responses((status = 200, description = "A page of roles.", body = Roles)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001"]))))]
async fn list(state: State<Platform>, query: Asked<PageQuery>, caller: Caller) -> Result<Answer, Refusal> {
    list_all(state, query, caller).await
}

/// Reads a role.
#[utoipa::path(get, path = "/platform/role/{role_name}", tag = "Roles", params(RoleName),
    responses((status = 200, description = "The role.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["404 ROLE004"]))))]
async fn read(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let found = platform.identity.store().find(Collection::Roles, &[&role_name]).await?;
    let role = found.ok_or_else(|| unknown(StatusCode::NOT_FOUND))?;
    if is_admin(&role) && !caller.is_admin(&platform).await? {
        return Err(Problem::without_code(StatusCode::NOT_FOUND, "Role not found").into());
    }
    Ok(Answer::data(shown(&role)))
}

/// Changes a role; users who hold it have the new permissions with their next request.
#[utoipa::path(put, path = "/platform/role/{role_name}", tag = "Roles", params(RoleName), request_body = RoleUpdate,
    responses((status = 200, description = "The role as it is now.", body = Value)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE004", "400 ROLE005", "400 ROLE007", "403 ROLE010", "403 ROLE014"]))))]
async fn update(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    sent: Sent<RoleUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageRoles, NO_UPDATE).await?;
    let store = platform.identity.store();
    let stored = store.find(Collection::Roles, &[&role_name]).await?;
    let is_admin = is_admin_role(&role_name) || stored.as_deref().is_some_and(is_admin);
    if is_admin && !caller.is_admin(&platform).await? {
        return Err(refused(StatusCode::FORBIDDEN, "ROLE014", "Only admin may modify the admin role"));
    }
    if update.role_name.as_ref().is_some_and(|name| name.0 != role_name) {
        return Err(refused(StatusCode::BAD_REQUEST, "ROLE005", "Role name cannot be changed"));
    }
    if stored.is_none() {
        return Err(unknown(StatusCode::BAD_REQUEST));
    }
    let members = given(&update);
    if members.is_empty() {
        return Err(refused(StatusCode::BAD_REQUEST, "ROLE007", "No data to update"));
    }
    store.set(Collection::Roles, &[&role_name], members).await?;
    let now = store.find(Collection::Roles, &[&role_name]).await?;
    Ok(Answer::data(shown(&*now.ok_or_else(|| unknown(StatusCode::BAD_REQUEST))?)))
}

/// Deletes a role, also one that users hold: they have no permission then.
#[utoipa::path(delete, path = "/platform/role/{role_name}", tag = "Roles", params(RoleName),
    responses((status = 200, description = "The role was deleted.", body = Message)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE004", "403 ROLE011", "403 ROLE016"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoles, NO_DELETE).await?;
    let store = platform.identity.store();
    let stored = store.find(Collection::Roles, &[&role_name]).await?;
    let is_admin = is_admin_role(&role_name) || stored.as_deref().is_some_and(is_admin);
    if is_admin && !caller.is_admin(&platform).await? {
        return Err(refused(StatusCode::FORBIDDEN, "ROLE016", "Only admin may delete the admin role"));
    }
    if !store.remove(Collection::Roles, &[&role_name]).await? {
        return Err(unknown(StatusCode::BAD_REQUEST));
    }
    Ok(Answer::message("Role deleted successfully"))
}
