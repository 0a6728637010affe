//! Quotas: what a signed-in user has used up of the own tier, `/platform/quota` (reference: platform API 16).
//!
//! What is told here is what calls are measured by: the same limits, the same counters. Answers have no envelope.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use mongodb::bson::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Refusal, bare},
    request::{Asked, At, Caller},
};
use crate::{
    accounting::{Allowance, HeldTier},
    store::{Collection, Moment, plain, tiers::is_enabled},
};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(status))
        .routes(routes!(read))
        .routes(routes!(history))
        .routes(routes!(export))
        .routes(routes!(tier))
        .routes(routes!(bursts))
}

/// What there are quotas of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum QuotaType {
    /// Requests from the first of the month.
    MonthlyRequests,
    /// Requests from midnight (UTC).
    DailyRequests,
    /// Bytes from the first of the month.
    MonthlyBandwidth,
}

impl QuotaType {
    const ALL: [Self; 3] = [Self::MonthlyRequests, Self::DailyRequests, Self::MonthlyBandwidth];

    fn name(self) -> &'static str {
        match self {
            Self::MonthlyRequests => "monthly_requests",
            Self::DailyRequests => "daily_requests",
            Self::MonthlyBandwidth => "monthly_bandwidth",
        }
    }
}

/// How far a quota is used up.
#[derive(Debug, Serialize, ToSchema)]
struct Quota {
    quota_type: QuotaType,
    current_usage: u64,
    limit: u64,
    remaining: u64,
    percentage_used: f64,
    reset_at: Moment,
    /// From 80 percent on.
    is_warning: bool,
    /// From 95 percent on.
    is_critical: bool,
    is_exhausted: bool,
    /// Always 0, as the next two: bursts let nothing more through.
    burst_used: u64,
    burst_limit: u64,
    burst_percentage: f64,
}

impl Quota {
    fn new(quota_type: QuotaType, limit: u64, used: u64, reset_at: Moment) -> Self {
        let percentage_used = (used as f64 * 10_000.0 / limit.max(1) as f64).round() / 100.0;
        Self {
            quota_type,
            current_usage: used,
            limit,
            remaining: limit.saturating_sub(used),
            percentage_used,
            reset_at,
            is_warning: percentage_used >= 80.0,
            is_critical: percentage_used >= 95.0,
            is_exhausted: used >= limit,
            burst_used: 0,
            burst_limit: 0,
            burst_percentage: 0.0,
        }
    }
}

/// The quotas of the caller's tier.
async fn quotas(platform: &Platform, caller: &Caller) -> Result<Vec<Quota>, Refusal> {
    let limits = platform.accounts.of_user(&caller.0.principal.username).await?;
    let requests = limits.tier.quotas.iter().map(|(allowance, window)| match *window {
        "day" => (QuotaType::DailyRequests, allowance),
        _ => (QuotaType::MonthlyRequests, allowance),
    });
    let bytes = limits.tier.bandwidth.iter().map(|allowance| (QuotaType::MonthlyBandwidth, allowance));
    let all: Vec<(QuotaType, &Allowance)> = requests.chain(bytes).collect();
    let mut quotas = Vec::with_capacity(all.len());
    for (kind, allowance) in all {
        let (used, resets_at) = platform.accounts.used(allowance).await?;
        quotas.push(Quota::new(kind, allowance.limit, used, resets_at));
    }
    Ok(quotas)
}

fn missing(reason: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::Detail(StatusCode::NOT_FOUND, reason.into())
}

async fn held(platform: &Platform, caller: &Caller, reason: &'static str) -> Result<HeldTier, Refusal> {
    platform.accounts.held_tier(&caller.0.principal.username).await?.ok_or_else(|| missing(reason))
}

const NO_TIER: &str = "No tier assigned to user";
const NO_LIMITS: &str = "No limits found for user";

fn text<'a>(tier: &'a Document, member: &str) -> &'a str {
    tier.get_str(member).unwrap_or_default()
}

fn member(tier: &Document, member: &str) -> Value {
    tier.get(member).map_or(Value::Null, plain)
}

fn info(held: &HeldTier) -> Value {
    let tier = &held.tier;
    json!({
        "tier_id": text(tier, "tier_id"), "tier_name": text(tier, "name"), "display_name": text(tier, "display_name"),
        "limits": plain(&held.limits.clone().into()), "price_monthly": member(tier, "price_monthly"),
        "features": tier.get("features").map_or_else(|| json!([]), plain),
    })
}

/// The caller's tier, and how far its quotas are used up.
#[utoipa::path(get, path = "/platform/quota/status", tag = "Quotas",
    responses((status = 200, description = "Tier and quotas.", body = Value),
        (status = 404, description = "The caller has no tier.")), security(("token" = [])))]
async fn status(State(platform): State<Platform>, caller: Caller) -> Result<Response, Refusal> {
    let held = held(&platform, &caller, NO_TIER).await?;
    let quotas = quotas(&platform, &caller).await?;
    let of = |kind| quotas.iter().find(|quota: &&Quota| quota.quota_type == kind);
    let requests = of(QuotaType::MonthlyRequests).or_else(|| of(QuotaType::DailyRequests));
    let summary = json!({
        "total_requests_used": requests.map_or(0, |quota| quota.current_usage),
        "total_requests_limit": requests.map(|quota| quota.limit),
        "has_warnings": quotas.iter().any(|quota| quota.is_warning),
        "has_critical": quotas.iter().any(|quota| quota.is_critical),
        "has_exhausted": quotas.iter().any(|quota| quota.is_exhausted),
    });
    let username = &*caller.0.principal.username;
    let answer = json!({ "user_id": username, "tier_info": info(&held), "quotas": quotas, "usage_summary": summary });
    Ok(bare(StatusCode::OK, &answer))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Which {
    /// `monthly_requests`, `daily_requests` or `monthly_bandwidth`.
    quota_type: String,
}

/// How far one quota of the caller is used up.
#[utoipa::path(get, path = "/platform/quota/status/{quota_type}", tag = "Quotas", params(Which),
    responses((status = 200, description = "The quota.", body = Quota),
        (status = 404, description = "The caller has no tier, or that has no such quota."),
        (status = 400, description = "There is no such type.")), security(("token" = [])))]
