//! Tiers, which users are assigned to, and the limits they come with: `/platform/tiers` (reference: platform API 14).
//!
//! Lists and statistics have the envelope and codes; all else answers plainly, and refuses with `{"detail": ...}`.

use std::collections::{BTreeMap, BTreeSet};

use axum::{extract::State, response::Response};
use doorman_crds::role::Permission;
use http::StatusCode;
use mongodb::bson::{Document, serialize_to_document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal, bare, failed, plainly},
    request::{Asked, At, Caller, PageQuery, SearchQuery, Sent, SentList, SliceQuery},
    wire::{Amount, AnyText, Flag, Int, Text, given},
};
use crate::{
    problem::Problem,
    store::{
        Collection, Moment, StoreError, plain, plain_document,
        tiers::{in_force, is_enabled},
    },
};

mod assignments;

const DENIED: &str = "You do not have permission to manage tiers";
const NO_LIST: (&str, &str) = ("TIER001", DENIED);
/// What other routes have in the place of an id.
const RESERVED: [&str; 8] =
    ["assignments", "compare", "downgrade", "payment", "statistics", "temporary-upgrade", "trial", "upgrade"];

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(compare))
        .routes(routes!(statistics_of_all))
        .routes(routes!(read, update, delete))
        .routes(routes!(statistics))
        .merge(assignments::routes())
}

/// What a tier is sold as.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum TierName {
    Free,
    Pro,
    Enterprise,
    Custom,
}

/// A tier to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(examples(json!({ "tier_id": "gold", "name": "pro", "display_name": "Gold", "price_monthly": 49.9,
    "limits": { "requests_per_minute": 600, "monthly_request_quota": 1_000_000 } })))]
struct NewTier {
    tier_id: Text<1, 255>,
    name: TierName,
    display_name: AnyText,
    description: Option<AnyText>,
    limits: TierLimits,
    price_monthly: Option<Amount>,
    price_yearly: Option<Amount>,
    #[serde(default)]
    features: Vec<AnyText>,
    /// Users without an assignment have this tier, if it is enabled; of several such, the one with the smallest id.
    #[serde(default = "Flag::no")]
    is_default: Flag,
    /// One that is not binds only whom an assignment gives it, and is not told as one to upgrade to.
    #[serde(default = "Flag::yes")]
    enabled: Flag,
}

/// What to change of a tier; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct TierUpdate {
    name: Option<TierName>,
    display_name: Option<AnyText>,
    description: Option<AnyText>,
    /// Replaced as a whole.
    limits: Option<TierLimits>,
    price_monthly: Option<Amount>,
    price_yearly: Option<Amount>,
    features: Option<Vec<AnyText>>,
    is_default: Option<Flag>,
    enabled: Option<Flag>,
}

/// What users of a tier may use; null or 0: as much as they like. So are 999999 and more requests in a window.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct TierLimits {
    requests_per_second: Option<Int<0>>,
    requests_per_minute: Option<Int<0>>,
    requests_per_hour: Option<Int<0>>,
    requests_per_day: Option<Int<0>>,
    requests_per_month: Option<Int<0>>,
    /// Kept, without effect, as the next two: a window never lets more through than its limit.
    #[serde(default = "none")]
    burst_per_second: Int<0>,
    #[serde(default = "none")]
    burst_per_minute: Int<0>,
    #[serde(default = "none")]
    burst_per_hour: Int<0>,
    monthly_request_quota: Option<Int<0>>,
    daily_request_quota: Option<Int<0>>,
    /// In bytes.
    monthly_bandwidth_quota: Option<Int<0>>,
    /// Let calls wait instead of refusing them.
    #[serde(default = "Flag::no")]
    enable_throttling: Flag,
    /// The longest wait, in milliseconds.
    #[serde(default = "usual_wait")]
    max_queue_time_ms: Int<0>,
}

fn none() -> Int<0> {
    Int(0)
}

