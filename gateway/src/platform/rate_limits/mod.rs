//! Rules on the rate of calls: `/platform/rate-limits` (reference: platform API 15).
//!
//! Answers have no envelope; refusals are `{"detail": ...}`, of a target that the type of its rule doesn't take
//! `{"errors": [...]}`. What always holds: every rule that is stored here can be read as a [`Rule`].

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, response::Response};
use doorman_crds::role::Permission;
use http::StatusCode;
use mongodb::bson::{Bson, Document, doc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Refusal, bare, plainly},
    request::{Asked, At, Caller, Origin, PageQuery, Search, Sent, SliceQuery},
    wire::{AnyText, Flag, Int, Text, given},
};
use crate::store::{
    Collection, Moment, Store, StoreError, plain_document,
    rules::{Rule, RuleType, Target, TimeWindow},
};

mod bulk;

const DENIED: &str = "You do not have permission to manage rate limit rules";
/// What other routes have in the place of an id.
const RESERVED: [&str; 4] = ["bulk", "search", "statistics", "status"];

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(search))
        .routes(routes!(status))
        .routes(routes!(statistics))
        .merge(bulk::routes())
        .routes(routes!(read, update, delete))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(duplicate))
}

/// A rule to add.
///
/// What `target_identifier` is depends on `rule_type`:
///
/// | `rule_type` | `target_identifier` |
/// |---|---|
/// | `per_user` | the name of a user |
/// | `per_api` | `name/version` of an API |
/// | `per_endpoint` | method, API and path of an endpoint, such as `GET /orders/v1/items/{id}` |
/// | `per_ip` | an IP address or a CIDR |
/// | `per_user_api` | as `per_api`; left out: any API, each counted by itself |
/// | `per_user_endpoint` | as `per_endpoint`; left out: any endpoint, each counted by itself |
/// | `global` | left out |
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = NewRateLimitRule, examples(json!({ "rule_id": "orders-per-user", "rule_type": "per_user_api",
    "time_window": "minute", "limit": 100, "target_identifier": "orders/v1" })))]
struct NewRule {
    rule_id: Text<1, 255>,
    #[schema(value_type = RuleType)]
    rule_type: AnyText,
    #[schema(value_type = TimeWindow)]
    time_window: AnyText,
    /// Calls in one window.
    limit: Int<1>,
    target_identifier: Option<AnyText>,
    /// Kept, without effect: a window never lets more through than its limit.
    #[serde(default = "none")]
    burst_allowance: Int<0>,
    /// Rules with a larger one come first.
    #[serde(default = "usual")]
    priority: Int<{ i64::MIN }>,
    #[serde(default = "Flag::yes")]
    enabled: Flag,
    description: Option<AnyText>,
}

fn none() -> Int<0> {
    Int(0)
}

fn usual() -> Int<{ i64::MIN }> {
    Int(0)
}

/// What to change of a rule; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = RateLimitRuleUpdate)]
struct RuleUpdate {
    limit: Option<Int<1>>,
    /// In the form that the type of the rule asks for.
    target_identifier: Option<AnyText>,
    /// Kept, without effect.
    burst_allowance: Option<Int<0>>,
    priority: Option<Int<{ i64::MIN }>>,
    enabled: Option<Flag>,
    description: Option<AnyText>,
}

/// How to call a copy.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RateLimitRuleCopy)]
struct Copy {
    new_rule_id: Text<1, 255>,
}

/// How many rules there are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RateLimitStatistics)]
struct Statistics {
    total_rules: usize,
    enabled_rules: usize,
    disabled_rules: usize,
    rules_by_type: BTreeMap<String, usize>,
}

/// The rules that calls of the caller may fall under.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RateLimitStatus)]
struct Status {
    user_id: String,
    applicable_rules: Vec<ApplicableRule>,
    note: &'static str,
}

