//! Groups: `/platform/group` (reference: platform API 7).

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use mongodb::bson::{Bson, Document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, refused},
    request::{Asked, At, Caller, PAGE_SIZE, PageQuery, Sent},
    wire::{AnyText, Text, given},
};
use crate::store::{Collection, StoreError, plain_document};

const NO_CREATE: (&str, &str) = ("GRP008", "You do not have permission to create groups");
const NO_UPDATE: (&str, &str) = ("GRP009", "You do not have permission to update groups");
const NO_DELETE: (&str, &str) = ("GRP010", "You do not have permission to delete groups");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(create)).routes(routes!(list)).routes(routes!(read, update, delete))
}

/// A group to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct NewGroup {
    group_name: Text<1, 50>,
    group_description: Option<Text<0, 255>>,
    /// `name/version` of APIs; told, not enforced.
    #[serde(default)]
    api_access: Vec<AnyText>,
}

/// What to change of a group; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct GroupUpdate {
    /// Can't be changed.
    group_name: Option<Text<1, 50>>,
    group_description: Option<Text<1, 255>>,
    api_access: Option<Vec<AnyText>>,
}

/// A page of groups.
#[derive(Debug, Serialize, ToSchema)]
struct Groups {
    groups: Vec<Map<String, Value>>,
    page: u64,
    page_size: u32,
    has_next: bool,
    total: u64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct GroupName {
    /// The group's name.
    group_name: String,
}

fn unknown(status: StatusCode) -> Refusal {
    refused(status, "GRP003", "Group does not exist")
}

fn shown(stored: &Document) -> Value {
    plain_document(stored).into()
}

/// Adds a group.
#[utoipa::path(post, path = "/platform/group", tag = "Groups", request_body = NewGroup,
    responses((status = 201, description = "The group was added.", body = Message)),
    security(("token" = ["manage_groups"])),
    extensions(("x-error-codes" = json!(["400 GRP001", "403 GRP008"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewGroup>) -> Result<Answer, Refusal> {
    sent.caller?.must(&platform, Permission::ManageGroups, NO_CREATE).await?;
    let mut document = given(&sent.body)?;
    document.entry("group_description").or_insert(Bson::Null);
    match platform.identity.store().insert(Collection::Groups, document).await {
        Ok(()) => Ok(Answer::created("Group created successfully")),
        Err(StoreError::Taken) => Err(refused(StatusCode::BAD_REQUEST, "GRP001", "Group already exists")),
        Err(error) => Err(error.into()),
    }
}

/// Lists groups.
#[utoipa::path(get, path = "/platform/group/all", tag = "Groups", params(PageQuery),
    responses((status = 200, description = "A page of groups.", body = Groups)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001"]))))]
async fn list(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    _caller: Caller,
) -> Result<Answer, Refusal> {
    let page = query.page(&platform, PAGE_SIZE)?;
    let (found, total) = platform.identity.store().list(Collection::Groups, &page.listing()).await?;
    Ok(Answer::data(page.of("groups", found.iter().map(|group| shown(group)).collect(), total)))
}

/// Reads a group.
#[utoipa::path(get, path = "/platform/group/{group_name}", tag = "Groups", params(GroupName),
    responses((status = 200, description = "The group.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["404 GRP003"]))))]
async fn read(
    State(platform): State<Platform>,
    At(GroupName { group_name }): At<GroupName>,
    _caller: Caller,
) -> Result<Answer, Refusal> {
    let found = platform.identity.store().find(Collection::Groups, &[&group_name]).await?;
    Ok(Answer::data(shown(&*found.ok_or_else(|| unknown(StatusCode::NOT_FOUND))?)))
}

/// Changes a group.
#[utoipa::path(put, path = "/platform/group/{group_name}", tag = "Groups", params(GroupName),
    request_body = GroupUpdate, responses((status = 200, description = "The group was changed.", body = Message)),
    security(("token" = ["manage_groups"])),
    extensions(("x-error-codes" = json!(["400 GRP003", "400 GRP004", "400 GRP006", "403 GRP009"]))))]
async fn update(
    State(platform): State<Platform>,
    At(GroupName { group_name }): At<GroupName>,
    sent: Sent<GroupUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageGroups, NO_UPDATE).await?;
    let store = platform.identity.store();
    if store.find(Collection::Groups, &[&group_name]).await?.is_none() {
        return Err(unknown(StatusCode::BAD_REQUEST));
    }
    if update.group_name.as_ref().is_some_and(|name| name.0 != group_name) {
        return Err(refused(StatusCode::BAD_REQUEST, "GRP004", "Group name cannot be updated"));
    }
    let members = given(&update)?;
    if members.is_empty() {
        return Err(refused(StatusCode::BAD_REQUEST, "GRP006", "No data to update"));
    }
    if !store.set(Collection::Groups, &[&group_name], members).await? {
        return Err(unknown(StatusCode::BAD_REQUEST));
    }
    Ok(Answer::message("Group updated successfully"))
}

/// Deletes a group, also one that users or APIs name.
#[utoipa::path(delete, path = "/platform/group/{group_name}", tag = "Groups", params(GroupName),
    responses((status = 200, description = "The group was deleted.", body = Message)),
    security(("token" = ["manage_groups"])),
    extensions(("x-error-codes" = json!(["400 GRP003", "403 GRP010"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(GroupName { group_name }): At<GroupName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGroups, NO_DELETE).await?;
    if !platform.identity.store().remove(Collection::Groups, &[&group_name]).await? {
        return Err(unknown(StatusCode::BAD_REQUEST));
    }
    Ok(Answer::message("Group deleted successfully"))
}