fn usual_wait() -> Int<0> {
    Int(5_000)
}

/// A part of the list of tiers.
#[derive(Debug, Serialize, ToSchema)]
struct Tiers {
    tiers: Vec<Map<String, Value>>,
    skip: usize,
    limit: usize,
    page: usize,
    page_size: usize,
    has_next: bool,
    total: usize,
}

/// How many users have a tier.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
struct TierStatistics {
    tier_id: String,
    total_users: u64,
    /// Users whose assignment holds now.
    active_users: u64,
    /// Users whose assignment has ended, or has not begun.
    inactive_users: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier_name: Option<String>,
}

/// What was done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TierDeleted)]
struct Deleted {
    status_code: u16,
    response_headers: Option<String>,
    response: Option<String>,
    message: &'static str,
    error_code: Option<String>,
    error_message: Option<String>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct TierFilter {
    /// Leave out what is switched off.
    #[param(default = false)]
    enabled_only: Option<Flag>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct TierId {
    /// The tier's id.
    tier_id: String,
}

fn unknown(status: StatusCode, tier_id: &str) -> Refusal {
    plainly(status, format!("Tier {tier_id} not found"))
}

fn shown(stored: &Document) -> Value {
    plain_document(stored).into()
}

fn deleted(message: &'static str) -> Response {
    let deleted = Deleted {
        status_code: StatusCode::OK.as_u16(),
        response_headers: None,
        response: None,
        message,
        error_code: None,
        error_message: None,
    };
    bare(StatusCode::OK, &deleted)
}

async fn must_manage(caller: &Caller, platform: &Platform) -> Result<(), Refusal> {
    caller.must_plainly(platform, Permission::ManageTiers, DENIED).await
}

/// Adds a tier. One of this id that exists is left as it is, which is no failure.
#[utoipa::path(post, path = "/platform/tiers", tag = "Tiers", request_body = NewTier,
    responses((status = 201, description = "The tier that there is now.", body = Value),
        (status = 400, description = "The id is one that routes have.")),
    security(("token" = ["manage_tiers"])))]
async fn create(State(platform): State<Platform>, sent: Sent<NewTier>) -> Result<Response, Refusal> {
    let Sent { caller, body: new } = sent;
    must_manage(&caller?, &platform).await?;
    let id = new.tier_id.0.as_str();
    if RESERVED.contains(&id) {
        return Err(plainly(StatusCode::BAD_REQUEST, format!("A tier can't have the id {id}: a route has that name")));
    }
    let mut document = serialize_to_document(&new).map_err(|error| failed(&error))?;
    let now = Moment::now();
    document.insert("created_at", now);
    document.insert("updated_at", now);
    let store = platform.identity.store();
    match store.insert(Collection::Tiers, document.clone()).await {
        Ok(()) => Ok(bare(StatusCode::CREATED, &shown(&document))),
        Err(StoreError::Taken) => {
            let stored = store.find(Collection::Tiers, &[id]).await?;
            Ok(bare(StatusCode::CREATED, &shown(stored.as_deref().unwrap_or(&document))))
        }
        Err(error) => Err(error.into()),
    }
}

/// Lists tiers.
#[utoipa::path(get, path = "/platform/tiers", tag = "Tiers", params(SliceQuery, PageQuery, TierFilter, SearchQuery),
    responses((status = 200, description = "Tiers; `search` looks at ids, names and descriptions.", body = Tiers)),
    security(("token" = ["manage_tiers"])), extensions(("x-error-codes" = json!(["400 PAG001", "403 TIER001"]))))]
