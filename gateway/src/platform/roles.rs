//! Roles: `/platform/role` (reference: platform API 6).
//!
//! A role is defined (by a manifest or an object of the cluster) or stored; of two of one name the defined one counts.
//! Where there is a cluster, new roles become objects of it. Roles of administrators are always stored.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use doorman_crds::{
    DoormanRole, DoormanRoleSpec,
    role::{Permission, is_admin_role, validate},
    verdict,
};
use http::StatusCode;
use mongodb::bson::{Bson, Document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, refused},
    definitions::{self, Adoption, Place, not_written, until_served},
    request::{Asked, At, Caller, MaybeSent, PAGE_SIZE, PageQuery, Sent},
    wire::{Flag, Text, given},
};
use crate::{
    definitions::{
        Origin,
        writer::{WriteError, Writer, object_name},
    },
    identity::DefinedRole,
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
        .routes(routes!(adopt))
        .routes(routes!(release))
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

impl Flags {
    /// Permissions as these flags change them.
    fn change(&self, permissions: Option<Vec<Permission>>) -> Vec<Permission> {
        let given = |permission| self.of(permission).map(|flag| flag.0);
        let had = permissions.unwrap_or_default();
        Permission::ALL.into_iter().filter(|one| given(*one).unwrap_or_else(|| had.contains(one))).collect()
    }

    fn of(&self, permission: Permission) -> Option<Flag> {
        match permission {
            Permission::ManageUsers => self.manage_users,
            Permission::ManageApis => self.manage_apis,
            Permission::ManageEndpoints => self.manage_endpoints,
            Permission::ManageGroups => self.manage_groups,
            Permission::ManageRoles => self.manage_roles,
            Permission::ManageRoutings => self.manage_routings,
            Permission::ManageGateway => self.manage_gateway,
            Permission::ManageSubscriptions => self.manage_subscriptions,
            Permission::ManageSecurity => self.manage_security,
            Permission::ManageTiers => self.manage_tiers,
            Permission::ManageRateLimits => self.manage_rate_limits,
            Permission::ManageCredits => self.manage_credits,
            Permission::ManageAuth => self.manage_auth,
            Permission::ViewAnalytics => self.view_analytics,
            Permission::ViewLogs => self.view_logs,
            Permission::ExportLogs => self.export_logs,
        }
    }
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

/// A role that is defined, with its owner.
pub(super) fn shown_defined(defined: &DefinedRole) -> Map<String, Value> {
    let mut shown = shown(&defined.role.to_document());
    shown.insert("managed_by".into(), defined.origin.owner.to_string().into());
    shown
}

fn is_admin(stored: &Document) -> bool {
    Role::from_document(stored).is_some_and(|role| role.is_admin())
}

/// A role as a definition.
pub(super) fn spec(role: &Role) -> DoormanRoleSpec {
    DoormanRoleSpec {
        name: role.name.to_string(),
        description: role.description.clone(),
        permissions: Some(role.permissions.iter().collect()),
        gateway_refs: None,
    }
}

/// A role that there is.
enum Known {
    Defined(DefinedRole),
    Stored(Arc<Document>),
}

impl Known {
    async fn find(platform: &Platform, name: &str) -> Result<Option<Self>, StoreError> {
        if let Some(defined) = platform.identity.defined_roles().get(name) {
            return Ok(Some(Self::Defined(defined.clone())));
        }
        Ok(platform.identity.store().find(Collection::Roles, &[name]).await?.map(Self::Stored))
    }

    fn is_admin(&self) -> bool {
        match self {
            Self::Defined(defined) => defined.role.is_admin(),
            Self::Stored(stored) => is_admin(stored),
        }
    }

    fn shown(&self) -> Map<String, Value> {
        match self {
            Self::Defined(defined) => shown_defined(defined),
            Self::Stored(stored) => shown(stored),
        }
    }

    /// The role as a definition.
    fn spec(&self) -> Option<DoormanRoleSpec> {
        let role = match self {
            Self::Defined(defined) => defined.role.clone(),
            Self::Stored(stored) => Arc::new(Role::from_document(stored)?),
        };
        Some(spec(&role))
    }
}

/// A role by its name, as clients of exports read it.
pub(super) async fn shown_of(platform: &Platform, name: &str) -> Result<Option<Map<String, Value>>, StoreError> {
    Ok(Known::find(platform, name).await?.map(|role| match role {
        Known::Defined(defined) => shown_defined(&defined),
        Known::Stored(stored) => plain_document(&stored),
    }))
}

/// Where this role is written, or why it is not.
fn place<'a>(platform: &'a Platform, name: &str, known: Option<&Known>) -> Result<Place<'a>, Refusal> {
    place_of(platform, name, known.is_some_and(Known::is_admin))
}

/// The same, of a role that administrators have or not.
pub(super) fn place_of<'a>(platform: &'a Platform, name: &str, is_admin: bool) -> Result<Place<'a>, Refusal> {
    if is_admin_role(name) || is_admin {
        return Ok(Place::Documents);
    }
    let origin = origin(platform, name);
    definitions::place::<DoormanRole>(platform, &called(name), origin.as_ref(), || object_name(name))
}