/// What its callers are told of a rule.
#[derive(Debug, Serialize, ToSchema)]
struct ApplicableRule {
    rule_id: String,
    rule_type: RuleType,
    time_window: TimeWindow,
    limit: u64,
    burst_allowance: u64,
    description: Option<String>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RuleFilter {
    /// Rules of this type only.
    #[param(value_type = Option<RuleType>)]
    rule_type: Option<String>,
    /// Leave out what is switched off.
    #[param(default = false)]
    enabled_only: Option<Flag>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RuleSearch {
    /// Text to find in ids, descriptions and targets, in upper or lower case; it is no pattern.
    q: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct RuleId {
    /// The rule's id.
    rule_id: String,
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    plainly(StatusCode::BAD_REQUEST, message)
}

fn unknown(rule_id: &str) -> Refusal {
    plainly(StatusCode::NOT_FOUND, format!("Rule {rule_id} not found"))
}

fn taken(rule_id: &str) -> Refusal {
    refused(format!("Rule with ID {rule_id} already exists"))
}

fn errors(errors: &[String]) -> Response {
    bare(StatusCode::BAD_REQUEST, &json!({ "errors": errors }))
}

fn shown(stored: &Document) -> Value {
    let mut members = plain_document(stored);
    members.remove("created_by");
    members.into()
}

fn is_enabled(rule: &Document) -> bool {
    rule.get_bool("enabled").unwrap_or(true)
}

async fn must_manage(caller: &Caller, platform: &Platform) -> Result<(), Refusal> {
    caller.must_plainly(platform, Permission::ManageRateLimits, DENIED).await
}

/// All rules, those that are looked at first first.
async fn all(store: &Store) -> Result<Vec<Arc<Document>>, StoreError> {
    let priority = |rule: &Arc<Document>| Rule::from_document(rule).map_or(0, |rule| rule.priority);
    let mut rules = store.all(Collection::RateLimitRules).await?;
    rules.sort_by_key(|rule| std::cmp::Reverse(priority(rule)));
    Ok(rules)
}

async fn find(store: &Store, rule_id: &str) -> Result<Arc<Document>, Refusal> {
    store.find(Collection::RateLimitRules, &[rule_id]).await?.ok_or_else(|| unknown(rule_id))
}

/// Adds a rule under an id of its own.
async fn add(store: &Store, rule_id: &str, by: &str, mut rule: Document) -> Result<Response, Refusal> {
    if RESERVED.contains(&rule_id) {
        return Err(refused(format!("A rule can't have the ID {rule_id}: a route has that name")));
    }
    let now = Moment::now();
    rule.extend(doc! { "rule_id": rule_id, "created_at": now, "updated_at": now, "created_by": by });
    match store.insert(Collection::RateLimitRules, rule.clone()).await {
        Ok(()) => Ok(bare(StatusCode::CREATED, &shown(&rule))),
        Err(StoreError::Taken) => Err(taken(rule_id)),
        Err(error) => Err(error.into()),
    }
}

/// Sets members of a rule and shows it.
async fn set(store: &Store, rule_id: &str, mut members: Document) -> Result<Response, Refusal> {
    members.insert("updated_at", Moment::now());
    if !store.set(Collection::RateLimitRules, &[rule_id], members).await? {
        return Err(unknown(rule_id));
    }
    Ok(bare(StatusCode::OK, &shown(&*find(store, rule_id).await?)))
}

async fn switch(platform: &Platform, caller: &Caller, rule_id: &str, is_on: bool) -> Result<Response, Refusal> {
    must_manage(caller, platform).await?;
    set(platform.identity.store(), rule_id, doc! { "enabled": is_on }).await
}

/// Adds a rate-limit rule.
#[utoipa::path(post, path = "/platform/rate-limits", tag = "Rate limits", request_body = NewRule,
    responses((status = 201, description = "The rule.", body = Value),
        (status = 400, description = "There is a rule of this id; or type, window or target are none.", body = Value)),
    security(("token" = ["manage_rate_limits"])))]
async fn create(State(platform): State<Platform>, sent: Sent<NewRule>) -> Result<Response, Refusal> {
    let Sent { caller, body: new } = sent;
    let caller = caller?;
    must_manage(&caller, &platform).await?;
    let rule_type = RuleType::parse(&new.rule_type.0).map_err(refused)?;
    TimeWindow::parse(&new.time_window.0).map_err(refused)?;
    if let Err(error) = Target::parse(rule_type, new.target_identifier.as_ref().map(|target| &*target.0)) {
        return Ok(errors(&[error]));
    }
    let mut rule = given(&new)?;
    for member in ["target_identifier", "description"] {
        rule.entry(member).or_insert(Bson::Null);
    }
    add(platform.identity.store(), &new.rule_id.0, &caller.0.principal.username, rule).await
}

/// Lists rate-limit rules, those with the largest priority first.
#[utoipa::path(get, path = "/platform/rate-limits", tag = "Rate limits", params(RuleFilter, SliceQuery, PageQuery),
    responses((status = 200, description = "The rules.", body = Vec<Value>),
        (status = 400, description = "There is no such type, or no such page.")),
    security(("token" = ["manage_rate_limits"])), extensions(("x-error-codes" = json!(["400 PAG001"]))))]