async fn list(
    State(platform): State<Platform>,
    Asked(slice): Asked<SliceQuery>,
    Asked(page): Asked<PageQuery>,
    Asked(filter): Asked<TierFilter>,
    Asked(searched): Asked<SearchQuery>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageTiers, NO_LIST).await?;
    let (slice, search) = (slice.slice(&page, &platform)?, searched.search());
    let has_it = |tier: &Document| {
        let members = ["tier_id", "name", "display_name", "description"];
        search.as_ref().is_none_or(|search| search.is_in(members.iter().filter_map(|member| tier.get_str(member).ok())))
    };
    let mut found = platform.identity.store().all(Collection::Tiers).await?;
    let enabled_only = filter.enabled_only.is_some_and(|only| only.0);
    found.retain(|tier| (!enabled_only || is_enabled(tier)) && has_it(tier));
    let total = found.len();
    Ok(Answer::data(json!({
        "tiers": slice.cut(&found).into_iter().map(|tier| shown(tier)).collect::<Vec<_>>(),
        "skip": slice.skip,
        "limit": slice.limit,
        "page": slice.skip / slice.limit + 1,
        "page_size": slice.limit,
        "has_next": slice.skip.saturating_add(slice.limit) < total,
        "total": total,
    })))
}

/// Compares tiers, in the order they are asked for.
#[utoipa::path(post, path = "/platform/tiers/compare", tag = "Tiers", request_body = Vec<AnyText>,
    responses((status = 200, description = "Ids, names, limits, prices and features.", body = Vec<Value>),
        (status = 404, description = "There is no tier of one of the ids.")),
    security(("token" = ["manage_tiers"])))]
async fn compare(State(platform): State<Platform>, sent: SentList<AnyText>) -> Result<Response, Refusal> {
    const MEMBERS: [&str; 7] =
        ["tier_id", "name", "display_name", "limits", "price_monthly", "price_yearly", "features"];
    let SentList(Sent { caller, body: ids }) = sent;
    must_manage(&caller?, &platform).await?;
    let all = platform.identity.store().all(Collection::Tiers).await?;
    let by_id: BTreeMap<&str, &Document> =
        all.iter().filter_map(|tier| Some((tier.get_str("tier_id").ok()?, &**tier))).collect();
    let (mut asked, mut compared) = (BTreeSet::new(), Vec::new());
    for id in ids.iter().map(|id| id.0.as_str()) {
        let tier = by_id.get(id).ok_or_else(|| unknown(StatusCode::NOT_FOUND, id))?;
        if asked.insert(id) {
            let member = |name: &str| (name.to_owned(), tier.get(name).map_or(Value::Null, plain));
            compared.push(Value::Object(MEMBERS.into_iter().map(member).collect()));
        }
    }
    Ok(bare(StatusCode::OK, &compared))
}

/// How many users have each tier, by id.
async fn counted(platform: &Platform) -> Result<BTreeMap<String, TierStatistics>, StoreError> {
    let (store, now) = (platform.identity.store(), Moment::now());
    let named = |tier: &Document| {
        let tier_id = tier.get_str("tier_id").ok()?.to_owned();
        let tier_name = tier.get_str("name").ok().map(str::to_owned);
        Some((tier_id.clone(), TierStatistics { tier_id, tier_name, ..TierStatistics::default() }))
    };
    let mut tiers: BTreeMap<_, _> = store.all(Collection::Tiers).await?.iter().filter_map(|tier| named(tier)).collect();
    for assignment in store.all(Collection::TierAssignments).await? {
        let held = in_force(&assignment, now);
        let id = held.unwrap_or(&assignment).get_str("tier_id").unwrap_or_default();
        if let Some(tier) = tiers.get_mut(id) {
            tier.total_users += 1;
            *if held.is_some() { &mut tier.active_users } else { &mut tier.inactive_users } += 1;
        }
    }
    Ok(tiers)
}

/// Counts the users of every tier.
#[utoipa::path(get, path = "/platform/tiers/statistics/all", tag = "Tiers",
    responses((status = 200, description = "One item a tier.", body = Vec<TierStatistics>)),
    security(("token" = ["manage_tiers"])), extensions(("x-error-codes" = json!(["403 TIER001"]))))]
