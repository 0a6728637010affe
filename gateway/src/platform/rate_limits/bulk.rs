//! Several rules at once.

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use http::StatusCode;
use mongodb::bson::doc;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::must_manage;
use crate::{
    platform::{
        Platform,
        answer::{Refusal, bare},
        request::Sent,
        wire::AnyText,
    },
    store::{Collection, Moment, Store, StoreError},
};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(delete_many)).routes(routes!(enable_many)).routes(routes!(disable_many))
}

/// Several rules.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RateLimitRuleIds)]
struct RuleIds {
    rule_ids: Vec<AnyText>,
}

/// Those of the ids that rules have.
async fn existing(store: &Store, ids: RuleIds) -> Result<Vec<String>, StoreError> {
    let asked: BTreeSet<String> = ids.rule_ids.into_iter().map(|id| id.0).collect();
    let all = store.all(Collection::RateLimitRules).await?;
    let ids = all.iter().filter_map(|rule| rule.get_str("rule_id").ok());
    Ok(ids.filter(|id| asked.contains(*id)).map(str::to_owned).collect())
}

/// Deletes rate-limit rules; ids of none are passed over.
#[utoipa::path(post, path = "/platform/rate-limits/bulk/delete", tag = "Rate limits", request_body = RuleIds,
    responses((status = 200, description = "`deleted_count`.", body = Value)),
    security(("token" = ["manage_rate_limits"])))]
async fn delete_many(State(platform): State<Platform>, sent: Sent<RuleIds>) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    must_manage(&caller?, &platform).await?;
    let store = platform.identity.store();
    let mut count = 0;
    for id in existing(store, body).await? {
        count += u32::from(store.remove(Collection::RateLimitRules, &[&id]).await?);
    }
    Ok(bare(StatusCode::OK, &json!({ "deleted_count": count })))
}

/// Switches rules on or off and counts them.
async fn switch_many(platform: &Platform, sent: Sent<RuleIds>, is_on: bool) -> Result<u32, Refusal> {
    let Sent { caller, body } = sent;
    must_manage(&caller?, platform).await?;
    let (store, mut count) = (platform.identity.store(), 0);
    for id in existing(store, body).await? {
        let members = doc! { "enabled": is_on, "updated_at": Moment::now() };
        count += u32::from(store.set(Collection::RateLimitRules, &[&id], members).await?);
    }
    Ok(count)
}

/// Switches rate-limit rules on; ids of none are passed over.
#[utoipa::path(post, path = "/platform/rate-limits/bulk/enable", tag = "Rate limits", request_body = RuleIds,
    responses((status = 200, description = "`enabled_count`.", body = Value)),
    security(("token" = ["manage_rate_limits"])))]
async fn enable_many(State(platform): State<Platform>, sent: Sent<RuleIds>) -> Result<Response, Refusal> {
    Ok(bare(StatusCode::OK, &json!({ "enabled_count": switch_many(&platform, sent, true).await? })))
}

/// Switches rate-limit rules off; ids of none are passed over.
#[utoipa::path(post, path = "/platform/rate-limits/bulk/disable", tag = "Rate limits", request_body = RuleIds,
    responses((status = 200, description = "`disabled_count`.", body = Value)),
    security(("token" = ["manage_rate_limits"])))]
async fn disable_many(State(platform): State<Platform>, sent: Sent<RuleIds>) -> Result<Response, Refusal> {
    Ok(bare(StatusCode::OK, &json!({ "disabled_count": switch_many(&platform, sent, false).await? })))
}