async fn list(
    State(platform): State<Platform>,
    Asked(filter): Asked<RuleFilter>,
    Asked(slice): Asked<SliceQuery>,
    Asked(page): Asked<PageQuery>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let slice = slice.slice(&page, &platform)?;
    if let Some(rule_type) = &filter.rule_type {
        RuleType::parse(rule_type).map_err(refused)?;
    }
    let enabled_only = filter.enabled_only.is_some_and(|only| only.0);
    let is_asked = |rule: &Document| {
        (!enabled_only || is_enabled(rule))
            && filter.rule_type.as_deref().is_none_or(|asked| rule.get_str("rule_type").is_ok_and(|it| it == asked))
    };
    let mut rules = all(platform.identity.store()).await?;
    rules.retain(|rule| is_asked(rule));
    Ok(bare(StatusCode::OK, &slice.cut(&rules).into_iter().map(|rule| shown(rule)).collect::<Vec<_>>()))
}

/// Searches rate-limit rules.
#[utoipa::path(get, path = "/platform/rate-limits/search", tag = "Rate limits", params(RuleSearch),
    responses((status = 200, description = "The rules, those with the largest priority first.", body = Vec<Value>)),
    security(("token" = ["manage_rate_limits"])))]
async fn search(
    State(platform): State<Platform>,
    Asked(RuleSearch { q }): Asked<RuleSearch>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let search = Search::new(&q);
    let members = ["rule_id", "description", "target_identifier"];
    let has_it = |rule: &Document| search.is_in(members.iter().filter_map(|member| rule.get_str(member).ok()));
    let mut rules = all(platform.identity.store()).await?;
    rules.retain(|rule| has_it(rule));
    Ok(bare(StatusCode::OK, &rules.iter().map(|rule| shown(rule)).collect::<Vec<_>>()))
}

/// Tells the rate-limit rules that calls of the caller may fall under.
#[utoipa::path(get, path = "/platform/rate-limits/status", tag = "Rate limits",
    responses((status = 200, description = "The rules that are switched on.", body = Status)),
    security(("token" = [])))]
async fn status(State(platform): State<Platform>, caller: Caller, origin: Origin) -> Result<Response, Refusal> {
    let username = &*caller.0.principal.username;
    let told = |stored: &Document| {
        let rule = Rule::from_document(stored).filter(|rule| rule.is_enabled)?;
        rule.can_apply(username, origin.address).then(|| ApplicableRule {
            rule_id: rule.id,
            rule_type: rule.rule_type,
            time_window: rule.window,
            limit: rule.limit,
            burst_allowance: rule.burst,
            description: stored.get_str("description").ok().map(str::to_owned),
        })
    };
    let rules = all(platform.identity.store()).await?;
    let status = Status {
        user_id: username.to_owned(),
        applicable_rules: rules.iter().filter_map(|rule| told(rule)).collect(),
        note: "A rule on an API or endpoint counts only calls to it; how much is used up is not told here.",
    };
    Ok(bare(StatusCode::OK, &status))
}

/// Counts rate-limit rules.
#[utoipa::path(get, path = "/platform/rate-limits/statistics/summary", tag = "Rate limits",
    responses((status = 200, description = "How many there are.", body = Statistics)),
    security(("token" = ["manage_rate_limits"])))]
async fn statistics(State(platform): State<Platform>, caller: Caller) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let rules = platform.identity.store().all(Collection::RateLimitRules).await?;
    let enabled_rules = rules.iter().filter(|rule| is_enabled(rule)).count();
    let mut rules_by_type = BTreeMap::new();
    for rule_type in rules.iter().filter_map(|rule| rule.get_str("rule_type").ok()) {
        *rules_by_type.entry(rule_type.to_owned()).or_default() += 1;
    }
    let disabled_rules = rules.len() - enabled_rules;
    Ok(bare(StatusCode::OK, &Statistics { total_rules: rules.len(), enabled_rules, disabled_rules, rules_by_type }))
}