async fn read(State(platform): State<Platform>, At(which): At<Which>, caller: Caller) -> Result<Response, Refusal> {
    held(&platform, &caller, NO_LIMITS).await?;
    let Some(kind) = QuotaType::ALL.into_iter().find(|kind| kind.name() == which.quota_type) else {
        let reason = format!("Invalid quota type: {}", which.quota_type);
        return Err(Refusal::Detail(StatusCode::BAD_REQUEST, reason.into()));
    };
    let quotas = quotas(&platform, &caller).await?;
    let quota = quotas.iter().find(|quota| quota.quota_type == kind);
    let not_set = || missing(format!("Quota {} not configured for user", kind.name()));
    Ok(bare(StatusCode::OK, quota.ok_or_else(not_set)?))
}

/// Past months: not kept.
#[utoipa::path(get, path = "/platform/quota/usage/history", tag = "Quotas",
    responses((status = 200, description = "An empty history, and why.", body = Value)), security(("token" = [])))]
async fn history(caller: Caller) -> Response {
    let note = "Only the current day and month are counted; analytics has the traffic of the past 90 days";
    bare(StatusCode::OK, &json!({ "user_id": &*caller.0.principal.username, "history": [], "note": note }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    /// `json` (default) or `csv`.
    #[param(inline)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Csv,
}

/// The caller's quotas, to keep.
#[utoipa::path(post, path = "/platform/quota/usage/export", tag = "Quotas", params(ExportQuery),
    responses((status = 200, description = "The format and the data.", body = Value),
        (status = 404, description = "The caller has no tier.")), security(("token" = [])))]
async fn export(
    State(platform): State<Platform>,
    caller: Caller,
    Asked(query): Asked<ExportQuery>,
) -> Result<Response, Refusal> {
    held(&platform, &caller, NO_LIMITS).await?;
    let quotas = quotas(&platform, &caller).await?;
    let answer = match query.format.unwrap_or_default() {
        Format::Json => {
            let row = |quota: &Quota| {
                json!({ "type": quota.quota_type, "current_usage": quota.current_usage, "limit": quota.limit,
                    "remaining": quota.remaining, "percentage_used": quota.percentage_used,
                    "reset_at": quota.reset_at })
            };
            let rows: Vec<Value> = quotas.iter().map(row).collect();
            let user = &*caller.0.principal.username;
            let data = json!({ "user_id": user, "export_date": Moment::now(), "quotas": rows });
            json!({ "format": "json", "data": data })
        }
        Format::Csv => {
            let row = |quota: &Quota| {
                let Quota { quota_type, current_usage, limit, remaining, percentage_used, reset_at, .. } = quota;
                format!("{},{current_usage},{limit},{remaining},{percentage_used},{reset_at}\n", quota_type.name())
            };
            let rows: String = quotas.iter().map(row).collect();
            let text = format!("Type,Current Usage,Limit,Remaining,Percentage Used,Reset At\n{rows}");
            json!({ "format": "csv", "data": text })
        }
    };
    Ok(bare(StatusCode::OK, &answer).into_response())
}

/// The caller's tier, and the others there are.
#[utoipa::path(get, path = "/platform/quota/tier/info", tag = "Quotas",
    responses((status = 200, description = "The tier and what to upgrade to.", body = Value),
        (status = 404, description = "The caller has no tier.")),
    security(("token" = [])))]
async fn tier(State(platform): State<Platform>, caller: Caller) -> Result<Response, Refusal> {
    let held = held(&platform, &caller, NO_TIER).await?;
    let own = text(&held.tier, "tier_id");
    let all = platform.identity.store().all(Collection::Tiers).await?;
    let is_option = |tier: &&std::sync::Arc<Document>| is_enabled(tier) && text(tier, "tier_id") != own;
    let option = |tier: &std::sync::Arc<Document>| {
        json!({ "tier_id": text(tier, "tier_id"), "display_name": text(tier, "display_name"),
            "price_monthly": member(tier, "price_monthly"),
            "features": tier.get("features").map_or_else(|| json!([]), plain) })
    };
    let options: Vec<Value> = all.iter().filter(is_option).map(option).collect();
    Ok(bare(StatusCode::OK, &json!({ "current_tier": info(&held), "upgrade_options": options })))
}

/// What the caller's tier says of bursts.
#[utoipa::path(get, path = "/platform/quota/burst/status", tag = "Quotas",
    responses((status = 200, description = "The limits, and that nothing is used of them.", body = Value),
        (status = 404, description = "The caller has no tier.")),
    security(("token" = [])))]
async fn bursts(State(platform): State<Platform>, caller: Caller) -> Result<Response, Refusal> {
    let held = held(&platform, &caller, NO_TIER).await?;
    let limit = |name: &str| held.limits.get(format!("burst_{name}")).map_or_else(|| json!(0), plain);
    let limits = json!({ "per_minute": limit("per_minute"), "per_hour": limit("per_hour"),
        "per_second": limit("per_second") });
    let note = "A window never lets more through than its limit; bursts within it are free";
    let answer = json!({ "user_id": &*caller.0.principal.username, "burst_limits": limits,
        "burst_usage": { "per_minute": 0, "per_hour": 0, "per_second": 0 }, "note": note });
    Ok(bare(StatusCode::OK, &answer))
}