async fn statistics_of_all(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageTiers, NO_LIST).await?;
    let tiers: Vec<TierStatistics> = counted(&platform).await?.into_values().collect();
    Ok(Answer::data(json!(tiers)))
}

/// Counts the users of a tier.
#[utoipa::path(get, path = "/platform/tiers/{tier_id}/statistics", tag = "Tiers", params(TierId),
    responses((status = 200, description = "How many there are.", body = TierStatistics),
        (status = 404, description = "There is no such tier.")),
    security(("token" = ["manage_tiers"])), extensions(("x-error-codes" = json!(["403 TIER001"]))))]
async fn statistics(
    State(platform): State<Platform>,
    At(TierId { tier_id }): At<TierId>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageTiers, NO_LIST).await?;
    let counted = counted(&platform).await?.remove(&tier_id);
    let counted =
        counted.ok_or_else(|| Problem::without_code(StatusCode::NOT_FOUND, format!("Tier {tier_id} not found")))?;
    Ok(Answer::data(json!(TierStatistics { tier_name: None, ..counted })))
}

/// Reads a tier.
#[utoipa::path(get, path = "/platform/tiers/{tier_id}", tag = "Tiers", params(TierId),
    responses((status = 200, description = "The tier.", body = Value),
        (status = 404, description = "There is no such tier.")),
    security(("token" = ["manage_tiers"])))]
async fn read(
    State(platform): State<Platform>,
    At(TierId { tier_id }): At<TierId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let found = platform.identity.store().find(Collection::Tiers, &[&tier_id]).await?;
    Ok(bare(StatusCode::OK, &shown(&*found.ok_or_else(|| unknown(StatusCode::NOT_FOUND, &tier_id))?)))
}

/// Changes a tier; the next calls of its users see it.
#[utoipa::path(put, path = "/platform/tiers/{tier_id}", tag = "Tiers", params(TierId), request_body = TierUpdate,
    responses((status = 200, description = "The tier as it is now.", body = Value),
        (status = 404, description = "There is no such tier.")),
    security(("token" = ["manage_tiers"])))]
async fn update(
    State(platform): State<Platform>,
    At(TierId { tier_id }): At<TierId>,
    sent: Sent<TierUpdate>,
) -> Result<Response, Refusal> {
    let Sent { caller, body: update } = sent;
    must_manage(&caller?, &platform).await?;
    let missing = || unknown(StatusCode::NOT_FOUND, &tier_id);
    let store = platform.identity.store();
    let mut members = given(&update)?;
    if !members.is_empty() {
        members.insert("updated_at", Moment::now());
        if !store.set(Collection::Tiers, &[&tier_id], members).await? {
            return Err(missing());
        }
    }
    let stored = store.find(Collection::Tiers, &[&tier_id]).await?;
    Ok(bare(StatusCode::OK, &shown(&*stored.ok_or_else(missing)?)))
}

/// Deletes a tier that no assignment names.
#[utoipa::path(delete, path = "/platform/tiers/{tier_id}", tag = "Tiers", params(TierId),
    responses((status = 200, description = "The tier was deleted.", body = Deleted),
        (status = 400, description = "Users are assigned to it."),
        (status = 404, description = "There is no such tier.")),
    security(("token" = ["manage_tiers"])))]
async fn delete(
    State(platform): State<Platform>,
    At(TierId { tier_id }): At<TierId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let store = platform.identity.store();
    if store.find(Collection::Tiers, &[&tier_id]).await?.is_none() {
        return Err(unknown(StatusCode::NOT_FOUND, &tier_id));
    }
    let users = assignments::of_tier(store, &tier_id).await?.len();
    if users > 0 {
        let message = format!("Cannot delete tier {tier_id}: {users} users are assigned to it");
        return Err(plainly(StatusCode::BAD_REQUEST, message));
    }
    if !store.remove(Collection::Tiers, &[&tier_id]).await? {
        return Err(unknown(StatusCode::NOT_FOUND, &tier_id));
    }
    Ok(deleted("Tier deleted"))
}