pub(super) fn called(name: &str) -> String {
    format!("Role {name}")
}

/// The role as a definition, if it can be one.
pub(super) fn valid(spec: DoormanRoleSpec) -> Result<DoormanRoleSpec, Refusal> {
    match verdict::all_of(&validate(&spec)) {
        Ok(()) => Ok(spec),
        Err(refusal) => Err(not_written(&called(&spec.name), WriteError::Refused(refusal.message))),
    }
}

/// Writes what `make` makes of a role as it is, and waits until it is served.
async fn write_object(
    platform: &Platform,
    writer: &Writer,
    object: &str,
    name: &str,
    make: impl Fn(Option<&DoormanRoleSpec>) -> Result<DoormanRoleSpec, Refusal>,
) -> Result<(), Refusal> {
    let make = |found: Option<&DoormanRoleSpec>| make(found).and_then(valid).map(Some);
    match definitions::write_object::<DoormanRole>(writer, object, &called(name), make).await? {
        Some(written) => until_served(writer, &called(name), || is_served(platform, name, &written)).await,
        None => Ok(()),
    }
}

/// Does this state of its object, or a later one, define this role?
pub(super) fn is_served(platform: &Platform, name: &str, written: &Origin) -> bool {
    let is_it =
        |served: &DefinedRole| served.origin.uid == written.uid && served.origin.generation >= written.generation;
    platform.identity.defined_roles().get(name).is_some_and(is_it)
}