/// Reads a rate-limit rule.
#[utoipa::path(get, path = "/platform/rate-limits/{rule_id}", tag = "Rate limits", params(RuleId),
    responses((status = 200, description = "The rule.", body = Value),
        (status = 404, description = "There is no such rule.")),
    security(("token" = ["manage_rate_limits"])))]
async fn read(
    State(platform): State<Platform>,
    At(RuleId { rule_id }): At<RuleId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    Ok(bare(StatusCode::OK, &shown(&*find(platform.identity.store(), &rule_id).await?)))
}

/// Changes a rate-limit rule.
#[utoipa::path(put, path = "/platform/rate-limits/{rule_id}", tag = "Rate limits", params(RuleId),
    request_body = RuleUpdate,
    responses((status = 200, description = "The rule as it is now.", body = Value),
        (status = 400, description = "The type of the rule doesn't take the target.", body = Value),
        (status = 404, description = "There is no such rule.")),
    security(("token" = ["manage_rate_limits"])))]
async fn update(
    State(platform): State<Platform>,
    At(RuleId { rule_id }): At<RuleId>,
    sent: Sent<RuleUpdate>,
) -> Result<Response, Refusal> {
    let Sent { caller, body: update } = sent;
    must_manage(&caller?, &platform).await?;
    let store = platform.identity.store();
    let stored = find(store, &rule_id).await?;
    if let Some(target) = &update.target_identifier {
        let rule_type = RuleType::parse(stored.get_str("rule_type").unwrap_or_default()).map_err(refused)?;
        if let Err(error) = Target::parse(rule_type, Some(&target.0)) {
            return Ok(errors(&[error]));
        }
    }
    set(store, &rule_id, given(&update)?).await
}

/// Deletes a rate-limit rule.
#[utoipa::path(delete, path = "/platform/rate-limits/{rule_id}", tag = "Rate limits", params(RuleId),
    responses((status = 200, description = "`deleted` and `rule_id`.", body = Value),
        (status = 404, description = "There is no such rule.")),
    security(("token" = ["manage_rate_limits"])))]
async fn delete(
    State(platform): State<Platform>,
    At(RuleId { rule_id }): At<RuleId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    if !platform.identity.store().remove(Collection::RateLimitRules, &[&rule_id]).await? {
        return Err(unknown(&rule_id));
    }
    Ok(bare(StatusCode::OK, &json!({ "deleted": true, "rule_id": rule_id })))
}

/// Switches a rate-limit rule on.
#[utoipa::path(post, path = "/platform/rate-limits/{rule_id}/enable", tag = "Rate limits", params(RuleId),
    responses((status = 200, description = "The rule as it is now.", body = Value),
        (status = 404, description = "There is no such rule.")),
    security(("token" = ["manage_rate_limits"])))]
async fn enable(
    State(platform): State<Platform>,
    At(RuleId { rule_id }): At<RuleId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    switch(&platform, &caller, &rule_id, true).await
}

/// Switches a rate-limit rule off.
#[utoipa::path(post, path = "/platform/rate-limits/{rule_id}/disable", tag = "Rate limits", params(RuleId),
    responses((status = 200, description = "The rule as it is now.", body = Value),
        (status = 404, description = "There is no such rule.")),
    security(("token" = ["manage_rate_limits"])))]
async fn disable(
    State(platform): State<Platform>,
    At(RuleId { rule_id }): At<RuleId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    switch(&platform, &caller, &rule_id, false).await
}

/// Adds a copy of a rate-limit rule under another id.
#[utoipa::path(post, path = "/platform/rate-limits/{rule_id}/duplicate", tag = "Rate limits", params(RuleId),
    request_body = Copy,
    responses((status = 201, description = "The copy.", body = Value),
        (status = 400, description = "There is no such rule, or one of the new id.")),
    security(("token" = ["manage_rate_limits"])))]
async fn duplicate(
    State(platform): State<Platform>,
    At(RuleId { rule_id }): At<RuleId>,
    sent: Sent<Copy>,
) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    must_manage(&caller, &platform).await?;
    let store = platform.identity.store();
    let Some(source) = store.find(Collection::RateLimitRules, &[&rule_id]).await? else {
        return Err(refused(format!("Source rule {rule_id} not found")));
    };
    let mut copy = Document::clone(&source);
    copy.remove("_id");
    copy.insert("description", format!("Copy of {rule_id}"));
    add(store, &body.new_rule_id.0, &caller.0.principal.username, copy).await
}