/// Adds a role.
#[utoipa::path(post, path = "/platform/role", tag = "Roles", request_body = NewRole,
    responses((status = 201, description = "The role was added.", body = Message)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE001", "403 ROLE009", "403 ROLE013", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewRole>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageRoles, NO_CREATE).await?;
    if is_admin_role(&new.role_name.0) && !caller.is_admin(&platform).await? {
        return Err(refused(StatusCode::FORBIDDEN, "ROLE013", "Only admin may create the admin role"));
    }
    let name = new.role_name.0.as_str();
    let exists = || refused(StatusCode::BAD_REQUEST, "ROLE001", "Role already exists");
    let known = Known::find(&platform, name).await?;
    let place = place(&platform, name, known.as_ref())?;
    if known.is_some() {
        return Err(exists());
    }
    if let Place::Cluster(writer, object) = place {
        let make = |found: Option<&DoormanRoleSpec>| match found {
            Some(_) => Err(exists()),
            None => Ok(DoormanRoleSpec {
                name: name.to_owned(),
                description: new.role_description.as_ref().map(|text| text.0.clone()),
                permissions: Some(new.flags.change(None)),
                gateway_refs: None,
            }),
        };
        write_object(&platform, writer, &object, name, make).await?;
        return Ok(Answer::created("Role created successfully"));
    }
    let mut document = given(&new)?;
    document.entry("role_description").or_insert(Bson::Null);
    for permission in Permission::ALL {
        document.entry(permission.flag()).or_insert(Bson::Boolean(false));
    }
    match platform.identity.store().insert(Collection::Roles, document).await {
        Ok(()) => {
            // An API of the manifests may name it.
            platform.until_served().await;
            Ok(Answer::created("Role created successfully"))
        }
        Err(StoreError::Taken) => Err(exists()),
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
    let stored = platform.identity.store().all(Collection::Roles).await?.into_iter();
    let mut all: BTreeMap<Arc<str>, Known> =
        stored.filter_map(|role| Some((role.get_str("role_name").ok()?.into(), Known::Stored(role)))).collect();
    let defined = platform.identity.defined_roles();
    all.extend(defined.iter().map(|(name, role)| (name.clone(), Known::Defined(role.clone()))));
    let total = all.len() as u64;
    let found = page.cut(all.into_values());
    if caller.is_admin(&platform).await? {
        return Ok(Answer::data(page.of("roles", found.iter().map(|role| role.shown().into()).collect(), total)));
    }
    let roles = found.iter().filter(|role| !role.is_admin()).map(|role| {
        let mut shown = role.shown();
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
    let role = Known::find(&platform, &role_name).await?.ok_or_else(|| unknown(StatusCode::NOT_FOUND))?;
    if role.is_admin() && !caller.is_admin(&platform).await? {
        return Err(Problem::without_code(StatusCode::NOT_FOUND, "Role not found").into());
    }
    Ok(Answer::data(role.shown()))
}

/// Changes a role; users who hold it have the new permissions with their next request.
#[utoipa::path(put, path = "/platform/role/{role_name}", tag = "Roles", params(RoleName), request_body = RoleUpdate,
    responses((status = 200, description = "The role as it is now.", body = Value)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE004", "400 ROLE005", "400 ROLE007", "403 ROLE010", "403 ROLE014",
        "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn update(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    sent: Sent<RoleUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageRoles, NO_UPDATE).await?;
    let known = Known::find(&platform, &role_name).await?;
    let is_admin = is_admin_role(&role_name) || known.as_ref().is_some_and(Known::is_admin);
    if is_admin && !caller.is_admin(&platform).await? {
        return Err(refused(StatusCode::FORBIDDEN, "ROLE014", "Only admin may modify the admin role"));
    }
    if update.role_name.as_ref().is_some_and(|name| name.0 != role_name) {
        return Err(refused(StatusCode::BAD_REQUEST, "ROLE005", "Role name cannot be changed"));
    }
    let Some(known) = known else { return Err(unknown(StatusCode::BAD_REQUEST)) };
    let members = given(&update)?;
    if members.is_empty() {
        return Err(refused(StatusCode::BAD_REQUEST, "ROLE007", "No data to update"));
    }
    match place(&platform, &role_name, Some(&known))? {
        Place::Documents => drop(platform.identity.store().set(Collection::Roles, &[&role_name], members).await?),
        Place::Cluster(writer, object) => {
            // A role that is only stored, as in an older database, becomes an object with its first change.
            let stored = if matches!(known, Known::Stored(_)) { known.spec() } else { None };
            let make = |found: Option<&DoormanRoleSpec>| {
                let before = found.or(stored.as_ref()).cloned().ok_or_else(|| unknown(StatusCode::BAD_REQUEST))?;
                Ok(DoormanRoleSpec {
                    description: update.role_description.as_ref().map(|text| text.0.clone()).or(before.description),
                    permissions: Some(update.flags.change(before.permissions)),
                    ..before
                })
            };
            write_object(&platform, writer, &object, &role_name, make).await?;
        }
    }
    let now = Known::find(&platform, &role_name).await?;
    Ok(Answer::data(now.ok_or_else(|| unknown(StatusCode::BAD_REQUEST))?.shown()))
}

/// Deletes a role, also one that users hold: they have no permission then.
#[utoipa::path(delete, path = "/platform/role/{role_name}", tag = "Roles", params(RoleName),
    responses((status = 200, description = "The role was deleted.", body = Message)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE004", "403 ROLE011", "403 ROLE016", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoles, NO_DELETE).await?;
    let known = Known::find(&platform, &role_name).await?;
    let is_admin = is_admin_role(&role_name) || known.as_ref().is_some_and(Known::is_admin);
    if is_admin && !caller.is_admin(&platform).await? {
        return Err(refused(StatusCode::FORBIDDEN, "ROLE016", "Only admin may delete the admin role"));
    }
    let Some(known) = known else { return Err(unknown(StatusCode::BAD_REQUEST)) };
    // What is only stored can always go, also where nothing is stored any more.
    let mut was_there = false;
    if let Known::Defined(defined) = &known
        && let Place::Cluster(writer, object) = place(&platform, &role_name, Some(&known))?
    {
        let deleted = writer.delete::<DoormanRole>(&object).await;
        was_there = deleted.map_err(|error| not_written(&called(&role_name), error))?.is_some();
        let is_gone = || {
            let roles = platform.identity.defined_roles();
            roles.get(&*role_name).is_none_or(|served| served.origin.uid != defined.origin.uid)
        };
        until_served(writer, &called(&role_name), is_gone).await?;
    }
    was_there |= platform.identity.store().remove(Collection::Roles, &[&role_name]).await?;
    if !was_there {
        return Err(unknown(StatusCode::BAD_REQUEST));
    }
    platform.until_served().await;
    Ok(Answer::message("Role deleted successfully"))
}

/// The object of a role as it is served.
pub(super) fn origin(platform: &Platform, name: &str) -> Option<Origin> {
    platform.identity.defined_roles().get(name).map(|defined| defined.origin.clone())
}

/// Takes over a role that somebody else defines in the cluster: from then on it is changed here.
#[utoipa::path(post, path = "/platform/role/{role_name}/adopt", tag = "Roles", params(RoleName),
    request_body = Option<Adoption>, responses((status = 200, description = "It is the platform's.", body = Message)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE004", "403 ROLE010", "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn adopt(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    MaybeSent(sent): MaybeSent<Adoption>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: adoption } = sent;
    caller?.must(&platform, Permission::ManageRoles, NO_UPDATE).await?;
    Known::find(&platform, &role_name).await?.ok_or_else(|| unknown(StatusCode::BAD_REQUEST))?;
    let served = || origin(&platform, &role_name);
    definitions::adopt::<DoormanRole>(&platform, &called(&role_name), &adoption, served).await?;
    Ok(Answer::message("Role adopted successfully"))
}

/// Gives a role of the platform away: from then on it is whose manifest is applied next, and not changed here.
#[utoipa::path(post, path = "/platform/role/{role_name}/release", tag = "Roles", params(RoleName),
    responses((status = 200, description = "It is not the platform's any more.", body = Message)),
    security(("token" = ["manage_roles"])),
    extensions(("x-error-codes" = json!(["400 ROLE004", "403 ROLE010", "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn release(
    State(platform): State<Platform>,
    At(RoleName { role_name }): At<RoleName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoles, NO_UPDATE).await?;
    Known::find(&platform, &role_name).await?.ok_or_else(|| unknown(StatusCode::BAD_REQUEST))?;
    let served = || origin(&platform, &role_name);
    definitions::release::<DoormanRole>(&platform, &called(&role_name), served).await?;
    Ok(Answer::message("Role released successfully"))
}
